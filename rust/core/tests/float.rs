//! The scalar conversions, exhaustively where that is possible.

mod common;

use common::{Random, Safetensors, golden};
use subbyte_core::float::*;

fn tables() -> Safetensors {
    Safetensors::open(&golden().join("tables/ggml_tables.safetensors"))
}

/// Every f16 by its definition, in f64.
fn f16_value(h: u16) -> f64 {
    let sign = if h & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (e, m) = (i32::from(h >> 10) & 31, f64::from(h & 0x3FF));
    sign * match e {
        0 => m * 2f64.powi(-24),
        31 => {
            if m == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ => (1.0 + m / 1024.0) * 2f64.powi(e - 15),
    }
}

#[test]
fn f16_widens_exactly_and_comes_back() {
    for h in 0..=u16::MAX {
        let (x, want) = (f16_to_f32(h), f16_value(h));
        if want.is_nan() {
            assert!(x.is_nan());
            assert_eq!(f32_to_f16(x), h & 0x8000 | 0x7E00, "{h:04x}");
        } else {
            assert_eq!(f64::from(x).to_bits(), want.to_bits(), "{h:04x}");
            assert_eq!(f32_to_f16(x), h);
        }
    }
}

#[test]
fn f16_rounds_halves_to_even() {
    for h in 0..0x7BFFu16 {
        let middle = ((f16_value(h) + f16_value(h + 1)) / 2.0) as f32; // exact
        let even = h + (h & 1);
        for sign in [0, 0x8000] {
            let x = |bits: u32| f32::from_bits(bits | u32::from(sign) << 16);
            assert_eq!(f32_to_f16(x(middle.to_bits())), even | sign, "{h:04x}");
            assert_eq!(f32_to_f16(x(middle.to_bits() - 1)), h | sign, "{h:04x}");
            assert_eq!(f32_to_f16(x(middle.to_bits() + 1)), (h + 1) | sign, "{h:04x}");
        }
    }
    assert_eq!(f32_to_f16(65_519.996), 0x7BFF);
    assert_eq!(f32_to_f16(65_520.0), 0x7C00);
    assert_eq!(f32_to_f16(f32::MIN), 0xFC00);
}

#[test]
fn bf16_rounds_halves_to_even_and_quiets_nan() {
    for b in 0..=u16::MAX {
        let x = bf16_to_f32(b);
        if x.is_nan() {
            assert_eq!(f32_to_bf16(x), b | 0x40);
            continue;
        }
        assert_eq!(f32_to_bf16(x), b);
        if x.is_finite() {
            let at = |low: u32| f32_to_bf16(f32::from_bits(x.to_bits() | low));
            assert_eq!([at(0x7FFF), at(0x8000), at(0x8001)], [b, b + (b & 1), b + 1], "{b:04x}");
        }
    }
}

#[test]
fn scales_equal_the_original_tables() {
    let (e8m0, _) = tables().f32("e8m0_half_f32");
    let (ue4m3, _) = tables().f32("ue4m3_half_f32");
    assert_eq!((e8m0.len(), ue4m3.len()), (256, 256));
    for b in 0..=255u8 {
        assert_eq!(e8m0_half(b).to_bits(), e8m0[usize::from(b)].to_bits(), "E8M0 {b}");
        assert_eq!(ue4m3_half(b).to_bits(), ue4m3[usize::from(b)].to_bits(), "UE4M3 {b}");
    }
    for (name, ours) in [("kvalues_mxfp4", KV4), ("kvalues_iq4nl", KNL)] {
        assert_eq!(tables().bytes(name).0, ours.map(|v| v as u8), "{name}");
    }
}

#[test]
fn ue4m3_rounds_half_up() {
    let next_down = |x: f32| f32::from_bits(x.to_bits() - 1);
    // Up to 240 (0x77) the nearest code, the middle going up; the whole last binade is 448 (0x7E).
    for code in 0..0x77u8 {
        let (low, high) = (ue4m3_half(code) * 2.0, ue4m3_half(code + 1) * 2.0);
        assert_eq!(f32_to_ue4m3(low), code);
        // The largest subnormal takes everything below the smallest normal number.
        let border = if code == 7 { high } else { (low + high) / 2.0 };
        assert_eq!(f32_to_ue4m3(border), code + 1, "{code}");
        // Subnormals: `x·512 + 0.5` rounds to f32 before it is truncated, so an ulp below the middle still goes up.
        let below = if code < 7 { border * 0.999_999 } else { next_down(border) };
        assert_eq!(f32_to_ue4m3(below), code, "{code}");
    }
    for x in [248.0, 256.0, 300.0, 447.0, 448.0, 449.0, f32::MAX, f32::INFINITY] {
        assert_eq!(f32_to_ue4m3(x), 0x7E, "{x}");
    }
    assert_eq!(f32_to_ue4m3(next_down(248.0)), 0x77);
    for x in [0.0, -0.0, -1.0, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-45] {
        assert_eq!(f32_to_ue4m3(x), 0, "{x}");
    }
}

#[test]
fn nint_is_exact_inside_and_wraps_outside() {
    let mut r = Random(3);
    for _ in 0..200_000 {
        let v = (r.unit() - 0.5) * 2f32.powi(r.below(24) as i32);
        assert_eq!(nint(v), v.round_ties_even() as i32, "{v}");
    }
    for i in -100..100 {
        let v = i as f32 + 0.5;
        assert_eq!(nint(v), v.round_ties_even() as i32, "{v}");
    }
    assert_eq!(nint(4_194_303.0), 4_194_303);
    // Outside ±2^22 the mantissa of v + 1.5·2^23 shows, whatever its exponent.
    let wrapped = [
        (4_194_304.0, -4_194_304),
        (-4_194_305.0, 4_194_302), // the sum is below 2^23, where the mantissa counts halves
        (-12_582_912.0, -4_194_304),
        (16_777_216.0, -4_194_304 + 6_291_456), // 1.75·2^24
        (f32::INFINITY, -4_194_304),
        (f32::NEG_INFINITY, -4_194_304),
        (f32::from_bits(0x7FC0_0000), 0),
        (1e30, (1e30f32.to_bits() & 0x7F_FFFF) as i32 - 4_194_304),
        (-1e30, (1e30f32.to_bits() & 0x7F_FFFF) as i32 - 4_194_304),
    ];
    for (v, want) in wrapped {
        assert_eq!(nint(v), want, "{v}");
    }
}

#[test]
fn integer_conversions_are_those_of_x86() {
    for (v, want) in [
        (2.9, 2),
        (-2.9, -2),
        (2_147_483_520.0, 2_147_483_520),
        (2_147_483_648.0, i32::MIN),
        (-2_147_483_648.0, i32::MIN),
        (f32::NAN, i32::MIN),
        (f32::INFINITY, i32::MIN),
    ] {
        assert_eq!(trunc(v), want, "{v}");
    }
    for (v, want) in
        [(0.5, 1), (-0.5, -1), (1.5, 2), (2.5, 3), (0.499_999_97, 0), (8_388_609.0, 8_388_609), (1e20, i32::MIN)]
    {
        assert_eq!(rha(v), want, "{v}");
    }
}
