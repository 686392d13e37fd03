//! Ternary formats: TQ1_0, TQ2_0.

mod tq1_0;
mod tq2_0;

pub use tq1_0::Tq1_0;
pub use tq2_0::Tq2_0;

use crate::float;

/// The scale of a block (largest |x|) and its inverse (0 for a zero block).
fn scale(x: &[f32]) -> (f32, f32) {
    let d = x.iter().fold(0f32, |m, x| if m > x.abs() { m } else { x.abs() });
    (d, if d != 0.0 { 1.0 / d } else { 0.0 })
}

/// -1, 0, 1 as 0, 1, 2.
fn trit(x: f32, id: f32) -> u8 {
    float::rha(x * id).wrapping_add(1) as u8
}
