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
        use GgmlType::*;
        let mut failed = None;
        let (block, bytes, scaled) = (self.ty.block(), self.ty.block_bytes(), scaled_columns(self.ty));
        let (groups, scales) = (layer.columns.div_ceil(self.group), layer.columns / scaled);
        let mut codes = [0u8; COLUMNS];
        // Codes of 4 bits that a block stores as they are only change places.
        let moved = layer.bits == 4 && !layer.high_first() && matches!(self.ty, Q4_0 | Q4_1 | MXFP4);
        layer.pieces(k, rows.clone(), |row, columns, words, bits| {
            let (at, codes) = (columns.start, &mut codes[..columns.len()]);
            let absolute = rows.start + row;
            let to = &mut dst[row * row_bytes + at / block * bytes..][..codes.len() / block * bytes];
            let mut unpacked = false;
            for (i, to) in to.chunks_exact_mut(bytes).enumerate() {
                let column = at + i * block;
                let zero = match self.zeros {
                    [] => 0,
                    [one] => *one,
                    zeros => zeros[absolute * groups + column / self.group],
                };
                let parameter = absolute * scales + column / scaled;
                if moved && bits == 4 && (self.ty != Q4_0 || zero == 8) {
                    self.head(parameter, to);
                    halves(&words[16 * i..][..16], &mut to[bytes - 16..]);
                    continue;
                }
                if !unpacked {
                    (k.unpack_row)(bits, words, codes);
                    if layer.high_first() {
                        codes.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
                    }
                    unpacked = true;
                }
                let codes = &codes[i * block..][..block];
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

    /// Writes the scale of a block, and its minimum where it has one.
    fn head(&self, parameter: usize, to: &mut [u8]) {
        let scale = self.scales[parameter].to_le_bytes();
        if self.ty == GgmlType::MXFP4 {
            to[0] = scale[0];
            return;
        }
        to[..2].copy_from_slice(&scale);
        if let Some(minimum) = self.minima.get(parameter) {
            to[2..4].copy_from_slice(&minimum.to_le_bytes());
        }
    }

    /// Writes one block; the place of the first code that is out of range.
    fn block(&self, codes: &[u8], zero: i16, parameter: usize, to: &mut [u8]) -> Option<usize> {
        use GgmlType::*;
        if self.ty == NVFP4 {
            for (i, codes) in codes.chunks_exact(16).enumerate() {
                to[i] = self.scales[parameter + i] as u8;
                for j in 0..8 {
                    to[4 + 8 * i + j] = codes[j] & 15 | codes[j + 8] << 4;
                }
            }
            return outside(codes, 0, 15);
        }
        self.head(parameter, to);
        // What is stored is code - least, which has to be at most `most`.
        let (least, most) = match self.ty {
            Q4_0 => (zero.wrapping_sub(8), 15),
            Q5_0 => (zero.wrapping_sub(16), 31),
            Q8_0 => (zero.wrapping_sub(128), 255),
            Q5_1 => (0, 31),
            _ => (0, 15),
        };
        let q: [u8; 32] = std::array::from_fn(|i| codes[i].wrapping_sub(least as u8));
        match self.ty {
            Q8_0 => to[2..].iter_mut().zip(q).for_each(|(to, q)| *to = q ^ 128),
            Q5_0 | Q5_1 => {
                let at = to.len() - 20;
                to[at..at + 4].copy_from_slice(&fifth_bits(&q));
                nibbles(&q, &mut to[at + 4..]);
            }
            _ => nibbles(&q, &mut to[self.ty.block_bytes() - 16..]),
        }
        outside(codes, least, most)
    }
}

/// Elements `j` and `j + 16` in the low and the high half of byte `j`.
#[inline(always)]
fn nibbles(q: &[u8], to: &mut [u8]) {
    for j in 0..16 {
        to[j] = q[j] & 15 | q[j + 16] << 4;
    }
}

/// [`nibbles`] of 32 codes of 4 bits that are packed in their order.
#[inline(always)]
fn halves(packed: &[u8], to: &mut [u8]) {
    let (first, second) = packed.split_at(8);
    for (i, pair) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *pair = [first[i] & 15 | second[i] << 4, first[i] >> 4 | second[i] & 0xF0];
    }
}

/// Bit 4 of every code.
fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(*q >> 4 & 1) << i).to_le_bytes()
}

/// The first code that is not one of `least` to `least + most`.
fn outside(codes: &[u8], least: i16, most: i16) -> Option<usize> {
    let out = |code: u8| !(0..=most).contains(&i16::from(code).wrapping_sub(least));
    let (low, high) = codes.iter().fold((255, 0), |(low, high), code| (*code.min(&low), *code.max(&high)));
    if out(low) || out(high) { codes.iter().position(|code| out(*code)) } else { None }
}
