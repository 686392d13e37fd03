//! Decoding of packed codes with parameters per group: the scalar definition, row by row.

use super::{Order, unpack_row};
use crate::float;

/// What a code and the parameters of its group become. Every operation is rounded by itself, to f32 or as [`Steps`] say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// (code - offset) * scale: integers with a zero point.
    Affine,
    /// code * scale + offset: integers with a bias.
    Biased,
    /// table\[code\] * scale: small floats; there are no offsets.
    Table,
}

/// What the result of each operation is rounded to, which has to be a 16-bit type where the original computes in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Steps {
    /// The type called `name`: `"float32"`, `"float16"` or `"bfloat16"`.
    pub fn from_name(name: &str) -> Option<Self> {
        [("float32", Steps::F32), ("float16", Steps::F16), ("bfloat16", Steps::Bf16)]
            .into_iter()
            .find_map(|(known, steps)| (known == name).then_some(steps))
    }

    fn round(self, x: f32) -> f32 {
        match self {
            Steps::F32 => x,
            Steps::F16 => float::f16_to_f32(float::f32_to_f16(x)),
            Steps::Bf16 => float::bf16_to_f32(float::f32_to_bf16(x)),
        }
    }
}

impl Op {
    /// The operation called `name`: `"affine"`, `"biased"` or `"table"`.
    pub fn from_name(name: &str) -> Option<Self> {
        [("affine", Op::Affine), ("biased", Op::Biased), ("table", Op::Table)]
            .into_iter()
            .find_map(|(known, op)| (known == name).then_some(op))
    }
}

/// Codes in a row, and the parameters of their groups.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// What the codes become.
    pub op: Op,
    /// What each operation is rounded to.
    pub steps: Steps,
    /// Bits of a code, 1 to 8.
    pub bits: usize,
    /// The codes as a stream of bits, least significant first.
    pub words: &'a [u8],
    /// Of two codes of 4 bits in a byte the upper one comes first.
    pub high_first: bool,
    /// Number of the first code, counted from where the first group begins.
    pub first: usize,
    /// Codes of a group.
    pub group: usize,
    /// Scale of each group.
    pub scales: &'a [f32],
    /// Zero point or bias of each group.
    pub offsets: &'a [f32],
    /// The values of [`Op::Table`], at least 16 and one for every code.
    pub table: &'a [f32],
}

impl Row<'_> {
    /// Panics unless `n` codes are there, each with its parameters.
    pub fn check(&self, n: usize) {
        assert!((1..=8).contains(&self.bits) && self.group > 0);
        assert!(self.words.len() >= (n * self.bits).div_ceil(8));
        let groups = (self.first + n).div_ceil(self.group);
        assert!(n == 0 || self.scales.len() >= groups);
        match self.op {
            Op::Table => assert!(self.table.len() >= (1 << self.bits).max(16)),
            _ => assert!(n == 0 || self.offsets.len() >= groups),
        }
    }

    /// Decodes codes from number `skip` of the row on: the definition.
    pub fn decode(&self, skip: usize, out: &mut [f32]) {
        const TILE: usize = 32; // a whole number of bytes at any width
        let mut codes = [0u8; TILE];
        let mut at = skip / TILE * TILE;
        let end = skip + out.len();
        while at < end {
            let n = TILE.min((self.words.len() * 8 - at * self.bits) / self.bits);
            unpack_row(Order::Stream, self.bits, &self.words[at * self.bits / 8..], &mut codes[..n]);
            if self.high_first {
                codes.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
            }
            for i in at.max(skip)..end.min(at + n) {
                let group = (self.first + i) / self.group;
                let (code, scale) = (codes[i - at], self.scales[group]);
                let steps = self.steps;
                out[i - skip] = steps.round(match self.op {
                    Op::Affine => steps.round(f32::from(code) - self.offsets[group]) * scale,
                    Op::Biased => steps.round(f32::from(code) * scale) + self.offsets[group],
                    Op::Table => self.table[usize::from(code)] * scale,
                });
            }
            at += TILE;
        }
    }
}
