//! IQ4_NL: 32 weights in 18 bytes (4.5 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[16]` | 4-bit indices into the non-linear levels [`KNL`]: element `j` low nibble of byte `j`, `j + 16` high nibble |
//!
//! Decode: `y = d·KNL[q]`. Encode: weights are `x²`, or `importance·sqrt(σ² + x²)` with `σ²` = 2/32 of the block's sum
//! of squares; [`scale`] tries 16 scales; `d` is the best one as f16 and each index the level nearest to `x/scale` with
//! the unrounded scale. A zero block stores scale 0 and index 8.

use crate::block::search::{EPS, best_nl, first_max, sum_squares, weight};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float::KNL;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ4_NL format.
#[derive(Clone, Copy, Debug)]
pub struct Iq4Nl;

/// The weight of each of 32 elements: `x²` without importance.
pub(super) fn weights(x: &[f32; 32], importance: Option<&[f32]>, sigma2: f32) -> [f32; 32] {
    std::array::from_fn(|j| importance.map_or(x[j] * x[j], |w| weight(w[j], sigma2, x[j])))
}

/// The scale with the smallest weighted error among 16 tries: the first maps the largest magnitude to +127, the others
/// to −120 … −134 in turn. A later try wins only if it is strictly better.
pub(super) fn scale(x: &[f32; 32], w: &[f32; 32]) -> f32 {
    let (amax, max) = first_max(x);
    if amax < EPS {
        return 0.0;
    }
    let sums = |id: f32| {
        let (mut a, mut b) = (0f32, 0f32);
        for (x, w) in x.iter().zip(w) {
            let q = f32::from(KNL[best_nl(id * x)]);
            a += w * q * x;
            b += w * q * q;
        }
        (a, b)
    };
    let (a, b) = sums(1.0 / (-max / f32::from(KNL[0])));
    let mut scale = if b > 0.0 { a / b } else { 0.0 };
    let mut best = scale * a;
    for t in -7..=7 {
        let (a, b) = sums((t as f32 + f32::from(KNL[0])) / max);
        if b > 0.0 && a * a > best * b {
            scale = a / b;
            best = scale * a;
        }
    }
    scale
}

/// Writes the nearest level of each `x·(1/scale)` (of 0 where `scale` is 0) as nibbles.
pub(super) fn put_levels(x: &[f32; 32], scale: f32, qs: &mut [u8]) {
    let id = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    for (j, q) in qs.iter_mut().enumerate() {
        *q = (best_nl(x[j] * id) | best_nl(x[j + 16] * id) << 4) as u8;
    }
}

/// `y = d·level` for the nibbles of one group of 32.
pub(super) fn levels(d: f32, qs: &[u8], y: &mut [f32]) {
    let (low, high) = y.split_at_mut(16);
    for ((q, a), b) in qs.iter().zip(low).zip(high) {
        *a = d * f32::from(KNL[usize::from(q & 15)]);
        *b = d * f32::from(KNL[usize::from(q >> 4)]);
    }
}

impl BlockFormat for Iq4Nl {
    const TYPE: GgmlType = GgmlType::IQ4_NL;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(18).zip(dst.chunks_exact_mut(32)) {
            levels(f16_at(b, 0), &b[2..], y);
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, importance), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(18)) {
            let sigma2 = sum_squares(x) * (2.0 / 32.0);
            let scale = scale(x, &weights(x, importance.map(|w| &w[..]), sigma2));
            put_f16(b, 0, scale);
            put_levels(x, scale, &mut b[2..]);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq4::decode_nl::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq4::encode_nl::<S>(rows, dst) }
    }
}
