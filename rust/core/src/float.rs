//! Scalar conversions (specification: GGUF, section 3). They are the definition; every SIMD level reproduces them.

/// 2^exponent, exactly, for the exponents of normal numbers; the precision of `powi` is not specified.
pub(crate) const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// f16 bits to f32, exactly; NaN payloads are kept, with the quiet bit set as hardware does.
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let exponent = u32::from(h >> 10) & 31;
    let mantissa = u32::from(h & 0x3FF);
    let bits = match (exponent, mantissa) {
        (0, m) => return f32::from_bits(sign | (m as f32 * power_of_two(-24)).to_bits()),
        (31, 0) => 0x7F80_0000,
        (31, m) => 0x7FC0_0000 | m << 13,
        (e, m) => (e + 112) << 23 | m << 13,
    };
    f32::from_bits(sign | bits)
}

/// f32 to f16 bits: nearest even, subnormals included; overflow gives infinity, NaN gives sign | 0x7E00.
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    if magnitude > 0x7F80_0000 {
        return sign | 0x7E00;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7C00; // 65536 and above
    }
    if magnitude < 0x3880_0000 {
        // Below the smallest normal f16: adding 0.5 leaves multiples of 2^-24 in the mantissa, rounded to nearest even.
        let t = f32::from_bits(magnitude) + 0.5;
        return sign | (t.to_bits() & 0xFFFF) as u16;
    }
    // Rebias by -112 and round 13 mantissa bits to nearest even; a carry out of 65504 becomes infinity by itself.
    let odd = (magnitude >> 13) & 1;
    sign | ((magnitude - (112 << 23) + 0xFFF + odd) >> 13) as u16
}

/// bf16 bits to f32.
#[inline]
pub fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits(u32::from(b) << 16)
}

/// f32 to bf16 bits: nearest even; NaN keeps its upper bits with the quiet bit set.
#[inline]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7FFF_FFFF > 0x7F80_0000 {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Half of the E8M0 scale: 2^(e-128), the factor of the doubled E2M1 table [`KV4`]. 255 is not special here.
#[inline]
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of the UE4M3 scale; 0 and 0x7F give 0, bit 7 is ignored as in ggml.
pub const fn ue4m3_half(b: u8) -> f32 {
    if b == 0 || b == 0x7F {
        return 0.0;
    }
    let b = b as u32 & 0x7F;
    if b < 8 {
        b as f32 / 1024.0
    } else {
        f32::from_bits((b + (119 << 3)) << 20) // exponent bias 7, and half
    }
}

/// f32 to UE4M3 as ggml rounds it: half up, saturating at 448 (0x7E), anything not above 0 gives 0.
pub fn f32_to_ue4m3(x: f32) -> u8 {
    if x.is_nan() || x <= 0.0 {
        return 0;
    }
    let x = if x > 448.0 { 448.0 } else { x };
    let bits = x.to_bits();
    let mut e = ((bits >> 23) & 255) as i32 - 127 + 7;
    let mut m = ((bits >> 20) & 7) as i32;
    if e <= 0 {
        let t = (x * 512.0 + 0.5) as i32;
        let t = t.min(7);
        return if t < 1 { 0 } else { t as u8 };
    }
    if e >= 15 {
        return 0x7E;
    }
    m += ((bits >> 19) & 1) as i32;
    if m > 7 {
        m = 0;
        e += 1;
        if e >= 15 {
            return 0x7E;
        }
    }
    (e << 3 | m) as u8
}

/// ggml's `nearest_int`: round half to even by adding 1.5·2^23; outside ±2^22 the wrapped bits, as the original.
#[inline]
pub fn nint(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007F_FFFF) as i32 - 0x0040_0000
}

/// Truncation toward zero as x86 does it: out of range and NaN give `i32::MIN`.
#[inline]
pub fn trunc(v: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&v) { v as i32 } else { i32::MIN }
}

/// C's `roundf` followed by [`trunc`]: half away from zero.
#[inline]
pub fn rha(v: f32) -> i32 {
    trunc(v.round())
}

/// Doubled E2M1 values by code; index 8 is a second (positive) zero.
pub const KV4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The non-linear levels of IQ4_NL and IQ4_XS.
pub const KNL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
