//! Encoders without importance weights.

use crate::block::legacy::{Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1};
use crate::block::search::first_max;
use crate::kernels::generic::groups::{Encode16, abs_max, f16_lanes, inverse, lanes, min_max};
use crate::kernels::simd::{LANES, Simd};

/// First bytes of a block: `d`, and behind it `m` if `AFFINE`. Returns where the codes begin.
#[inline(always)]
unsafe fn put_head<const AFFINE: bool>(p: *mut u8, d: u16, m: u16) -> *mut u8 {
    unsafe {
        p.cast::<u16>().write_unaligned(d);
        if AFFINE {
            p.add(2).cast::<u16>().write_unaligned(m);
        }
        p.add(if AFFINE { 4 } else { 2 })
    }
}

/// The first element of largest magnitude, signed, of each of 16 blocks of 32 (+0 for a zero block).
#[inline(always)]
unsafe fn signed_max<S: Simd>(x: *const f32) -> S::F {
    unsafe {
        let (min, max) = min_max::<S>(x);
        let (down, zero) = (S::neg(min), S::splat(0.0));
        let max_wins = S::gt(max, down);
        let mut out = S::select(max_wins, max, min);
        // Both signs reach the largest magnitude (or all is zero): the first one counts.
        let tie = S::m_bits(S::eq(max, down));
        if tie != 0 {
            let mut values = lanes::<S>(out);
            for (lane, value) in values.iter_mut().enumerate() {
                if (tie >> lane) & 1 == 1 {
                    *value = first_max(std::slice::from_raw_parts(x.add(32 * lane), 32)).1;
                }
            }
            out = S::load(values.as_ptr());
        }
        S::select(S::eq(out, zero), zero, out)
    }
}

/// Stores the 32 codes `a`, `b` of 4 bits (Q4) or 5 bits (Q5); higher bits than 8 are noise that does not count.
#[inline(always)]
unsafe fn put_codes<S: Simd, const FIVE: bool>(p: *mut u8, a: S::I, b: S::I) {
    unsafe {
        if FIVE {
            let top = S::isplat(15);
            let high = S::m_bits(S::igt(a, top)) | S::m_bits(S::igt(b, top)) << 16;
            p.cast::<u32>().write_unaligned(high);
            S::store_u8(p.add(4), S::ior(S::iand(a, top), S::ishl::<4>(b)));
        } else {
            S::store_u8(p, S::ior(a, S::ishl::<4>(b)));
        }
    }
}

/// Q4_0 and Q5_0, codes in `0..2N`.
///
/// `x·(1/d)` is within ±N up to rounding, or infinite or NaN where `1/d` overflows; those truncate to `i32::MIN`, whose
/// low byte is the 0 of the definition. The cut-off can therefore be made on 32 bits.
#[inline(always)]
unsafe fn symmetric16<S: Simd, const N: i32, const FIVE: bool>(x: *const f32, dst: *mut u8) {
    unsafe {
        let d = S::div(signed_max::<S>(x), S::splat(-N as f32));
        let (half, inverses) = (f16_lanes::<S>(d), lanes::<S>(inverse::<S>(d)));
        let (offset, top) = (S::splat(N as f32 + 0.5), S::isplat(2 * N - 1));
        for block in 0..LANES {
            let x = x.add(32 * block);
            let id = S::splat(inverses[block]);
            let a = S::imin(S::trunc(S::add(S::mul(S::load(x), id), offset)), top);
            let b = S::imin(S::trunc(S::add(S::mul(S::load(x.add(16)), id), offset)), top);
            let p = put_head::<false>(dst.add(block * if FIVE { 22 } else { 18 }), half[block], 0);
            put_codes::<S, FIVE>(p, a, b);
        }
    }
}

/// Q4_1 and Q5_1, codes in `0..=TOP`. `(x-min)·(1/d)` exceeds `TOP` by rounding errors only, which the truncation hides, or
/// is out of range as in [`symmetric16`]: no cut-off is needed.
#[inline(always)]
unsafe fn affine16<S: Simd, const TOP: i32, const FIVE: bool>(x: *const f32, dst: *mut u8) {
    unsafe {
        let (min, max) = min_max::<S>(x);
        let zero = S::splat(0.0);
        // max - min, with +0 where both are zeros of any sign.
        let d = S::div(S::add(S::sub(max, min), zero), S::splat(TOP as f32));
        let mut minima = lanes::<S>(min);
        let zeros = S::m_bits(S::eq(min, zero));
        if zeros != 0 {
            // The sign of a zero minimum is that of the first zero.
            for (lane, value) in minima.iter_mut().enumerate() {
                if (zeros >> lane) & 1 == 1 {
                    let x = std::slice::from_raw_parts(x.add(32 * lane), 32);
                    *value = x.iter().copied().find(|v| *v == 0.0).unwrap_or(0.0);
                }
            }
        }
        let (half, half_min) = (f16_lanes::<S>(d), f16_lanes::<S>(S::load(minima.as_ptr())));
        let inverses = lanes::<S>(inverse::<S>(d));
        let offset = S::splat(0.5);
        for block in 0..LANES {
            let x = x.add(32 * block);
            let (id, m) = (S::splat(inverses[block]), S::splat(minima[block]));
            let a = S::trunc(S::add(S::mul(S::sub(S::load(x), m), id), offset));
            let b = S::trunc(S::add(S::mul(S::sub(S::load(x.add(16)), m), id), offset));
            let p = put_head::<true>(dst.add(block * if FIVE { 24 } else { 20 }), half[block], half_min[block]);
            put_codes::<S, FIVE>(p, a, b);
        }
    }
}

/// Scale, f16 scales and inverses of formats whose codes span ±`top` at the largest magnitude.
#[inline(always)]
unsafe fn scales<S: Simd, const N: usize>(x: *const f32, top: f32) -> (S::F, [u16; LANES], S::F) {
    unsafe {
        let d = S::div(abs_max::<S, N>(x), S::splat(top));
        (d, f16_lanes::<S>(d), inverse::<S>(d))
    }
}

impl Encode16 for Q4_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe { symmetric16::<S, 8, false>(x, dst) }
    }
}

impl Encode16 for Q5_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe { symmetric16::<S, 16, true>(x, dst) }
    }
}

impl Encode16 for Q4_1 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe { affine16::<S, 15, false>(x, dst) }
    }
}

impl Encode16 for Q5_1 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe { affine16::<S, 31, true>(x, dst) }
    }
}

impl Encode16 for Q8_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let (_, half, id) = scales::<S, 32>(x, 127.0);
            let inverses = lanes::<S>(id);
            for block in 0..LANES {
                let (x, p) = (x.add(32 * block), dst.add(34 * block));
                let id = S::splat(inverses[block]);
                p.cast::<u16>().write_unaligned(half[block]);
                S::store_u8(p.add(2), S::rha(S::mul(S::load(x), id)));
                S::store_u8(p.add(18), S::rha(S::mul(S::load(x.add(16)), id)));
            }
        }
    }
}

impl Encode16 for Q8_1 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let (d, half, id) = scales::<S, 32>(x, 127.0);
            // Where 1/d overflows every code is the low byte of `i32::MIN`, 0, as for an inverse of 0.
            let finite = S::lt(id, S::splat(f32::INFINITY));
            let inverses = lanes::<S>(S::select(finite, id, S::splat(0.0)));
            let mut sums = [S::splat(0.0); LANES];
            for block in 0..LANES {
                let (x, p) = (x.add(32 * block), dst.add(36 * block));
                let id = S::splat(inverses[block]);
                let (a, b) = (S::rha(S::mul(S::load(x), id)), S::rha(S::mul(S::load(x.add(16)), id)));
                sums[block] = S::to_f(S::iadd(a, b)); // whole and small: sums of them are exact in any order
                p.cast::<u16>().write_unaligned(half[block]);
                S::store_u8(p.add(4), a);
                S::store_u8(p.add(20), b);
            }
            S::transpose(&mut sums);
            let mut sum = sums[0];
            for s in &sums[1..] {
                sum = S::add(sum, *s);
            }
            let s = f16_lanes::<S>(S::mul(sum, d));
            for (block, s) in s.iter().enumerate() {
                dst.add(36 * block + 2).cast::<u16>().write_unaligned(*s);
            }
        }
    }
}

impl Encode16 for Q1_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let zero = S::splat(0.0);
            let mut sum = zero;
            for at in 0..8 {
                let mut part = [zero; LANES];
                for (block, part) in part.iter_mut().enumerate() {
                    *part = S::load(x.add(128 * block + 16 * at));
                    let bits = S::m_bits(S::ge(*part, zero)) as u16;
                    dst.add(18 * block + 2 + 2 * at).cast::<u16>().write_unaligned(bits);
                }
                S::transpose(&mut part);
                for part in part {
                    sum = S::add(sum, S::abs(part));
                }
            }
            let d = f16_lanes::<S>(S::div(sum, S::splat(128.0)));
            for (block, d) in d.iter().enumerate() {
                dst.add(18 * block).cast::<u16>().write_unaligned(*d);
            }
        }
    }
}

impl Encode16 for Q2_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let (_, half, id) = scales::<S, 64>(x, 1.0);
            let mut codes = [0u8; 64 * LANES];
            for (block, id) in lanes::<S>(id).iter().enumerate() {
                let id = S::splat(*id);
                for at in (0..64).step_by(16) {
                    let q = S::iadd(S::rha(S::mul(S::load(x.add(64 * block + at)), id)), S::isplat(1));
                    let q = S::imin(S::imax(q, S::isplat(0)), S::isplat(3));
                    S::store_u8(codes.as_mut_ptr().add(64 * block + at), q);
                }
            }
            // Four codes in the bytes of a word become one byte.
            for (block, d) in half.iter().enumerate() {
                let p = dst.add(18 * block);
                let q = S::iload(codes.as_ptr().add(64 * block).cast());
                let q = S::ior(q, S::ishr::<6>(q));
                p.cast::<u16>().write_unaligned(*d);
                S::store_u8(p.add(2), S::ior(q, S::ishr::<12>(q)));
            }
        }
    }
}
