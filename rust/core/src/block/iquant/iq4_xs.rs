//! IQ4_XS: 256 weights in 136 bytes (4.25 bits per weight), 8 groups of 32 with 6-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `scales_h` | u16; bits 2i, 2i+1: bits 4–5 of the scale of group i |
//! | 4 | `scales_l[4]` | low 4 bits of the scales, group i in nibble i (low nibble first) |
//! | 8 | `qs[128]` | 16 bytes per group, nibbles as in IQ4_NL |
//!
//! Decode: `y = (d·(scale − 32))·KNL[q]`. Encode: the weights and the scale search per group are those of IQ4_NL with
//! `σ²` = 2/256 of the block's sum of squares; `d = −max/32` for the (first) scale of largest magnitude, which so
//! becomes −32; indices are nearest to `x/(d·l)` with the unrounded `d`.

use super::iq4_nl::{levels, put_levels, scale, weights};
use crate::block::search::{first_max, sum_squares};
use crate::block::{BlockFormat, Rows, f16_at, put_f16, u16_at};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ4_XS format.
#[derive(Clone, Copy, Debug)]
pub struct Iq4Xs;

impl BlockFormat for Iq4Xs {
    const TYPE: GgmlType = GgmlType::IQ4_XS;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(136).zip(dst.chunks_exact_mut(256)) {
            let (d, high) = (f16_at(b, 0), u16_at(b, 2));
            for (i, y) in y.chunks_exact_mut(32).enumerate() {
                let low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
                let l = i32::from(low) | i32::from(high >> (2 * i) & 3) << 4;
                levels(d * (l - 32) as f32, &b[8 + 16 * i..24 + 16 * i], y);
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, importance), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(136)) {
            let sigma2 = sum_squares(x) * (2.0 / 256.0);
            let (groups, _) = x.as_chunks::<32>();
            let scales: [f32; 8] = std::array::from_fn(|i| {
                let importance = importance.map(|w| &w[32 * i..32 * i + 32]);
                scale(&groups[i], &weights(&groups[i], importance, sigma2))
            });
            let d = -first_max(&scales).1 / 32.0;
            let id = if d != 0.0 { 1.0 / d } else { 0.0 };
            put_f16(b, 0, d);
            b[2..8].fill(0);
            for (i, x) in groups.iter().enumerate() {
                let l = nint(id * scales[i]).clamp(-32, 31);
                put_levels(x, d * l as f32, &mut b[8 + 16 * i..24 + 16 * i]);
                let stored = (l + 32) as u8;
                b[4 + i / 2] |= (stored & 15) << (4 * (i % 2));
                b[2 + i / 4] |= stored >> 4 << (2 * (i % 4));
            }
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq4::decode_xs::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq4::encode_xs::<S>(rows, dst) }
    }
}
