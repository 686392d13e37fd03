//! IQ3_XXS: 256 weights in 98 bytes (3.0625 bits per weight), 8 sub-blocks of 32 with 4-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[64]` | grid rows, one per 4 elements |
//! | 66 | `gas[8]` | u32 per sub-block: 4 sign codes (7 bits each), then the scale (4 bits) |
//!
//! Decode: `y = (((d·(0.5 + scale))·0.5)·g)·±1` with the rows `g` of a grid of 256 and even signs (the eighth sign of 8
//! makes the number of negatives even).
//!
//! Encode: [`super::sweep`]; without importance the weights are `x²`. The stored scale is 1.0125 times the fitted one. A
//! sub-block without values stores row 0 with scale 0: it decodes to 4·d/4, not to 0, unless the whole block is zero.

use super::neighbours::{self, Codebook};
use super::sweep::{self, GridSweep, Refit, SubBlock};
use super::tables::{IQ3XXS_ROWS, even_signs};
use crate::block::{BlockFormat, Rows, f16_at, u32_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ3_XXS format.
#[derive(Clone, Copy, Debug)]
pub struct Iq3Xxs;

impl BlockFormat for Iq3Xxs {
    const TYPE: GgmlType = GgmlType::IQ3_XXS;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(98).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (i, y) in y.chunks_exact_mut(32).enumerate() {
                let codes = u32_at(b, 66 + 4 * i);
                let db = d * (0.5 + (codes >> 28) as f32) * 0.5;
                for (l, y) in y.chunks_exact_mut(8).enumerate() {
                    let signs = even_signs((codes >> (7 * l)) as u8 & 0x7F);
                    for (k, y) in y.chunks_exact_mut(4).enumerate() {
                        let row = IQ3XXS_ROWS[usize::from(b[2 + 8 * i + 2 * l + k])].to_le_bytes();
                        sweep::signed_row(db, &row, signs >> (4 * k), y);
                    }
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        sweep::encode::<Self>(rows, dst);
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq23_decode::iq3_xxs::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq23_encode::encode::<S, Self>(rows, dst) }
    }
}

impl GridSweep for Iq3Xxs {
    const SUB: usize = 32;
    const GROUP: usize = 4;
    const LEVELS: i32 = 8;
    const STEPS: i32 = 15;
    const STEP: f32 = 0.2;
    const EVEN_SIGNS: bool = true;
    const TINY: f32 = 1e-8;
    const SIGMA: f32 = 2.0;
    const REFIT: Refit = Refit::OffGrid;
    const FUDGE: f32 = 1.0125;

    fn book() -> &'static Codebook {
        neighbours::iq3_xxs()
    }

    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]) {
        for (i, sub) in subs.iter().enumerate() {
            for k in 0..8 {
                block[2 + 8 * i + k] = sub.rows[k] as u8;
            }
            let signs = sub.signs.iter().rev().fold(0, |word, s| word << 7 | u32::from(*s));
            block[66 + 4 * i..][..4].copy_from_slice(&(signs | u32::from(scales[i]) << 28).to_le_bytes());
        }
    }
}
