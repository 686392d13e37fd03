//! TQ1_0: 256 ternary weights in 54 bytes (1.6875 bits per weight).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `qs[48]` | five trits per byte |
//! | 48 | `qh[4]` | four trits per byte |
//! | 52 | `d` | f16 scale |
//!
//! Elements: trit n of byte m of `qs[0..32]` is element 32n+m, of `qs[32..48]` element 160+16n+m, of `qh` element
//! 240+4n+m. A byte holds the base-3 fraction of its digits (0, 1, 2 for -1, 0, 1; first digit most significant),
//! `ceil(v·256/243)`, so that trit n is `((byte·3^n mod 256)·3) >> 8`.
//!
//! Decode: `y = (trit-1)·d`. Encode: `d` = largest |x|, digits `round_half_away(x·(1/d)) + 1` with the unrounded `d`.
//! Importance weights are ignored, as in ggml.

use super::{scale, trit};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The TQ1_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Tq1_0;

/// Groups of bytes: first byte, bytes, first element, trits per byte.
const GROUPS: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)];

impl BlockFormat for Tq1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(54).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 52);
            for (byte, bytes, element, trits) in GROUPS {
                for m in 0..bytes {
                    let mut rest = b[byte + m];
                    for n in 0..trits {
                        let digit = (u16::from(rest) * 3) >> 8;
                        y[element + bytes * n + m] = (i32::from(digit) - 1) as f32 * d;
                        rest = rest.wrapping_mul(3);
                    }
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, _), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(54)) {
            let (d, id) = scale(x);
            for (byte, bytes, element, trits) in GROUPS {
                for m in 0..bytes {
                    let digits = (0..5).map(|n| if n < trits { trit(x[element + bytes * n + m], id) } else { 0 });
                    let v = digits.fold(0u8, |v, digit| v.wrapping_mul(3).wrapping_add(digit));
                    b[byte + m] = (u16::from(v) * 256).div_ceil(243) as u8;
                }
            }
            put_f16(b, 52, d);
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::ternary::decode_tq1_0::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::groups::encode::<S, Self>(rows, dst) }
    }
}
