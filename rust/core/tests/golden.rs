//! Every golden case of `tests/golden/gguf/{quant,underflow}`, at every SIMD level this processor has: decode and encode, bit for
//! bit. `SUBBYTE_TEST_TYPES=q4_k,q8_0` limits the types.

mod common;

use common::{Safetensors, golden};
use serde_json::Value;
use subbyte_core::GgmlType;
use subbyte_core::block::rows::{Floats, Source, decode_with, encode_with};
use subbyte_core::kernels::Kernels;

fn wanted(ty: &str) -> bool {
    std::env::var("SUBBYTE_TEST_TYPES").map_or(true, |t| t.split(',').any(|t| t.eq_ignore_ascii_case(ty)))
}

/// First difference of two float slices, NaN equal to NaN.
fn differs(got: &[f32], want: &[f32]) -> Option<usize> {
    got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits() && !(g.is_nan() && w.is_nan()))
}

fn run_check(k: &Kernels, ty: GgmlType, file: &Safetensors, check: &Value) -> Result<(), String> {
    let name = |v: &Value| v.as_str().unwrap().to_string();
    match check["op"].as_str().unwrap() {
        "decode" => {
            let (blocks, shape) = file.bytes(&name(&check["planes"]["blocks"]));
            let want = file.f32(&name(&check["expect"])).0;
            let columns = shape[1] / ty.block_bytes() * ty.block();
            let mut got = vec![f32::NAN; want.len()];
            decode_with(k, ty, &blocks, columns, Floats::F32(&mut got)).map_err(|e| e.to_string())?;
            match differs(&got, &want) {
                Some(i) => Err(format!("decode differs first at {i}: {:?}, expected {:?}", got[i], want[i])),
                None => Ok(()),
            }
        }
        "encode" => {
            let (x, shape) = file.f32(&name(&check["source"]));
            let weights = check["importance"].as_str().map(|n| file.f32(n).0);
            let (want, _) = file.bytes(&name(&check["expect"]["blocks"]));
            let mut got = vec![0xA5; want.len()];
            encode_with(k, ty, Source::F32(&x), shape[1], weights.as_deref(), &mut got).map_err(|e| e.to_string())?;
            match got.iter().zip(&want).position(|(g, w)| g != w) {
                Some(i) => {
                    let n = ty.block_bytes();
                    let bad = got.chunks(n).zip(want.chunks(n)).filter(|(g, w)| g != w).count();
                    Err(format!(
                        "encode{}: {bad} of {} blocks differ, first block {} byte {}",
                        if weights.is_some() { " +importance" } else { "" },
                        want.len() / n,
                        i / n,
                        i % n
                    ))
                }
                None => Ok(()),
            }
        }
        other => Err(format!("unknown op {other}")),
    }
}

/// Runs a folder's manifest, or says that no case of it is wanted.
fn run_folder(name: &str) {
    let folder = golden().join(name);
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let (mut run, mut failures) = (0, Vec::new());
    for case in manifest["cases"].as_array().unwrap() {
        let file_name = case["file"].as_str().unwrap();
        let ty = GgmlType::from_name(file_name.trim_end_matches(".safetensors")).unwrap();
        if !wanted(ty.name()) {
            continue;
        }
        let file = Safetensors::open(&folder.join(file_name));
        for check in case["checks"].as_array().unwrap() {
            if check["op"] == "refuse" {
                continue;
            }
            for k in Kernels::available() {
                run += 1;
                if let Err(why) = run_check(k, ty, &file, check) {
                    failures.push(format!("{} [{}] {why}", case["name"], k.level.name()));
                }
            }
        }
    }
    assert!(run > 0 || std::env::var("SUBBYTE_TEST_TYPES").is_ok());
    assert!(failures.is_empty(), "{} of {run} checks fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_golden_case_at_every_level() {
    run_folder("gguf/quant");
}

/// Blocks whose sub-block scales underflow to zero.
#[test]
fn blocks_without_a_scale() {
    run_folder("gguf/underflow");
}
