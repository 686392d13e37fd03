//! Whole weights of packed codes: in any layout of words, decoded or laid out in rows, in parallel.

use super::groups::{Op, Row};
use crate::block::rows::Floats;
use crate::kernels::{self, Kernels, kernels};
use crate::{Error, Result, parallel};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that one task decodes together; with words that run down, one line of the cache holds those of 16 rows.
pub(super) const ROWS: usize = 64;
/// Columns that are decoded at a time: their words, and their values before they are narrowed, stay in the caches.
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
    /// The words of a row run down a column of words, as GPTQ stores them: word `w` of row `r` is number
    /// `w * rows + r`. Otherwise rows follow each other.
    pub down: bool,
    /// Bytes from one row to the next where words do not run down.
    pub row_bytes: usize,
    /// Of two codes of 4 bits in a byte the upper one comes first.
    pub high_first: bool,
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
    /// The values of [`Op::Table`].
    pub table: &'a [f32; 16],
}

impl<'a> Layer<'a> {
    fn words_per_row(&self) -> usize {
        (self.columns * self.bits).div_ceil(32)
    }

    /// # Errors
    /// `Argument` if the words are not those of such a weight.
    pub fn check(&self) -> Result<()> {
        let needed = if self.down {
            self.words_per_row().checked_mul(self.rows).and_then(|n| n.checked_mul(4))
        } else if self.row_bytes.saturating_mul(8) < self.columns.saturating_mul(self.bits) {
            None
        } else {
            self.row_bytes.checked_mul(self.rows)
        };
        if !(1..=8).contains(&self.bits) || self.columns > usize::MAX / 64 || needed != Some(self.words.len()) {
            return Err(Error::argument(format!(
                "{} bytes are not {} rows of {} codes of {} bits",
                self.words.len(),
                self.rows,
                self.columns,
                self.bits
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

    /// The bytes of the codes `columns` of `rows`, one row after the other, and the distance between rows. Columns begin
    /// at a multiple of 32.
    fn lines<'b>(
        &self,
        k: &Kernels,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'b mut Vec<u32>,
    ) -> (&'b [u8], usize)
    where
        'a: 'b,
    {
        if !self.down {
            let (begin, step) = (columns.start * self.bits / 8, self.row_bytes);
            let end = rows.end * step;
            return (&self.words[(rows.start * step + begin).min(end)..end], step);
        }
        let first = columns.start * self.bits / 32;
        let n = (columns.end * self.bits).div_ceil(32) - first;
        scratch.resize(rows.len() * n, 0);
        let start = 4 * (first * self.rows + rows.start);
        (k.turn)(&self.words[start.min(self.words.len())..], self.rows, rows.len(), n, scratch);
        (bytes_of(scratch), 4 * n)
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
        run(dst, ROWS * self.columns, |task, dst| {
            self.task(k, parameters, rows.start + task * ROWS, dst.len(), |row, at, line| {
                let from = row * self.columns + at;
                let n = COLUMNS.min(self.columns - at);
                decode(line, &mut dst[from..from + n], stream);
            });
            kernels::fence();
        });
        Ok(())
    }

    /// Calls `each` with row (of the task), first column and parameters for every piece of the rows that make `elements`.
    fn task(
        &self,
        k: &Kernels,
        parameters: &Parameters<'_>,
        first: usize,
        elements: usize,
        mut each: impl FnMut(usize, usize, &Row<'_>),
    ) {
        let groups = parameters.groups(self.columns);
        let mut own = (Vec::new(), Vec::new());
        self.pieces(k, first..first + elements / self.columns, |row, at, words| {
            let of_row = if parameters.flat { 0 } else { (first + row) * groups };
            let mut line = Row {
                op: parameters.op,
                bits: self.bits,
                words,
                high_first: self.high_first,
                first: if parameters.flat { (first + row) * self.columns + at } else { at },
                group: parameters.group,
                scales: &parameters.scales[of_row..],
                offsets: parameters.offsets.get(of_row..).unwrap_or(&[]),
                table: parameters.table,
            };
            if let Some(group_of) = parameters.group_of {
                let end = self.columns.min(at + COLUMNS);
                let spread = |to: &mut Vec<f32>, from: &[f32]| {
                    to.clear();
                    if !from.is_empty() {
                        to.extend(group_of[at..end].iter().map(|g| from[*g as usize]));
                    }
                };
                spread(&mut own.0, line.scales);
                spread(&mut own.1, line.offsets);
                line = Row { first: 0, group: 1, scales: &own.0, offsets: &own.1, ..line };
            }
            each(row, at, &line);
        });
    }

    /// Calls `each` with row (of `rows`), first column and the bytes of the codes for every piece of [`COLUMNS`] columns.
    pub(super) fn pieces(&self, k: &Kernels, rows: Range<usize>, mut each: impl FnMut(usize, usize, &[u8])) {
        let mut scratch = Vec::new();
        for at in (0..self.columns).step_by(COLUMNS) {
            let end = self.columns.min(at + COLUMNS);
            let (lines, step) = self.lines(k, rows.clone(), at..end, &mut scratch);
            for row in 0..rows.len() {
                each(row, at, &lines[row * step..]);
            }
        }
    }

    /// The codes of `rows` as rows of whole little-endian words.
    ///
    /// # Errors
    /// `Argument` if lengths do not fit, or words do not run down.
    pub fn turn(&self, rows: Range<usize>, dst: &mut [u32]) -> Result<()> {
        self.check()?;
        let n = self.words_per_row();
        if !self.down {
            return Err(Error::argument("the words of a row are in a row already"));
        }
        self.check_rows(&rows, dst.len(), n)?;
        let k = kernels();
        run(dst, ROWS * n, |task, dst| {
            let start = 4 * (rows.start + task * ROWS);
            (k.turn)(&self.words[start..], self.rows, dst.len() / n, n, dst);
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
        let table = self.op != Op::Table || layer.bits == 4;
        if counted != Some(self.scales.len()) || offsets != Some(self.offsets.len()) || !table {
            return Err(Error::argument(format!(
                "{} scales and {} offsets in groups of {} do not fit {} rows of {} codes of {} bits",
                self.scales.len(),
                self.offsets.len(),
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

fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: any word is four bytes, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
}
