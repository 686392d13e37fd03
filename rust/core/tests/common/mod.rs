//! Shared by the integration tests: golden files and a seeded random generator.
#![allow(dead_code)]

use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder `tests/golden` of the project.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// A safetensors file held in memory (trusted: our own golden data).
pub struct Safetensors {
    header: Value,
    data: Vec<u8>,
}

impl Safetensors {
    /// Reads the file.
    pub fn open(path: &Path) -> Self {
        let all = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let n = u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
        Self { header: serde_json::from_slice(&all[8..8 + n]).unwrap(), data: all[8 + n..].to_vec() }
    }
    /// Bytes and shape of a tensor.
    pub fn bytes(&self, name: &str) -> (Vec<u8>, Vec<usize>) {
        let info = &self.header[name];
        assert!(info.is_object(), "no tensor {name}");
        let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = info["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        (self.data[at(0)..at(1)].to_vec(), shape)
    }
    /// Values and shape of an F32 tensor.
    pub fn f32(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        assert_eq!(self.header[name]["dtype"], "F32", "{name}");
        let (b, shape) = self.bytes(name);
        (b.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(), shape)
    }
}

/// A small seeded generator (PCG-like); tests print the seed they use.
pub struct Random(pub u64);

impl Random {
    /// The next 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 33);
        (x.wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 32) as u32
    }
    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }
    /// Roughly normal, deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// Kinds of [`awkward_rows`].
pub const AWKWARD_KINDS: usize = 18;

/// Rows of many kinds, finite, chosen to reach the corners of the encoders: ties, zero blocks, equal values, tiny and
/// huge magnitudes, sparse and one-sided data.
pub fn awkward_rows(r: &mut Random, kind: usize, n: usize) -> Vec<f32> {
    let scale = 10f32.powi(r.below(9) as i32 - 6);
    (0..n)
        .map(|i| match kind % AWKWARD_KINDS {
            0 => r.normal() * scale,
            1 => r.normal().powi(3) * scale,
            2 => r.normal().abs() * scale,
            3 => {
                if r.below(5) == 0 {
                    r.normal() * scale
                } else {
                    0.0
                }
            }
            4 => (r.below(9) as f32 - 4.0) * scale,
            5 => {
                if (i / 32) % 3 == 0 {
                    0.0
                } else {
                    r.normal() * scale
                }
            }
            6 => {
                if r.below(2) == 0 {
                    scale
                } else {
                    -scale
                }
            }
            7 => {
                if (i / 16) % 2 == 0 {
                    -0.0
                } else {
                    r.normal() * 1e-9
                }
            }
            8 => f32::from_bits(r.bits() & 0x007F_FFFF | r.bits() & 0x8000_0000),
            9 => r.normal() * 10f32.powi((i / 16 % 12) as i32 - 6),
            10 => {
                if r.below(64) == 0 {
                    r.normal() * 100.0 * scale
                } else {
                    r.normal() * scale
                }
            }
            11 => scale,
            12 => r.normal() * 3e4,
            13 => (i as f32 / n as f32 - 0.5) * scale,
            // Magnitudes from the smallest to the largest floats, by element, by sub-block and by row; sums overflow.
            14 => Some(f32::from_bits(r.bits())).filter(|v| v.is_finite()).unwrap_or(0.0),
            15 => (r.normal() * 10f32.powi((i / 16 % 84) as i32 - 45)).clamp(-3e38, 3e38),
            16 => r.normal() * 10f32.powi(r.below(75) as i32 - 40),
            _ => (r.normal() * 10f32.powi((n / 16 % 8) as i32 * 4 + 8)).clamp(-3e38, 3e38),
        })
        .collect()
}
