//! Q4_0: 32 weights in 18 bytes (4.5 bits per weight). Q4_1: 32 weights in 20 bytes (5 bits per weight).
//!
//! | offset Q4_0 | Q4_1 | field | |
//! |---|---|---|---|
//! | 0 | 0 | `d` | f16 scale |
//! | – | 2 | `m` | f16 minimum |
//! | 2 | 4 | `qs[16]` | codes 0..=15: element j in the low nibble of byte j, element j+16 in the high nibble |
//!
//! Decode: Q4_0 `y = (q-8)·d`; Q4_1 `y = q·d + m`.
//!
//! Encode: Q4_0 `max` = first element of largest magnitude, `d = max/-8`, `q = min(15, trunc(x·(1/d) + 8.5))`; a zero
//! block stores -0 as `d`. Q4_1 `d = (max-min)/15`, `q = min(15, trunc((x-min)·(1/d) + 0.5))`, `m = min`. The inverse is
//! of the unrounded `d`, 0 when `d` is 0.
//!
//! With importance, weights `importance·sqrt(σ²+x²)` (σ² = mean square of the row) go into the symmetric search
//! [`search::qx`] (Q4_0) or the affine search [`search::qk`] (Q4_1, 36 steps from -0.9 by 0.05).

use super::{code, for_weighted_blocks, inverse, min_max};
use crate::block::search::{self, Sweep};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q4_0 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q4_0;

/// The Q4_1 format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
pub struct Q4_1;

/// Packs 32 codes of 4 bits.
fn pack(qs: &mut [u8], q: &[u8; 32]) {
    for (j, b) in qs.iter_mut().enumerate() {
        *b = q[j] | q[j + 16] << 4;
    }
}

impl BlockFormat for Q4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(18).zip(dst.chunks_exact_mut(32)) {
            let d = f16_at(b, 0);
            for (j, q) in b[2..].iter().enumerate() {
                y[j] = (i32::from(q & 15) - 8) as f32 * d;
                y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        if let Some(importance) = rows.importance {
            let (blocks, _) = dst.as_chunks_mut::<18>();
            return for_weighted_blocks(rows, importance, |i, x, w| {
                let mut q = [0; 32];
                let d = search::qx(8, x, Some(w), &mut q);
                put_f16(&mut blocks[i], 0, d);
                pack(&mut blocks[i][2..], &q);
            });
        }
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(18)) {
            let d = search::first_max(x).1 / -8.0;
            let id = inverse(d);
            put_f16(b, 0, d);
            pack(&mut b[2..], &x.map(|x| code(x * id + 8.5, 15)));
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q4::<S, -8, false, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe {
            match rows.importance {
                Some(_) => generic::legacy::encode_symmetric::<S, 8, false>(rows, dst),
                None => generic::groups::encode::<S, Self>(rows, dst),
            }
        }
    }
}

impl BlockFormat for Q4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(20).zip(dst.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(b, 0), f16_at(b, 2));
            for (j, q) in b[4..].iter().enumerate() {
                y[j] = f32::from(q & 15) * d + m;
                y[j + 16] = f32::from(q >> 4) * d + m;
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        if let Some(importance) = rows.importance {
            let (blocks, _) = dst.as_chunks_mut::<20>();
            return for_weighted_blocks(rows, importance, |i, x, w| {
                let mut q = [0; 32];
                let (d, m) = search::qk(15, x, w, &Sweep::IMPORTANCE, &mut q);
                put_f16(&mut blocks[i], 0, d);
                put_f16(&mut blocks[i], 2, -m);
                pack(&mut blocks[i][4..], &q);
            });
        }
        for ((x, _), b) in rows.blocks::<32>().zip(dst.chunks_exact_mut(20)) {
            let (min, max) = min_max(x);
            let d = (max - min) / 15.0;
            let id = inverse(d);
            put_f16(b, 0, d);
            put_f16(b, 2, min);
            pack(&mut b[4..], &x.map(|x| code((x - min) * id + 0.5, 15)));
        }
    }

    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::legacy::decode_q4::<S, 0, true, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe {
            match rows.importance {
                Some(_) => generic::legacy::encode_affine::<S, 15, false>(rows, dst),
                None => generic::groups::encode::<S, Self>(rows, dst),
            }
        }
    }
}
