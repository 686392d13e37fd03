//! IQ1_S: 256 weights in 50 bytes (1.5625 bits per weight), 8 groups of 32 with 3-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[32]` | low 8 bits of the grid rows, 4 per group, 8 elements each |
//! | 34 | `qh[8]` | u16 per group; bits 3k..3k+3: high bits of row k; 12–14: scale `l`; 15: shift, 0 for +1/8, 1 for −1/8 |
//!
//! Decode: `y = (d·(2l + 1))·(g + shift)` with `g` in −1, 0, 1 from the grid of 2048 rows.
//!
//! Encode (importance required): weights `importance·sqrt(σ² + x²)`, `σ²` = 2/256 of the block's sum of squares. In
//! each group the elements, sorted by value (stably), are split in three runs; all splits are tried with both shifts,
//! the best fit gives scale, shift and levels. Levels off the grid go to the nearest neighbour, then the scale is fitted
//! again. `d` is 1/15 of the largest scale; 1.125·d is stored.

use super::iq1::{Fit, SHIFTED, level, nearest_row, order};
use super::tables;
use crate::block::search::{first_max, nearest_level, sum_squares, weight};
use crate::block::{BlockFormat, Rows, f16_at, put_f16, u16_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ1_S format.
#[derive(Clone, Copy, Debug)]
pub struct Iq1S;

/// Groups whose largest magnitude is below this have scale 0.
pub(crate) const EPS: f32 = 1e-12;

/// A group's result; the default is that of a group left out (rows 0, which are not zeros).
#[derive(Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// Index into [`SHIFTED`].
    shift: usize,
    rows: [usize; 4],
}

/// The best split in three runs: `(scale, shift, i1, i2)`, levels 0 below rank `i1`, 2 from rank `i2` on.
fn best_split(x: &[f32; 32], w: &[f32; 32], order: &[usize; 32]) -> Option<(f32, usize, usize, usize)> {
    let (mut sx, mut sw) = ([0f32; 33], [0f32; 33]);
    for (j, i) in order.iter().enumerate() {
        sx[j + 1] = sx[j] + w[*i] * x[*i];
        sw[j + 1] = sw[j] + w[*i];
    }
    let (mut best, mut found) = (-f32::MAX, None);
    for i1 in 0..=32 {
        for i2 in i1..=32 {
            for (shift, v) in SHIFTED.iter().enumerate() {
                let a = (sx[i1] - sx[0]) * v[0] + (sx[i2] - sx[i1]) * v[1] + (sx[32] - sx[i2]) * v[2];
                let b =
                    (sw[i1] - sw[0]) * v[0] * v[0] + (sw[i2] - sw[i1]) * v[1] * v[1] + (sw[32] - sw[i2]) * v[2] * v[2];
                if b > 0.0 && a * a > best * b {
                    let scale = a / b;
                    best = scale * a;
                    found = Some((scale, shift, i1, i2));
                }
            }
        }
    }
    found
}

/// `None`: the sums overflow, no row has a finite error.
fn encode_group(x: &[f32; 32], w: &[f32; 32]) -> Option<Group> {
    if first_max(x).0 < EPS {
        return Some(Group::default());
    }
    let order = order(x);
    let Some((mut scale, mut shift, i1, i2)) = best_split(x, w, &order) else {
        return Some(Group::default());
    };
    let mut levels = [0u8; 32];
    for (rank, i) in order.iter().enumerate() {
        levels[*i] = u8::from(rank >= i1) + u8::from(rank >= i2);
    }
    if scale < 0.0 {
        levels.iter_mut().for_each(|l| *l = 2 - *l);
        scale = -scale;
        shift = 1 - shift;
    }
    let values = &SHIFTED[shift];
    let (mut rows, mut fit, mut refit) = ([0; 4], Fit::default(), false);
    for (k, row) in rows.iter_mut().enumerate() {
        let (x, w) = (&x[8 * k..][..8], &w[8 * k..][..8]);
        let (index, on_grid) = nearest_row(&levels[8 * k..][..8], x, w, scale, values)?;
        *row = index;
        refit |= !on_grid;
        for i in 0..8 {
            fit.add(x[i], w[i], values[level(tables::IQ1[index], i)]);
        }
    }
    if refit && fit.a > 0.0 && fit.b > 0.0 {
        scale = fit.a / fit.b;
    }
    Some(Group { scale, shift, rows })
}

impl BlockFormat for Iq1S {
    const TYPE: GgmlType = GgmlType::IQ1_S;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(50).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (ib, y) in y.chunks_exact_mut(32).enumerate() {
                let h = u16_at(b, 34 + 2 * ib);
                let dl = d * f32::from(2 * (h >> 12 & 7) + 1);
                let shift = if h & 0x8000 != 0 { -0.125 } else { 0.125 };
                for (k, y) in y.chunks_exact_mut(8).enumerate() {
                    let row = u16::from(b[2 + 4 * ib + k]) | (h >> (3 * k) & 7) << 8;
                    for (i, y) in y.iter_mut().enumerate() {
                        let g = level(tables::IQ1[usize::from(row)], i) as f32 - 1.0;
                        *y = dl * (g + shift);
                    }
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, importance), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(50)) {
            let importance = importance.expect("IQ1_S requires importance weights");
            b.fill(0);
            let sigma2 = 2.0 * sum_squares(x) / 256.0;
            let (mut groups, mut max) = ([Group::default(); 8], 0f32);
            let (mut finite, (parts, _)) = (true, x.as_chunks::<32>());
            for (ib, (group, x)) in groups.iter_mut().zip(parts).enumerate() {
                let w = std::array::from_fn(|j| weight(importance[32 * ib + j], sigma2, x[j]));
                match encode_group(x, &w) {
                    Some(g) => *group = g,
                    None => finite = false,
                }
                max = if max > group.scale { max } else { group.scale };
            }
            if !finite {
                put_f16(b, 0, f32::NAN); // refused by validation
                continue;
            }
            // A block without a scale (all products underflow) keeps its rows, without scales and shifts, as in ggml.
            let d = max / 15.0;
            let id = 1.0 / d;
            put_f16(b, 0, d * 1.125);
            for (ib, group) in groups.iter().enumerate() {
                let l = nearest_level(id * group.scale, 8) as usize | group.shift << 3;
                let mut h = if max == 0.0 { 0 } else { l << 12 };
                for (k, row) in group.rows.iter().enumerate() {
                    b[2 + 4 * ib + k] = *row as u8;
                    h |= row >> 8 << (3 * k);
                }
                b[34 + 2 * ib..36 + 2 * ib].copy_from_slice(&(h as u16).to_le_bytes());
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq1_decode::decode_s::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq1_encode::encode_s::<S>(rows, dst) }
    }
}
