//! Sixteen blocks side by side, one per lane, so that each lane keeps the scalar order of operations.

use crate::block::Rows;
use crate::kernels::simd::{LANES, Simd};

/// Pointers to the values and the importance weights of 16 consecutive blocks.
pub struct Blocks {
    /// Values of each block.
    pub x: [*const f32; LANES],
    /// Importance weights of each block, if there are any.
    pub importance: Option<[*const f32; LANES]>,
    /// Blocks that exist; the lanes from there on repeat the last one.
    pub count: usize,
}

impl Blocks {
    /// The blocks of `n` elements from number `first` on.
    #[inline(always)]
    pub unsafe fn at(rows: Rows<'_>, n: usize, first: usize) -> Self {
        let last = rows.x.len() / n - 1;
        let per_row = rows.n_per_row / n;
        let block = |lane: usize| (first + lane).min(last);
        unsafe {
            Self {
                x: std::array::from_fn(|lane| rows.x.as_ptr().add(block(lane) * n)),
                importance: rows
                    .importance
                    .map(|w| std::array::from_fn(|lane| w.as_ptr().add(block(lane) % per_row * n))),
                count: (last + 1 - first).min(LANES),
            }
        }
    }
}

/// Elements `at..at + 16` of each block: vector `j` of the result holds element `at + j` of every block.
#[inline(always)]
pub unsafe fn columns<S: Simd>(blocks: &[*const f32; LANES], at: usize) -> [S::F; LANES] {
    unsafe {
        let mut rows = [S::splat(0.0); LANES];
        for (row, p) in rows.iter_mut().zip(blocks) {
            *row = S::load(p.add(at));
        }
        S::transpose(&mut rows);
        rows
    }
}
