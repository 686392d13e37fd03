//! IQ2_S: 256 weights in 82 bytes (2.5625 bits per weight), 16 sub-blocks of 16 with 4-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[32]` | low 8 bits of the grid rows, one per 8 elements |
//! | 34 | `signs[32]` | sign bits of 8 elements each |
//! | 66 | `qh[8]` | high 2 bits of the grid rows, 4 rows per byte |
//! | 74 | `scales[8]` | 4 bits per sub-block, low nibble first |
//!
//! Decode: `y = (((d·(0.5 + scale))·0.25)·g)·±1` with the rows `g` of a grid of 1024.
//!
//! Encode: [`super::sweep`]; without importance the weights are `0.25·σ² + x²`. The stored scale is 0.9875 times the
//! fitted one. A sub-block without values stores row 0 with scale 0: it decodes to 8·d/8, not to 0, unless the whole
//! block is zero.

use super::neighbours::{self, Codebook};
use super::sweep::{self, GridSweep, Refit, SubBlock};
use super::tables::IQ2S_ROWS;
use crate::block::{BlockFormat, Rows, f16_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ2_S format.
#[derive(Clone, Copy, Debug)]
pub struct Iq2S;

impl BlockFormat for Iq2S {
    const TYPE: GgmlType = GgmlType::IQ2_S;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(82).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (i, y) in y.chunks_exact_mut(8).enumerate() {
                let scale = b[74 + i / 4] >> (4 * (i / 2 % 2)) & 15;
                let db = d * (0.5 + f32::from(scale)) * 0.25;
                let high = b[66 + i / 4] >> (2 * (i % 4)) & 3;
                let row = IQ2S_ROWS[usize::from(b[2 + i]) | usize::from(high) << 8].to_le_bytes();
                sweep::signed_row(db, &row, b[34 + i], y);
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        sweep::encode::<Self>(rows, dst);
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq23_decode::iq2_s::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq23_encode::encode::<S, Self>(rows, dst) }
    }
}

impl GridSweep for Iq2S {
    const SUB: usize = 16;
    const GROUP: usize = 8;
    const LEVELS: i32 = 3;
    const STEPS: i32 = 9;
    const STEP: f32 = 0.1;
    const EVEN_SIGNS: bool = false;
    const TINY: f32 = 1e-8;
    const SIGMA: f32 = 2.0;
    const PLAIN_SIGMA: f32 = 0.25;
    const REFIT: Refit = Refit::OffGrid;
    const FUDGE: f32 = 0.9875;
    const KEEPS_ROWS: bool = true;

    fn book() -> &'static Codebook {
        neighbours::iq2_s()
    }

    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]) {
        for (i, sub) in subs.iter().enumerate() {
            for k in 0..2 {
                let group = 2 * i + k;
                block[2 + group] = sub.rows[k] as u8;
                block[34 + group] = sub.signs[k];
                block[66 + group / 4] |= ((sub.rows[k] >> 8) as u8) << (2 * (group % 4));
            }
            block[74 + i / 2] |= scales[i] << (4 * (i % 2));
        }
    }
}
