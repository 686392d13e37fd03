//! Vector kernels of the plain floats and of the E2M1 formats.

use crate::block::Rows;
use crate::block::microfloat::{Mxfp4, Nvfp4};
use crate::block::microfloat::{mxfp4, nvfp4};
use crate::float::{self, KV4, power_of_two};
use crate::kernels::generic::convert;
use crate::kernels::generic::groups::{Encode16, abs_max, lanes};
use crate::kernels::simd::{LANES, Simd};

/// 16 elements of a plain type.
pub trait Plain {
    /// Bytes of an element.
    const BYTES: usize;
    /// Decodes 16 elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// Decodes one element.
    unsafe fn load_one(p: *const u8) -> f32;
}

/// F32, as a [`Plain`] type.
pub struct PlainF32;
/// F16.
pub struct PlainF16;
/// BF16.
pub struct PlainBf16;
/// F64.
pub struct PlainF64;

impl Plain for PlainF32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_one(p: *const u8) -> f32 {
        unsafe { p.cast::<f32>().read_unaligned() }
    }
}

impl Plain for PlainF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_one(p: *const u8) -> f32 {
        unsafe { float::f16_to_f32(p.cast::<u16>().read_unaligned()) }
    }
}

impl Plain for PlainBf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::from_bits(S::ishl::<16>(S::load_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_one(p: *const u8) -> f32 {
        unsafe { float::bf16_to_f32(p.cast::<u16>().read_unaligned()) }
    }
}

impl Plain for PlainF64 {
    const BYTES: usize = 8;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        let mut v = [0f32; LANES];
        unsafe {
            for (i, v) in v.iter_mut().enumerate() {
                *v = p.cast::<f64>().add(i).read_unaligned() as f32;
            }
            S::load(v.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_one(p: *const u8) -> f32 {
        unsafe { p.cast::<f64>().read_unaligned() as f32 }
    }
}

/// Bytes of source fetched at a time when the destination bypasses the caches: alternating less often between reading
/// and writing gains the memory some percent where both count (not for F64, whose reads prevail).
const BURST: usize = 1024;

/// Vectors that are loaded before they are stored. Loads right behind a store to the same offset in another page wait for
/// it, and with elements of 4 bytes every load can be in that position.
const UNROLL: usize = 4;

/// Decodes elements of a plain type.
#[inline(always)]
pub unsafe fn decode_plain<S: Simd, P: Plain, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let whole = dst.len() / (LANES * UNROLL) * (LANES * UNROLL);
    let (p, y) = (src.as_ptr(), dst.as_mut_ptr());
    unsafe {
        let mut i = 0usize;
        while i < whole {
            let at = i.wrapping_mul(P::BYTES);
            if STREAM && P::BYTES <= 4 && at % BURST == 0 {
                let next = p.wrapping_add(at.wrapping_add(BURST));
                for line in (0..BURST).step_by(64) {
                    S::prefetch(next.wrapping_add(line));
                }
            }
            let mut v = [S::splat(0.0); UNROLL];
            for (k, v) in v.iter_mut().enumerate() {
                *v = P::load::<S>(p.add(at.wrapping_add(k * LANES * P::BYTES)));
            }
            for (k, v) in v.iter().enumerate() {
                S::put::<STREAM>(y.add(i.wrapping_add(k * LANES)), *v);
            }
            i = i.wrapping_add(LANES * UNROLL);
        }
        for i in whole..dst.len() {
            *y.add(i) = P::load_one(p.add(i * P::BYTES));
        }
    }
}

/// Encodes rows as F16.
#[inline(always)]
pub unsafe fn encode_f16<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    unsafe { convert::write_f16::<S>(rows.x, dst.as_mut_ptr().cast()) }
}

/// Encodes rows as BF16.
#[inline(always)]
pub unsafe fn encode_bf16<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    unsafe { convert::write_bf16::<S>(rows.x, dst.as_mut_ptr().cast()) }
}

/// The doubled E2M1 values.
#[inline(always)]
unsafe fn e2m1_values<S: Simd>() -> S::F {
    unsafe { S::to_f(S::load_i8(KV4.as_ptr())) }
}

/// Decodes MXFP4 blocks.
#[inline(always)]
pub unsafe fn decode_mxfp4<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    unsafe {
        let values = e2m1_values::<S>();
        for _ in 0..dst.len() / 32 {
            let table = S::mul(values, S::splat(float::e8m0_half(*p)));
            let q = S::load_u8(p.add(1));
            S::put::<STREAM>(y, S::lookup(table, q));
            S::put::<STREAM>(y.add(16), S::lookup(table, S::ishr::<4>(q)));
            p = p.add(17);
            y = y.add(32);
        }
    }
}

/// Half of every UE4M3 scale.
static UE4M3_HALF: [f32; 256] = {
    let mut table = [0f32; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = float::ue4m3_half(b as u8);
        b += 1;
    }
    table
};

/// Decodes NVFP4 blocks.
#[inline(always)]
pub unsafe fn decode_nvfp4<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    unsafe {
        let values = e2m1_values::<S>();
        for _ in 0..dst.len() / 64 {
            for group in 0..4 {
                let d = S::splat(UE4M3_HALF[usize::from(*p.add(group))]);
                let v = S::lookup(values, S::load_nibbles8(p.add(4 + 8 * group)));
                S::put::<STREAM>(y.add(16 * group), S::mul(v, d));
            }
            p = p.add(36);
            y = y.add(64);
        }
    }
}

/// Middles between neighbouring E2M1 magnitudes 0, 1, 2, 3, 4, 6, 8, 12.
const MIDDLES: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// The code with its sign; a zero has none.
#[inline(always)]
unsafe fn signed<S: Simd>(q: S::I, x: S::F, nonzero: S::M) -> S::I {
    unsafe {
        let minus = S::m_and(S::lt(x, S::splat(0.0)), nonzero);
        S::iselect(minus, S::ior(q, S::isplat(8)), q)
    }
}

/// The code nearest to `t` in units of the scale, |t| < 16: how many [`MIDDLES`] are below |t|. A tie goes to the smaller
/// magnitude, which has the smaller index.
#[inline(always)]
unsafe fn nearest<S: Simd>(t: S::F) -> S::I {
    unsafe {
        let a = S::abs(t);
        // From 2 on the codes are the floats with one mantissa bit, rounded half down.
        let (two, twelve) = (S::splat(2.0), S::splat(12.0));
        let bits = S::bits(S::min(S::max(a, two), twelve));
        let q = S::ishr::<22>(S::iadd(bits, S::isplat(0x001F_FFFF - 0x4000_0000)));
        let nonzero = S::gt(a, S::splat(0.5));
        let q = S::inc(S::inc(q, nonzero), S::gt(a, S::splat(1.5)));
        signed::<S>(q, t, nonzero)
    }
}

/// [`mxfp4::exponent`] of normal numbers.
#[inline(always)]
unsafe fn exponent<S: Simd>(amax: S::F) -> S::I {
    unsafe {
        let bits = S::bits(amax);
        let k = S::isub(S::ishr::<23>(bits), S::isplat(126));
        let distance = S::imax(S::isub(k, S::isplat(1)), S::isub(S::isplat(0), k));
        // The power of two at or below the distance; 0 for 0.
        let binade = S::iand(S::bits(S::to_f(distance)), S::isplat(0xFF << 23));
        let up = S::trunc(S::mul(S::from_bits(binade), S::splat(std::f32::consts::LN_2)));
        S::isub(S::ishr::<23>(S::iadd(bits, up)), S::isplat(2))
    }
}

impl Encode16 for Mxfp4 {
    /// Scales are powers of two: `x/d` is exact, and so are the differences that decide (`x/d` lies between half and
    /// twice the levels around it). Blocks at the ends of the range, where this breaks down, are left to the scalar code.
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let amax = abs_max::<S, 32>(x);
            let zero = S::splat(0.0);
            let usual = S::m_and(S::gt(amax, S::splat(power_of_two(-120))), S::lt(amax, S::splat(power_of_two(126))));
            let usual = S::m_bits(S::m_or(usual, S::eq(amax, zero)));
            let e = S::iselect(S::eq(amax, zero), S::isplat(0), exponent::<S>(amax));
            // 2^(128-e), or 0 for a zero block.
            let id = S::ishl::<23>(S::isub(S::isplat(255), e));
            let id = lanes::<S>(S::select(S::eq(amax, zero), zero, S::from_bits(id)));
            let mut scales = [0u8; LANES];
            S::store_u8(scales.as_mut_ptr(), e);
            for block in 0..LANES {
                let (x, p) = (x.add(32 * block), dst.add(17 * block));
                if (usual >> block) & 1 == 0 {
                    mxfp4::encode_block(&*x.cast::<[f32; 32]>(), std::slice::from_raw_parts_mut(p, 17));
                    continue;
                }
                *p = scales[block];
                let id = S::splat(id[block]);
                let a = nearest::<S>(S::mul(S::load(x), id));
                let b = nearest::<S>(S::mul(S::load(x.add(16)), id));
                S::store_u8(p.add(1), S::ior(a, S::ishl::<4>(b)));
            }
        }
    }
}

/// [`float::f32_to_ue4m3`] of values that are not negative: codes below 0x7F.
#[inline(always)]
unsafe fn to_ue4m3<S: Simd>(x: S::F) -> S::I {
    unsafe {
        let bits = S::bits(x);
        let rounded = S::ishr::<20>(S::iadd(bits, S::isplat(1 << 19)));
        let normal = S::isub(rounded, S::isplat(120 << 3)); // exponent bias 127 - 7
        let normal = S::iselect(S::igt(normal, S::isplat(0x77)), S::isplat(0x7E), normal);
        let subnormal = S::trunc(S::add(S::mul(x, S::splat(512.0)), S::splat(0.5)));
        S::iselect(S::igt(S::isplat(121 << 23), bits), S::imin(subnormal, S::isplat(7)), normal)
    }
}

/// [`float::ue4m3_half`] of codes below 0x7F.
#[inline(always)]
unsafe fn half_of_ue4m3<S: Simd>(code: S::I) -> S::F {
    unsafe {
        let normal = S::from_bits(S::ishl::<20>(S::iadd(code, S::isplat(119 << 3))));
        let subnormal = S::mul(S::to_f(code), S::splat(power_of_two(-10)));
        S::select(S::igt(S::isplat(8), code), subnormal, normal)
    }
}

impl Encode16 for Nvfp4 {
    /// Levels and middles have few enough bits that their products with a scale are exact; a code is the number of
    /// middles below |x|, as in [`nearest`]. Groups far above the largest level, where differences from two levels round
    /// to the same number, are left to the scalar code.
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            for four in 0..4 {
                let (x, dst) = (x.add(256 * four), dst.add(144 * four));
                let amax = abs_max::<S, 16>(x);
                let code = to_ue4m3::<S>(S::div(amax, S::splat(6.0)));
                let d = half_of_ue4m3::<S>(code);
                // A zero scale makes every element 0.
                let d = S::select(S::eq(d, S::splat(0.0)), S::splat(f32::INFINITY), d);
                let mut middles = [[0f32; LANES]; 7];
                for (middle, m) in middles.iter_mut().zip(MIDDLES) {
                    *middle = lanes::<S>(S::mul(d, S::splat(m)));
                }
                let usual = S::m_bits(S::lt(amax, S::splat(1e6)));
                let mut scales = [0u8; LANES];
                S::store_u8(scales.as_mut_ptr(), code);
                for (group, scale) in scales.iter().enumerate() {
                    let x = x.add(16 * group);
                    let block = dst.add(group / 4 * 36);
                    let qs = block.add(4 + group % 4 * 8).cast::<[u8; 8]>();
                    *block.add(group % 4) = *scale;
                    if (usual >> group) & 1 == 0 {
                        nvfp4::encode_group(&*x.cast::<[f32; 16]>(), &mut *qs);
                        continue;
                    }
                    let x = S::load(x);
                    let a = S::abs(x);
                    let nonzero = S::gt(a, S::splat(middles[0][group]));
                    let mut q = S::inc(S::isplat(0), nonzero);
                    for m in &middles[1..] {
                        q = S::inc(q, S::gt(a, S::splat(m[group])));
                    }
                    let mut bytes = [0u8; 16];
                    S::store_u8(bytes.as_mut_ptr(), signed::<S>(q, x, nonzero));
                    let both = u128::from_le_bytes(bytes);
                    *qs = ((both as u64) | ((both >> 64) as u64) << 4).to_le_bytes();
                }
            }
        }
    }
}
