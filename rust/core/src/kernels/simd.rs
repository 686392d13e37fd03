//! The small vector trait that generic kernels are written over.
//!
//! A vector always has **16 lanes**, whatever the level: one `__m512`, two `__m256` or four `float32x4_t`. Kernels put
//! 16 consecutive elements (decode) or 16 blocks (encode: the scalar order of operations is kept in each lane) into it.
//! Every operation is one IEEE binary32 operation, rounded to nearest even; nothing is fused or reassociated, so results
//! equal the scalar reference bit for bit.
//!
//! # Safety
//! All functions require that the processor has the features of the level (they are only reached through a kernel table
//! that exists after detection, inside a function with these target features) and that pointers are valid for the 16
//! elements read or written. Everything must be `#[inline(always)]`: a call that is not inlined loses the features.

#![allow(clippy::missing_safety_doc)]

/// Lanes of every vector.
pub const LANES: usize = 16;

/// A SIMD level as a set of operations on 16 lanes. See the module for the safety contract of all functions.
#[allow(missing_docs)]
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 16 × bool.
    type M: Copy;
    /// Bound of the relative error of [`Simd::div_approx`].
    const DIV_APPROX_ERROR: f32 = 0.0;
    /// Whether [`Simd::lookup`] is one instruction, cheaper than a few arithmetic ones.
    const FAST_LOOKUP: bool = false;

    // --- f32 lanes ---
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Non-temporal store; `p` is 64-byte aligned.
    unsafe fn stream(p: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b` with a relative error up to `DIV_APPROX_ERROR` for 2^-126 ≤ b < 2^126; for subnormal `b` as well, or not
    /// finite.
    #[inline(always)]
    unsafe fn div_approx(a: Self::F, b: Self::F) -> Self::F {
        unsafe { Self::div(a, b) }
    }
    unsafe fn sqrt(a: Self::F) -> Self::F;
    /// `a > b ? a : b` (b when either is NaN).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b` (b when either is NaN).
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn lt(a: Self::F, b: Self::F) -> Self::M;
    unsafe fn le(a: Self::F, b: Self::F) -> Self::M;
    unsafe fn eq(a: Self::F, b: Self::F) -> Self::M;
    /// `m ? a : b`.
    unsafe fn select(m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Conversion that truncates toward zero; out of range and NaN give `i32::MIN` (the x86 result).
    unsafe fn trunc(a: Self::F) -> Self::I;
    unsafe fn bits(a: Self::F) -> Self::I;
    unsafe fn from_bits(a: Self::I) -> Self::F;
    /// Lane `i` becomes `table[idx[i] & 15]`.
    unsafe fn lookup(table: Self::F, idx: Self::I) -> Self::F;
    /// Lane `i` becomes `p[idx[i]]`.
    unsafe fn gather(p: *const f32, idx: Self::I) -> Self::F;
    /// Transposes a 16×16 matrix: result `[i]` lane `j` = `rows[j]` lane `i`.
    unsafe fn transpose(rows: &mut [Self::F; LANES]);

    // --- masks ---
    unsafe fn m_and(a: Self::M, b: Self::M) -> Self::M;
    unsafe fn m_or(a: Self::M, b: Self::M) -> Self::M;
    unsafe fn m_not(a: Self::M) -> Self::M;
    /// Bit `i` = lane `i`.
    unsafe fn m_bits(a: Self::M) -> u32;
    unsafe fn m_from_bits(bits: u32) -> Self::M;

    // --- i32 lanes (wrapping) ---
    unsafe fn isplat(x: i32) -> Self::I;
    unsafe fn iload(p: *const i32) -> Self::I;
    unsafe fn istore(p: *mut i32, v: Self::I);
    unsafe fn iadd(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn isub(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn imul(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn iand(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ior(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ixor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn imin(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn imax(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn ishl<const N: i32>(a: Self::I) -> Self::I;
    /// Logical shift right.
    unsafe fn ishr<const N: i32>(a: Self::I) -> Self::I;
    /// Logical shift right by a count per lane (counts 0..=31).
    unsafe fn ishrv(a: Self::I, n: Self::I) -> Self::I;
    /// Shift left by a count per lane (counts 0..=31).
    unsafe fn ishlv(a: Self::I, n: Self::I) -> Self::I;
    unsafe fn ieq(a: Self::I, b: Self::I) -> Self::M;
    unsafe fn igt(a: Self::I, b: Self::I) -> Self::M;
    unsafe fn iselect(m: Self::M, a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    unsafe fn igather(p: *const i32, idx: Self::I) -> Self::I;
    unsafe fn ilookup(table: Self::I, idx: Self::I) -> Self::I;
    /// `a + 1` where `m`, else `a`.
    unsafe fn inc(a: Self::I, m: Self::M) -> Self::I;

    // --- narrow memory ---
    unsafe fn load_u8(p: *const u8) -> Self::I;
    unsafe fn load_i8(p: *const i8) -> Self::I;
    unsafe fn load_u16(p: *const u16) -> Self::I;
    /// Stores the low 8 bits of each lane (16 bytes).
    unsafe fn store_u8(p: *mut u8, v: Self::I);
    /// Stores the low 16 bits of each lane (32 bytes).
    unsafe fn store_u16(p: *mut u16, v: Self::I);
    /// The low nibbles of 8 bytes, then their high nibbles.
    unsafe fn load_nibbles8(p: *const u8) -> Self::I;
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// One f16 in every lane.
    unsafe fn splat_f16(p: *const u16) -> Self::F;
    /// Rounds to nearest even; NaN → sign | 0x7E00.
    unsafe fn store_f16(p: *mut u16, v: Self::F);

    // --- derived; a level may have a faster way ---
    /// `table[q]` for the low and the high nibbles of the 16 bytes at `p`.
    #[inline(always)]
    unsafe fn nibble_levels(p: *const u8, table: &[i8; 16]) -> (Self::F, Self::F) {
        unsafe {
            let table = Self::to_f(Self::load_i8(table.as_ptr()));
            let q = Self::load_u8(p);
            (Self::lookup(table, q), Self::lookup(table, Self::ishr::<4>(q)))
        }
    }

    /// Eight codes of `bits` bits, the lowest first, into the bytes of a word; `mask` has their bits set in every byte.
    #[inline(always)]
    unsafe fn deposit(x: u64, bits: u32, mask: u64) -> u64 {
        let one = mask & 0xFF;
        let mut word = 0;
        for i in 0..8 {
            word |= (x >> (i * bits) & one) << (8 * i);
        }
        word
    }
    /// The entries of a table of 16 for 32 codes below 16, the lowest first; with `STREAM`, to an aligned `out` past the
    /// caches.
    #[inline(always)]
    unsafe fn pick16<const STREAM: bool>(table: &[u16; 16], codes: [u64; 4], out: *mut u16) {
        for (i, codes) in codes.iter().enumerate() {
            for k in 0..8 {
                let code = (codes >> (8 * k)) as usize & 15;
                unsafe { out.add(8 * i + k).write_unaligned(table[code]) };
            }
        }
    }
    /// `pick16` of the 32 nibbles at `p`; of each byte the low one comes first, or the high one.
    #[inline(always)]
    unsafe fn pick_nibbles<const STREAM: bool>(table: &[u16; 16], p: *const u8, high_first: bool, out: *mut u16) {
        const LOW: u64 = 0x0F0F_0F0F_0F0F_0F0F;
        let mut codes = [0u64; 4];
        for (i, codes) in codes.iter_mut().enumerate() {
            let four = u64::from(u32::from_le(unsafe { p.add(4 * i).cast::<u32>().read_unaligned() }));
            let four = if high_first { (four & LOW) << 4 | four >> 4 & LOW } else { four };
            *codes = unsafe { Self::deposit(four, 4, LOW) };
        }
        unsafe { Self::pick16::<STREAM>(table, codes, out) }
    }
    /// Four floats, repeated.
    #[inline(always)]
    unsafe fn splat4(p: *const f32) -> Self::F {
        unsafe {
            let mut t = [0f32; LANES];
            for (i, t) in t.iter_mut().enumerate() {
                *t = *p.add(i % 4);
            }
            Self::load(t.as_ptr())
        }
    }
    /// Every quarter of the table is a table of 4: lane `i` becomes `table[(i & 12) + (idx[i] & 3)]`.
    #[inline(always)]
    unsafe fn lookup4(table: Self::F, idx: Self::I) -> Self::F {
        const QUARTER: [i32; LANES] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
        unsafe {
            let idx = Self::iand(idx, Self::isplat(3));
            Self::lookup(table, Self::ior(idx, Self::iload(QUARTER.as_ptr())))
        }
    }
    /// Flips the sign of lane `i` where bit `i` is set.
    #[inline(always)]
    unsafe fn flip(v: Self::F, bits: u32) -> Self::F {
        const TO_SIGN: [i32; LANES] = [31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16];
        unsafe {
            let signs = Self::ishlv(Self::isplat(bits as i32), Self::iload(TO_SIGN.as_ptr()));
            Self::from_bits(Self::ixor(Self::bits(v), Self::iand(signs, Self::isplat(i32::MIN))))
        }
    }
    /// Unsigned bytes, the lowest first.
    #[inline(always)]
    unsafe fn widen8(bytes: [u64; 2]) -> Self::F {
        unsafe { Self::to_f(Self::load_u8(bytes.map(u64::to_le).as_ptr().cast())) }
    }
    /// Unsigned bytes, the lowest first.
    #[inline(always)]
    unsafe fn widen4(bytes: [u32; 4]) -> Self::F {
        unsafe { Self::to_f(Self::load_u8(bytes.map(u32::to_le).as_ptr().cast())) }
    }
    /// The smallest lane; no lane is NaN.
    #[inline(always)]
    unsafe fn min_lane(v: Self::F) -> f32 {
        unsafe {
            let mut t = [0f32; LANES];
            Self::store(t.as_mut_ptr(), v);
            t.into_iter().fold(f32::INFINITY, |m, x| if x < m { x } else { m })
        }
    }
    /// The smallest lane, as unsigned numbers.
    #[inline(always)]
    unsafe fn umin_lane(v: Self::I) -> u32 {
        unsafe {
            let mut t = [0u32; LANES];
            Self::istore(t.as_mut_ptr().cast(), v);
            t.into_iter().fold(u32::MAX, u32::min)
        }
    }
    /// Asks for the cache line of `p`, which may be any address, in the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        let _ = p;
    }
    /// Lane `i` becomes the largest lane of `v[i]`; no lane is NaN, the sign of a zero is not specified.
    #[inline(always)]
    unsafe fn across_max(mut v: [Self::F; LANES]) -> Self::F {
        unsafe {
            Self::transpose(&mut v);
            let mut m = v[0];
            for v in &v[1..] {
                m = Self::max(m, *v);
            }
            m
        }
    }

    // --- derived; the same at every level ---
    #[inline(always)]
    unsafe fn gt(a: Self::F, b: Self::F) -> Self::M {
        unsafe { Self::lt(b, a) }
    }
    #[inline(always)]
    unsafe fn ge(a: Self::F, b: Self::F) -> Self::M {
        unsafe { Self::le(b, a) }
    }
    #[inline(always)]
    unsafe fn m_any(a: Self::M) -> bool {
        unsafe { Self::m_bits(a) != 0 }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { Self::from_bits(Self::iand(Self::bits(a), Self::isplat(0x7FFF_FFFF))) }
    }
    #[inline(always)]
    unsafe fn neg(a: Self::F) -> Self::F {
        unsafe { Self::from_bits(Self::ixor(Self::bits(a), Self::isplat(i32::MIN))) }
    }
    /// [`crate::float::nint`]: rounding by the magic constant, bit for bit also outside ±2^22.
    #[inline(always)]
    unsafe fn nint(a: Self::F) -> Self::I {
        unsafe {
            let t = Self::bits(Self::add(a, Self::splat(12_582_912.0)));
            Self::isub(Self::iand(t, Self::isplat(0x007F_FFFF)), Self::isplat(0x0040_0000))
        }
    }
    /// [`crate::float::rha`] as an integer: half away from zero; out of range and NaN give `i32::MIN`.
    #[inline(always)]
    unsafe fn rha(a: Self::F) -> Self::I {
        unsafe {
            // Adding the float below one half, with the sign of `a`, and truncating is `roundf` for every float: the sum
            // rounds up to the next integer exactly from the half on.
            let sign = Self::iand(Self::bits(a), Self::isplat(i32::MIN));
            let half = Self::from_bits(Self::ior(sign, Self::isplat(0x3EFF_FFFF)));
            Self::trunc(Self::add(a, half))
        }
    }
    /// Stores normally or, when `STREAM`, past the caches.
    #[inline(always)]
    unsafe fn put<const STREAM: bool>(p: *mut f32, v: Self::F) {
        unsafe { if STREAM { Self::stream(p, v) } else { Self::store(p, v) } }
    }
}
