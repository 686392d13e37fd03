//! Blocks of 32 (64, 128) elements with f16 scales: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q1_0, Q2_0.

mod q8_0;

pub use q8_0::Q8_0;
super::stub_formats!(Q4_0: Q4_0, Q4_1: Q4_1, Q5_0: Q5_0, Q5_1: Q5_1, Q8_1: Q8_1, Q1_0: Q1_0, Q2_0: Q2_0);
