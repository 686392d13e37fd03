//! IQ1_M: 256 weights in 56 bytes (1.75 bits per weight), 16 groups of 16 with 3-bit scales; each half has its shift.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `qs[32]` | low 8 bits of the grid rows, 8 elements each |
//! | 32 | `qh[16]` | per group: bits 0–2 and 4–6 high bits of its two rows; bits 3 and 7 their shifts, 0 for +1/8, 1 for −1/8 |
//! | 48 | `scales[4]` | u16; bits 3j..3j+3: scale `l` of group 4i + j; bits 12–15: bits 4i..4i+4 of the f16 scale `d` |
//!
//! Decode: `y = (d·(2l + 1))·(g + shift)` with `g` in −1, 0, 1 from the grid of 2048 rows.
//!
//! Encode: weights `x²`, or `importance·sqrt(σ² + x²)` with `σ²` = 2/256 of the block's sum of squares. In each group
//! the elements, sorted by value (stably), are split in three runs; all splits are tried with the four pairs of shifts.
//! Levels off the grid go to the nearest neighbour, then the scale is fitted again. With the 3-bit scales fixed, `d` is
//! fitted to the whole block; 1.1125·d is stored. The search is that of ggml since 0.25, which sums by prefixes; older
//! versions differ in rare blocks.

use super::iq1::{Fit, SHIFTED, level, nearest_row, order};
use super::tables;
use crate::block::search::{first_max, nearest_level, sum_squares, weight};
use crate::block::{BlockFormat, Rows, u16_at};
use crate::float::{f16_to_f32, f32_to_f16};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ1_M format.
#[derive(Clone, Copy, Debug)]
pub struct Iq1M;

/// Groups whose largest magnitude is below this have scale 0.
pub(crate) const EPS: f32 = 1e-7;

/// A group's result; the default is that of a group left out (rows 0, which are not zeros).
#[derive(Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// Per half, index into [`SHIFTED`].
    shifts: [usize; 2],
    rows: [usize; 2],
}

/// The best split in three runs: `(scale, shifts, i1, i2)`, levels 0 below rank `i1`, 2 from rank `i2` on.
fn best_split(x: &[f32; 16], w: &[f32; 16], order: &[usize; 16]) -> Option<(f32, [usize; 2], usize, usize)> {
    let (mut px, mut pw) = ([[0f32; 17]; 2], [[0f32; 17]; 2]);
    for (j, i) in order.iter().enumerate() {
        for h in 0..2 {
            (px[h][j + 1], pw[h][j + 1]) = (px[h][j], pw[h][j]);
        }
        px[i / 8][j + 1] += w[*i] * x[*i];
        pw[i / 8][j + 1] += w[*i];
    }
    let (mut best, mut found) = (-f32::MAX, None);
    for i1 in 0..=16 {
        for i2 in i1..=16 {
            // Sums of a half with a shift, from the prefixes: runs are differences of prefixes, regrouped.
            let sums = |h: usize, shift: usize| {
                let [v0, v1, v2] = SHIFTED[shift];
                let a = px[h][16] * v2 - (px[h][i1] + px[h][i2]);
                let b = pw[h][16] * v2 * v2 + pw[h][i1] * (v0 * v0 - v1 * v1) + pw[h][i2] * (v1 * v1 - v2 * v2);
                (a, b)
            };
            for shifts in [[0, 0], [0, 1], [1, 0], [1, 1]] {
                let ((a0, b0), (a1, b1)) = (sums(0, shifts[0]), sums(1, shifts[1]));
                let (a, b) = (a0 + a1, b0 + b1);
                if b > 0.0 && a * a > best * b {
                    let scale = a / b;
                    best = scale * a;
                    found = Some((scale, shifts, i1, i2));
                }
            }
        }
    }
    found
}

/// `None`: the sums overflow, no row has a finite error.
fn encode_group(x: &[f32; 16], w: &[f32; 16]) -> Option<Group> {
    if first_max(x).0 < EPS {
        return Some(Group::default());
    }
    let order = order(x);
    let Some((mut scale, mut shifts, i1, i2)) = best_split(x, w, &order) else {
        return Some(Group::default());
    };
    let mut levels = [0u8; 16];
    for (rank, i) in order.iter().enumerate() {
        levels[*i] = u8::from(rank >= i1) + u8::from(rank >= i2);
    }
    if scale < 0.0 {
        levels.iter_mut().for_each(|l| *l = 2 - *l);
        scale = -scale;
        shifts = shifts.map(|s| 1 - s);
    }
    let (mut rows, mut fit, mut refit) = ([0; 2], Fit::default(), false);
    for (h, row) in rows.iter_mut().enumerate() {
        let (x, w, values) = (&x[8 * h..][..8], &w[8 * h..][..8], &SHIFTED[shifts[h]]);
        let (index, on_grid) = nearest_row(&levels[8 * h..][..8], x, w, scale, values)?;
        *row = index;
        refit |= !on_grid;
        for i in 0..8 {
            fit.add(x[i], w[i], values[level(tables::IQ1[index], i)]);
        }
    }
    if refit && fit.a > 0.0 && fit.b > 0.0 {
        scale = fit.a / fit.b;
    }
    Some(Group { scale, shifts, rows })
}

/// Writes the f16 scale into the high nibbles of the four words.
pub(crate) fn put_scale(b: &mut [u8], d: f32) {
    let bits = f32_to_f16(d);
    for i in 0..4 {
        b[49 + 2 * i] |= ((bits >> (4 * i) & 15) << 4) as u8;
    }
}

impl BlockFormat for Iq1M {
    const TYPE: GgmlType = GgmlType::IQ1_M;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(56).zip(dst.chunks_exact_mut(256)) {
            let sc: [u16; 4] = std::array::from_fn(|i| u16_at(b, 48 + 2 * i));
            let d = f16_to_f32(sc[0] >> 12 | sc[1] >> 8 & 0xF0 | sc[2] >> 4 & 0xF00 | sc[3] & 0xF000);
            for (g, y) in y.chunks_exact_mut(16).enumerate() {
                let dl = d * f32::from(2 * (sc[g / 4] >> (3 * (g % 4)) & 7) + 1);
                for (h, y) in y.chunks_exact_mut(8).enumerate() {
                    let high = b[32 + g] >> (4 * h);
                    let row = usize::from(b[2 * g + h]) | usize::from(high & 7) << 8;
                    let shift = if high & 8 != 0 { -0.125 } else { 0.125 };
                    for (i, y) in y.iter_mut().enumerate() {
                        *y = dl * (level(tables::IQ1[row], i) as f32 - 1.0 + shift);
                    }
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, importance), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(56)) {
            b.fill(0);
            let sigma2 = 2.0 * sum_squares(x) / 256.0;
            let w: [f32; 256] =
                std::array::from_fn(|j| importance.map_or(x[j] * x[j], |qw| weight(qw[j], sigma2, x[j])));
            let ((parts, _), (weights, _)) = (x.as_chunks::<16>(), w.as_chunks::<16>());
            let (mut groups, mut max, mut finite) = ([Group::default(); 16], 0f32, true);
            for ((group, x), w) in groups.iter_mut().zip(parts).zip(weights) {
                match encode_group(x, w) {
                    Some(g) => *group = g,
                    None => finite = false,
                }
                max = if max > group.scale { max } else { group.scale };
            }
            if !finite {
                put_scale(b, f32::NAN); // refused by validation
                continue;
            }
            // A block without a scale (all products underflow) keeps its rows, without scales and shifts, as in ggml.
            if max == 0.0 {
                for (g, group) in groups.iter().enumerate() {
                    for (h, row) in group.rows.iter().enumerate() {
                        b[2 * g + h] = *row as u8;
                        b[32 + g] |= ((row >> 8) << (4 * h)) as u8;
                    }
                }
                continue;
            }
            let mut d = max / 15.0;
            let id = 1.0 / d;
            let mut fit = Fit::default();
            for (g, group) in groups.iter().enumerate() {
                let l = nearest_level(id * group.scale, 8);
                let shifted = l << (3 * (g % 4));
                b[48 + g / 4 * 2] |= shifted as u8;
                b[49 + g / 4 * 2] |= (shifted >> 8) as u8;
                for h in 0..2 {
                    let row = group.rows[h];
                    b[2 * g + h] = row as u8;
                    b[32 + g] |= ((row >> 8 | group.shifts[h] << 3) << (4 * h)) as u8;
                    for i in 0..8 {
                        let q = SHIFTED[group.shifts[h]][level(tables::IQ1[row], i)] * (2 * l + 1) as f32;
                        fit.add(parts[g][8 * h + i], weights[g][8 * h + i], q);
                    }
                }
            }
            if fit.b > 0.0 {
                d = fit.a / fit.b;
            }
            put_scale(b, d * 1.1125);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq1_decode::decode_m::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq1_encode::encode_m::<S>(rows, dst) }
    }
}
