//! ggml blocks from codes and parameters that are known already: nothing is searched and nothing rounds.

use super::layer::{COLUMNS, Layer, run};
use crate::kernels::{Kernels, kernels};
use crate::{Error, GgmlType, Result};
use std::ops::Range;
use std::sync::Mutex;

/// Blocks to be made of a [`Layer`].
#[derive(Clone, Copy)]
pub struct Assembly<'a> {
    /// Q4_0, Q5_0, Q8_0 (the code less its zero point is stored), Q4_1, Q5_1 (the code is stored), MXFP4, NVFP4 (the
    /// code of the element is stored).
    pub ty: GgmlType,
    /// Codes that share a zero point.
    pub group: usize,
    /// Zero points, rows × groups; one for all of them; none for types that store codes.
    pub zeros: &'a [i16],
    /// A block's scale: f16 bits, rows × blocks; an E8M0 or E4M3 code for MXFP4 (32 columns) and NVFP4 (16 columns).
    pub scales: &'a [u16],
    /// A block's minimum, f16 bits, for Q4_1 and Q5_1.
    pub minima: &'a [u16],
}

/// Columns that share a scale.
fn scaled_columns(ty: GgmlType) -> usize {
    if ty == GgmlType::NVFP4 { 16 } else { 32 }
}

impl Assembly<'_> {
    fn check(&self, layer: &Layer<'_>) -> Result<()> {
        use GgmlType::*;
        layer.check()?;
        let (signed, minimum) = match self.ty {
            Q4_0 | Q5_0 | Q8_0 => (true, false),
            Q4_1 | Q5_1 => (false, true),
            MXFP4 | NVFP4 => (false, false),
            other => return Err(Error::argument(format!("blocks of {} are not made from codes", other.name()))),
        };
        let (rows, columns) = (layer.rows, layer.columns);
        let blocks = rows.saturating_mul(columns / scaled_columns(self.ty));
        let zeros = match (signed, self.zeros.len()) {
            (true, 1) => 1,
            (true, _) => rows.saturating_mul(columns.div_ceil(self.group.max(1))),
            (false, _) => 0,
        };
        let minima = if minimum { blocks } else { 0 };
        let expected = (zeros, blocks, minima);
        let found = (self.zeros.len(), self.scales.len(), self.minima.len());
        if columns % self.ty.block() != 0 || self.group == 0 || self.group % 32 != 0 && self.zeros.len() > 1 {
            return Err(Error::argument(format!(
                "rows of {columns} codes in groups of {} do not divide into blocks of {}",
                self.group,
                self.ty.name()
            )));
        }
        if expected != found {
            return Err(Error::argument(format!(
                "{found:?} zero points, scales and minima: expected {expected:?} for {rows} rows of {columns}"
            )));
        }
        Ok(())
    }

    /// Makes the blocks of `rows`.
    ///
    /// # Errors
    /// `Argument` if lengths do not fit, or a code (less its zero point) is out of the range of the type; row and column
    /// say where.
    pub fn run(&self, layer: &Layer<'_>, rows: Range<usize>, dst: &mut [u8]) -> Result<()> {
        self.check(layer)?;
        let row_bytes = layer.columns / self.ty.block() * self.ty.block_bytes();
        layer.check_rows(&rows, dst.len(), row_bytes)?;
        let k = kernels();
        let failed = Mutex::new(None);
        let piece = layer.layout.piece().0;
        run(dst, piece * row_bytes, |task, dst| {
            let first = rows.start + task * piece;
            if let Err(error) = self.task(k, layer, first..first + dst.len() / row_bytes, dst, row_bytes) {
                failed.lock().expect("no task panics").get_or_insert(error);
            }
        });
        failed.into_inner().expect("no task panics").map_or(Ok(()), Err)
    }

    fn task(&self, k: &Kernels, layer: &Layer<'_>, rows: Range<usize>, dst: &mut [u8], row_bytes: usize) -> Result<()> {
        let mut failed = None;
        let (block, bytes, scaled) = (self.ty.block(), self.ty.block_bytes(), scaled_columns(self.ty));
        let (groups, scales) = (layer.columns.div_ceil(self.group), layer.columns / scaled);
        let mut codes = [0u8; COLUMNS];
        layer.pieces(k, rows.clone(), |row, columns, words, bits| {
            let (at, codes) = (columns.start, &mut codes[..columns.len()]);
            (k.unpack_row)(bits, words, codes);
            if layer.high_first() {
                codes.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
            }
            let absolute = rows.start + row;
            let to = &mut dst[row * row_bytes + at / block * bytes..][..codes.len() / block * bytes];
            for (i, (codes, to)) in codes.chunks_exact(block).zip(to.chunks_exact_mut(bytes)).enumerate() {
                let column = at + i * block;
                let zero = match self.zeros {
                    [] => 0,
                    [one] => *one,
                    zeros => zeros[absolute * groups + column / self.group],
                };
                let parameter = absolute * scales + column / scaled;
                if let Some(bad) = self.block(codes, zero, parameter, to) {
                    failed.get_or_insert((absolute, column + bad, i16::from(codes[bad]) - zero));
                }
            }
        });
        let Some((row, column, value)) = failed else { return Ok(()) };
        let mut error = Error::argument(format!("{value} is out of the range of {}", self.ty.name()));
        error.element = Some((row, column));
        Err(error)
    }

    /// Writes one block; the place of the first code that is out of range.
    fn block(&self, codes: &[u8], zero: i16, parameter: usize, to: &mut [u8]) -> Option<usize> {
        use GgmlType::*;
        let (scale, minimum) = (self.scales[parameter].to_le_bytes(), self.minima.get(parameter).copied().unwrap_or(0));
        let minimum = minimum.to_le_bytes();
        match self.ty {
            Q4_0 => {
                to[..2].copy_from_slice(&scale);
                let q: [u8; 32] = std::array::from_fn(|i| shifted(codes[i], zero, 8));
                nibbles(&q, &mut to[2..]);
                outside(&q, 15)
            }
            Q5_0 => {
                to[..2].copy_from_slice(&scale);
                let q: [u8; 32] = std::array::from_fn(|i| shifted(codes[i], zero, 16));
                to[2..6].copy_from_slice(&fifth_bits(&q));
                nibbles(&q, &mut to[6..]);
                outside(&q, 31)
            }
            Q8_0 => {
                to[..2].copy_from_slice(&scale);
                let mut out = None;
                for (i, (code, to)) in codes.iter().zip(&mut to[2..]).enumerate() {
                    let value = i16::from(*code).wrapping_sub(zero);
                    *to = value as u8;
                    if i16::from(value as i8) != value && out.is_none() {
                        out = Some(i);
                    }
                }
                out
            }
            Q4_1 => {
                to[..2].copy_from_slice(&scale);
                to[2..4].copy_from_slice(&minimum);
                nibbles(codes, &mut to[4..]);
                outside(codes, 15)
            }
            Q5_1 => {
                to[..2].copy_from_slice(&scale);
                to[2..4].copy_from_slice(&minimum);
                to[4..8].copy_from_slice(&fifth_bits(codes));
                nibbles(codes, &mut to[8..]);
                outside(codes, 31)
            }
            MXFP4 => {
                to[0] = scale[0];
                nibbles(codes, &mut to[1..]);
                outside(codes, 15)
            }
            _ => {
                for (i, codes) in codes.chunks_exact(16).enumerate() {
                    to[i] = self.scales[parameter + i] as u8;
                    for j in 0..8 {
                        to[4 + 8 * i + j] = codes[j] & 15 | codes[j + 8] << 4;
                    }
                }
                outside(codes, 15)
            }
        }
    }
}

/// code - zero + middle; what is out of the range of a byte becomes 255.
#[inline(always)]
fn shifted(code: u8, zero: i16, middle: i16) -> u8 {
    let value = i16::from(code).wrapping_sub(zero).wrapping_add(middle);
    if (0..=255).contains(&value) { value as u8 } else { 255 }
}

/// Elements `j` and `j + 16` in the low and the high half of byte `j`.
#[inline(always)]
fn nibbles(q: &[u8], to: &mut [u8]) {
    for j in 0..16 {
        to[j] = q[j] & 15 | q[j + 16] << 4;
    }
}

/// Bit 4 of every code.
fn fifth_bits(q: &[u8]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(*q >> 4 & 1) << i).to_le_bytes()
}

fn outside(q: &[u8], most: u8) -> Option<usize> {
    if q.iter().fold(0, |largest, q| largest.max(*q)) <= most { None } else { q.iter().position(|q| *q > most) }
}
