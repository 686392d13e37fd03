//! The encoder of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S (specification: GGUF, sections 5 and 6.5 to 6.6): per
//! sub-block a sweep over scales, each with the best rows of the grid for it.
//!
//! 1. Signs are taken off (H8), which leaves values that should not be negative.
//! 2. For every scale of the sweep, each group of 8 or 4 values is rounded to levels. Levels that are no row of the grid
//!    are replaced by the neighbour with the smallest weighted error. The scale whose rows fit best is kept.
//! 3. The rows are chosen once more with the fitted scale ([`Refit`] says which), and the scale is fitted again.
//! 4. Scales are stored in 4 bits relative to the largest of the block.
//!
//! The vector version is [`crate::kernels::generic::iq23_encode`].

use super::neighbours::{Codebook, Found};
use crate::block::search::{nearest_level, sum_squares, weight};
use crate::block::{BlockFormat, Rows, put_f16};
use crate::kernels::simd::Simd;

/// Which groups are matched again with the fitted scale.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refit {
    /// Groups whose levels were not on the grid.
    OffGrid,
    /// Every group, if the levels of any were not on the grid.
    AllIfAny,
    /// Every group.
    All,
}

/// What the formats differ in.
pub trait GridSweep: BlockFormat {
    /// Elements per sub-block (16 or 32).
    const SUB: usize;
    /// Elements per grid row (8 or 4).
    const GROUP: usize;
    /// Levels per element.
    const LEVELS: i32;
    /// Scales tried on both sides of the middle, and the distance between them.
    const STEPS: i32;
    /// See [`GridSweep::STEPS`].
    const STEP: f32;
    /// Whether the number of negative signs per 8 elements is even (the eighth sign is then not stored).
    const EVEN_SIGNS: bool;
    /// Sub-blocks whose largest value is below this are skipped.
    const TINY: f32;
    /// Factor of the sum of squares in σ².
    const SIGMA: f32;
    /// Without importance, the weight of `x` is this·σ² + x².
    const PLAIN_SIGMA: f32 = 0.0;
    /// Which groups are matched again.
    const REFIT: Refit;
    /// Factor on the stored scale.
    const FUDGE: f32;
    /// Whether rows and signs are stored even where no sub-block of the block has a scale (all products underflow), as
    /// the original happens to do.
    const KEEPS_ROWS: bool = false;

    /// The grid.
    fn book() -> &'static Codebook;

    /// The scale to start from and the value that takes the highest level, from the largest value; `None` to skip the
    /// sub-block.
    fn start(_xv: &[f32], _w: &[f32], max: f32) -> Option<(f32, f32)> {
        Some((max / (2 * Self::LEVELS - 1) as f32, max))
    }

    /// [`GridSweep::start`] per lane; a top of 0 or less skips the sub-block.
    ///
    /// # Safety
    /// As for [`BlockFormat::encode_simd`].
    #[inline(always)]
    unsafe fn start_simd<S: Simd>(_xv: &[S::F; 32], _w: &[S::F; 32], max: S::F) -> (S::F, S::F) {
        unsafe { (S::div(max, S::splat((2 * Self::LEVELS - 1) as f32)), max) }
    }

    /// Stores the sub-blocks and their 4-bit scales into a block whose scale is written and whose other bytes are zero.
    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]);
}

/// An encoded sub-block.
#[derive(Clone, Copy, Default)]
pub struct SubBlock {
    /// The scale; 0 if skipped.
    pub scale: f32,
    /// Whether the sub-block was too small to encode: its rows and signs are all 0.
    pub skipped: bool,
    /// Grid rows by group.
    pub rows: [u16; 8],
    /// Sign bits per 8 elements; the eighth is 0 when signs are even.
    pub signs: [u8; 4],
}

/// Encodes whole rows.
pub fn encode<F: GridSweep>(rows: Rows<'_>, dst: &mut [u8]) {
    for ((x, importance), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(F::TYPE.block_bytes())) {
        let sigma2 = F::SIGMA * sum_squares(x) / 256.0;
        let mut w = [0f32; 256];
        match importance {
            Some(q) => (0..256).for_each(|i| w[i] = weight(q[i], sigma2, x[i])),
            None => (0..256).for_each(|i| w[i] = plain_weight::<F>(x[i], sigma2)),
        }
        let mut subs = [SubBlock::default(); 16];
        for (i, (x, w)) in x.chunks_exact(F::SUB).zip(w.chunks_exact(F::SUB)).enumerate() {
            subs[i] = sub_block::<F>(x, w);
        }
        finish::<F>(&subs[..256 / F::SUB], b);
    }
}

/// The weight of `x` without importance.
fn plain_weight<F: GridSweep>(x: f32, sigma2: f32) -> f32 {
    if F::PLAIN_SIGMA == 0.0 { x * x } else { F::PLAIN_SIGMA * sigma2 + x * x }
}

/// Scales and packs the sub-blocks of one block.
pub fn finish<F: GridSweep>(subs: &[SubBlock], block: &mut [u8]) {
    block.fill(0);
    let max = subs.iter().fold(0f32, |m, s| if m > s.scale { m } else { s.scale });
    let mut scales = [0; 16];
    if max == 0.0 {
        if F::KEEPS_ROWS {
            F::pack(subs, &scales, block);
        }
        return;
    }
    let d = max / 31.0;
    put_f16(block, 0, d * F::FUDGE);
    let id = 1.0 / d;
    for (q, sub) in scales.iter_mut().zip(subs) {
        *q = nearest_level(id * sub.scale, 16) as u8;
    }
    F::pack(subs, &scales, block);
}

/// Decodes one grid row: `y = (db·g)·±1`, bit `i` of `signs` for the sign of element `i`.
pub(super) fn signed_row(db: f32, row: &[u8], signs: u8, y: &mut [f32]) {
    for (i, (y, g)) in y.iter_mut().zip(row).enumerate() {
        let v = db * f32::from(*g);
        *y = if signs >> i & 1 == 1 { -v } else { v };
    }
}

/// The 8 magnitudes of `x` and their sign bits.
fn take_signs(x: &[f32], w: &[f32], even: bool, xv: &mut [f32]) -> u8 {
    let mut signs = 0u8;
    for i in 0..8 {
        let positive = x[i] >= 0.0;
        xv[i] = if positive { x[i] } else { -x[i] };
        signs |= u8::from(!positive) << i;
    }
    if even && signs.count_ones() % 2 == 1 {
        // The element that matters least takes the wrong sign.
        let mut least = 0;
        for i in 1..8 {
            if w[i] * x[i] * x[i] < w[least] * x[least] * x[least] {
                least = i;
            }
        }
        xv[least] = -xv[least];
        signs ^= 1 << least;
    }
    if even { signs & 0x7F } else { signs }
}

/// Level of element `i` of a packed row, as the odd number 2·level + 1 in units of half the level distance.
#[inline]
fn value<F: GridSweep>(key: usize, i: usize) -> f32 {
    let level = if F::GROUP == 8 { (key >> (2 * i)) & 3 } else { (key >> (3 * i)) & 7 };
    (2 * level + 1) as f32
}

/// The grid row for one group at `scale`, as a key, and whether the nearest levels are on the grid.
fn match_group<F: GridSweep>(book: &Codebook, xv: &[f32], wa: &[f32], id: f32, scale: f32) -> (usize, bool) {
    let mut key = 0;
    for (i, x) in xv.iter().enumerate() {
        key |= (nearest_level(id * x, F::LEVELS) as usize) << (book.bits as usize * i);
    }
    let Found::Near(near) = book.find(key) else {
        return (key, true);
    };
    // Where no neighbour has a finite error the first stands; such blocks are refused for their scale.
    let (mut best, mut best_key) = (f32::MAX, usize::from(book.rows[usize::from(near[0])]));
    for row in near {
        let key = usize::from(book.rows[usize::from(*row)]);
        let mut d2 = 0f32;
        for (i, (x, w)) in xv.iter().zip(wa).enumerate() {
            let e = scale * value::<F>(key, i) - x;
            d2 += w * e * e;
        }
        if d2 < best {
            (best, best_key) = (d2, key);
        }
    }
    (best_key, false)
}

/// Sums A = Σ (w·xv)·q and B = Σ (w·q)·q.
fn sums<F: GridSweep>(xv: &[f32], w: &[f32], keys: &[usize; 8]) -> (f32, f32) {
    let (mut a, mut b) = (0f32, 0f32);
    for (i, (x, w)) in xv.iter().zip(w).enumerate() {
        let q = value::<F>(keys[i / F::GROUP], i % F::GROUP);
        a += w * x * q;
        b += w * q * q;
    }
    (a, b)
}

fn sub_block<F: GridSweep>(x: &[f32], w: &[f32]) -> SubBlock {
    let skipped = SubBlock { skipped: true, ..SubBlock::default() };
    let (mut xv, mut wa, mut signs) = ([0f32; 32], [0f32; 32], [0u8; 4]);
    let (xv, wa) = (&mut xv[..F::SUB], &mut wa[..F::SUB]);
    for (k, signs) in signs[..F::SUB / 8].iter_mut().enumerate() {
        let at = 8 * k..8 * k + 8;
        *signs = take_signs(&x[at.clone()], &w[at.clone()], F::EVEN_SIGNS, &mut xv[at]);
    }
    wa.iter_mut().zip(w).for_each(|(a, w)| *a = w.sqrt());
    let max = xv[1..].iter().fold(xv[0], |m, x| if m > *x { m } else { *x });
    if max < F::TINY {
        return skipped;
    }
    let Some((mut scale, top)) = F::start(xv, w, max) else {
        return skipped;
    };

    let book = F::book();
    let groups = F::SUB / F::GROUP;
    let group = |k: usize| F::GROUP * k..F::GROUP * (k + 1);
    let mut best = 0f32;
    let (mut keys, mut on_grid) = ([0usize; 8], [F::REFIT == Refit::OffGrid; 8]);
    for s in -F::STEPS..=F::STEPS {
        let id = ((2 * F::LEVELS - 1) as f32 + s as f32 * F::STEP) / top;
        let this = 1.0 / id;
        let (mut keys1, mut on1) = (keys, on_grid);
        for k in 0..groups {
            (keys1[k], on1[k]) = match_group::<F>(book, &xv[group(k)], &wa[group(k)], id, this);
        }
        let (a, b) = sums::<F>(xv, w, &keys1);
        if b > 0.0 && a * a > best * b {
            scale = a / b;
            best = scale * a;
            (keys, on_grid) = (keys1, on1);
        }
    }
    let any_off = on_grid[..groups].contains(&false);
    if scale > 0.0 && (F::REFIT == Refit::All || any_off) {
        let id = 1.0 / scale;
        for k in 0..groups {
            if F::REFIT != Refit::OffGrid || !on_grid[k] {
                (keys[k], _) = match_group::<F>(book, &xv[group(k)], &wa[group(k)], id, scale);
            }
        }
        let (a, b) = sums::<F>(xv, w, &keys);
        if b > 0.0 {
            scale = a / b;
        }
    }
    if scale < 0.0 {
        scale = -scale;
        let stored = if F::EVEN_SIGNS { 0x7F } else { 0xFF };
        signs[..F::SUB / 8].iter_mut().for_each(|s| *s ^= stored);
    }
    let mut rows = [0u16; 8];
    rows[..groups].iter_mut().zip(keys).for_each(|(r, key)| *r = book.row(key) as u16);
    SubBlock { scale, skipped: false, rows, signs }
}

#[cfg(test)]
mod tests {
    use crate::block::rows::{Source, encode_with};
    use crate::ggml::{GgmlType, Importance};
    use crate::kernels::Kernels;

    /// Sums of squares and products overflow, scales become infinite or NaN: every level gives the same bytes or the same
    /// error.
    #[test]
    fn magnitudes_beyond_the_range_of_the_sums() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            state >> 8
        };
        let mut refused = 0;
        for round in 0..300 {
            let exponents = if round % 3 == 0 { 0..254 } else { 170..254 };
            let x: Vec<f32> = (0..768)
                .map(|_| {
                    let exponent = exponents.start + next() % (exponents.end - exponents.start);
                    f32::from_bits(exponent << 23 | next() & 0x7FFF | (next() & 1) << 31)
                })
                .collect();
            let w: Vec<f32> = (0..768).map(|_| if next() % 4 == 0 { 0.0 } else { next() as f32 }).collect();
            for ty in [GgmlType::IQ2_XXS, GgmlType::IQ2_XS, GgmlType::IQ2_S, GgmlType::IQ3_XXS, GgmlType::IQ3_S] {
                for w in [Some(&w[..]), None] {
                    if w.is_none() && ty.importance() == Importance::Required {
                        continue;
                    }
                    let mut results = Kernels::available().map(|k| {
                        let mut bytes = vec![0u8; 3 * ty.block_bytes()];
                        let result = encode_with(k, ty, Source::F32(&x), 768, w, &mut bytes);
                        result.map(|()| bytes).map_err(|e| e.to_string())
                    });
                    let first = results.next().unwrap();
                    refused += u32::from(first.is_err());
                    assert!(results.all(|r| r == first), "{} {round}", ty.name());
                }
            }
        }
        assert!(refused > 0);
    }
}
