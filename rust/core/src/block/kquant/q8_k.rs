//! Q8_K: 256 weights in 292 bytes (9.125 bits per weight). Made for activations; files hardly ever hold it.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f32 scale |
//! | 4 | `qs[256]` | i8 codes |
//! | 260 | `bsums[16]` | i16 sums of 16 codes |
//!
//! Decode: `y = d·q`. Encode: the element with the largest magnitude becomes -127. ggml leaves `bsums` of a zero block
//! as they were in memory; here they are 0, what a cleared buffer gives there. Importance weights are ignored.

use crate::block::search::first_max;
use crate::block::{BlockFormat, Rows};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q8_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q8K;

fn encode_block(x: &[f32; 256], b: &mut [u8]) {
    let (amax, max) = first_max(x);
    if amax == 0.0 {
        b.fill(0);
        return;
    }
    let isc = -127.0 / max;
    b[..4].copy_from_slice(&(1.0 / isc).to_le_bytes());
    for (j, x) in x.chunks_exact(16).enumerate() {
        let mut sum = 0i16;
        for (q, x) in b[4 + 16 * j..][..16].iter_mut().zip(x) {
            let l = nint(isc * x).min(127) as i8;
            *q = l as u8;
            sum += i16::from(l);
        }
        b[260 + 2 * j..][..2].copy_from_slice(&sum.to_le_bytes());
    }
}

impl BlockFormat for Q8K {
    const TYPE: GgmlType = GgmlType::Q8_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(292).zip(dst.chunks_exact_mut(256)) {
            let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            for (y, q) in y.iter_mut().zip(&b[4..260]) {
                *y = d * f32::from(*q as i8);
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(292)) {
            encode_block(x, b);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q8_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode_signed::encode_q8_k::<S>(rows, dst) }
    }
}
