//! Q1_0: 128 weights in 18 bytes (1.125 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `bits[16]` | bit j%8 of byte j/8 is set for +d, clear for -d |
//!
//! Encode: `d` = mean of |x|, summed in order; a bit is set where `x ≥ 0`. Importance weights are ignored, as in ggml.

use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q1_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q1_0;

impl BlockFormat for Q1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(18).zip(dst.chunks_exact_mut(128)) {
            let d = f16_at(b, 0);
            for (y, bits) in y.chunks_exact_mut(8).zip(&b[2..]) {
                for (j, y) in y.iter_mut().enumerate() {
                    *y = if (bits >> j) & 1 == 1 { d } else { -d };
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<128>().zip(dst.chunks_exact_mut(18)) {
            put_f16(b, 0, x.iter().fold(0f32, |sum, x| sum + x.abs()) / 128.0);
            for (x, bits) in x.chunks_exact(8).zip(&mut b[2..]) {
                *bits = x.iter().enumerate().fold(0, |bits, (j, x)| bits | u8::from(*x >= 0.0) << j);
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q1_0::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
