//! AVX2 (with F16C and BMI2; FMA is never used): two 256-bit registers are the vector.

use super::simd::{LANES, Simd};
use std::arch::x86_64::*;

/// The AVX2 level.
#[derive(Clone, Copy)]
pub struct Avx2;

type F = [__m256; 2];
type I = [__m256i; 2];
type M = [__m256; 2];

macro_rules! each {
    ($op:ident, $a:expr) => {{
        let a = $a;
        unsafe { [$op(a[0]), $op(a[1])] }
    }};
    ($op:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        unsafe { [$op(a[0], b[0]), $op(a[1], b[1])] }
    }};
}

#[inline(always)]
unsafe fn cast(m: I) -> M {
    each!(_mm256_castsi256_ps, m)
}

/// Lane `i` becomes `table[idx[i] & 15]`: index bit 3 moves to the sign bit, which chooses between the halves.
#[inline(always)]
unsafe fn lookup8(t: F, i: __m256i) -> __m256 {
    unsafe {
        let lo = _mm256_permutevar8x32_ps(t[0], i);
        let hi = _mm256_permutevar8x32_ps(t[1], i);
        _mm256_blendv_ps(lo, hi, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(i)))
    }
}

/// The 8×8 quarter of a 16×16 matrix, transposed.
#[inline(always)]
unsafe fn quarter(r: &[F; LANES], y: usize, x: usize) -> [__m256; 8] {
    let mut q = [r[0][0]; 8];
    for i in 0..8 {
        q[i] = r[8 * y + i][x];
    }
    unsafe { transpose8(q) }
}

/// Sixteen i8 as f32.
#[inline(always)]
unsafe fn widen_i8(v: __m128i) -> F {
    unsafe {
        let half = _mm_unpackhi_epi64(v, v);
        [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half))]
    }
}

/// Eight lanes of a mask from eight bits.
#[inline(always)]
unsafe fn mask8(bits: u32) -> __m256 {
    unsafe {
        let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))
    }
}

/// The largest of the 16 lanes of each of eight vectors.
#[inline(always)]
unsafe fn across_max8(v: &[F]) -> __m256 {
    unsafe {
        let mut t = [v[0][0]; 4];
        for i in 0..4 {
            let (a, b) = (_mm256_max_ps(v[2 * i][0], v[2 * i][1]), _mm256_max_ps(v[2 * i + 1][0], v[2 * i + 1][1]));
            t[i] = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        }
        let mut u = [t[0]; 2];
        for i in 0..2 {
            let (a, b) = (_mm256_castps_pd(t[2 * i]), _mm256_castps_pd(t[2 * i + 1]));
            let (lo, hi) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            u[i] = _mm256_max_ps(_mm256_castpd_ps(lo), _mm256_castpd_ps(hi));
        }
        _mm256_max_ps(_mm256_permute2f128_ps::<0x20>(u[0], u[1]), _mm256_permute2f128_ps::<0x31>(u[0], u[1]))
    }
}

/// Transposes the 8×8 matrix in eight registers.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    unsafe {
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut s = t;
        for i in 0..2 {
            for h in 0..2 {
                let a = _mm256_castps_pd(t[4 * i + h]);
                let b = _mm256_castps_pd(t[4 * i + 2 + h]);
                s[4 * i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                s[4 * i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        let mut o = s;
        for k in 0..4 {
            o[k] = _mm256_permute2f128_ps::<0x20>(s[k], s[4 + k]);
            o[4 + k] = _mm256_permute2f128_ps::<0x31>(s[k], s[4 + k]);
        }
        o
    }
}

#[rustfmt::skip]
impl Simd for Avx2 {
    type F = F;
    type I = I;
    type M = M;
    const DIV_APPROX_ERROR: f32 = 1.0 / 2048.0;

    #[inline(always)] unsafe fn deposit(x: u64, _: u32, mask: u64) -> u64 { unsafe { _pdep_u64(x, mask) } }
    #[inline(always)]
    unsafe fn pick16<const STREAM: bool>(table: &[u16; 16], c: [u64; 4], out: *mut u16) {
        unsafe {
            // Low bytes of the 16 entries in one table, high bytes in the other.
            let t = _mm256_loadu_si256(table.as_ptr().cast());
            let apart = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            let t = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(t, apart));
            let low = _mm256_broadcastsi128_si256(_mm256_castsi256_si128(t));
            let high = _mm256_broadcastsi128_si256(_mm256_extracti128_si256::<1>(t));
            let codes = _mm256_set_epi64x(c[3] as i64, c[1] as i64, c[2] as i64, c[0] as i64);
            let (low, high) = (_mm256_shuffle_epi8(low, codes), _mm256_shuffle_epi8(high, codes));
            for (i, v) in [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)].into_iter().enumerate() {
                let out = out.add(16 * i).cast();
                if STREAM { _mm256_stream_si256(out, v) } else { _mm256_storeu_si256(out, v) }
            }
        }
    }
    #[inline(always)] unsafe fn splat(x: f32) -> F { unsafe { [_mm256_set1_ps(x); 2] } }
    #[inline(always)] unsafe fn load(p: *const f32) -> F { unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] } }
    #[inline(always)] unsafe fn store(p: *mut f32, v: F) { unsafe { _mm256_storeu_ps(p, v[0]); _mm256_storeu_ps(p.add(8), v[1]); } }
    #[inline(always)] unsafe fn stream(p: *mut f32, v: F) { unsafe { _mm256_stream_ps(p, v[0]); _mm256_stream_ps(p.add(8), v[1]); } }
    #[inline(always)] unsafe fn add(a: F, b: F) -> F { each!(_mm256_add_ps, a, b) }
    #[inline(always)] unsafe fn sub(a: F, b: F) -> F { each!(_mm256_sub_ps, a, b) }
    #[inline(always)] unsafe fn mul(a: F, b: F) -> F { each!(_mm256_mul_ps, a, b) }
    #[inline(always)] unsafe fn div(a: F, b: F) -> F { each!(_mm256_div_ps, a, b) }
    #[inline(always)] unsafe fn div_approx(a: F, b: F) -> F { let r = each!(_mm256_rcp_ps, b); each!(_mm256_mul_ps, a, r) }
    #[inline(always)] unsafe fn sqrt(a: F) -> F { each!(_mm256_sqrt_ps, a) }
    #[inline(always)] unsafe fn max(a: F, b: F) -> F { each!(_mm256_max_ps, a, b) }
    #[inline(always)] unsafe fn min(a: F, b: F) -> F { each!(_mm256_min_ps, a, b) }
    #[inline(always)] unsafe fn lt(a: F, b: F) -> M { unsafe { [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])] } }
    #[inline(always)] unsafe fn le(a: F, b: F) -> M { unsafe { [_mm256_cmp_ps::<_CMP_LE_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LE_OQ>(a[1], b[1])] } }
    #[inline(always)] unsafe fn eq(a: F, b: F) -> M { unsafe { [_mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1])] } }
    #[inline(always)] unsafe fn select(m: M, a: F, b: F) -> F { unsafe { [_mm256_blendv_ps(b[0], a[0], m[0]), _mm256_blendv_ps(b[1], a[1], m[1])] } }
    #[inline(always)] unsafe fn trunc(a: F) -> I { each!(_mm256_cvttps_epi32, a) }
    #[inline(always)] unsafe fn bits(a: F) -> I { each!(_mm256_castps_si256, a) }
    #[inline(always)] unsafe fn from_bits(a: I) -> F { each!(_mm256_castsi256_ps, a) }
    #[inline(always)] unsafe fn lookup(t: F, i: I) -> F { unsafe { [lookup8(t, i[0]), lookup8(t, i[1])] } }
    #[inline(always)] unsafe fn gather(p: *const f32, i: I) -> F { unsafe { [_mm256_i32gather_ps::<4>(p, i[0]), _mm256_i32gather_ps::<4>(p, i[1])] } }
    #[inline(always)]
    unsafe fn transpose(r: &mut [F; LANES]) {
        unsafe {
            let q = [quarter(r, 0, 0), quarter(r, 0, 1), quarter(r, 1, 0), quarter(r, 1, 1)];
            for i in 0..8 {
                r[i] = [q[0][i], q[2][i]];
                r[8 + i] = [q[1][i], q[3][i]];
            }
        }
    }

    #[inline(always)] unsafe fn prefetch(p: *const u8) { unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) } }
    #[inline(always)]
    unsafe fn across_max(v: [F; LANES]) -> F {
        unsafe { [across_max8(&v[..8]), across_max8(&v[8..])] }
    }

    #[inline(always)] unsafe fn m_and(a: M, b: M) -> M { each!(_mm256_and_ps, a, b) }
    #[inline(always)] unsafe fn m_or(a: M, b: M) -> M { each!(_mm256_or_ps, a, b) }
    #[inline(always)] unsafe fn m_not(a: M) -> M { unsafe { let ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1)); [_mm256_xor_ps(a[0], ones), _mm256_xor_ps(a[1], ones)] } }
    #[inline(always)] unsafe fn m_bits(a: M) -> u32 { unsafe { _mm256_movemask_ps(a[0]) as u32 | (_mm256_movemask_ps(a[1]) as u32) << 8 } }
    #[inline(always)] unsafe fn m_from_bits(bits: u32) -> M { unsafe { [mask8(bits & 255), mask8((bits >> 8) & 255)] } }

    #[inline(always)] unsafe fn isplat(x: i32) -> I { unsafe { [_mm256_set1_epi32(x); 2] } }
    #[inline(always)] unsafe fn iload(p: *const i32) -> I { unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())] } }
    #[inline(always)] unsafe fn istore(p: *mut i32, v: I) { unsafe { _mm256_storeu_si256(p.cast(), v[0]); _mm256_storeu_si256(p.add(8).cast(), v[1]); } }
    #[inline(always)] unsafe fn iadd(a: I, b: I) -> I { each!(_mm256_add_epi32, a, b) }
    #[inline(always)] unsafe fn isub(a: I, b: I) -> I { each!(_mm256_sub_epi32, a, b) }
    #[inline(always)] unsafe fn imul(a: I, b: I) -> I { each!(_mm256_mullo_epi32, a, b) }
    #[inline(always)] unsafe fn iand(a: I, b: I) -> I { each!(_mm256_and_si256, a, b) }
    #[inline(always)] unsafe fn ior(a: I, b: I) -> I { each!(_mm256_or_si256, a, b) }
    #[inline(always)] unsafe fn ixor(a: I, b: I) -> I { each!(_mm256_xor_si256, a, b) }
    #[inline(always)] unsafe fn imin(a: I, b: I) -> I { each!(_mm256_min_epi32, a, b) }
    #[inline(always)] unsafe fn imax(a: I, b: I) -> I { each!(_mm256_max_epi32, a, b) }
    #[inline(always)] unsafe fn ishl<const N: i32>(a: I) -> I { unsafe { [_mm256_slli_epi32::<N>(a[0]), _mm256_slli_epi32::<N>(a[1])] } }
    #[inline(always)] unsafe fn ishr<const N: i32>(a: I) -> I { unsafe { [_mm256_srli_epi32::<N>(a[0]), _mm256_srli_epi32::<N>(a[1])] } }
    #[inline(always)] unsafe fn ishrv(a: I, n: I) -> I { each!(_mm256_srlv_epi32, a, n) }
    #[inline(always)] unsafe fn ishlv(a: I, n: I) -> I { each!(_mm256_sllv_epi32, a, n) }
    #[inline(always)] unsafe fn ieq(a: I, b: I) -> M { let m = each!(_mm256_cmpeq_epi32, a, b); unsafe { cast(m) } }
    #[inline(always)] unsafe fn igt(a: I, b: I) -> M { let m = each!(_mm256_cmpgt_epi32, a, b); unsafe { cast(m) } }
    #[inline(always)] unsafe fn iselect(m: M, a: I, b: I) -> I { unsafe { Self::bits(Self::select(m, cast(a), cast(b))) } }
    #[inline(always)] unsafe fn to_f(a: I) -> F { each!(_mm256_cvtepi32_ps, a) }
    #[inline(always)] unsafe fn igather(p: *const i32, i: I) -> I { unsafe { [_mm256_i32gather_epi32::<4>(p, i[0]), _mm256_i32gather_epi32::<4>(p, i[1])] } }
    #[inline(always)] unsafe fn ilookup(t: I, i: I) -> I { unsafe { Self::bits(Self::lookup(cast(t), i)) } }
    #[inline(always)] unsafe fn inc(a: I, m: M) -> I { unsafe { Self::isub(a, Self::bits(m)) } }

    #[inline(always)] unsafe fn load_u8(p: *const u8) -> I { unsafe { [_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))] } }
    #[inline(always)] unsafe fn load_i8(p: *const i8) -> I { unsafe { [_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))] } }
    #[inline(always)] unsafe fn load_u16(p: *const u16) -> I { unsafe { [_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()))] } }
    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: I) {
        unsafe {
            let pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
            for (k, &h) in v.iter().enumerate() {
                let b = _mm256_shuffle_epi8(h, pick);
                let q = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256::<1>(b));
                _mm_storel_epi64(p.add(8 * k).cast(), q);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_u16(p: *mut u16, v: I) {
        unsafe {
            let mask = _mm256_set1_epi32(0xFFFF);
            let w = _mm256_packus_epi32(_mm256_and_si256(v[0], mask), _mm256_and_si256(v[1], mask));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(w));
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles8(p: *const u8) -> I {
        unsafe {
            let b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            [_mm256_and_si256(b, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(b)]
        }
    }
    #[inline(always)] unsafe fn splat_f16(p: *const u16) -> F { unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())); 2] } }
    #[inline(always)] unsafe fn load_f16(p: *const u16) -> F { unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] } }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: F) {
        unsafe {
            for (k, &h) in v.iter().enumerate() {
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(h, h));
                // NaN lanes become sign | quiet NaN without payload before the conversion, which then gives sign | 0x7E00.
                let sign = _mm256_and_si256(_mm256_castps_si256(h), _mm256_set1_epi32(i32::MIN));
                let quiet = _mm256_or_si256(sign, _mm256_set1_epi32(0x7FC0_0000));
                let h = _mm256_blendv_epi8(_mm256_castps_si256(h), quiet, nan);
                let c = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_castsi256_ps(h));
                _mm_storeu_si128(p.add(8 * k).cast(), c);
            }
        }
    }

    #[inline(always)]
    unsafe fn nibble_levels(p: *const u8, table: &[i8; 16]) -> (F, F) {
        unsafe {
            let (table, mask) = (_mm_loadu_si128(table.as_ptr().cast()), _mm_set1_epi8(15));
            let q = _mm_loadu_si128(p.cast());
            let low = _mm_shuffle_epi8(table, _mm_and_si128(q, mask));
            let high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(q), mask));
            (widen_i8(low), widen_i8(high))
        }
    }

    #[inline(always)] unsafe fn splat4(p: *const f32) -> F { unsafe { [_mm256_broadcast_ps(&*p.cast()); 2] } }
    #[inline(always)] unsafe fn lookup4(t: F, i: I) -> F { each!(_mm256_permutevar_ps, t, i) }
    #[inline(always)] unsafe fn widen8(b: [u64; 2]) -> F { unsafe { [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(b[0] as i64))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(b[1] as i64)))] } }
    #[inline(always)]
    unsafe fn widen4(b: [u32; 4]) -> F {
        unsafe {
            let half = |low: u32, high: u32| _mm_insert_epi32::<1>(_mm_cvtsi32_si128(low as i32), high as i32);
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(half(b[0], b[1]))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(half(b[2], b[3])))]
        }
    }
    #[inline(always)]
    unsafe fn min_lane(v: F) -> f32 {
        unsafe {
            let m = _mm256_min_ps(v[0], v[1]);
            let m = _mm_min_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m));
            let m = _mm_min_ps(m, _mm_movehl_ps(m, m));
            _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)))
        }
    }
    #[inline(always)]
    unsafe fn umin_lane(v: I) -> u32 {
        unsafe {
            let m = _mm256_min_epu32(v[0], v[1]);
            let m = _mm_min_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_min_epu32(m, _mm_unpackhi_epi64(m, m));
            _mm_cvtsi128_si32(_mm_min_epu32(m, _mm_srli_epi64::<32>(m))) as u32
        }
    }
}
