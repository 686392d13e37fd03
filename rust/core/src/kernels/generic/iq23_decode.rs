//! Vector decoders of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: grid rows as bytes, widened and scaled; signs by
//! flipping the sign bit, which is what multiplying with ±1 does.

use crate::block::iquant::tables::{IQ2S_ROWS, IQ2XS_ROWS, IQ2XXS_ROWS, IQ3S_ROWS, IQ3XXS_ROWS};
use crate::float;
use crate::kernels::simd::{LANES, Simd};

/// The sign bits of four 7-bit codes: bit 7 of each byte makes its number of set bits even.
#[inline(always)]
fn even_signs(codes: u32) -> u32 {
    let bytes = codes & 0x7F | (codes & 0x3F80) << 1 | (codes & 0x001F_C000) << 2 | (codes & 0x0FE0_0000) << 3;
    let half = bytes ^ bytes >> 4;
    let quarter = half ^ half >> 2;
    bytes | ((quarter ^ quarter >> 1) & 0x0101_0101) << 7
}

/// `(d·(0.5 + scale))·factor` per lane.
#[inline(always)]
unsafe fn half_scales<S: Simd>(p: *const u8, scale: S::I, factor: f32) -> [f32; LANES] {
    let mut db = [0f32; LANES];
    unsafe {
        let d = S::splat_f16(p.cast());
        let v = S::mul(S::mul(d, S::add(S::splat(0.5), S::to_f(scale))), S::splat(factor));
        S::store(db.as_mut_ptr(), v);
    }
    db
}

/// Writes 16 elements: two rows of 8.
#[inline(always)]
unsafe fn put8<S: Simd, const STREAM: bool>(y: *mut f32, db: f32, rows: [u64; 2], signs: u32) {
    unsafe { S::put::<STREAM>(y, S::flip(S::mul(S::splat(db), S::widen8(rows)), signs)) }
}

/// Writes 16 elements: four rows of 4.
#[inline(always)]
unsafe fn put4<S: Simd, const STREAM: bool>(y: *mut f32, db: S::F, rows: [u32; 4], signs: u32) {
    unsafe { S::put::<STREAM>(y, S::flip(S::mul(db, S::widen4(rows)), signs)) }
}

/// Decodes IQ2_XXS blocks.
#[inline(always)]
pub unsafe fn iq2_xxs<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    let grid = IQ2XXS_ROWS.as_ptr();
    for _ in 0..dst.len() / 256 {
        unsafe {
            // The second word of each pair ends in the scale.
            let db = half_scales::<S>(p, S::ishr::<28>(S::iload(p.add(2).cast())), 0.25);
            for ib in 0..8 {
                let rows = p.add(2 + 8 * ib).cast::<u32>().read_unaligned();
                let signs = even_signs(p.add(6 + 8 * ib).cast::<u32>().read_unaligned());
                let row = |l: u32| *grid.add((rows >> (8 * l) & 255) as usize);
                let db = db[2 * ib + 1];
                put8::<S, STREAM>(y, db, [row(0), row(1)], signs);
                put8::<S, STREAM>(y.add(16), db, [row(2), row(3)], signs >> 16);
                y = y.add(32);
            }
            p = p.add(66);
        }
    }
}

/// Decodes IQ2_XS blocks.
#[inline(always)]
pub unsafe fn iq2_xs<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    let grid = IQ2XS_ROWS.as_ptr();
    for _ in 0..dst.len() / 256 {
        unsafe {
            let db = half_scales::<S>(p, S::load_nibbles8(p.add(66)), 0.25);
            for ib in 0..8 {
                let q = p.add(2 + 8 * ib).cast::<u64>().read_unaligned();
                let code = |l: u32| (q >> (16 * l)) as u32;
                let row = |l: u32| *grid.add((code(l) & 511) as usize);
                let seven = |l: u32| (code(l) >> 9 & 127) << (7 * l);
                let signs = even_signs(seven(0) | seven(1) | seven(2) | seven(3));
                put8::<S, STREAM>(y, db[ib], [row(0), row(1)], signs);
                put8::<S, STREAM>(y.add(16), db[8 + ib], [row(2), row(3)], signs >> 16);
                y = y.add(32);
            }
            p = p.add(74);
        }
    }
}

/// Decodes IQ2_S blocks.
#[inline(always)]
pub unsafe fn iq2_s<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    let grid = IQ2S_ROWS.as_ptr();
    for _ in 0..dst.len() / 256 {
        unsafe {
            let db = half_scales::<S>(p, S::load_nibbles8(p.add(74)), 0.25);
            for ib in 0..8 {
                let low = p.add(2 + 4 * ib).cast::<u32>().read_unaligned();
                let signs = p.add(34 + 4 * ib).cast::<u32>().read_unaligned();
                let high = u32::from(*p.add(66 + ib));
                let row = |l: u32| *grid.add((low >> (8 * l) & 255 | (high << (8 - 2 * l)) & 0x300) as usize);
                put8::<S, STREAM>(y, db[ib], [row(0), row(1)], signs);
                put8::<S, STREAM>(y.add(16), db[8 + ib], [row(2), row(3)], signs >> 16);
                y = y.add(32);
            }
            p = p.add(82);
        }
    }
}

/// Decodes IQ3_XXS blocks.
#[inline(always)]
pub unsafe fn iq3_xxs<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    let grid = IQ3XXS_ROWS.as_ptr();
    for _ in 0..dst.len() / 256 {
        unsafe {
            // The last 16 words of the block: the second half of them ends in the scale.
            let db = half_scales::<S>(p, S::ishr::<28>(S::iload(p.add(34).cast())), 0.5);
            for ib in 0..8 {
                let q = p.add(2 + 8 * ib).cast::<u64>().read_unaligned();
                let signs = even_signs(p.add(66 + 4 * ib).cast::<u32>().read_unaligned());
                let row = |l: u32| *grid.add((q >> (8 * l) & 255) as usize);
                let db = S::splat(db[8 + ib]);
                put4::<S, STREAM>(y, db, [row(0), row(1), row(2), row(3)], signs);
                put4::<S, STREAM>(y.add(16), db, [row(4), row(5), row(6), row(7)], signs >> 16);
                y = y.add(32);
            }
            p = p.add(98);
        }
    }
}

/// Decodes IQ3_S blocks.
#[inline(always)]
pub unsafe fn iq3_s<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    let grid = IQ3S_ROWS.as_ptr();
    for _ in 0..dst.len() / 256 {
        unsafe {
            let d = float::f16_to_f32(p.cast::<u16>().read_unaligned());
            let scales = p.add(106).cast::<u32>().read_unaligned();
            for ib in 0..8 {
                let q = p.add(2 + 8 * ib).cast::<u64>().read_unaligned();
                let high = u64::from(*p.add(66 + ib));
                let signs = p.add(74 + 4 * ib).cast::<u32>().read_unaligned();
                let row = |l: u32| *grid.add((q >> (8 * l) & 255 | (high << (8 - l)) & 256) as usize);
                let db = S::splat(d * ((scales >> (4 * ib) & 15) << 1 | 1) as f32);
                put4::<S, STREAM>(y, db, [row(0), row(1), row(2), row(3)], signs);
                put4::<S, STREAM>(y.add(16), db, [row(4), row(5), row(6), row(7)], signs >> 16);
                y = y.add(32);
            }
            p = p.add(110);
        }
    }
}
