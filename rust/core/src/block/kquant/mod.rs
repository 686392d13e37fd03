//! K-quants: 256 elements with quantized scales: Q2_K to Q6_K, Q8_K.

super::stub_formats!(Q2K: Q2_K, Q3K: Q3_K, Q4K: Q4_K, Q5K: Q5_K, Q6K: Q6_K, Q8K: Q8_K);
