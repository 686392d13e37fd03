//! Speed of the block kernels by type and level, one thread: `cargo bench -p subbyte-core --bench block -- [TYPE…]`.
//! Prints millions of weights per second, best of several runs. Peers are measured by `benches/python/`.

use std::time::Instant;
use subbyte_core::GgmlType;
use subbyte_core::block::Rows;
use subbyte_core::ggml::Importance;
use subbyte_core::kernels::Kernels;

fn best(mut f: impl FnMut(), weights: usize) -> f64 {
    let mut best = f64::MAX;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 3 || (begin.elapsed().as_secs_f64() < 0.3 && runs < 1000) {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
        runs += 1;
    }
    weights as f64 / best / 1e6
}

/// A zeroed buffer whose start is 64-byte aligned.
fn aligned(len: usize) -> (Vec<f32>, usize) {
    let v = vec![0f32; len + 16];
    let skip = v.as_ptr().align_offset(64);
    (v, skip)
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(|a| a.to_uppercase()).collect();
    let columns = 4096;
    let big = 16 << 20; // 64 MB of f32
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1 << 24) as f32
    };
    // Sums of uniforms: close enough to a normal distribution.
    let x: Vec<f32> = (0..64 * columns).map(|_| ((0..6).map(|_| next()).sum::<f32>() - 3.0) * 0.02).collect();
    let w: Vec<f32> = (0..columns).map(|_| next() + 0.01).collect();
    let (mut y, skip) = aligned(big);
    println!("{:8} {:7} {:>10} {:>10} {:>10} {:>10}", "type", "level", "dec L1", "dec 64MB", "encode", "+importance");
    for ty in GgmlType::ALL.iter().copied().filter(|t| wanted.is_empty() || wanted.iter().any(|w| w == t.name())) {
        if matches!(ty, GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64) {
            continue;
        }
        for k in Kernels::available() {
            let b = k.block(ty);
            let need = ty.importance() == Importance::Required;
            let rows = if matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) { 64 } else { 16 };
            let x = &x[..rows * columns];
            let mut packed = vec![0u8; rows * ty.row_bytes(columns as u64).unwrap() as usize];
            let plain = if need {
                0.0
            } else {
                best(|| (b.encode)(Rows { x, n_per_row: columns, importance: None }, &mut packed), x.len())
            };
            let weighted = if ty.importance() == Importance::Ignored {
                0.0
            } else {
                best(|| (b.encode)(Rows { x, n_per_row: columns, importance: Some(&w) }, &mut packed), x.len())
            };
            let (mut l1, mut mem) = (0.0, 0.0);
            if ty.decodes() {
                let small = &packed[..ty.row_bytes(4096).unwrap() as usize];
                l1 = best(|| (b.decode)(small, &mut y[skip..skip + 4096], false), 4096);
                let all: Vec<u8> =
                    packed.iter().copied().cycle().take(ty.row_bytes(big as u64).unwrap() as usize).collect();
                mem = best(|| (b.decode)(&all, &mut y[skip..skip + big], true), big);
            }
            println!("{:8} {:7} {l1:10.0} {mem:10.0} {plain:10.1} {weighted:10.1}", ty.name(), k.level.name());
        }
    }
}
