//! Q2_0: 64 weights in 18 bytes (2.25 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[16]` | codes 0..=3, element j in bits 2·(j%4) of byte j/4 |
//!
//! Decode: `y = (q-1)·d`. Encode: `d` = largest |x|, `q = clamp(round_half_away(x·(1/d)) + 1, 0, 3)` with the unrounded
//! `d` (inverse 0 when `d` is 0). Importance weights are ignored, as in ggml.

use super::inverse;
use crate::block::search::first_max;
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q2_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q2_0;

impl BlockFormat for Q2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(18).zip(dst.chunks_exact_mut(64)) {
            let d = f16_at(b, 0);
            for (y, q) in y.chunks_exact_mut(4).zip(&b[2..]) {
                for (j, y) in y.iter_mut().enumerate() {
                    *y = (i32::from((q >> (2 * j)) & 3) - 1) as f32 * d;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<64>().zip(dst.chunks_exact_mut(18)) {
            let d = first_max(x).0;
            let id = inverse(d);
            put_f16(b, 0, d);
            for (x, q) in x.chunks_exact(4).zip(&mut b[2..]) {
                let code = |x: f32| float::rha(x * id).saturating_add(1).clamp(0, 3) as u8;
                *q = x.iter().enumerate().fold(0, |q, (j, x)| q | code(*x) << (2 * j));
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q2_0::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
