//! One suite stamped onto every SIMD level: each must give the scalar reference's bits, for random block bytes (NaN and
//! infinite scales included) and for awkward rows, with and without importance weights, cached and streaming.
//! `SUBBYTE_TEST_TYPES` limits the types, `SUBBYTE_TEST_ROUNDS` sets the rounds (default 40), `SUBBYTE_TEST_SEED` the seed.

mod common;

use common::{AWKWARD_KINDS, Random, awkward_rows};
use subbyte_core::GgmlType;
use subbyte_core::block::Rows;
use subbyte_core::ggml::Importance;
use subbyte_core::kernels::{Kernels, Level};
use subbyte_core::pack::groups::{Op, Row, Steps};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| {
        !matches!(ty, GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64)
            && std::env::var("SUBBYTE_TEST_TYPES")
                .map_or(true, |t| t.split(',').any(|t| t.eq_ignore_ascii_case(ty.name())))
    })
}

/// 64-byte aligned floats.
fn aligned(n: usize) -> (Vec<f32>, usize) {
    let v = vec![0f32; n + 16];
    let skip = v.as_ptr().align_offset(64);
    (v, skip)
}

fn check_decode(level: Level) {
    let k = Kernels::get(level).unwrap();
    let scalar = Kernels::get(Level::Scalar).unwrap();
    let seed = setting("SUBBYTE_TEST_SEED", 1);
    let mut r = Random(seed);
    for ty in types().filter(|t| t.decodes()) {
        for round in 0..setting("SUBBYTE_TEST_ROUNDS", 40) {
            let blocks = 1 + r.below(40);
            let mut bytes: Vec<u8> = (0..blocks * ty.block_bytes()).map(|_| r.bits() as u8).collect();
            if round % 4 == 0 {
                // Zero and all-one blocks: zero, NaN and infinite scales.
                let n = ty.block_bytes();
                bytes[..n].fill(if round % 8 == 0 { 0 } else { 0xFF });
            }
            let n = blocks * ty.block();
            let mut want = vec![0f32; n];
            (scalar.block(ty).decode)(&bytes, &mut want, false);
            // Every alignment of the source and the destination, and the streaming stores.
            let mut shifted = vec![0u8; 64 + bytes.len()];
            let at = r.below(64);
            shifted[at..at + bytes.len()].copy_from_slice(&bytes);
            let src = &shifted[at..at + bytes.len()];
            let (mut buffer, skip) = aligned(n + 64);
            for (offset, stream) in [(skip, false), (skip + r.below(16), false), (skip, true)] {
                let got = &mut buffer[offset..offset + n];
                got.fill(0.5);
                (k.block(ty).decode)(src, got, stream);
                let bad =
                    got.iter().zip(&want).position(|(g, w)| g.to_bits() != w.to_bits() && !(g.is_nan() && w.is_nan()));
                if let Some(i) = bad {
                    panic!(
                        "{} {level:?} seed {seed} round {round}: element {i} is {:?}, reference {:?}",
                        ty.name(),
                        got[i],
                        want[i]
                    );
                }
            }
        }
    }
}

fn check_encode(level: Level) {
    let k = Kernels::get(level).unwrap();
    let scalar = Kernels::get(Level::Scalar).unwrap();
    let seed = setting("SUBBYTE_TEST_SEED", 1);
    let mut r = Random(seed);
    for ty in types() {
        for round in 0..setting("SUBBYTE_TEST_ROUNDS", 40) {
            let (columns, rows) = ((1 + r.below(5)) * ty.block().max(32), 1 + r.below(9));
            let kind = if r.below(4) == 0 { 0 } else { r.below(AWKWARD_KINDS) };
            let mut x = awkward_rows(&mut r, kind, rows * columns);
            if round % 5 == 0 {
                // Mix kinds by row.
                for row in x.chunks_mut(columns) {
                    let kind = r.below(AWKWARD_KINDS);
                    row.copy_from_slice(&awkward_rows(&mut r, kind, columns));
                }
            }
            let mut weights: Vec<f32> = (0..columns).map(|_| r.unit() * r.unit() * 10.0).collect();
            match round % 6 {
                1 => weights.fill(1.0),
                2 => weights.iter_mut().enumerate().for_each(|(i, w)| {
                    if (i / 32) % 2 == 0 {
                        *w = 0.0
                    }
                }),
                3 => weights.fill(0.0),
                _ => {}
            }
            let variants: &[Option<&[f32]>] = match ty.importance() {
                Importance::Ignored => &[None],
                Importance::Optional => &[None, Some(&weights)],
                Importance::Required => &[Some(&weights)],
            };
            for importance in variants {
                let rows = Rows { x: &x, n_per_row: columns, importance: *importance };
                let bytes = x.len() / ty.block() * ty.block_bytes();
                let (mut want, mut got) = (vec![0x5A; bytes], vec![0xA5; bytes]);
                (scalar.block(ty).encode)(rows, &mut want);
                (k.block(ty).encode)(rows, &mut got);
                if let Some(i) = got.iter().zip(&want).position(|(g, w)| g != w) {
                    let b = i / ty.block_bytes();
                    panic!(
                        "{} {level:?} seed {seed} round {round} kind {kind} importance {}: block {b} byte {}\n got {:02x?}\nwant {:02x?}",
                        ty.name(),
                        importance.is_some(),
                        i % ty.block_bytes(),
                        &got[b * ty.block_bytes()..][..ty.block_bytes()],
                        &want[b * ty.block_bytes()..][..ty.block_bytes()]
                    );
                }
            }
        }
    }
}

/// Packed codes: every operation, width and kind of group, and exchanged rows and columns.
fn check_packed(level: Level) {
    let k = Kernels::get(level).unwrap();
    let scalar = Kernels::get(Level::Scalar).unwrap();
    let mut r = Random(setting("SUBBYTE_TEST_SEED", 1));
    let table: [f32; 256] = std::array::from_fn(|_| r.normal());
    for round in 0..setting("SUBBYTE_TEST_ROUNDS", 40) * 50 {
        let op = [Op::Affine, Op::Biased, Op::Table][r.below(3)];
        let bits = if op == Op::Table && r.below(2) == 0 { 4 } else { 1 + r.below(8) };
        let steps = [Steps::F32, Steps::F16, Steps::Bf16][r.below(3)];
        let n = r.below(300);
        let group = [1, 16, 32, 24, 64, 1000][r.below(6)];
        let first = [0, 16 * r.below(20), r.below(200)][r.below(3)];
        let spare = r.below(40);
        let words: Vec<u8> = (0..(n * bits).div_ceil(8) + spare).map(|_| r.bits() as u8).collect();
        let groups = (first + n).div_ceil(group) + r.below(3);
        let parameters = |r: &mut Random| -> Vec<f32> {
            (0..groups).map(|_| if r.below(9) == 0 { f32::from_bits(r.bits()) } else { r.normal() }).collect()
        };
        let (scales, offsets) = (parameters(&mut r), parameters(&mut r));
        let row = Row {
            op,
            steps,
            bits,
            words: &words,
            high_first: bits == 4 && r.below(2) == 0,
            first,
            group,
            scales: &scales,
            offsets: &offsets,
            table: &table,
        };
        let mut want = vec![0f32; n];
        (scalar.decode_row)(&row, &mut want, false);
        let (mut buffer, skip) = aligned(n + 64);
        for (offset, stream) in [(skip, false), (skip + r.below(16), false), (skip, true)] {
            let got = &mut buffer[offset..offset + n];
            got.fill(0.5);
            (k.decode_row)(&row, got, stream);
            let bad =
                got.iter().zip(&want).position(|(g, w)| g.to_bits() != w.to_bits() && !(g.is_nan() && w.is_nan()));
            assert_eq!(bad, None, "{op:?} of {bits} bits in {steps:?}, round {round}, {level:?}");
        }
        type Narrow = fn(&Row<'_>, &mut [u16], bool);
        let narrow: [(Narrow, Narrow); 2] =
            [(scalar.decode_row_f16, k.decode_row_f16), (scalar.decode_row_bf16, k.decode_row_bf16)];
        for (reference, kernel) in narrow {
            let mut want = vec![0u16; n];
            reference(&row, &mut want, false);
            let mut buffer = vec![0u16; n + 96];
            let skip = buffer.as_ptr().align_offset(64);
            for (offset, stream) in [(skip, true), (skip + r.below(32), r.below(2) == 0)] {
                let got = &mut buffer[offset..offset + n];
                kernel(&row, got, stream);
                assert_eq!(want, got, "{op:?} of {bits} bits in {steps:?} to 16, round {round}, {level:?}");
            }
        }
        let (mut want, mut got) = (vec![0u8; n], vec![9u8; n]);
        (scalar.unpack_row)(bits, &words, &mut want);
        (k.unpack_row)(bits, &words, &mut got);
        assert_eq!(want, got, "{bits} bits unpacked, round {round}, {level:?}");
        let (rows, words, stride) = (r.below(40), r.below(40), 40 + r.below(9));
        let src: Vec<u8> = (0..4 * stride * words.max(1)).map(|_| r.bits() as u8).collect();
        let (mut want, mut got) = (vec![0u32; rows * words], vec![1u32; rows * words]);
        (scalar.turn)(&src, stride, rows, words, &mut want);
        (k.turn)(&src, stride, rows, words, &mut got);
        assert_eq!(want, got, "{rows} rows of {words} words, {level:?}");
        let (octets, columns) = (r.below(20), r.below(300));
        let stride = octets + r.below(9);
        let src: Vec<u8> = (0..4 * (stride * columns).max(1)).map(|_| r.bits() as u8).collect();
        let (mut want, mut got) =
            (vec![0u32; 8 * octets * columns.div_ceil(8)], vec![1u32; 8 * octets * columns.div_ceil(8)]);
        (scalar.across)(&src, stride, octets, columns, &mut want);
        (k.across)(&src, stride, octets, columns, &mut got);
        assert_eq!(want, got, "{octets} octets of rows, {columns} columns, {level:?}");
        let (octets, n) = (16 * r.below(3) + r.below(2), 16 * r.below(4) + r.below(2));
        let stride = n + r.below(9);
        let src: Vec<u8> = (0..4 * (8 * octets * stride).max(1)).map(|_| r.bits() as u8).collect();
        let (mut want, mut got) = (vec![0u32; 8 * octets * n], vec![1u32; 8 * octets * n]);
        (scalar.lay_across)(&src, stride, octets, n, &mut want);
        (k.lay_across)(&src, stride, octets, n, &mut got);
        assert_eq!(want, got, "{octets} octets of rows of {n} words laid across, {level:?}");
    }
}

/// 16-bit conversions: every f16 and bf16 value, halves between neighbours, and random bits.
fn check_narrow(level: Level) {
    let k = Kernels::get(level).unwrap();
    let scalar = Kernels::get(Level::Scalar).unwrap();
    let mut r = Random(7);
    let mut x: Vec<f32> = (0..=u16::MAX).map(subbyte_core::float::f16_to_f32).collect();
    x.extend((0..=u16::MAX).map(|b| f32::from_bits(u32::from(b) << 16)));
    x.extend((0..200_000).map(|_| f32::from_bits(r.bits())));
    x.extend((0..100_000).map(|_| f32::from_bits(r.bits() & 0xFFFF_F000 | 0x1000)));
    x.truncate(x.len() - 3);
    let (mut want, mut got) = (vec![0u16; x.len()], vec![1u16; x.len()]);
    (scalar.to_f16)(&x, &mut want);
    (k.to_f16)(&x, &mut got);
    assert_eq!(want.iter().zip(&got).position(|(a, b)| a != b), None, "f16 {level:?}");
    (scalar.to_bf16)(&x, &mut want);
    (k.to_bf16)(&x, &mut got);
    assert_eq!(want.iter().zip(&got).position(|(a, b)| a != b), None, "bf16 {level:?}");
    for _ in 0..1000 {
        let mut v: Vec<f32> = (0..1 + r.below(100)).map(|_| r.normal()).collect();
        if r.below(2) == 0 {
            let i = r.below(v.len());
            v[i] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][r.below(3)];
        }
        assert_eq!((scalar.first_non_finite)(&v), (k.first_non_finite)(&v));
        let begin = r.below(v.len());
        (k.stream_fill)(&mut v[begin..], 7.0);
        assert!(v[begin..].iter().all(|x| *x == 7.0), "stream_fill {level:?}");
    }
}

macro_rules! stamp {
    ($name:ident, $level:expr) => {
        mod $name {
            use super::*;
            /// Says which levels ran: a level this processor lacks is reported, not passed in silence.
            fn here() -> bool {
                let run = Kernels::get($level).is_some();
                println!("SIMD level {}: {}", $level.name(), if run { "ran" } else { "SKIPPED (not available here)" });
                run
            }
            #[test]
            fn decode_equals_scalar() {
                if here() {
                    check_decode($level)
                }
            }
            #[test]
            fn encode_equals_scalar() {
                if here() {
                    check_encode($level)
                }
            }
            #[test]
            fn packed_codes_equal_scalar() {
                if here() {
                    check_packed($level)
                }
            }
            #[test]
            fn conversions_equal_scalar() {
                if here() {
                    check_narrow($level)
                }
            }
        }
    };
}

stamp!(avx2, Level::Avx2);
stamp!(avx512, Level::Avx512);
stamp!(neon, Level::Neon);
