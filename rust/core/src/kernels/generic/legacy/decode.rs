//! Decoders: 16 consecutive elements per vector.

use crate::kernels::simd::{LANES, Simd};

/// `from`, `from + 1`, … in the lanes.
#[inline(always)]
unsafe fn ramp<S: Simd>(from: i32) -> S::I {
    const STEPS: [i32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    unsafe { S::iadd(S::iload(STEPS.as_ptr()), S::isplat(from)) }
}

/// A scale and an offset per block: code `q` stands for `(q + FROM)·d`, plus `m` if `AFFINE`.
#[derive(Clone, Copy)]
struct Scale<S: Simd, const FROM: i32, const AFFINE: bool> {
    d: S::F,
    m: S::F,
}

impl<S: Simd, const FROM: i32, const AFFINE: bool> Scale<S, FROM, AFFINE> {
    /// Reads `d`, and `m` if there is one.
    #[inline(always)]
    unsafe fn read(p: *const u8) -> Self {
        unsafe {
            let d = S::splat_f16(p.cast());
            Self { d, m: if AFFINE { S::splat_f16(p.add(2).cast()) } else { d } }
        }
    }

    /// Values of the whole numbers `q + FROM`.
    #[inline(always)]
    unsafe fn apply(self, shifted: S::I) -> S::F {
        unsafe {
            let y = S::mul(S::to_f(shifted), self.d);
            if AFFINE { S::add(y, self.m) } else { y }
        }
    }

    /// Values of the codes `q`.
    #[inline(always)]
    unsafe fn values(self, q: S::I) -> S::F {
        unsafe { self.apply(if FROM == 0 { q } else { S::iadd(q, S::isplat(FROM)) }) }
    }
}

/// Decodes blocks of 32 codes of 4 bits behind the scale (and the minimum): Q4_0 and Q4_1.
#[inline(always)]
pub unsafe fn decode_q4<S: Simd, const FROM: i32, const AFFINE: bool, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let head = if AFFINE { 4 } else { 2 };
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 32 {
        unsafe {
            let scale = Scale::<S, FROM, AFFINE>::read(p);
            let q = S::load_u8(p.add(head));
            if S::FAST_LOOKUP {
                let table = scale.apply(ramp::<S>(FROM));
                S::put::<STREAM>(y, S::lookup(table, q));
                S::put::<STREAM>(y.add(16), S::lookup(table, S::ishr::<4>(q)));
            } else {
                S::put::<STREAM>(y, scale.values(S::iand(q, S::isplat(15))));
                S::put::<STREAM>(y.add(16), scale.values(S::ishr::<4>(q)));
            }
            p = p.add(head + 16);
            y = y.add(32);
        }
    }
}

/// Decodes blocks of 32 codes of 5 bits behind the scale (and the minimum): Q5_0 and Q5_1.
#[inline(always)]
pub unsafe fn decode_q5<S: Simd, const FROM: i32, const AFFINE: bool, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let head = if AFFINE { 4 } else { 2 };
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 32 {
        unsafe {
            let scale = Scale::<S, FROM, AFFINE>::read(p);
            let high = p.add(head).cast::<u32>().read_unaligned();
            let q = S::load_u8(p.add(head + 4));
            if S::FAST_LOOKUP {
                let (set0, set1) = (S::m_from_bits(high & 0xFFFF), S::m_from_bits(high >> 16));
                let (low, up) = (scale.apply(ramp::<S>(FROM)), scale.apply(ramp::<S>(FROM + 16)));
                let q1 = S::ishr::<4>(q);
                S::put::<STREAM>(y, S::select(set0, S::lookup(up, q), S::lookup(low, q)));
                S::put::<STREAM>(y.add(16), S::select(set1, S::lookup(up, q1), S::lookup(low, q1)));
            } else {
                let lane = ramp::<S>(0);
                let fifth0 = S::ishrv(S::isplat(((high & 0xFFFF) << 4) as i32), lane);
                let fifth1 = S::ishrv(S::isplat((high >> 16 << 4) as i32), lane);
                let (four, bit) = (S::isplat(15), S::isplat(16));
                let q0 = S::ior(S::iand(q, four), S::iand(fifth0, bit));
                let q1 = S::ior(S::ishr::<4>(q), S::iand(fifth1, bit));
                S::put::<STREAM>(y, scale.values(q0));
                S::put::<STREAM>(y.add(16), scale.values(q1));
            }
            p = p.add(head + 20);
            y = y.add(32);
        }
    }
}

/// Decodes Q8_0 blocks.
#[inline(always)]
pub unsafe fn decode_q8_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 32 {
        unsafe {
            let d = S::splat_f16(p.cast());
            let q = p.add(2).cast::<i8>();
            S::put::<STREAM>(y, S::mul(S::to_f(S::load_i8(q)), d));
            S::put::<STREAM>(y.add(16), S::mul(S::to_f(S::load_i8(q.add(16))), d));
            p = p.add(34);
            y = y.add(32);
        }
    }
}

/// Decodes Q1_0 blocks.
#[inline(always)]
pub unsafe fn decode_q1_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 128 {
        unsafe {
            let d = S::splat_f16(p.cast());
            let minus = S::neg(d);
            for k in 0..8 {
                let bits = p.add(2 + 2 * k).cast::<u16>().read_unaligned();
                S::put::<STREAM>(y.add(16 * k), S::select(S::m_from_bits(u32::from(bits)), d, minus));
            }
            p = p.add(18);
            y = y.add(128);
        }
    }
}

/// Decodes Q2_0 blocks.
#[inline(always)]
pub unsafe fn decode_q2_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 64 {
        unsafe {
            let d = S::splat_f16(p.cast());
            let shift = S::ishl::<1>(ramp::<S>(0));
            // The levels -1, 0, 1, 2 four times over: higher bits of an index do not matter.
            let levels = S::isub(S::iand(ramp::<S>(0), S::isplat(3)), S::isplat(1));
            let table = S::mul(S::to_f(levels), d);
            for k in 0..4 {
                let word = p.add(2 + 4 * k).cast::<i32>().read_unaligned();
                let q = S::ishrv(S::isplat(word), shift);
                let v = if S::FAST_LOOKUP {
                    S::lookup(table, q)
                } else {
                    S::mul(S::to_f(S::isub(S::iand(q, S::isplat(3)), S::isplat(1))), d)
                };
                S::put::<STREAM>(y.add(16 * k), v);
            }
            p = p.add(18);
            y = y.add(64);
        }
    }
}
