//! Q5_K: 256 weights in 176 bytes (5.5 bits per weight), 8 sub-blocks of 32 with 6-bit scale and minimum.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale of the scales |
//! | 2 | `dmin` | f16 scale of the minimums |
//! | 4 | `scales[12]` | 6-bit scales and minimums, as in Q4_K |
//! | 16 | `qh[32]` | high bits of the codes: element 32·j + l at bit j of byte l |
//! | 48 | `qs[128]` | low 4 bits, as in Q4_K |
//!
//! Decode: `y = (d·scale)·q - dmin·min`. Encode as Q4_K with codes up to 31 and another sweep; codes of scales found
//! with importance are at most 63.

use super::q4_k::{encode_scales, put_nibbles, scale_min};
use crate::block::search::Sweep;
use crate::block::{BlockFormat, Rows, f16_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q5_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q5K;

/// The sweep without importance.
pub(crate) const SWEEP: Sweep = Sweep { rmin: -0.5, rdelta: 0.1, steps: 15, mad: false };

impl BlockFormat for Q5K {
    const TYPE: GgmlType = GgmlType::Q5_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(176).zip(dst.chunks_exact_mut(256)) {
            let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
            for (j, y) in y.chunks_exact_mut(32).enumerate() {
                let (sc, m) = scale_min(&b[4..16], j);
                let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
                let (qs, shift) = (&b[48 + j / 2 * 32..], j % 2 * 4);
                for ((y, q), h) in y.iter_mut().zip(qs).zip(&b[16..48]) {
                    *y = dl * f32::from(q >> shift & 15 | (h >> j & 1) << 4) - ml;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, w), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(176)) {
            let codes = encode_scales(31, &SWEEP, 63, x, w, b);
            for l in 0..32 {
                b[16 + l] = (0..8).fold(0, |byte, j| byte | codes[32 * j + l] >> 4 << j);
            }
            put_nibbles(&codes, &mut b[48..]);
        }
    }
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q5_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode::encode_q5_k::<S>(rows, dst) }
    }
}
