//! Vector decoders of IQ1_S and IQ1_M.

use crate::block::iquant::iq1::SHIFTED;
use crate::block::iquant::tables;
use crate::float;
use crate::kernels::simd::{LANES, Simd};

/// Values of the levels for every quarter of a vector. Bits 0 and 4 of the index: the first and the second half have the
/// shift −1/8 (as bits 3 and 7 of IQ1_M's `qh`, so that no bit has to move; the other entries are not used).
static VALUES: [[f32; LANES]; 18] = {
    let mut t = [[0.0; LANES]; 18];
    let mut i = 0;
    while i < 18 * LANES {
        let (shifts, lane) = (i / LANES, i % LANES);
        if lane % 4 < 3 {
            t[shifts][lane] = SHIFTED[shifts >> (lane / 8 * 4) & 1][lane % 4];
        }
        i += 1;
    }
    t
};

/// Bit positions of 16 levels in two packed rows.
const POSITIONS: [i32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];

/// Writes the elements of two grid rows; `values` are those of the levels, times the scale.
#[inline(always)]
unsafe fn put_rows<S: Simd, const STREAM: bool>(y: *mut f32, rows: (u32, u32), values: S::F) {
    unsafe {
        let code = |row: u32| u32::from(*tables::IQ1.as_ptr().add(row as usize));
        let codes = S::isplat((code(rows.0) | code(rows.1) << 16) as i32);
        let levels = S::ishrv(codes, S::iload(POSITIONS.as_ptr()));
        S::put::<STREAM>(y, S::lookup4(values, levels));
    }
}

/// Decodes IQ1_S blocks.
#[inline(always)]
pub unsafe fn decode_s<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let d = float::f16_to_f32(p.cast::<u16>().read_unaligned());
            for ib in 0..8 {
                let q = p.add(2 + 4 * ib).cast::<u32>().read_unaligned();
                let h = u32::from(p.add(34 + 2 * ib).cast::<u16>().read_unaligned());
                let dl = S::splat(d * (h >> 11 & 14 | 1) as f32);
                let shifted = VALUES.as_ptr().add(17 * (h >> 15) as usize);
                let values = S::mul(dl, S::load(shifted.cast()));
                let row = |k: u32| q >> (8 * k) & 255 | (h >> (3 * k) & 7) << 8;
                put_rows::<S, STREAM>(y, (row(0), row(1)), values);
                put_rows::<S, STREAM>(y.add(16), (row(2), row(3)), values);
                y = y.add(32);
            }
            p = p.add(50);
        }
    }
}

/// Decodes IQ1_M blocks.
#[inline(always)]
pub unsafe fn decode_m<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    /// Position of the scale of each group in its pair of words.
    const SCALES: [i32; LANES] = [0, 3, 6, 9, 16, 19, 22, 25, 0, 3, 6, 9, 16, 19, 22, 25];
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let sc = p.add(48).cast::<u64>().read_unaligned();
            // The nibbles of the f16 scale are the high ones of the four words.
            let bits = sc >> 12 & 0xF | sc >> 24 & 0xF0 | sc >> 36 & 0xF00 | sc >> 48 & 0xF000;
            let d = S::splat(float::f16_to_f32(bits as u16));
            let first_half = S::m_from_bits(0xFF);
            let words = S::iselect(first_half, S::isplat(sc as i32), S::isplat((sc >> 32) as i32));
            let l = S::iand(S::ishrv(words, S::iload(SCALES.as_ptr())), S::isplat(7));

            let scales = S::mul(d, S::to_f(S::ior(S::ishl::<1>(l), S::isplat(1))));
            for g in 0..16 {
                let q = u32::from(p.add(2 * g).cast::<u16>().read_unaligned());
                let h = u32::from(*p.add(32 + g));
                let shifted = VALUES.as_ptr().add((h & 0x88) as usize >> 3);
                let values = S::mul(S::lookup(scales, S::isplat(g as i32)), S::load(shifted.cast()));
                put_rows::<S, STREAM>(y, (q & 255 | (h & 7) << 8, q >> 8 | (h & 0x70) << 4), values);
                y = y.add(16);
            }
            p = p.add(56);
        }
    }
}
