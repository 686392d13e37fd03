//! MXFP4: 32 weights in 17 bytes (4.25 bits per weight), the OCP Microscaling format with its own nibble order.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `e` | E8M0 scale |
//! | 1 | `qs[16]` | E2M1 codes: element j in the low nibble of byte j, element j+16 in the high nibble |
//!
//! Decode: `y = KV4[q]·2^(e-128)` (the table is doubled, the scale halved).
//!
//! Encode: `amax` = largest |x|; `e = floor(log2 amax) - 2 + 127` modulo 256 (0 for a zero block), where the logarithm is
//! rounded to f32 before the floor ([`floor_log2f`]); each code is the first of the nearest values. Blocks whose `amax`
//! is below 2^-125 wrap to a huge scale and decode to zeros, as in ggml. Importance weights are ignored, as in ggml.

use super::nearest_e2m1;
use crate::block::{BlockFormat, Rows};
use crate::float::{self, KV4};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The MXFP4 format.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4;

/// `floor(log2f(x))` of a positive finite x, where `log2f` is the correctly rounded logarithm.
///
/// That is the binary exponent of x, except just below a power of two 2^k, where the logarithm rounds up to k: for
/// x = 2^k·(1 - n/2^24) it does so while n ≤ 2^j·ln 2, where 2^j is the power of two at or below the distance of k from
/// the nearer end of [0, 1], which sets the precision of the logarithm.
pub(crate) fn floor_log2f(x: f32) -> i32 {
    let (bits, shift) = if x < f32::MIN_POSITIVE { ((x * 16_777_216.0).to_bits(), 24) } else { (x.to_bits(), 0) };
    let k = (bits >> 23) as i32 - 126 - shift;
    let steps_up = match (k - 1).max(-k) {
        0..2 => 0,
        2..4 => 1,
        4..8 => 2,
        8..16 => 5,
        16..32 => 11,
        32..64 => 22,
        64..128 => 44,
        _ => 88,
    };
    ((bits + steps_up) >> 23) as i32 - 127 - shift
}

/// The scale byte of a block.
pub(crate) fn exponent(amax: f32) -> u8 {
    if amax > 0.0 { (floor_log2f(amax) - 2 + 127) as u8 } else { 0 }
}

/// Encodes one block.
pub(crate) fn encode_block(x: &[f32; 32], b: &mut [u8]) {
    let amax = x.iter().fold(0f32, |m, x| if x.abs() > m { x.abs() } else { m });
    b[0] = exponent(amax);
    let d = float::e8m0_half(b[0]);
    for j in 0..16 {
        b[1 + j] = nearest_e2m1(x[j], d) | nearest_e2m1(x[j + 16], d) << 4;
    }
}

impl BlockFormat for Mxfp4 {
    const TYPE: GgmlType = GgmlType::MXFP4;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(17).zip(dst.chunks_exact_mut(32)) {
            let d = float::e8m0_half(b[0]);
            for (j, q) in b[1..].iter().enumerate() {
                y[j] = f32::from(KV4[usize::from(q & 15)]) * d;
                y[j + 16] = f32::from(KV4[usize::from(q >> 4)]) * d;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(17)) {
            encode_block(x, b);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::microfloat::decode_mxfp4::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
