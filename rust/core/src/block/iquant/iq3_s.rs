//! IQ3_S: 256 weights in 110 bytes (3.4375 bits per weight), 8 sub-blocks of 32 with 4-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[64]` | low 8 bits of the grid rows, one per 4 elements |
//! | 66 | `qh[8]` | bit 8 of the grid rows, 8 rows per byte |
//! | 74 | `signs[32]` | sign bits of 8 elements each |
//! | 106 | `scales[4]` | 4 bits per sub-block, low nibble first |
//!
//! Decode: `y = ((d·(1 + 2·scale))·g)·±1` with the rows `g` of a grid of 512.
//!
//! Encode: [`super::sweep`]; without importance the weights are `x²`. The stored scale is 1.033 times the fitted one.
//!
//! ggml has a defect here, and the same bytes are written: the places for `qs` and `signs` only move on after a sub-block
//! that holds a value other than 0, those for `qh` and `scales` always. In a block with an all-zero sub-block the later
//! ones are therefore stored too early and decode to other values (a relative error of about 0.8 instead of 0.15).

use super::neighbours::{self, Codebook};
use super::sweep::{self, GridSweep, Refit, SubBlock};
use super::tables::IQ3S_ROWS;
use crate::block::{BlockFormat, Rows, f16_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ3_S format.
#[derive(Clone, Copy, Debug)]
pub struct Iq3S;

impl BlockFormat for Iq3S {
    const TYPE: GgmlType = GgmlType::IQ3_S;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(110).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (i, y) in y.chunks_exact_mut(4).enumerate() {
                let scale = b[106 + i / 16] >> (4 * (i / 8 % 2)) & 15;
                let db = d * f32::from(1 + 2 * scale);
                let high = b[66 + i / 8] >> (i % 8) & 1;
                let row = IQ3S_ROWS[usize::from(b[2 + i]) | usize::from(high) << 8].to_le_bytes();
                sweep::signed_row(db, &row, b[74 + i / 2] >> (4 * (i % 2)), y);
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        sweep::encode::<Self>(rows, dst);
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq23_decode::iq3_s::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq23_encode::encode::<S, Self>(rows, dst) }
    }
}

impl GridSweep for Iq3S {
    const SUB: usize = 32;
    const GROUP: usize = 4;
    const LEVELS: i32 = 8;
    const STEPS: i32 = 9;
    const STEP: f32 = 0.2;
    const EVEN_SIGNS: bool = false;
    // The smallest positive float: only zeros are below it.
    const TINY: f32 = f32::from_bits(1);
    const SIGMA: f32 = 2.0;
    const REFIT: Refit = Refit::AllIfAny;
    const FUDGE: f32 = 1.033;
    const KEEPS_ROWS: bool = true;

    fn book() -> &'static Codebook {
        neighbours::iq3_s()
    }

    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]) {
        let mut at = 0;
        for (i, sub) in subs.iter().enumerate() {
            block[106 + i / 2] |= scales[i] << (4 * (i % 2));
            if sub.skipped {
                continue;
            }
            for k in 0..8 {
                block[2 + 8 * at + k] = sub.rows[k] as u8;
                block[66 + i] |= ((sub.rows[k] >> 8) as u8) << k;
            }
            block[74 + 4 * at..][..4].copy_from_slice(&sub.signs);
            at += 1;
        }
    }
}
