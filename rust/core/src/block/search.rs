//! Scalar searches for scales (specification: GGUF, section 5, helpers H1 to H8). Accumulations run in index order;
//! comparisons are strict as written: both decide bytes.

use crate::float::KNL;

/// H5: index of the level of [`KNL`] nearest to `v`; a tie goes to the upper level, a NaN to the last.
pub fn best_nl(v: f32) -> usize {
    let level = |i: usize| f32::from(KNL[i]);
    if v <= level(0) {
        return 0;
    }
    if v >= level(15) {
        return 15;
    }
    let (mut lo, mut hi) = (0, 15);
    while hi - lo > 1 {
        let mid = (lo + hi) / 2;
        if v < level(mid) { hi = mid } else { lo = mid }
    }
    if v - level(hi - 1) < level(hi) - v { hi - 1 } else { hi }
}

/// H6: the weight of element `x` with importance `qw`, `qw·sqrt(σ² + x²)`.
#[inline(always)]
pub fn weight(qw: f32, sigma2: f32, x: f32) -> f32 {
    qw * (sigma2 + x * x).sqrt()
}
