//! Codebook and non-linear formats: IQ1_*, IQ2_*, IQ3_*, IQ4_*.

pub mod neighbours;
pub mod tables;

pub(crate) mod iq1;
pub(crate) mod iq1_m;
pub(crate) mod iq1_s;
mod iq4_nl;
mod iq4_xs;

pub use iq1_m::Iq1M;
pub use iq1_s::Iq1S;
pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;

super::stub_formats!(Iq2Xxs: IQ2_XXS, Iq2Xs: IQ2_XS, Iq2S: IQ2_S, Iq3Xxs: IQ3_XXS, Iq3S: IQ3_S);
