//! Element conversions: f32 to 16-bit floats, and the search for values that are not finite.

use crate::float;
use crate::kernels::simd::{LANES, Simd};

/// f32 to f16 bits.
#[inline(always)]
pub unsafe fn to_f16<S: Simd>(src: &[f32], dst: &mut [u16]) {
    assert_eq!(src.len(), dst.len());
    unsafe { write_f16::<S>(src, dst.as_mut_ptr()) }
}

/// f32 to bf16 bits.
#[inline(always)]
pub unsafe fn to_bf16<S: Simd>(src: &[f32], dst: &mut [u16]) {
    assert_eq!(src.len(), dst.len());
    unsafe { write_bf16::<S>(src, dst.as_mut_ptr()) }
}

/// Writes `src` as f16 bits to `dst`, which has any alignment and room for all of them.
#[inline(always)]
pub unsafe fn write_f16<S: Simd>(src: &[f32], dst: *mut u16) {
    let whole = src.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        unsafe { S::store_f16(dst.add(i), S::load(src.as_ptr().add(i))) }
    }
    for (i, x) in src.iter().enumerate().skip(whole) {
        unsafe { dst.add(i).write_unaligned(float::f32_to_f16(*x)) }
    }
}

/// Writes `src` as bf16 bits to `dst`, which has any alignment and room for all of them.
#[inline(always)]
pub unsafe fn write_bf16<S: Simd>(src: &[f32], dst: *mut u16) {
    let whole = src.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        unsafe { S::store_u16(dst.add(i), bf16_bits::<S>(S::load(src.as_ptr().add(i)))) }
    }
    for (i, x) in src.iter().enumerate().skip(whole) {
        unsafe { dst.add(i).write_unaligned(float::f32_to_bf16(*x)) }
    }
}

/// [`float::f32_to_bf16`].
#[inline(always)]
pub unsafe fn bf16_bits<S: Simd>(x: S::F) -> S::I {
    unsafe {
        let x = S::bits(x);
        let odd = S::iand(S::ishr::<16>(x), S::isplat(1));
        let round = S::ishr::<16>(S::iadd(x, S::iadd(odd, S::isplat(0x7FFF))));
        let nan = S::igt(S::iand(x, S::isplat(0x7FFF_FFFF)), S::isplat(0x7F80_0000));
        let quiet = S::ior(S::ishr::<16>(x), S::isplat(0x40));
        S::iselect(nan, quiet, round)
    }
}

/// Index of the first NaN or infinity.
#[inline(always)]
pub unsafe fn first_non_finite<S: Simd>(src: &[f32]) -> Option<usize> {
    let whole = src.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        unsafe {
            let x = S::bits(S::load(src.as_ptr().add(i)));
            let bad = S::igt(S::iand(x, S::isplat(0x7FFF_FFFF)), S::isplat(0x7F7F_FFFF));
            let bits = S::m_bits(bad);
            if bits != 0 {
                return Some(i + bits.trailing_zeros() as usize);
            }
        }
    }
    src[whole..].iter().position(|x| !x.is_finite()).map(|i| whole + i)
}

/// Writes `x` everywhere, with streaming stores where the alignment allows.
#[inline(always)]
pub unsafe fn stream_fill<S: Simd>(dst: &mut [f32], x: f32) {
    let head = dst.as_ptr().align_offset(64).min(dst.len());
    let whole = head + (dst.len() - head) / LANES * LANES;
    dst[..head].fill(x);
    for i in (head..whole).step_by(LANES) {
        unsafe { S::stream(dst.as_mut_ptr().add(i), S::splat(x)) }
    }
    dst[whole..].fill(x);
}
