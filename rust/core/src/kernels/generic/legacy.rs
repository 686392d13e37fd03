//! Vector kernels of the legacy block formats.

use crate::block::Rows;
use crate::float;
use crate::kernels::simd::Simd;

/// Decodes Q8_0 blocks.
#[inline(always)]
pub unsafe fn decode_q8_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let blocks = dst.len() / 32;
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..blocks {
        unsafe {
            let d = S::splat(float::f16_to_f32(p.cast::<u16>().read_unaligned()));
            let q = p.add(2).cast::<i8>();
            S::put::<STREAM>(y, S::mul(S::to_f(S::load_i8(q)), d));
            S::put::<STREAM>(y.add(16), S::mul(S::to_f(S::load_i8(q.add(16))), d));
            p = p.add(34);
            y = y.add(32);
        }
    }
}

/// Largest lane (all lanes finite).
#[inline(always)]
unsafe fn reduce_max<S: Simd>(v: S::F) -> f32 {
    let mut a = [0f32; 16];
    unsafe { S::store(a.as_mut_ptr(), v) };
    a.iter().fold(0f32, |m, x| if m > *x { m } else { *x })
}

/// Encodes rows as Q8_0.
#[inline(always)]
pub unsafe fn encode_q8_0<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let blocks = rows.x.len() / 32;
    let (mut x, mut p) = (rows.x.as_ptr(), dst.as_mut_ptr());
    for _ in 0..blocks {
        unsafe {
            let (a, b) = (S::load(x), S::load(x.add(16)));
            let d = reduce_max::<S>(S::max(S::abs(a), S::abs(b))) / 127.0;
            let id = S::splat(if d != 0.0 { 1.0 / d } else { 0.0 });
            p.cast::<u16>().write_unaligned(float::f32_to_f16(d));
            S::store_u8(p.add(2), S::rha(S::mul(a, id)));
            S::store_u8(p.add(18), S::rha(S::mul(b, id)));
            x = x.add(32);
            p = p.add(34);
        }
    }
}
