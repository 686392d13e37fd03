//! Vector decoders of the K-quants: 16 consecutive elements per vector.

use crate::kernels::simd::{LANES, Simd};

#[inline(always)]
unsafe fn f16<S: Simd>(p: *const u8) -> S::F {
    unsafe { S::splat_f16(p.cast()) }
}

#[inline(always)]
unsafe fn u32_le(p: *const u8) -> u32 {
    unsafe { u32::from_le(p.cast::<u32>().read_unaligned()) }
}

/// Four little-endian groups of four bytes as 16 lanes.
#[inline(always)]
unsafe fn lanes<S: Simd>(words: [u32; 4]) -> S::I {
    let bytes = words.map(u32::to_le_bytes);
    unsafe { S::load_u8(bytes.as_ptr().cast()) }
}

/// Scales as they are used, one broadcast each.
#[inline(always)]
unsafe fn spill<S: Simd>(v: S::F) -> [f32; LANES] {
    let mut a = [0f32; LANES];
    unsafe { S::store(a.as_mut_ptr(), v) };
    a
}

/// Decodes Q2_K blocks.
#[inline(always)]
pub unsafe fn decode_q2_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let scales = S::load_u8(p);
            let dl = S::mul(f16::<S>(p.add(80)), S::to_f(S::iand(scales, S::isplat(15))));
            let ml = S::mul(f16::<S>(p.add(82)), S::to_f(S::ishr::<4>(scales)));
            let (dl, ml) = (spill::<S>(dl), spill::<S>(ml));
            for half in 0..4 {
                let (n, h) = (half / 2, half % 2);
                let mut q = S::load_u8(p.add(16 + 16 * half));
                for g in 0..4 {
                    let s = 8 * n + 2 * g + h;
                    let l = S::to_f(S::iand(q, S::isplat(3)));
                    S::put::<STREAM>(y.add(16 * s), S::sub(S::mul(S::splat(dl[s]), l), S::splat(ml[s])));
                    q = S::ishr::<2>(q);
                }
            }
            p = p.add(84);
            y = y.add(256);
        }
    }
}

/// Decodes Q3_K blocks.
#[inline(always)]
pub unsafe fn decode_q3_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let (a, b, t) = (u32_le(p.add(96)), u32_le(p.add(100)), u32_le(p.add(104)));
            let (low, high) = (0x0F0F_0F0F, 0x0303_0303);
            let scales = lanes::<S>([
                a & low | (t & high) << 4,
                b & low | (t >> 2 & high) << 4,
                a >> 4 & low | (t >> 4 & high) << 4,
                b >> 4 & low | (t >> 6 & high) << 4,
            ]);
            let scales = S::to_f(S::isub(scales, S::isplat(32)));
            let dl = spill::<S>(S::mul(f16::<S>(p.add(108)), scales));
            for h in 0..2 {
                // Bit 2 of the shifted mask is the high bit of the group at hand.
                let mask = S::load_u8(p.add(16 * h));
                let mut mask = S::ishl::<2>(mask);
                for n in 0..2 {
                    let mut q = S::load_u8(p.add(32 + 32 * n + 16 * h));
                    for g in 0..4 {
                        let s = 8 * n + 2 * g + h;
                        let l = S::ior(S::iand(q, S::isplat(3)), S::iand(mask, S::isplat(4)));
                        let l = S::to_f(S::isub(l, S::isplat(4)));
                        S::put::<STREAM>(y.add(16 * s), S::mul(S::splat(dl[s]), l));
                        q = S::ishr::<2>(q);
                        mask = S::ishr::<1>(mask);
                    }
                }
            }
            p = p.add(110);
            y = y.add(256);
        }
    }
}

/// Scales (lanes 0 to 7) and offsets (8 to 15) of a Q4_K or Q5_K block, multiplied out.
#[inline(always)]
unsafe fn scales_mins<S: Simd>(p: *const u8) -> [f32; LANES] {
    unsafe {
        let (a, b, c) = (u32_le(p.add(4)), u32_le(p.add(8)), u32_le(p.add(12)));
        let (low4, low6, high2) = (0x0F0F_0F0F, 0x3F3F_3F3F, 0x3030_3030);
        let codes = lanes::<S>([a & low6, c & low4 | a >> 2 & high2, b & low6, c >> 4 & low4 | b >> 2 & high2]);
        let factors = S::select(S::m_from_bits(0xFF), f16::<S>(p), f16::<S>(p.add(2)));
        spill::<S>(S::mul(factors, S::to_f(codes)))
    }
}

/// Decodes Q4_K blocks.
#[inline(always)]
pub unsafe fn decode_q4_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let scales = scales_mins::<S>(p);
            for k in 0..4 {
                let a = (S::splat(scales[2 * k]), S::splat(scales[8 + 2 * k]));
                let b = (S::splat(scales[2 * k + 1]), S::splat(scales[9 + 2 * k]));
                let q = [S::load_u8(p.add(16 + 32 * k)), S::load_u8(p.add(32 + 32 * k))];
                for (h, q) in q.into_iter().enumerate() {
                    let l = S::to_f(S::iand(q, S::isplat(15)));
                    S::put::<STREAM>(y.add(64 * k + 16 * h), S::sub(S::mul(a.0, l), a.1));
                }
                for (h, q) in q.into_iter().enumerate() {
                    let l = S::to_f(S::ishr::<4>(q));
                    S::put::<STREAM>(y.add(64 * k + 32 + 16 * h), S::sub(S::mul(b.0, l), b.1));
                }
            }
            p = p.add(144);
            y = y.add(256);
        }
    }
}

/// Decodes Q5_K blocks.
#[inline(always)]
pub unsafe fn decode_q5_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let scales = scales_mins::<S>(p);
            // The high bits of the two sub-blocks at hand are bits 4 and 5.
            let mut high = [S::ishl::<4>(S::load_u8(p.add(16))), S::ishl::<4>(S::load_u8(p.add(32)))];
            for k in 0..4 {
                let a = (S::splat(scales[2 * k]), S::splat(scales[8 + 2 * k]));
                let b = (S::splat(scales[2 * k + 1]), S::splat(scales[9 + 2 * k]));
                let q = [S::load_u8(p.add(48 + 32 * k)), S::load_u8(p.add(64 + 32 * k))];
                for h in 0..2 {
                    let l = S::ior(S::iand(q[h], S::isplat(15)), S::iand(high[h], S::isplat(16)));
                    S::put::<STREAM>(y.add(64 * k + 16 * h), S::sub(S::mul(a.0, S::to_f(l)), a.1));
                }
                for h in 0..2 {
                    high[h] = S::ishr::<1>(high[h]);
                    let l = S::ior(S::ishr::<4>(q[h]), S::iand(high[h], S::isplat(16)));
                    S::put::<STREAM>(y.add(64 * k + 32 + 16 * h), S::sub(S::mul(b.0, S::to_f(l)), b.1));
                    high[h] = S::ishr::<1>(high[h]);
                }
            }
            p = p.add(176);
            y = y.add(256);
        }
    }
}

/// Decodes Q6_K blocks.
#[inline(always)]
pub unsafe fn decode_q6_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let scales = S::to_f(S::load_i8(p.add(192).cast()));
            let dl = spill::<S>(S::mul(f16::<S>(p.add(208)), scales));
            for half in 0..4 {
                let (n, h) = (half / 2, half % 2);
                let low = [S::load_u8(p.add(64 * n + 16 * h)), S::load_u8(p.add(64 * n + 32 + 16 * h))];
                // The high bits of the group at hand are bits 4 and 5.
                let mut high = S::ishl::<4>(S::load_u8(p.add(128 + 16 * half)));
                for g in 0..4 {
                    let s = 8 * n + 2 * g + h;
                    let q = low[g % 2];
                    let q = if g < 2 { S::iand(q, S::isplat(15)) } else { S::ishr::<4>(q) };
                    let l = S::isub(S::ior(q, S::iand(high, S::isplat(0x30))), S::isplat(32));
                    S::put::<STREAM>(y.add(16 * s), S::mul(S::splat(dl[s]), S::to_f(l)));
                    high = S::ishr::<2>(high);
                }
            }
            p = p.add(210);
            y = y.add(256);
        }
    }
}

/// Decodes Q8_K blocks.
#[inline(always)]
pub unsafe fn decode_q8_k<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let d = S::splat(f32::from_bits(u32_le(p)));
            for i in 0..16 {
                let l = S::to_f(S::load_i8(p.add(4 + 16 * i).cast()));
                S::put::<STREAM>(y.add(16 * i), S::mul(d, l));
            }
            p = p.add(292);
            y = y.add(256);
        }
    }
}
