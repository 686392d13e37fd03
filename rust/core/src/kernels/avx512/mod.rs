//! AVX-512 (F, BW, VL, DQ, VBMI, VBMI2, VNNI: Ice Lake, Zen 4 and later): one register is the vector.

use super::simd::{LANES, Simd};
use std::arch::x86_64::*;

/// The AVX-512 level.
#[derive(Clone, Copy)]
pub struct Avx512;

/// Neighbouring 128-bit parts of `a` and `b`, the larger of each pair of lanes.
#[inline(always)]
unsafe fn max_of_parts(a: __m512, b: __m512) -> __m512 {
    unsafe {
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        _mm512_max_ps(even, odd)
    }
}

#[rustfmt::skip]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    const DIV_APPROX_ERROR: f32 = 1.0 / 8192.0;
    const FAST_LOOKUP: bool = true;

    #[inline(always)] unsafe fn deposit(x: u64, _: u32, mask: u64) -> u64 { unsafe { _pdep_u64(x, mask) } }
    #[inline(always)]
    unsafe fn pick16<const STREAM: bool>(table: &[u16; 16], c: [u64; 4], out: *mut u16) {
        unsafe {
            let table = _mm512_castsi256_si512(_mm256_loadu_si256(table.as_ptr().cast()));
            let codes = _mm256_set_epi64x(c[3] as i64, c[2] as i64, c[1] as i64, c[0] as i64);
            let values = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), table);
            if STREAM { _mm512_stream_si512(out.cast(), values) } else { _mm512_storeu_si512(out.cast(), values) }
        }
    }
    #[inline(always)]
    unsafe fn pick_nibbles<const STREAM: bool>(table: &[u16; 16], p: *const u8, high_first: bool, out: *mut u16) {
        unsafe {
            // Only the low five bits of an index count, and both halves of the table are equal: no masks are needed.
            let table = _mm512_broadcast_i64x4(_mm256_loadu_si256(table.as_ptr().cast()));
            let b = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let codes = if high_first {
                _mm512_or_si512(_mm512_srli_epi32::<4>(b), _mm512_slli_epi32::<16>(b))
            } else {
                _mm512_or_si512(b, _mm512_slli_epi32::<12>(b))
            };
            let values = _mm512_permutexvar_epi16(codes, table);
            if STREAM { _mm512_stream_si512(out.cast(), values) } else { _mm512_storeu_si512(out.cast(), values) }
        }
    }
    #[inline(always)] unsafe fn splat(x: f32) -> __m512 { unsafe { _mm512_set1_ps(x) } }
    #[inline(always)] unsafe fn load(p: *const f32) -> __m512 { unsafe { _mm512_loadu_ps(p) } }
    #[inline(always)] unsafe fn store(p: *mut f32, v: __m512) { unsafe { _mm512_storeu_ps(p, v) } }
    #[inline(always)] unsafe fn stream(p: *mut f32, v: __m512) { unsafe { _mm512_stream_ps(p, v) } }
    #[inline(always)] unsafe fn add(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_add_ps(a, b) } }
    #[inline(always)] unsafe fn sub(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_sub_ps(a, b) } }
    #[inline(always)] unsafe fn mul(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_mul_ps(a, b) } }
    #[inline(always)] unsafe fn div(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_div_ps(a, b) } }
    #[inline(always)] unsafe fn div_approx(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_mul_ps(a, _mm512_rcp14_ps(b)) } }
    #[inline(always)] unsafe fn sqrt(a: __m512) -> __m512 { unsafe { _mm512_sqrt_ps(a) } }
    #[inline(always)] unsafe fn max(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_max_ps(a, b) } }
    #[inline(always)] unsafe fn min(a: __m512, b: __m512) -> __m512 { unsafe { _mm512_min_ps(a, b) } }
    #[inline(always)] unsafe fn lt(a: __m512, b: __m512) -> u16 { unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) } }
    #[inline(always)] unsafe fn le(a: __m512, b: __m512) -> u16 { unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) } }
    #[inline(always)] unsafe fn eq(a: __m512, b: __m512) -> u16 { unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) } }
    #[inline(always)] unsafe fn select(m: u16, a: __m512, b: __m512) -> __m512 { unsafe { _mm512_mask_blend_ps(m, b, a) } }
    #[inline(always)] unsafe fn trunc(a: __m512) -> __m512i { unsafe { _mm512_cvttps_epi32(a) } }
    #[inline(always)] unsafe fn bits(a: __m512) -> __m512i { unsafe { _mm512_castps_si512(a) } }
    #[inline(always)] unsafe fn from_bits(a: __m512i) -> __m512 { unsafe { _mm512_castsi512_ps(a) } }
    #[inline(always)] unsafe fn lookup(t: __m512, i: __m512i) -> __m512 { unsafe { _mm512_permutexvar_ps(i, t) } }
    #[inline(always)] unsafe fn gather(p: *const f32, i: __m512i) -> __m512 { unsafe { _mm512_i32gather_ps::<4>(i, p) } }
    #[inline(always)]
    unsafe fn transpose(r: &mut [__m512; LANES]) {
        unsafe {
            let mut t = [_mm512_setzero_ps(); LANES];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut s = [_mm512_setzero_ps(); LANES];
            for i in 0..4 {
                for h in 0..2 {
                    let a = _mm512_castps_pd(t[4 * i + h]);
                    let b = _mm512_castps_pd(t[4 * i + 2 + h]);
                    s[4 * i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    s[4 * i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for k in 0..4 {
                let (a, b, c, d) = (s[k], s[4 + k], s[8 + k], s[12 + k]);
                let ab0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab1 = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd1 = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                r[k] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab0, cd0);
                r[4 + k] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab1, cd1);
                r[8 + k] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab0, cd0);
                r[12 + k] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab1, cd1);
            }
        }
    }

    #[inline(always)] unsafe fn prefetch(p: *const u8) { unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) } }
    #[inline(always)]
    unsafe fn across_max(v: [__m512; LANES]) -> __m512 {
        unsafe {
            // Halving the vectors per step: pairs of lanes, pairs of pairs, then the 128-bit parts.
            let mut t = [v[0]; 8];
            for i in 0..8 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                t[i] = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            let mut u = [v[0]; 4];
            for i in 0..4 {
                let (a, b) = (_mm512_castps_pd(t[2 * i]), _mm512_castps_pd(t[2 * i + 1]));
                let (lo, hi) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                u[i] = _mm512_max_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
            }
            max_of_parts(max_of_parts(u[0], u[1]), max_of_parts(u[2], u[3]))
        }
    }

    #[inline(always)] unsafe fn m_and(a: u16, b: u16) -> u16 { a & b }
    #[inline(always)] unsafe fn m_or(a: u16, b: u16) -> u16 { a | b }
    #[inline(always)] unsafe fn m_not(a: u16) -> u16 { !a }
    #[inline(always)] unsafe fn m_bits(a: u16) -> u32 { u32::from(a) }
    #[inline(always)] unsafe fn m_from_bits(bits: u32) -> u16 { bits as u16 }

    #[inline(always)] unsafe fn isplat(x: i32) -> __m512i { unsafe { _mm512_set1_epi32(x) } }
    #[inline(always)] unsafe fn iload(p: *const i32) -> __m512i { unsafe { _mm512_loadu_si512(p.cast()) } }
    #[inline(always)] unsafe fn istore(p: *mut i32, v: __m512i) { unsafe { _mm512_storeu_si512(p.cast(), v) } }
    #[inline(always)] unsafe fn iadd(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_add_epi32(a, b) } }
    #[inline(always)] unsafe fn isub(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_sub_epi32(a, b) } }
    #[inline(always)] unsafe fn imul(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_mullo_epi32(a, b) } }
    #[inline(always)] unsafe fn iand(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_and_si512(a, b) } }
    #[inline(always)] unsafe fn ior(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_or_si512(a, b) } }
    #[inline(always)] unsafe fn ixor(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_xor_si512(a, b) } }
    #[inline(always)] unsafe fn imin(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_min_epi32(a, b) } }
    #[inline(always)] unsafe fn imax(a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_max_epi32(a, b) } }
    #[inline(always)] unsafe fn ishl<const N: i32>(a: __m512i) -> __m512i { unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(N)) } }
    #[inline(always)] unsafe fn ishr<const N: i32>(a: __m512i) -> __m512i { unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(N)) } }
    #[inline(always)] unsafe fn ishrv(a: __m512i, n: __m512i) -> __m512i { unsafe { _mm512_srlv_epi32(a, n) } }
    #[inline(always)] unsafe fn ishlv(a: __m512i, n: __m512i) -> __m512i { unsafe { _mm512_sllv_epi32(a, n) } }
    #[inline(always)] unsafe fn ieq(a: __m512i, b: __m512i) -> u16 { unsafe { _mm512_cmpeq_epi32_mask(a, b) } }
    #[inline(always)] unsafe fn igt(a: __m512i, b: __m512i) -> u16 { unsafe { _mm512_cmpgt_epi32_mask(a, b) } }
    #[inline(always)] unsafe fn iselect(m: u16, a: __m512i, b: __m512i) -> __m512i { unsafe { _mm512_mask_blend_epi32(m, b, a) } }
    #[inline(always)] unsafe fn to_f(a: __m512i) -> __m512 { unsafe { _mm512_cvtepi32_ps(a) } }
    #[inline(always)] unsafe fn igather(p: *const i32, i: __m512i) -> __m512i { unsafe { _mm512_i32gather_epi32::<4>(i, p) } }
    #[inline(always)] unsafe fn ilookup(t: __m512i, i: __m512i) -> __m512i { unsafe { _mm512_permutexvar_epi32(i, t) } }
    #[inline(always)] unsafe fn inc(a: __m512i, m: u16) -> __m512i { unsafe { _mm512_mask_add_epi32(a, m, a, _mm512_set1_epi32(1)) } }

    #[inline(always)] unsafe fn load_u8(p: *const u8) -> __m512i { unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) } }
    #[inline(always)] unsafe fn load_i8(p: *const i8) -> __m512i { unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) } }
    #[inline(always)] unsafe fn load_u16(p: *const u16) -> __m512i { unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) } }
    #[inline(always)] unsafe fn store_u8(p: *mut u8, v: __m512i) { unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)) } }
    #[inline(always)] unsafe fn store_u16(p: *mut u16, v: __m512i) { unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(v)) } }
    #[inline(always)]
    unsafe fn load_nibbles8(p: *const u8) -> __m512i {
        unsafe {
            let b = _mm_loadl_epi64(p.cast());
            let n = _mm_unpacklo_epi64(b, _mm_srli_epi16::<4>(b));
            _mm512_cvtepu8_epi32(_mm_and_si128(n, _mm_set1_epi8(15)))
        }
    }
    #[inline(always)] unsafe fn splat_f16(p: *const u16) -> __m512 { unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) } }
    #[inline(always)] unsafe fn load_f16(p: *const u16) -> __m512 { unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) } }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: __m512) {
        unsafe {
            let h = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let sign = _mm256_and_si256(h, _mm256_set1_epi16(i16::MIN));
            let quiet = _mm256_or_si256(sign, _mm256_set1_epi16(0x7E00));
            _mm256_storeu_si256(p.cast(), _mm256_mask_blend_epi16(nan, h, quiet));
        }
    }

    #[inline(always)] unsafe fn splat4(p: *const f32) -> __m512 { unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) } }
    #[inline(always)] unsafe fn lookup4(t: __m512, i: __m512i) -> __m512 { unsafe { _mm512_permutevar_ps(t, i) } }
    #[inline(always)] unsafe fn flip(v: __m512, bits: u32) -> __m512 { unsafe { _mm512_mask_xor_ps(v, bits as u16, v, _mm512_set1_ps(-0.0)) } }
    #[inline(always)] unsafe fn widen8(b: [u64; 2]) -> __m512 { unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(b[1] as i64, b[0] as i64))) } }
    #[inline(always)] unsafe fn widen4(b: [u32; 4]) -> __m512 { unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_setr_epi32(b[0] as i32, b[1] as i32, b[2] as i32, b[3] as i32))) } }
    #[inline(always)] unsafe fn min_lane(v: __m512) -> f32 { unsafe { _mm512_reduce_min_ps(v) } }
    #[inline(always)] unsafe fn umin_lane(v: __m512i) -> u32 { unsafe { _mm512_reduce_min_epu32(v) } }
}
