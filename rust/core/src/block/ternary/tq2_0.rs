//! TQ2_0: 256 ternary weights in 66 bytes (2.0625 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `qs[64]` | 0, 1, 2 for -1, 0, 1 in 2 bits: element 128n+32l+m in bits 2l of byte 32n+m |
//! | 64 | `d` | f16 scale |
//!
//! Decode: `y = (q-1)·d`. Encode: `d` = largest |x|, `q = round_half_away(x·(1/d)) + 1` with the unrounded `d`.
//! Importance weights are ignored, as in ggml.

use super::{scale, trit};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The TQ2_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Tq2_0;

impl BlockFormat for Tq2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(66).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 64);
            for (i, y) in y.iter_mut().enumerate() {
                let q = (b[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
                *y = (i32::from(q) - 1) as f32 * d;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(66)) {
            let (d, id) = scale(x);
            for (m, b) in b[..64].iter_mut().enumerate() {
                *b = (0..4).fold(0, |q, l| q | (trit(x[m / 32 * 128 + 32 * l + m % 32], id) & 3) << (2 * l));
            }
            put_f16(b, 64, d);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::ternary::decode_tq2_0::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
