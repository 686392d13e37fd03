//! Vector kernels of the ternary formats.

use crate::block::ternary::{Tq1_0, Tq2_0};
use crate::kernels::generic::groups::{Encode16, abs_max, f16_lanes, inverse, lanes};
use crate::kernels::simd::{LANES, Simd};

/// Values of the trits 0, 1, 2 at one scale.
#[derive(Clone, Copy)]
struct Trits<S: Simd> {
    d: S::F,
    /// -d, 0·d, d, 2·d four times over.
    table: S::F,
}

impl<S: Simd> Trits<S> {
    /// For the f16 scale at `p`.
    #[inline(always)]
    unsafe fn read(p: *const u8) -> Self {
        const LEVELS: [f32; LANES] = [-1., 0., 1., 2., -1., 0., 1., 2., -1., 0., 1., 2., -1., 0., 1., 2.];
        unsafe {
            let d = S::splat_f16(p.cast());
            Self { d, table: S::mul(S::load(LEVELS.as_ptr()), d) }
        }
    }

    /// Values of the codes in the lowest two bits.
    #[inline(always)]
    unsafe fn values(self, q: S::I) -> S::F {
        unsafe {
            if S::FAST_LOOKUP {
                S::lookup(self.table, q)
            } else {
                S::mul(S::to_f(S::isub(S::iand(q, S::isplat(3)), S::isplat(1))), self.d)
            }
        }
    }
}

/// Decodes TQ2_0 blocks.
#[inline(always)]
pub unsafe fn decode_tq2_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let trits = Trits::<S>::read(p.add(64));
            for half in 0..2 {
                let (p, y) = (p.add(32 * half), y.add(128 * half));
                let (a, b) = (S::load_u8(p), S::load_u8(p.add(16)));
                S::put::<STREAM>(y, trits.values(a));
                S::put::<STREAM>(y.add(16), trits.values(b));
                S::put::<STREAM>(y.add(32), trits.values(S::ishr::<2>(a)));
                S::put::<STREAM>(y.add(48), trits.values(S::ishr::<2>(b)));
                S::put::<STREAM>(y.add(64), trits.values(S::ishr::<4>(a)));
                S::put::<STREAM>(y.add(80), trits.values(S::ishr::<4>(b)));
                S::put::<STREAM>(y.add(96), trits.values(S::ishr::<6>(a)));
                S::put::<STREAM>(y.add(112), trits.values(S::ishr::<6>(b)));
            }
            p = p.add(66);
            y = y.add(256);
        }
    }
}

#[inline(always)]
unsafe fn triple<S: Simd>(v: S::I) -> S::I {
    unsafe { S::iadd(S::iadd(v, v), v) }
}

/// Decodes TQ1_0 blocks.
#[inline(always)]
pub unsafe fn decode_tq1_0<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    /// Where byte n%4 is in a word, and 3^(n/4).
    const SHIFTS: [i32; LANES] = [0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24];
    const POWERS: [i32; LANES] = [1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27];
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let trits = Trits::<S>::read(p.add(52));
            let byte = S::isplat(255);
            // First byte, first element, distance of the elements of one byte.
            for (at, element, stride) in [(0, 0, 32), (16, 16, 32), (32, 160, 16)] {
                let mut rest = S::load_u8(p.add(at));
                for n in 0..5 {
                    let tripled = triple::<S>(rest);
                    S::put::<STREAM>(y.add(element + n * stride), trits.values(S::ishr::<8>(tripled)));
                    rest = S::iand(tripled, byte);
                }
            }
            let word = S::isplat(p.add(48).cast::<i32>().read_unaligned());
            let rest = S::iand(S::ishrv(word, S::iload(SHIFTS.as_ptr())), byte);
            let rest = S::iand(S::imul(rest, S::iload(POWERS.as_ptr())), byte);
            S::put::<STREAM>(y.add(240), trits.values(S::ishr::<8>(triple::<S>(rest))));
            p = p.add(54);
            y = y.add(256);
        }
    }
}

/// Scales of 16 blocks of 256, as f16 and inverted.
#[inline(always)]
unsafe fn scales<S: Simd>(x: *const f32) -> ([u16; LANES], [f32; LANES]) {
    unsafe {
        let d = abs_max::<S, 256>(x);
        (f16_lanes::<S>(d), lanes::<S>(inverse::<S>(d)))
    }
}

/// -1, 0, 1 as 0, 1, 2. Where the inverse overflowed the result is that of a zero, 1 in the lowest two bits (and, for
/// TQ1_0, in the lowest eight), as in the scalar code.
#[inline(always)]
unsafe fn trit<S: Simd>(x: *const f32, id: S::F) -> S::I {
    unsafe { S::iadd(S::rha(S::mul(S::load(x), id)), S::isplat(1)) }
}

impl Encode16 for Tq2_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let (half, inverses) = scales::<S>(x);
            let low = S::isplat(3);
            for block in 0..LANES {
                let (x, p) = (x.add(256 * block), dst.add(66 * block));
                let id = S::splat(inverses[block]);
                for (at, element) in [(0, 0), (16, 16), (32, 128), (48, 144)] {
                    let x = x.add(element);
                    let mut q = S::iand(trit::<S>(x.add(96), id), low);
                    for l in (0..3).rev() {
                        q = S::ior(S::ishl::<2>(q), S::iand(trit::<S>(x.add(32 * l), id), low));
                    }
                    S::store_u8(p.add(at), q);
                }
                p.add(64).cast::<u16>().write_unaligned(half[block]);
            }
        }
    }
}

/// Numbers of five trits as bytes: `ceil(v·256/243)`, that is `(v·256 + 242)/243` by a product with 2^24/243 rounded up,
/// which is exact for all bytes.
#[inline(always)]
unsafe fn fraction<S: Simd>(v: S::I) -> S::I {
    unsafe {
        let v = S::iadd(S::ishl::<8>(S::iand(v, S::isplat(255))), S::isplat(242));
        S::ishr::<24>(S::imul(v, S::isplat(69_043)))
    }
}

impl Encode16 for Tq1_0 {
    #[inline(always)]
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8) {
        unsafe {
            let (half, inverses) = scales::<S>(x);
            // The last four bytes of the 16 blocks, whose numbers are put together from rows of a word each.
            let mut last = [0u32; LANES];
            for block in 0..LANES {
                let (x, p) = (x.add(256 * block), dst.add(54 * block));
                let id = S::splat(inverses[block]);
                for (at, element, stride) in [(0, 0, 32), (16, 16, 32), (32, 160, 16)] {
                    let x = x.add(element);
                    let mut v = trit::<S>(x, id);
                    for n in 1..5 {
                        v = S::iadd(triple::<S>(v), trit::<S>(x.add(n * stride), id));
                    }
                    S::store_u8(p.add(at), fraction::<S>(v));
                }
                let mut digits = [0u8; LANES];
                S::store_u8(digits.as_mut_ptr(), trit::<S>(x.add(240), id));
                // Four digits and a zero per byte, at most 242: the bytes of the words do not reach into each other.
                last[block] = digits
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .fold(0, |v, digits| v.wrapping_mul(3).wrapping_add(u32::from_le_bytes(*digits)));
                p.add(52).cast::<u16>().write_unaligned(half[block]);
            }
            let mut packed = [0u8; 4 * LANES];
            for k in 0..4 {
                let v = S::load_u8(last.as_ptr().cast::<u8>().add(16 * k));
                S::store_u8(packed.as_mut_ptr().add(16 * k), fraction::<S>(triple::<S>(v)));
            }
            for (block, bytes) in packed.as_chunks::<4>().0.iter().enumerate() {
                dst.add(54 * block + 48).cast::<[u8; 4]>().write_unaligned(*bytes);
            }
        }
    }
}
