//! Q4_K: 256 weights in 144 bytes (4.5 bits per weight), 8 sub-blocks of 32 with 6-bit scale and minimum.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale of the scales |
//! | 2 | `dmin` | f16 scale of the minimums |
//! | 4 | `scales[12]` | 6-bit scales and minimums, see [`scale_min`] |
//! | 16 | `qs[128]` | 4-bit codes: element 64·n + l low nibble, 64·n + 32 + l high nibble of byte 32·n + l |
//!
//! Decode: `y = (d·scale)·q - dmin·min`. Encode: affine search per sub-block (weights √(mean square of the sub-block) +
//! |x|; with importance `importance·sqrt(σ² + x²)`, σ² = twice the mean square of the block); scales and minimums are then
//! rounded against their maximum / 63, or with importance by the weighted scale search.

use super::{importance_weights, positive_max, rounded, twice_mean_square};
use crate::block::search::{self, Sweep, sum_squares};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q4_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q4K;

/// The sweep without importance.
pub(crate) const SWEEP: Sweep = Sweep { rmin: -1.0, rdelta: 0.1, steps: 20, mad: false };

/// Scale and minimum of sub-block `j` from the 12 packed bytes: the first four sub-blocks have theirs in the low 6 bits
/// of bytes `j` and `j + 4`; the others have the low nibbles in byte `j + 4` and the high bits in the free bits above.
pub(super) fn scale_min(q: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4)
    }
}

/// The inverse of [`scale_min`]. A code beyond 6 bits (negative scales give such) spills into its neighbour, as in ggml.
fn pack_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] | mins[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (mins[i - 4] & 15) << 4,
    })
}

/// Rounds values to 6 bits against their maximum: (super-scale, codes).
fn round_scales(x: &[f32; 8]) -> (f32, [u8; 8]) {
    let max = positive_max(x);
    let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
    (max / 63.0, x.map(|x| (nint(inverse * x) as u8).min(63)))
}

/// Encodes the part that Q4_K and Q5_K share: the first 16 bytes of the block, and the codes in `0..=n`.
/// `limit` bounds the codes of scales found with importance.
pub(super) fn encode_scales(
    n: i32,
    sweep: &Sweep,
    limit: u8,
    x: &[f32; 256],
    importance: Option<&[f32; 256]>,
    b: &mut [u8],
) -> [u8; 256] {
    let mut codes = [0u8; 256];
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    let mut weights = [0f32; 256];
    let mut sums = [0f32; 8];
    let mut sweep = *sweep;
    if let Some(importance) = importance {
        (weights, sums) = importance_weights(x, importance, twice_mean_square(x));
        sweep = Sweep::IMPORTANCE;
    } else {
        for (x, w) in x.chunks_exact(32).zip(weights.chunks_exact_mut(32)) {
            let rms = (sum_squares(x) / 32.0).sqrt();
            for (x, w) in x.iter().zip(w) {
                *w = rms + x.abs();
            }
        }
    }
    for (j, l) in codes.chunks_exact_mut(32).enumerate() {
        let at = 32 * j..32 * j + 32;
        (scales[j], mins[j]) = search::qk(n, &x[at.clone()], &weights[at], &sweep, l);
    }
    let ((d, sc), (dmin, m)) = match importance {
        None => (round_scales(&scales), round_scales(&mins)),
        Some(_) => {
            let (mut sc, mut m) = ([0u8; 8], [0u8; 8]);
            let d = search::qp(63, &scales, &sums, &mut sc);
            let dmin = search::qp(63, &mins, &sums, &mut m);
            ((d, sc.map(|c| c.min(limit))), (dmin, m.map(|c| c.min(limit))))
        }
    };
    put_f16(b, 0, d);
    put_f16(b, 2, dmin);
    b[4..16].copy_from_slice(&pack_scales(&sc, &m));
    let (d, dmin) = (rounded(d), rounded(dmin));
    for j in 0..8 {
        let (sc, m) = scale_min(&b[4..16], j);
        let dl = d * f32::from(sc);
        if dl != 0.0 {
            let ml = dmin * f32::from(m);
            for i in 32 * j..32 * j + 32 {
                codes[i] = nint((x[i] + ml) / dl).clamp(0, n) as u8;
            }
        }
    }
    codes
}

/// Packs the low nibbles of the codes.
pub(super) fn put_nibbles(codes: &[u8; 256], qs: &mut [u8]) {
    for (l, q) in codes.chunks_exact(64).zip(qs.chunks_exact_mut(32)) {
        for (i, q) in q.iter_mut().enumerate() {
            *q = l[i] & 15 | l[i + 32] << 4;
        }
    }
}

impl BlockFormat for Q4K {
    const TYPE: GgmlType = GgmlType::Q4_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(144).zip(dst.chunks_exact_mut(256)) {
            let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
            for (j, y) in y.chunks_exact_mut(32).enumerate() {
                let (sc, m) = scale_min(&b[4..16], j);
                let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
                let (qs, shift) = (&b[16 + j / 2 * 32..], j % 2 * 4);
                for (y, q) in y.iter_mut().zip(qs) {
                    *y = dl * f32::from(q >> shift & 15) - ml;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, w), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(144)) {
            let codes = encode_scales(15, &SWEEP, u8::MAX, x, w, b);
            put_nibbles(&codes, &mut b[16..]);
        }
    }
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q4_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode::encode_q4_k::<S>(rows, dst) }
    }
}
