//! What IQ1_S and IQ1_M share: the shifted ternary levels and the step from levels to grid rows.

use super::neighbours::{self, Found};

/// Values of the levels 0, 1, 2 with the shift +1/8 (index 0) and −1/8 (index 1).
pub(crate) const SHIFTED: [[f32; 3]; 2] = [[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]];

/// Level of element `i` of a packed row.
pub(super) fn level(row: u16, i: usize) -> usize {
    usize::from(row >> (2 * i) & 3)
}

/// The weighted sums `Σ (w·q)·x` and `Σ (w·q)·q` of a fit `x ≈ scale·q`.
#[derive(Clone, Copy, Default)]
pub(super) struct Fit {
    pub a: f32,
    pub b: f32,
}

impl Fit {
    pub fn add(&mut self, x: f32, w: f32, q: f32) {
        self.a += w * q * x;
        self.b += w * q * q;
    }
}

/// The grid row of 8 levels: itself, or the neighbour with the smallest weighted error (the first of equal ones).
/// The flag says whether the levels were on the grid. `None`: no neighbour has a finite error.
pub(super) fn nearest_row(levels: &[u8], x: &[f32], w: &[f32], scale: f32, values: &[f32; 3]) -> Option<(usize, bool)> {
    let key = levels.iter().enumerate().fold(0, |key, (i, l)| key | usize::from(*l) << (2 * i));
    let book = neighbours::iq1();
    let near = match book.find(key) {
        Found::Row(row) => return Some((row, true)),
        Found::Near(near) => near,
    };
    let (mut best, mut found) = (f32::MAX, None);
    for row in near {
        let mut d2 = 0f32;
        for i in 0..8 {
            let e = scale * values[level(book.rows[usize::from(*row)], i)] - x[i];
            d2 += w[i] * e * e;
        }
        if d2 < best {
            (best, found) = (d2, Some((usize::from(*row), false)));
        }
    }
    found
}

/// Element numbers in ascending order of value; equal values keep their order.
pub(super) fn order<const N: usize>(x: &[f32; N]) -> [usize; N] {
    let mut order = std::array::from_fn(|i| i);
    order.sort_by(|a: &usize, b: &usize| x[*a].partial_cmp(&x[*b]).expect("finite"));
    order
}
