//! Codebook and non-linear formats: IQ1_*, IQ2_*, IQ3_*, IQ4_*.

super::stub_formats!(Iq2Xxs: IQ2_XXS, Iq2Xs: IQ2_XS, Iq2S: IQ2_S, Iq3Xxs: IQ3_XXS, Iq3S: IQ3_S, Iq1S: IQ1_S, Iq1M: IQ1_M, Iq4Nl: IQ4_NL, Iq4Xs: IQ4_XS);
