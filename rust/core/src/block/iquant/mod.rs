//! Codebook and non-linear formats: IQ1_*, IQ2_*, IQ3_*, IQ4_*.

pub mod neighbours;
pub mod tables;

mod iq4_nl;
mod iq4_xs;

pub(crate) use iq4_nl::EPS as IQ4_EPS;
pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;

super::stub_formats!(Iq1S: IQ1_S, Iq1M: IQ1_M);
super::stub_formats!(Iq2Xxs: IQ2_XXS, Iq2Xs: IQ2_XS, Iq2S: IQ2_S, Iq3Xxs: IQ3_XXS, Iq3S: IQ3_S);
