//! Q2_K: 256 weights in 84 bytes (2.625 bits per weight), 16 sub-blocks of 16 with scale and minimum.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `scales[16]` | per sub-block: scale in the low nibble, minimum in the high nibble |
//! | 16 | `qs[64]` | 2-bit codes: element 128·n + 32·g + l at bits 2·g of byte 32·n + l |
//! | 80 | `d` | f16 scale of the scales |
//! | 82 | `dmin` | f16 scale of the minimums |
//!
//! Decode: `y = (d·scale)·q - dmin·min`. Encode: affine search per sub-block (weights |x|, absolute errors; with
//! importance `importance·sqrt(σ² + x²)`, σ² = mean square, squared errors); scales and minimums are then rounded against
//! their maximum / 15, or with importance by the weighted scale search.

use super::{importance_weights, positive_max, rounded};
use crate::block::search::{self, Sweep, sum_squares};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q2_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q2K;

/// The sweep without importance.
pub(crate) const SWEEP: Sweep = Sweep { rmin: -0.5, rdelta: 0.1, steps: 15, mad: true };

/// Rounds non-negative values to 4 bits against their maximum: (super-scale, codes).
fn nibbles(x: &[f32; 16]) -> (f32, [u8; 16]) {
    let max = positive_max(x);
    if max > 0.0 {
        let inverse = 15.0 / max;
        (max / 15.0, x.map(|x| nint(inverse * x) as u8))
    } else {
        (0.0, [0; 16])
    }
}

fn encode_block(x: &[f32; 256], importance: Option<&[f32; 256]>, b: &mut [u8]) {
    let mut codes = [0u8; 256];
    let (mut scales, mut mins) = ([0f32; 16], [0f32; 16]);
    let (weights, sums, sweep) = match importance {
        None => (x.map(f32::abs), [0f32; 16], SWEEP),
        Some(importance) => {
            let (w, sums) = importance_weights(x, importance, sum_squares(x) / 256.0);
            (w, sums, Sweep::IMPORTANCE)
        }
    };
    for (j, l) in codes.chunks_exact_mut(16).enumerate() {
        let at = 16 * j..16 * j + 16;
        (scales[j], mins[j]) = search::qk(3, &x[at.clone()], &weights[at], &sweep, l);
    }
    let ((d, sc), (dmin, m)) = match importance {
        None => (nibbles(&scales), nibbles(&mins)),
        Some(_) => {
            let (mut sc, mut m) = ([0u8; 16], [0u8; 16]);
            let d = search::qp(15, &scales, &sums, &mut sc);
            ((d, sc), (search::qp(15, &mins, &sums, &mut m), m))
        }
    };
    put_f16(b, 80, d);
    put_f16(b, 82, dmin);
    let (d, dmin) = (rounded(d), rounded(dmin));
    for j in 0..16 {
        b[j] = sc[j] | m[j] << 4;
        let dl = d * f32::from(b[j] & 15);
        if dl != 0.0 {
            let ml = dmin * f32::from(b[j] >> 4);
            for i in 16 * j..16 * j + 16 {
                codes[i] = nint((x[i] + ml) / dl).clamp(0, 3) as u8;
            }
        }
    }
    for (half, qs) in codes.chunks_exact(128).zip(b[16..80].chunks_exact_mut(32)) {
        for (l, q) in qs.iter_mut().enumerate() {
            *q = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
        }
    }
}

impl BlockFormat for Q2K {
    const TYPE: GgmlType = GgmlType::Q2_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(84).zip(dst.chunks_exact_mut(256)) {
            let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
            for (s, y) in y.chunks_exact_mut(16).enumerate() {
                let (dl, ml) = (d * f32::from(b[s] & 15), dmin * f32::from(b[s] >> 4));
                let (qs, shift) = (&b[16 + 32 * (s / 8) + 16 * (s % 2)..], s % 8 / 2 * 2);
                for (y, q) in y.iter_mut().zip(qs) {
                    *y = dl * f32::from(q >> shift & 3) - ml;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, w), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(84)) {
            encode_block(x, w, b);
        }
    }
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q2_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode::encode_q2_k::<S>(rows, dst) }
    }
}
