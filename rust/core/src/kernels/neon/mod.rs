//! NEON (AArch64 baseline): four 128-bit registers are the vector.

use super::simd::{LANES, Simd};
use std::arch::aarch64::*;

/// The NEON level.
#[derive(Clone, Copy)]
pub struct Neon;

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type M = [uint32x4_t; 4];

macro_rules! each {
    ($op:ident, $a:expr) => {{
        let a = $a;
        unsafe { [$op(a[0]), $op(a[1]), $op(a[2]), $op(a[3])] }
    }};
    ($op:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        unsafe { [$op(a[0], b[0]), $op(a[1], b[1]), $op(a[2], b[2]), $op(a[3], b[3])] }
    }};
    ($op:ident, $a:expr, $b:expr, $c:expr) => {{
        let (a, b, c) = ($a, $b, $c);
        unsafe { [$op(a[0], b[0], c[0]), $op(a[1], b[1], c[1]), $op(a[2], b[2], c[2]), $op(a[3], b[3], c[3])] }
    }};
}

#[inline(always)]
unsafe fn lanes(v: I) -> [i32; LANES] {
    let mut out = [0; LANES];
    for (k, &q) in v.iter().enumerate() {
        unsafe { vst1q_s32(out.as_mut_ptr().add(4 * k), q) }
    }
    out
}

#[rustfmt::skip]
impl Simd for Neon {
    type F = F;
    type I = I;
    type M = M;

    #[inline(always)] unsafe fn splat(x: f32) -> F { unsafe { [vdupq_n_f32(x); 4] } }
    #[inline(always)] unsafe fn load(p: *const f32) -> F { unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] } }
    #[inline(always)] unsafe fn store(p: *mut f32, v: F) { unsafe { for (k, &q) in v.iter().enumerate() { vst1q_f32(p.add(4 * k), q); } } }
    #[inline(always)] unsafe fn stream(p: *mut f32, v: F) { unsafe { Self::store(p, v) } }
    #[inline(always)] unsafe fn add(a: F, b: F) -> F { each!(vaddq_f32, a, b) }
    #[inline(always)] unsafe fn sub(a: F, b: F) -> F { each!(vsubq_f32, a, b) }
    #[inline(always)] unsafe fn mul(a: F, b: F) -> F { each!(vmulq_f32, a, b) }
    #[inline(always)] unsafe fn div(a: F, b: F) -> F { each!(vdivq_f32, a, b) }
    #[inline(always)] unsafe fn sqrt(a: F) -> F { each!(vsqrtq_f32, a) }
    #[inline(always)] unsafe fn max(a: F, b: F) -> F { unsafe { Self::select(Self::lt(b, a), a, b) } }
    #[inline(always)] unsafe fn min(a: F, b: F) -> F { unsafe { Self::select(Self::lt(a, b), a, b) } }
    #[inline(always)] unsafe fn lt(a: F, b: F) -> M { each!(vcltq_f32, a, b) }
    #[inline(always)] unsafe fn le(a: F, b: F) -> M { each!(vcleq_f32, a, b) }
    #[inline(always)] unsafe fn eq(a: F, b: F) -> M { each!(vceqq_f32, a, b) }
    #[inline(always)] unsafe fn select(m: M, a: F, b: F) -> F { each!(vbslq_f32, m, a, b) }
    #[inline(always)]
    unsafe fn trunc(a: F) -> I {
        // vcvtq saturates and turns NaN into 0; x86 gives i32::MIN for both.
        let saturated = each!(vcvtq_s32_f32, a);
        unsafe {
            let inside = Self::m_and(Self::le(Self::splat(-2_147_483_648.0), a), Self::lt(a, Self::splat(2_147_483_648.0)));
            Self::iselect(inside, saturated, Self::isplat(i32::MIN))
        }
    }
    #[inline(always)] unsafe fn bits(a: F) -> I { each!(vreinterpretq_s32_f32, a) }
    #[inline(always)] unsafe fn from_bits(a: I) -> F { each!(vreinterpretq_f32_s32, a) }
    #[inline(always)]
    unsafe fn lookup(t: F, i: I) -> F {
        unsafe {
            let mut table = [0f32; LANES];
            Self::store(table.as_mut_ptr(), t);
            Self::gather(table.as_ptr(), Self::iand(i, Self::isplat(15)))
        }
    }
    #[inline(always)]
    unsafe fn gather(p: *const f32, i: I) -> F {
        unsafe {
            let mut out = [0f32; LANES];
            for (o, i) in out.iter_mut().zip(lanes(i)) { *o = *p.add(i as usize); }
            Self::load(out.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: &mut [F; LANES]) {
        unsafe {
            let mut m = [[0f32; LANES]; LANES];
            for (row, v) in m.iter_mut().zip(r.iter()) { Self::store(row.as_mut_ptr(), *v); }
            for (i, v) in r.iter_mut().enumerate() {
                let mut column = [0f32; LANES];
                for (c, row) in column.iter_mut().zip(&m) { *c = row[i]; }
                *v = Self::load(column.as_ptr());
            }
        }
    }

    #[inline(always)] unsafe fn m_and(a: M, b: M) -> M { each!(vandq_u32, a, b) }
    #[inline(always)] unsafe fn m_or(a: M, b: M) -> M { each!(vorrq_u32, a, b) }
    #[inline(always)] unsafe fn m_not(a: M) -> M { each!(vmvnq_u32, a) }
    #[inline(always)]
    unsafe fn m_bits(a: M) -> u32 {
        unsafe {
            let weight = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            let mut bits = 0;
            for (k, &q) in a.iter().enumerate() { bits |= vaddvq_u32(vandq_u32(q, weight)) << (4 * k); }
            bits
        }
    }
    #[inline(always)]
    unsafe fn m_from_bits(bits: u32) -> M {
        unsafe {
            let weight = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            let quarter = |k: u32| vtstq_u32(vdupq_n_u32(bits >> (4 * k)), weight);
            [quarter(0), quarter(1), quarter(2), quarter(3)]
        }
    }

    #[inline(always)] unsafe fn isplat(x: i32) -> I { unsafe { [vdupq_n_s32(x); 4] } }
    #[inline(always)] unsafe fn iload(p: *const i32) -> I { unsafe { [vld1q_s32(p), vld1q_s32(p.add(4)), vld1q_s32(p.add(8)), vld1q_s32(p.add(12))] } }
    #[inline(always)] unsafe fn istore(p: *mut i32, v: I) { unsafe { for (k, &q) in v.iter().enumerate() { vst1q_s32(p.add(4 * k), q); } } }
    #[inline(always)] unsafe fn iadd(a: I, b: I) -> I { each!(vaddq_s32, a, b) }
    #[inline(always)] unsafe fn isub(a: I, b: I) -> I { each!(vsubq_s32, a, b) }
    #[inline(always)] unsafe fn imul(a: I, b: I) -> I { each!(vmulq_s32, a, b) }
    #[inline(always)] unsafe fn iand(a: I, b: I) -> I { each!(vandq_s32, a, b) }
    #[inline(always)] unsafe fn ior(a: I, b: I) -> I { each!(vorrq_s32, a, b) }
    #[inline(always)] unsafe fn ixor(a: I, b: I) -> I { each!(veorq_s32, a, b) }
    #[inline(always)] unsafe fn imin(a: I, b: I) -> I { each!(vminq_s32, a, b) }
    #[inline(always)] unsafe fn imax(a: I, b: I) -> I { each!(vmaxq_s32, a, b) }
    #[inline(always)] unsafe fn ishl<const N: i32>(a: I) -> I { unsafe { Self::ishlv(a, Self::isplat(N)) } }
    #[inline(always)] unsafe fn ishr<const N: i32>(a: I) -> I { unsafe { Self::ishrv(a, Self::isplat(N)) } }
    #[inline(always)]
    unsafe fn ishrv(a: I, n: I) -> I {
        unsafe {
            let mut out = a;
            for k in 0..4 { out[k] = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[k]), vnegq_s32(n[k]))); }
            out
        }
    }
    #[inline(always)] unsafe fn ishlv(a: I, n: I) -> I { each!(vshlq_s32, a, n) }
    #[inline(always)] unsafe fn ieq(a: I, b: I) -> M { each!(vceqq_s32, a, b) }
    #[inline(always)] unsafe fn igt(a: I, b: I) -> M { each!(vcgtq_s32, a, b) }
    #[inline(always)] unsafe fn iselect(m: M, a: I, b: I) -> I { each!(vbslq_s32, m, a, b) }
    #[inline(always)] unsafe fn to_f(a: I) -> F { each!(vcvtq_f32_s32, a) }
    #[inline(always)]
    unsafe fn igather(p: *const i32, i: I) -> I {
        unsafe {
            let mut out = [0i32; LANES];
            for (o, i) in out.iter_mut().zip(lanes(i)) { *o = *p.add(i as usize); }
            Self::iload(out.as_ptr())
        }
    }
    #[inline(always)] unsafe fn ilookup(t: I, i: I) -> I { unsafe { Self::bits(Self::lookup(Self::from_bits(t), i)) } }

    #[inline(always)] unsafe fn inc(a: I, m: M) -> I { unsafe { Self::isub(a, [vreinterpretq_s32_u32(m[0]), vreinterpretq_s32_u32(m[1]), vreinterpretq_s32_u32(m[2]), vreinterpretq_s32_u32(m[3])]) } }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> I {
        unsafe {
            let b = vld1q_u8(p);
            let (lo, hi) = (vmovl_u8(vget_low_u8(b)), vmovl_u8(vget_high_u8(b)));
            let q = |h: uint16x4_t| vreinterpretq_s32_u32(vmovl_u16(h));
            [q(vget_low_u16(lo)), q(vget_high_u16(lo)), q(vget_low_u16(hi)), q(vget_high_u16(hi))]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> I {
        unsafe {
            let b = vld1q_s8(p);
            let (lo, hi) = (vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b)));
            [vmovl_s16(vget_low_s16(lo)), vmovl_s16(vget_high_s16(lo)), vmovl_s16(vget_low_s16(hi)), vmovl_s16(vget_high_s16(hi))]
        }
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u16) -> I {
        unsafe {
            let (lo, hi) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            let q = |h: uint16x4_t| vreinterpretq_s32_u32(vmovl_u16(h));
            [q(vget_low_u16(lo)), q(vget_high_u16(lo)), q(vget_low_u16(hi)), q(vget_high_u16(hi))]
        }
    }
    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: I) {
        unsafe {
            let h = |a: int32x4_t, b: int32x4_t| vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
            vst1q_s8(p.cast(), vcombine_s8(h(v[0], v[1]), h(v[2], v[3])));
        }
    }
    #[inline(always)]
    unsafe fn store_u16(p: *mut u16, v: I) {
        unsafe {
            vst1q_s16(p.cast(), vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])));
            vst1q_s16(p.add(8).cast(), vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3])));
        }
    }
    // The f16 vector type is unstable in Rust; the scalar conversions are exact and this level only has to be correct.
    #[inline(always)]
    unsafe fn load_nibbles8(p: *const u8) -> I {
        unsafe {
            let b = vmovl_u8(vld1_u8(p));
            let (lo, hi) = (vandq_u16(b, vdupq_n_u16(15)), vshrq_n_u16::<4>(b));
            let q = |h: uint16x4_t| vreinterpretq_s32_u32(vmovl_u16(h));
            [q(vget_low_u16(lo)), q(vget_high_u16(lo)), q(vget_low_u16(hi)), q(vget_high_u16(hi))]
        }
    }
    #[inline(always)] unsafe fn splat_f16(p: *const u16) -> F { unsafe { Self::splat(crate::float::f16_to_f32(p.read_unaligned())) } }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        unsafe {
            let mut out = [0f32; LANES];
            for (k, o) in out.iter_mut().enumerate() { *o = crate::float::f16_to_f32(p.add(k).read_unaligned()); }
            Self::load(out.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: F) {
        unsafe {
            let mut x = [0f32; LANES];
            Self::store(x.as_mut_ptr(), v);
            for (k, &x) in x.iter().enumerate() { p.add(k).write_unaligned(crate::float::f32_to_f16(x)); }
        }
    }
}
