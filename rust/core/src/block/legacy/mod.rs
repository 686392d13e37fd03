//! Blocks of 32 (64, 128) elements with f16 scales: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q1_0, Q2_0.

mod q1_0;
mod q2_0;
mod q4;
mod q5;
mod q8_0;
mod q8_1;

pub use q1_0::Q1_0;
pub use q2_0::Q2_0;
pub use q4::{Q4_0, Q4_1};
pub use q5::{Q5_0, Q5_1};
pub use q8_0::Q8_0;
pub use q8_1::Q8_1;

use crate::block::{Rows, search};
use crate::float;

/// Smallest and largest element, the first of equal ones (which decides the sign of zero).
fn min_max(x: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    (min, max)
}

/// 1/d, or 0 for a zero scale.
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// Code of a scaled value that was shifted into 0..=top: truncated to a signed byte, cut off above `top`.
fn code(v: f32, top: i8) -> u8 {
    (float::trunc(v) as i8).min(top) as u8
}

/// Calls `block(number, x, weights)` for every block of 32, with the weights of the importance searches:
/// importance · √(σ² + x²), σ² being the mean square of the row.
fn for_weighted_blocks(rows: Rows<'_>, importance: &[f32], mut block: impl FnMut(usize, &[f32; 32], &[f32; 32])) {
    let per_row = rows.n_per_row / 32;
    for (r, row) in rows.x.chunks_exact(rows.n_per_row).enumerate() {
        let sigma2 = search::sum_squares(row) / rows.n_per_row as f32;
        let blocks = row.as_chunks::<32>().0.iter().zip(importance.as_chunks::<32>().0);
        for (i, (x, importance)) in blocks.enumerate() {
            block(r * per_row + i, x, &std::array::from_fn(|j| search::weight(importance[j], sigma2, x[j])));
        }
    }
}
