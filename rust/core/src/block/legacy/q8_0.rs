//! Q8_0: 32 weights in 34 bytes (8.5 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[32]` | i8 codes |
//!
//! Decode: `y = q·d`. Encode: `amax` = largest |x| (a NaN is overwritten by the next value), `d = amax/127`,
//! `q = round_half_away(x·(1/d))` with the unrounded `d` (0 when `d` is 0); `d` is then stored as f16.
//! Importance weights are ignored, as in ggml.

use super::inverse;
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q8_0 format.
#[derive(Clone, Copy, Debug)]
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(34).zip(dst.chunks_exact_mut(32)) {
            let d = f16_at(b, 0);
            for (y, q) in y.iter_mut().zip(&b[2..]) {
                *y = f32::from(*q as i8) * d;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(34)) {
            let amax = x.iter().fold(0f32, |m, x| if m > x.abs() { m } else { x.abs() });
            let d = amax / 127.0;
            let id = inverse(d);
            put_f16(b, 0, d);
            for (q, x) in b[2..].iter_mut().zip(x) {
                *q = float::rha(x * id) as u8;
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q8_0::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
