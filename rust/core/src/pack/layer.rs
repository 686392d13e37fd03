//! Whole weights of packed codes: in any layout of words, decoded or laid out in rows, in parallel.

use super::groups::{Op, Row, Steps};
use super::layout::{Layout, Lines, bytes_of_mut};
use super::{Order, pack_row};
use crate::block::rows::Floats;
use crate::kernels::{self, Kernels, kernels};
use crate::{Error, Result, parallel};
use rayon::prelude::*;
use std::ops::Range;

/// The most columns that are decoded at a time.
pub(super) const COLUMNS: usize = 1024;
/// Destinations of at least this many bytes are written past the caches.
const STREAM_BYTES: usize = 8 << 20;

/// A weight of packed codes.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// The codes.
    pub words: &'a [u8],
    /// Bits of a code.
    pub bits: usize,
    /// Where they lie.
    pub layout: Layout,
    /// They are stored in two's complement: the upper bit of a code is flipped.
    pub signed: bool,
    /// Rows of the weight.
    pub rows: usize,
    /// Codes of a row.
    pub columns: usize,
}

/// What the codes of a [`Layer`] mean.
#[derive(Clone, Copy)]
pub struct Parameters<'a> {
    /// What the codes become.
    pub op: Op,
    /// What each operation is rounded to.
    pub steps: Steps,
    /// Codes of a group.
    pub group: usize,
    /// Groups run over the end of a row: they are counted through the flattened weight.
    pub flat: bool,
    /// The group of each column, where columns are not in order.
    pub group_of: Option<&'a [i32]>,
    /// Scales, rows × groups.
    pub scales: &'a [f32],
    /// Zero points or biases, like the scales; none with a table.
    pub offsets: &'a [f32],
    /// The values of [`Op::Table`], at least 16 and one for every code.
    pub table: &'a [f32],
}

impl<'a> Layer<'a> {
    /// # Errors
    /// `Argument` if the words are not those of such a weight.
    pub fn check(&self) -> Result<()> {
        let known = (1..=8).contains(&self.bits) && self.columns <= usize::MAX / 64;
        let needed = known.then(|| self.layout.bytes(self.bits, self.rows, self.columns)).flatten();
        if needed != Some(self.words.len()) {
            return Err(Error::argument(format!(
                "{} bytes are not {} rows of {} codes of {} bits in the layout {:?}",
                self.words.len(),
                self.rows,
                self.columns,
                self.bits,
                self.layout
            )));
        }
        Ok(())
    }

    pub(super) fn check_rows(&self, rows: &Range<usize>, found: usize, per_row: usize) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows || found != rows.len() * per_row {
            return Err(Error::argument(format!(
                "rows {} to {} of {} with {per_row} elements each do not fit a destination of {found}",
                rows.start, rows.end, self.rows
            )));
        }
        Ok(())
    }

    /// Decodes `rows`.
    ///
    /// # Errors
    /// `Argument` if lengths do not fit.
    pub fn decode(&self, parameters: &Parameters<'_>, rows: Range<usize>, dst: Floats<'_>) -> Result<()> {
        self.decode_with(kernels(), parameters, rows, dst)
    }

    /// [`Layer::decode`] with the kernels of a level.
    ///
    /// # Errors
    /// As [`Layer::decode`].
    pub fn decode_with(
        &self,
        k: &Kernels,
        parameters: &Parameters<'_>,
        rows: Range<usize>,
        dst: Floats<'_>,
    ) -> Result<()> {
        self.check()?;
        parameters.check(self)?;
        match dst {
            Floats::F32(dst) => self.rows(k, parameters, rows, dst, k.decode_row),
            Floats::F16(dst) => self.rows(k, parameters, rows, dst, k.decode_row_f16),
            Floats::Bf16(dst) => self.rows(k, parameters, rows, dst, k.decode_row_bf16),
        }
    }

    fn rows<T: Send>(
        &self,
        k: &Kernels,
        parameters: &Parameters<'_>,
        rows: Range<usize>,
        dst: &mut [T],
        decode: fn(&Row<'_>, &mut [T], bool),
    ) -> Result<()> {
        self.check_rows(&rows, dst.len(), self.columns)?;
        let stream = std::mem::size_of_val(dst) >= STREAM_BYTES;
        let piece = self.layout.piece().0;
        run(dst, piece * self.columns, |task, dst| {
            self.task(k, parameters, rows.start + task * piece, dst.len(), |row, columns, line| {
                decode(line, &mut dst[row * self.columns..][columns], stream);
            });
            kernels::fence();
        });
        Ok(())
    }

    /// Calls `each` with row (of the task), columns and parameters for every piece of the rows that make `elements`.
    fn task(
        &self,
        k: &Kernels,
        parameters: &Parameters<'_>,
        first: usize,
        elements: usize,
        mut each: impl FnMut(usize, Range<usize>, &Row<'_>),
    ) {
        let groups = parameters.groups(self.columns);
        let high_first = self.high_first();
        let mut own = (Vec::new(), Vec::new());
        self.pieces(k, first..first + elements / self.columns, |row, columns, words, bits| {
            let at = columns.start;
            let of_row = if parameters.flat { 0 } else { (first + row) * groups };
            let mut line = Row {
                op: parameters.op,
                steps: parameters.steps,
                bits,
                words,
                high_first,
                first: if parameters.flat { (first + row) * self.columns + at } else { at },
                group: parameters.group,
                scales: &parameters.scales[of_row..],
                offsets: parameters.offsets.get(of_row..).unwrap_or(&[]),
                table: parameters.table,
            };
            if let Some(group_of) = parameters.group_of {
                let spread = |to: &mut Vec<f32>, from: &[f32]| {
                    to.clear();
                    if !from.is_empty() {
                        to.extend(group_of[columns.clone()].iter().map(|g| from[*g as usize]));
                    }
                };
                spread(&mut own.0, line.scales);
                spread(&mut own.1, line.offsets);
                line = Row { first: 0, group: 1, scales: &own.0, offsets: &own.1, ..line };
            }
            each(row, columns, &line);
        });
    }

    /// Of two codes of 4 bits in a byte the upper one comes first.
    pub(super) fn high_first(&self) -> bool {
        matches!(self.layout, Layout::Rows { high_first: true, .. })
    }

    /// Calls `each` with row (of `rows`), columns, and the bytes and bits of the codes for every piece of the columns.
    pub(super) fn pieces(
        &self,
        k: &Kernels,
        rows: Range<usize>,
        mut each: impl FnMut(usize, Range<usize>, &[u8], usize),
    ) {
        let mut scratch = Vec::new();
        let step = self.layout.piece().1;
        for at in (0..self.columns).step_by(step) {
            let columns = at..self.columns.min(at + step);
            let Lines { bytes, step, bits } = self.lines(k, rows.clone(), columns.clone(), &mut scratch);
            for row in 0..rows.len() {
                each(row, columns.clone(), &bytes[row * step..], bits);
            }
        }
    }

    /// The codes of `rows` as rows of whole little-endian words: one stream of bits, what follows it in the last word is
    /// zero or what is stored there.
    ///
    /// # Errors
    /// `Argument` if lengths do not fit.
    pub fn stream(&self, rows: Range<usize>, dst: &mut [u32]) -> Result<()> {
        self.check()?;
        let bytes = (self.columns * self.bits).div_ceil(8);
        let n = bytes.div_ceil(4);
        self.check_rows(&rows, dst.len(), n)?;
        let k = kernels();
        let piece = self.layout.piece().0;
        run(dst, piece * n.max(1), |task, dst| {
            let first = rows.start + task * piece;
            if let Layout::Down = self.layout {
                (k.turn)(&self.words[4 * first..], self.rows, dst.len() / n, n, dst);
                return;
            }
            self.pieces(k, first..first + dst.len() / n, |row, columns, words, bits| {
                let from = columns.start * self.bits / 32;
                let to = bytes_of_mut(&mut dst[row * n..][from..n]);
                if bits == self.bits {
                    let end = (columns.end * bits).div_ceil(8) - 4 * from;
                    to[..end].copy_from_slice(&words[..end]);
                    if columns.end == self.columns {
                        to[end..].fill(0);
                    }
                } else {
                    pack_row(Order::Stream, self.bits, &words[..columns.len()], to);
                }
            });
            if self.high_first() {
                bytes_of_mut(dst).iter_mut().for_each(|pair| *pair = pair.rotate_left(4));
            }
        });
        Ok(())
    }
}

impl Parameters<'_> {
    fn groups(&self, columns: usize) -> usize {
        match self.group_of {
            Some(group_of) => group_of.iter().max().map_or(0, |g| *g as usize + 1),
            None => columns.div_ceil(self.group.max(1)),
        }
    }

    /// Also makes sure that no group of a column is out of range.
    fn check(&self, layer: &Layer<'_>) -> Result<()> {
        let counted = match self.group_of {
            _ if self.group == 0 => None,
            Some(g) if self.flat || g.len() != layer.columns || g.iter().any(|g| *g < 0) => None,
            None if self.flat => layer.rows.checked_mul(layer.columns).map(|n| n.div_ceil(self.group)),
            _ => layer.rows.checked_mul(self.groups(layer.columns)),
        };
        let offsets = if self.op == Op::Table { Some(0) } else { counted };
        let bits = if matches!(layer.layout, Layout::Slabs { .. }) { 8 } else { layer.bits };
        let table = self.op != Op::Table || self.table.len() >= (1 << bits).max(16);
        if counted != Some(self.scales.len()) || offsets != Some(self.offsets.len()) || !table {
            return Err(Error::argument(format!(
                "{} scales, {} offsets and a table of {} in groups of {} do not fit {} rows of {} codes of {} bits",
                self.scales.len(),
                self.offsets.len(),
                self.table.len(),
                self.group,
                layer.rows,
                layer.columns,
                layer.bits
            )));
        }
        Ok(())
    }
}

/// Runs `task` on pieces of `dst`, in parallel where there are several.
pub(super) fn run<T: Send>(dst: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
    if dst.is_empty() {
        return;
    }
    if dst.len() <= piece || parallel::num_threads() == 1 {
        dst.chunks_mut(piece).enumerate().for_each(|(i, dst)| task(i, dst));
    } else {
        parallel::install(|| dst.par_chunks_mut(piece).enumerate().for_each(|(i, dst)| task(i, dst)));
    }
}
