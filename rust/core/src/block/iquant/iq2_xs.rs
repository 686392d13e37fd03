//! IQ2_XS: 256 weights in 74 bytes (2.3125 bits per weight), 16 sub-blocks of 16 with 4-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[32]` | u16 per 8 elements: grid row (9 bits), sign code (7 bits) |
//! | 66 | `scales[8]` | 4 bits per sub-block, low nibble first |
//!
//! Decode: `y = (((d·(0.5 + scale))·0.25)·g)·±1` with the rows `g` of a grid of 512 and even signs (the eighth sign of 8
//! makes the number of negatives even).
//!
//! Encode (importance required): [`super::sweep`]. A sub-block without values stores row 0 with scale 0: it decodes to
//! 8·d/8, not to 0, unless the whole block is zero.

use super::neighbours::{self, Codebook};
use super::sweep::{self, GridSweep, Refit, SubBlock};
use super::tables::{IQ2XS_ROWS, even_signs};
use crate::block::search::EPS;
use crate::block::{BlockFormat, Rows, f16_at, u16_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ2_XS format.
#[derive(Clone, Copy, Debug)]
pub struct Iq2Xs;

impl BlockFormat for Iq2Xs {
    const TYPE: GgmlType = GgmlType::IQ2_XS;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(74).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (i, y) in y.chunks_exact_mut(8).enumerate() {
                let scale = b[66 + i / 4] >> (4 * (i / 2 % 2)) & 15;
                let db = d * (0.5 + f32::from(scale)) * 0.25;
                let code = u16_at(b, 2 + 2 * i);
                let row = IQ2XS_ROWS[usize::from(code & 511)].to_le_bytes();
                sweep::signed_row(db, &row, even_signs((code >> 9) as u8), y);
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        sweep::encode::<Self>(rows, dst);
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq23_decode::iq2_xs::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq23_encode::encode::<S, Self>(rows, dst) }
    }
}

impl GridSweep for Iq2Xs {
    const SUB: usize = 16;
    const GROUP: usize = 8;
    const LEVELS: i32 = 3;
    const STEPS: i32 = 9;
    const STEP: f32 = 0.1;
    const EVEN_SIGNS: bool = true;
    const TINY: f32 = EPS;
    const SIGMA: f32 = 1.0;
    const REFIT: Refit = Refit::OffGrid;
    const FUDGE: f32 = 1.0;

    fn book() -> &'static Codebook {
        neighbours::iq2_xs()
    }

    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]) {
        for (i, sub) in subs.iter().enumerate() {
            for k in 0..2 {
                let code = sub.rows[k] | u16::from(sub.signs[k]) << 9;
                block[2 + 4 * i + 2 * k..][..2].copy_from_slice(&code.to_le_bytes());
            }
            block[66 + i / 2] |= scales[i] << (4 * (i % 2));
        }
    }
}
