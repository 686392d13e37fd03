//! NVFP4: 64 weights in 36 bytes (4.5 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d[4]` | UE4M3 scales, one per 16 elements |
//! | 4 | `qs[32]` | E2M1 codes, 8 bytes per 16 elements: element j in the low nibble of byte j, j+8 in the high nibble |
//!
//! Decode: `y = KV4[q]·d/2` (the table is doubled, the scale halved). Encode, per 16 elements: `d = amax/6` rounded to
//! UE4M3 half up; each code is the first of the nearest values. Importance weights are ignored, as in ggml.

use super::nearest_e2m1;
use crate::block::{BlockFormat, Rows};
use crate::float::{self, KV4};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The NVFP4 format.
#[derive(Clone, Copy, Debug)]
pub struct Nvfp4;

/// Encodes one group of 16; gives its scale byte.
pub(crate) fn encode_group(x: &[f32; 16], qs: &mut [u8; 8]) -> u8 {
    let amax = x.iter().fold(0f32, |m, x| if x.abs() > m { x.abs() } else { m });
    let scale = float::f32_to_ue4m3(amax / 6.0);
    let d = float::ue4m3_half(scale);
    for (j, q) in qs.iter_mut().enumerate() {
        *q = nearest_e2m1(x[j], d) | nearest_e2m1(x[j + 8], d) << 4;
    }
    scale
}

impl BlockFormat for Nvfp4 {
    const TYPE: GgmlType = GgmlType::NVFP4;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(36).zip(dst.chunks_exact_mut(64)) {
            let (scales, qs) = b.split_at(4);
            for ((y, qs), scale) in y.chunks_exact_mut(16).zip(qs.chunks_exact(8)).zip(scales) {
                let d = float::ue4m3_half(*scale);
                for (j, q) in qs.iter().enumerate() {
                    y[j] = f32::from(KV4[usize::from(q & 15)]) * d;
                    y[j + 8] = f32::from(KV4[usize::from(q >> 4)]) * d;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<64>().zip(dst.chunks_exact_mut(36)) {
            let (scales, qs) = b.split_at_mut(4);
            let (groups, _) = x.as_chunks::<16>();
            for ((x, qs), scale) in groups.iter().zip(qs.as_chunks_mut::<8>().0).zip(scales) {
                *scale = encode_group(x, qs);
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::microfloat::decode_nvfp4::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
