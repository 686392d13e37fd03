//! Inputs at which the shortcuts of the vector encoders could part from the scalar definition: every binade, the floats
//! around powers of two and around ties, saturated and vanishing scales, every ternary byte.

mod common;

use common::Random;
use subbyte_core::GgmlType;
use subbyte_core::block::Rows;
use subbyte_core::float::{e8m0_half, ue4m3_half};
use subbyte_core::kernels::{Kernels, Level};

/// Encodes `x` (whole blocks) at every level and compares with the scalar reference.
fn compare(ty: GgmlType, x: &[f32]) {
    let mut results = Kernels::available().map(|k| {
        let mut bytes = vec![0xA5; x.len() / ty.block() * ty.block_bytes()];
        (k.block(ty).encode)(Rows { x, n_per_row: x.len(), importance: None }, &mut bytes);
        (k.level, bytes)
    });
    let (level, want) = results.next().unwrap();
    assert_eq!(level, Level::Scalar);
    for (level, got) in results {
        if let Some(i) = got.iter().zip(&want).position(|(g, w)| g != w) {
            let b = i / ty.block_bytes();
            let block = &x[b * ty.block()..][..ty.block()];
            panic!("{} {level:?}: byte {} of the block of {block:?}", ty.name(), i % ty.block_bytes());
        }
    }
}

/// `x` moved by whole steps of the float grid.
fn step(x: f32, steps: i32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add_signed(steps))
}

const TIES: [f32; 10] = [0.25, 0.5, 1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 12.0];

/// A random value at most `top` in magnitude: near a tie of the E2M1 levels times `d`, or anything.
fn near_tie(r: &mut Random, d: f32, top: f32) -> f32 {
    let tie = TIES[r.below(10)] * d;
    let v = match r.below(4) {
        0 => top * r.unit(),
        1 => 0.0,
        _ if tie > 0.0 && tie.is_finite() => step(tie, r.below(5) as i32 - 2),
        _ => top,
    };
    let v = if v.abs() > top { top } else { v };
    if r.below(2) == 0 { -v } else { v }
}

#[test]
fn mxfp4_at_ties_in_every_binade() {
    let mut r = Random(11);
    let mut x = Vec::new();
    for exponent in 0..=254u32 {
        for block in 0..60 {
            // The largest magnitude: around the power of two, where the rounded logarithm jumps, or anywhere.
            let amax = match block % 3 {
                0 => f32::from_bits(exponent << 23 | r.bits() & 0x007F_FFFF),
                _ => step(f32::from_bits((exponent << 23).max(100)), r.below(101) as i32 - 100),
            };
            let amax = if exponent == 254 && block % 3 == 1 { step(f32::MAX, -(r.below(60) as i32)) } else { amax };
            // Scales near what the encoder will choose.
            let binade = (amax.to_bits() >> 23) as i32 - 127;
            let e = (binade - 2 + 127 + r.below(2) as i32) as u8;
            x.push(amax);
            x.extend((1..32).map(|_| near_tie(&mut r, e8m0_half(e), amax)));
        }
    }
    compare(GgmlType::MXFP4, &x);
}

#[test]
fn nvfp4_at_ties_of_every_scale() {
    let mut r = Random(12);
    let mut x = Vec::new();
    for code in 0..0x7Fu8 {
        for _ in 0..40 {
            let d = ue4m3_half(code);
            let amax = step((d * 12.0).max(1e-40), r.below(7) as i32 - 3);
            x.push(amax);
            x.extend((1..16).map(|_| near_tie(&mut r, d, amax)));
        }
    }
    // Far above the largest scale, up to where all differences are equal.
    for exponent in 0..40 {
        for _ in 0..40 {
            let amax = 448.0 * 3f32.powi(exponent);
            x.push(amax);
            let d = if r.below(2) == 0 { 224.0 } else { amax / 12.0 };
            x.extend((1..16).map(|_| near_tie(&mut r, d, amax)));
        }
    }
    x.resize(x.len().next_multiple_of(64), 0.0);
    compare(GgmlType::NVFP4, &x);
}

#[test]
fn every_ternary_byte() {
    let mut x = Vec::new();
    for first in 0..243usize {
        let digit = |v: usize, n: u32| (v / 3usize.pow(4 - n) % 3) as f32 - 1.0;
        // Byte m of the block holds the number first + m, whatever its place.
        let mut block = [1f32; 256];
        for m in 0..32 {
            (0..5).for_each(|n| block[32 * n + m] = digit((first + m) % 243, n as u32));
        }
        for m in 0..16 {
            (0..5).for_each(|n| block[160 + 16 * n + m] = digit((first + m) % 243, n as u32));
        }
        for m in 0..4 {
            (0..4).for_each(|n| block[240 + 4 * n + m] = digit((first + m) % 81 * 3, n as u32));
        }
        x.extend(block);
    }
    for ty in [GgmlType::TQ1_0, GgmlType::TQ2_0] {
        compare(ty, &x);
        // Ternary input comes back as it was.
        for k in Kernels::available() {
            let mut bytes = vec![0; x.len() / 256 * ty.block_bytes()];
            let mut y = vec![0f32; x.len()];
            (k.block(ty).encode)(Rows { x: &x, n_per_row: x.len(), importance: None }, &mut bytes);
            (k.block(ty).decode)(&bytes, &mut y, false);
            assert_eq!(x, y, "{} {:?}", ty.name(), k.level);
        }
    }
}

#[test]
fn legacy_blocks_with_two_extremes_and_signed_zeros() {
    let mut r = Random(13);
    let mut x = Vec::new();
    for _ in 0..4000 {
        let top = f32::from_bits(r.bits() & 0x7F7F_FFFF).min(1e30);
        let signed = r.below(3);
        x.extend((0..32).map(|_| match (r.below(4), signed) {
            (0, 0) => -top,
            (0 | 1, _) => top,
            (2, _) => -0.0,
            _ => 0.0,
        }));
    }
    for ty in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0, GgmlType::Q8_1] {
        compare(ty, &x);
    }
    for ty in [GgmlType::Q1_0, GgmlType::Q2_0, GgmlType::TQ1_0, GgmlType::TQ2_0] {
        compare(ty, &x[..x.len() / 256 * 256]);
    }
}
