//! Q5_0: 32 weights in 22 bytes (5.5 bits per weight). Q5_1: 32 weights in 24 bytes (6 bits per weight).
//!
//! | offset Q5_0 | Q5_1 | field | |
//! |---|---|---|---|
//! | 0 | 0 | `d` | f16 scale |
//! | – | 2 | `m` | f16 minimum |
//! | 2 | 4 | `qh` | u32, bit j = bit 4 of the code of element j |
//! | 6 | 8 | `qs[16]` | low nibbles: element j in the low half of byte j, element j+16 in the high half |
//!
//! Decode: Q5_0 `y = (q-16)·d`; Q5_1 `y = q·d + m`.
//!
//! Encode: as Q4_0 and Q4_1 with `d = max/-16`, `q = min(31, trunc(x·(1/d) + 16.5))` and `d = (max-min)/31`,
//! `q = trunc((x-min)·(1/d) + 0.5)`. With importance the same searches, 31 and 16 in the place of 15 and 8.

use super::{code, for_weighted_blocks, inverse, min_max};
use crate::block::search::{self, Sweep};
use crate::block::{BlockFormat, Rows, f16_at, put_f16, u32_at};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q5_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q5_0;

/// The Q5_1 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q5_1;

/// The 32 codes of `qh` and `qs` at `at`.
fn unpack(b: &[u8], at: usize) -> [u8; 32] {
    let high = u32_at(b, at);
    std::array::from_fn(|i| {
        let byte = b[at + 4 + i % 16];
        let nibble = if i < 16 { byte & 15 } else { byte >> 4 };
        nibble | (((high >> i) & 1) << 4) as u8
    })
}

/// Packs 32 codes of 5 bits as `qh` and `qs`.
fn pack(b: &mut [u8], q: &[u8; 32]) {
    let high = (0..32).fold(0u32, |h, i| h | u32::from((q[i] >> 4) & 1) << i);
    b[..4].copy_from_slice(&high.to_le_bytes());
    for (j, b) in b[4..].iter_mut().enumerate() {
        *b = q[j] & 15 | (q[j + 16] & 15) << 4;
    }
}

impl BlockFormat for Q5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(22).zip(dst.chunks_exact_mut(32)) {
            let d = f16_at(b, 0);
            for (y, q) in y.iter_mut().zip(unpack(b, 2)) {
                *y = (i32::from(q) - 16) as f32 * d;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        if let Some(importance) = rows.importance {
            let (blocks, _) = dst.as_chunks_mut::<22>();
            return for_weighted_blocks(rows, importance, |i, x, w| {
                let mut q = [0; 32];
                let d = search::qx(16, x, Some(w), &mut q);
                put_f16(&mut blocks[i], 0, d);
                pack(&mut blocks[i][2..], &q);
            });
        }
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(22)) {
            let d = search::first_max(x).1 / -16.0;
            let id = inverse(d);
            put_f16(b, 0, d);
            pack(&mut b[2..], &x.map(|x| code(x * id + 16.5, 31)));
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q5::<S, -16, false, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe {
            match rows.importance {
                Some(_) => generic::legacy::encode_symmetric::<S, 16, true>(rows, dst),
                None => generic::groups::encode::<S, Self>(rows, dst),
            }
        }
    }
}

impl BlockFormat for Q5_1 {
    const TYPE: GgmlType = GgmlType::Q5_1;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(24).zip(dst.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(b, 0), f16_at(b, 2));
            for (y, q) in y.iter_mut().zip(unpack(b, 4)) {
                *y = f32::from(q) * d + m;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        if let Some(importance) = rows.importance {
            let (blocks, _) = dst.as_chunks_mut::<24>();
            return for_weighted_blocks(rows, importance, |i, x, w| {
                let mut q = [0; 32];
                let (d, m) = search::qk(31, x, w, &Sweep::IMPORTANCE, &mut q);
                put_f16(&mut blocks[i], 0, d);
                put_f16(&mut blocks[i], 2, -m);
                pack(&mut blocks[i][4..], &q);
            });
        }
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(24)) {
            let (min, max) = min_max(x);
            let d = (max - min) / 31.0;
            let id = inverse(d);
            put_f16(b, 0, d);
            put_f16(b, 2, min);
            // No cut-off above 31 is needed: (max-min)·(1/d) stays below 31.5.
            pack(&mut b[4..], &x.map(|x| code((x - min) * id + 0.5, i8::MAX)));
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q5::<S, 0, true, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe {
            match rows.importance {
                Some(_) => generic::legacy::encode_affine::<S, 31, true>(rows, dst),
                None => generic::groups::encode::<S, Self>(rows, dst),
            }
        }
    }
}
