//! Ternary formats: TQ1_0, TQ2_0.

super::stub_formats!(Tq1_0: TQ1_0, Tq2_0: TQ2_0);
