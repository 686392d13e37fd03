//! Q8_1: 32 activations in 36 bytes (9 bits per value). Not a weight format: it is only encoded.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `s` | f16, `d` (before its rounding) times the sum of the codes |
//! | 4 | `qs[32]` | i8 codes |
//!
//! Encode: scale and codes as Q8_0. There is no decoder, as in ggml.

use super::inverse;
use crate::block::{BlockFormat, Rows, put_f16};
use crate::float;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q8_1 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q8_1;

impl BlockFormat for Q8_1 {
    const TYPE: GgmlType = GgmlType::Q8_1;

    fn decode(_: &[u8], _: &mut [f32]) {
        unreachable!("the row drivers refuse Q8_1, which has no decoder")
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(36)) {
            let amax = x.iter().fold(0f32, |m, x| if m > x.abs() { m } else { x.abs() });
            let d = amax / 127.0;
            let id = inverse(d);
            let q = x.map(|x| float::rha(x * id) as i8);
            let sum: i32 = q.iter().map(|q| i32::from(*q)).sum();
            put_f16(b, 0, d);
            put_f16(b, 2, sum as f32 * d);
            for (b, q) in b[4..].iter_mut().zip(q) {
                *b = q as u8;
            }
        }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
