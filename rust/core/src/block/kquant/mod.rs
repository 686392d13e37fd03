//! K-quants: 256 elements with quantized scales: Q2_K to Q6_K, Q8_K.
//!
//! The searches give scales (and minimums) per sub-block; these are quantized against a super-scale that is stored as
//! f16; then every element is quantized again with the scales as they will be decoded, except where a scale became 0:
//! there the codes of the search stay.

pub(crate) mod q2_k;
mod q3_k;
pub(crate) mod q4_k;
pub(crate) mod q5_k;
mod q6_k;
mod q8_k;

pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_k::Q4K;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_k::Q8K;

use crate::block::search::{sum_squares, weight};
use crate::float::{f16_to_f32, f32_to_f16};

/// `x` after a round trip through f16.
pub(crate) fn rounded(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x))
}

/// The largest value above 0, else 0 (NaN is passed over).
fn positive_max(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |m, x| if *x > m { *x } else { m })
}

/// Importance weights of a block, `importance·sqrt(σ² + x²)`, and their sums per sub-block.
fn importance_weights<const SUBS: usize>(
    x: &[f32; 256],
    importance: &[f32; 256],
    sigma2: f32,
) -> ([f32; 256], [f32; SUBS]) {
    let w: [f32; 256] = std::array::from_fn(|i| weight(importance[i], sigma2, x[i]));
    let sums = std::array::from_fn(|j| w[256 / SUBS * j..][..256 / SUBS].iter().fold(0f32, |s, w| s + w));
    (w, sums)
}

/// σ² of a block for most types: twice the mean square.
fn twice_mean_square(x: &[f32; 256]) -> f32 {
    2.0 * sum_squares(x) / 256.0
}
