//! IQ2_XXS: 256 weights in 66 bytes (2.0625 bits per weight), 8 sub-blocks of 32 with 4-bit scales.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `d` | f16 scale |
//! | 2 | `qs[8]` | per sub-block two u32: 4 grid rows (8 bits each), then 4 sign codes (7 bits each) and the scale (4 bits) |
//!
//! Decode: `y = (((d·(0.5 + scale))·0.25)·g)·±1` with the rows `g` of a grid of 256 and even signs (the eighth sign of 8
//! makes the number of negatives even).
//!
//! Encode (importance required): [`super::sweep`] from the scale that the non-negative search [`qp`] finds; every group
//! is matched again with the fitted scale. A sub-block without values stores row 0 with scale 0: it decodes to 8·d/8, not
//! to 0, unless the whole block is zero.

use super::neighbours::{self, Codebook};
use super::sweep::{self, GridSweep, Refit, SubBlock};
use super::tables::{IQ2XXS_ROWS, even_signs};
use crate::block::search::{EPS, qp};
use crate::block::{BlockFormat, Rows, f16_at, u32_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The IQ2_XXS format.
#[derive(Clone, Copy, Debug)]
pub struct Iq2Xxs;

impl BlockFormat for Iq2Xxs {
    const TYPE: GgmlType = GgmlType::IQ2_XXS;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(66).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 0);
            for (b, y) in b[2..].chunks_exact(8).zip(y.chunks_exact_mut(32)) {
                let codes = u32_at(b, 4);
                let db = d * (0.5 + (codes >> 28) as f32) * 0.25;
                for (l, y) in y.chunks_exact_mut(8).enumerate() {
                    let row = IQ2XXS_ROWS[usize::from(b[l])].to_le_bytes();
                    sweep::signed_row(db, &row, even_signs((codes >> (7 * l)) as u8 & 0x7F), y);
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        sweep::encode::<Self>(rows, dst);
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::iq23_decode::iq2_xxs::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::iq23_encode::encode::<S, Self>(rows, dst) }
    }
}

impl GridSweep for Iq2Xxs {
    const SUB: usize = 32;
    const GROUP: usize = 8;
    const LEVELS: i32 = 3;
    const STEPS: i32 = 6;
    const STEP: f32 = 0.1;
    const EVEN_SIGNS: bool = true;
    const TINY: f32 = EPS;
    const SIGMA: f32 = 1.0;
    const REFIT: Refit = Refit::All;
    const FUDGE: f32 = 1.0;

    fn book() -> &'static Codebook {
        neighbours::iq2_xxs()
    }

    fn start(xv: &[f32], w: &[f32], _: f32) -> Option<(f32, f32)> {
        let scale = qp(4, xv, w, &mut [0; 32]);
        let top = scale * 3.0;
        if top <= 0.0 { None } else { Some((scale, top)) }
    }

    #[inline(always)]
    unsafe fn start_simd<S: Simd>(xv: &[S::F; 32], w: &[S::F; 32], _: S::F) -> (S::F, S::F) {
        unsafe {
            let (scale, _) = generic::search::qp::<S, 32>(4, xv, w);
            (scale, S::mul(scale, S::splat(3.0)))
        }
    }

    fn pack(subs: &[SubBlock], scales: &[u8; 16], block: &mut [u8]) {
        for ((sub, scale), b) in subs.iter().zip(scales).zip(block[2..].chunks_exact_mut(8)) {
            let signs = sub.signs.iter().rev().fold(0, |word, s| word << 7 | u32::from(*s));
            b[..4].iter_mut().zip(sub.rows).for_each(|(b, row)| *b = row as u8);
            b[4..].copy_from_slice(&(signs | u32::from(*scale) << 28).to_le_bytes());
        }
    }
}
