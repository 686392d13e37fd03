//! Where the codes of a weight lie: every layout can give its codes in rows, a piece at a time.

use super::layer::{Layer, run};
use crate::kernels::{Kernels, kernels};
use crate::{Error, Result};
use std::ops::Range;

/// Row of each nibble of a word of [`Layout::Across`].
pub const ACROSS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Where the codes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows follow each other, each a stream of bits.
    Rows {
        /// Bytes from one row to the next.
        row_bytes: usize,
        /// Of two codes of 4 bits in a byte the upper one comes first.
        high_first: bool,
    },
    /// The words of a row run down a column of words, as GPTQ stores them: word `w` of row `r` is number `w * rows + r`.
    Down,
    /// 4 bits: word `c * rows / 8 + o` holds column `c` of the rows `8 o + ACROSS[i]` in its nibbles `i` (AWQ `gemm`).
    Across,
    /// 4 bits: rows in fours, columns in blocks of 64; a block holds 32 bytes of each of its rows in turn, and of every
    /// 32 columns, column `8 a + 2 b + c` (`a`, `b` below 4, `c` below 2) is code `8 b + 4 c + a` (AWQ `gemv_fast`).
    Fours,
    /// 4 bits, in the order that the Marlin kernel reads (arXiv 2408.11743). Tiles of 16 columns and 64 rows follow each
    /// other along the rows; in the 128 words of a tile, word `16 j + 4 q + t` holds the columns `2 q + (0, 8, 0, 8, 1, 9,
    /// 1, 9)` of row `16 t + j` in its nibbles 0, 1, 4, 5, and of row `16 t + j + 8` in 2, 3, 6, 7.
    Tiles,
    /// Element `e` of the flattened weight lies in item `e % items`, in field `e / items` (HQQ, quanto, SINQ).
    Slabs {
        /// Bytes of an item: 1 or 4.
        item_bytes: usize,
        /// Number of items.
        items: usize,
        /// The first field is the highest of this many; otherwise it is the lowest one.
        high_first: Option<usize>,
    },
}

/// Codes in rows: where they begin, the distance between rows in bytes, and the bits of a code.
pub(super) struct Lines<'a> {
    pub bytes: &'a [u8],
    pub step: usize,
    pub bits: usize,
}

impl Layout {
    /// Bytes of a weight in this layout; none if there is no such weight.
    pub(super) fn bytes(&self, bits: usize, rows: usize, columns: usize) -> Option<usize> {
        let nibbles = |rows_of: usize, columns_of: usize| {
            let fits = bits == 4 && rows % rows_of == 0 && columns % columns_of == 0;
            fits.then(|| (rows / 2).checked_mul(columns)).flatten()
        };
        match *self {
            Layout::Rows { row_bytes, high_first } => {
                let fits = row_bytes.saturating_mul(8) >= columns.saturating_mul(bits) && (!high_first || bits == 4);
                fits.then(|| row_bytes.checked_mul(rows)).flatten()
            }
            Layout::Down => columns.checked_mul(bits)?.div_ceil(32).checked_mul(rows)?.checked_mul(4),
            Layout::Across => nibbles(8, 1),
            Layout::Fours => nibbles(4, 64),
            Layout::Tiles => nibbles(64, 16),
            Layout::Slabs { item_bytes, items, high_first } => {
                let fields = high_first.unwrap_or(8 * item_bytes / bits);
                let fits = matches!(item_bytes, 1 | 4)
                    && items > 0
                    && fields.checked_mul(bits)? <= 8 * item_bytes
                    && items.checked_mul(fields)? >= rows.checked_mul(columns)?;
                fits.then(|| items.checked_mul(item_bytes)).flatten()
            }
        }
    }

    /// Rows and columns that are brought into rows together: their words stay in the caches.
    pub(super) fn piece(&self) -> (usize, usize) {
        match self {
            Layout::Across => (256, 1024), // two neighbouring lines of the cache hold the words of 256 rows
            _ => (64, 1024),
        }
    }
}

impl<'a> Layer<'a> {
    /// The codes `columns` of `rows` in rows. Columns begin at a multiple of [`Layout::piece`]; `scratch` is for layouts
    /// whose codes have to be moved.
    pub(super) fn lines<'b>(
        &self,
        k: &Kernels,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'b mut Vec<u32>,
    ) -> Lines<'b>
    where
        'a: 'b,
    {
        let bits = if matches!(self.layout, Layout::Slabs { .. }) { 8 } else { self.bits };
        if let (Layout::Rows { row_bytes: step, .. }, false) = (self.layout, self.signed) {
            let end = rows.end * step;
            let bytes = &self.words[(rows.start * step + columns.start * bits / 8).min(end)..end];
            return Lines { bytes, step, bits };
        }
        let n = (columns.len() * bits).div_ceil(32);
        let skipped = self.bring(k, rows, columns, n, scratch);
        if self.signed {
            // The upper bits of eight codes, which are a whole number of bytes.
            let upper = (0..8).fold(0u64, |upper, i| upper | 1 << (i * bits + self.bits - 1)).to_le_bytes();
            for line in bytes_of_mut(scratch).chunks_exact_mut(4 * n.max(1)) {
                line.iter_mut().zip(upper[..bits].iter().cycle()).for_each(|(byte, flip)| *byte ^= flip);
            }
        }
        Lines { bytes: &bytes_of(scratch)[4 * skipped * n..], step: 4 * n, bits }
    }

    /// Fills `scratch` with rows of `n` words; the rows before the first one that is asked for.
    fn bring(&self, k: &Kernels, rows: Range<usize>, columns: Range<usize>, n: usize, scratch: &mut Vec<u32>) -> usize {
        let (words, all_rows, all_columns) = (self.words, self.rows, self.columns);
        let skipped = if self.layout == Layout::Across { rows.start % 8 } else { 0 };
        let count =
            if self.layout == Layout::Across { 8 * (rows.end.div_ceil(8) - rows.start / 8) } else { rows.len() };
        scratch.resize(count * n, 0);
        let lines = scratch.chunks_exact_mut(n.max(1)).zip(rows.clone());
        match self.layout {
            Layout::Rows { row_bytes, .. } => {
                for (line, row) in lines {
                    let from = &words[row * row_bytes..][..row_bytes][columns.start * self.bits / 8..];
                    let bytes = from.len().min(4 * n);
                    bytes_of_mut(line)[..bytes].copy_from_slice(&from[..bytes]);
                }
            }
            Layout::Down => {
                let start = 4 * (columns.start * self.bits / 32 * all_rows + rows.start);
                (k.turn)(&words[start.min(words.len())..], all_rows, rows.len(), n, scratch);
            }
            Layout::Across => {
                let start = 4 * (columns.start * (all_rows / 8) + rows.start / 8);
                (k.across)(&words[start.min(words.len())..], all_rows / 8, count / 8, columns.len(), scratch);
            }
            Layout::Fours => {
                for (line, row) in lines {
                    let four = &words[row / 4 * 2 * all_columns..][..2 * all_columns];
                    for (i, to) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let column = columns.start + 32 * i;
                        fours(&four[column / 64 * 128 + row % 4 * 32 + column % 64 / 2..][..16], to);
                    }
                }
            }
            Layout::Tiles => {
                for (line, row) in lines {
                    for (i, to) in line.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let tile = (columns.start / 16 + i) * (all_rows / 64) + row / 64;
                        tiles(&words[512 * tile..][..512], row % 64, to);
                    }
                }
            }
            Layout::Slabs { item_bytes, items, high_first } => {
                let mask = ((1u32 << self.bits) - 1) as u8;
                for (line, row) in lines {
                    let mut element = row * all_columns + columns.start;
                    let mut to = &mut bytes_of_mut(line)[..columns.len()];
                    while !to.is_empty() {
                        let (field, item) = (element / items, element % items);
                        let field = high_first.map_or(field, |fields| fields - 1 - field);
                        let (now, later) = to.split_at_mut((items - item).min(to.len()));
                        slab(&words[item_bytes * item..], item_bytes, field * self.bits, mask, now);
                        element += now.len();
                        to = later;
                    }
                }
            }
        }
        skipped
    }
}

/// Rows of whole words, each a stream of bits, as the words of [`Layout::Down`] or [`Layout::Across`].
///
/// # Errors
/// `Argument` if the layout is another one, or lengths do not fit.
pub fn lay(layout: Layout, rows: usize, words: &[u32], dst: &mut [u32]) -> Result<()> {
    lay_with(kernels(), layout, rows, words, dst)
}

/// [`lay`] with the kernels of a level.
///
/// # Errors
/// As [`lay`].
pub fn lay_with(k: &Kernels, layout: Layout, rows: usize, words: &[u32], dst: &mut [u32]) -> Result<()> {
    let fits = words.len() == dst.len() && rows > 0 && words.len() % rows == 0;
    let known = layout == Layout::Down || layout == Layout::Across && rows % 8 == 0;
    if !fits || !known {
        return Err(Error::argument(format!(
            "{} words of {rows} rows cannot be laid as {} words {layout:?}",
            words.len(),
            dst.len()
        )));
    }
    let n = words.len() / rows;
    if layout == Layout::Down {
        run(dst, 64 * rows, |task, dst| {
            (k.turn)(&bytes_of(words)[256 * task..], n, dst.len() / rows, rows, dst);
        });
    } else {
        // A task makes the words of some columns: `8 * 64` columns of `rows / 8` octets.
        run(dst, 64 * rows, |task, dst| {
            (k.lay_across)(&bytes_of(words)[256 * task..], n, rows / 8, dst.len() / rows, dst);
        });
    }
    Ok(())
}

/// The reverse of [`across`]: the definition. From each row of `8 * octets` rows of words, `stride` words apart, `n` words
/// become the words of `8 * n` columns.
pub(crate) fn lay_across(src: &[u8], stride: usize, octets: usize, n: usize, dst: &mut [u32]) {
    for j in 0..n {
        for o in 0..octets {
            let rows = ACROSS.map(|row| {
                let at = 4 * ((8 * o + row) * stride + j);
                u32::from_le_bytes([src[at], src[at + 1], src[at + 2], src[at + 3]])
            });
            for c in 0..8 {
                let word = rows.iter().enumerate().fold(0, |word, (i, row)| word | (row >> (4 * c) & 15) << (4 * i));
                dst[(8 * j + c) * octets + o] = word.to_le();
            }
        }
    }
}

/// 32 columns of [`Layout::Fours`] in order.
fn fours(from: &[u8], to: &mut [u32; 4]) {
    let mut found = [0u32; 4];
    for (b, word) in from.as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        for (a, to) in found.iter_mut().enumerate() {
            let pair = word >> (4 * a);
            *to |= (pair & 15 | pair >> 12 & 0xF0) << (8 * b);
        }
    }
    *to = found.map(u32::to_le);
}

/// 16 columns of a row of a tile of [`Layout::Tiles`] in order.
fn tiles(tile: &[u8], row: usize, to: &mut [u32; 2]) {
    let mut found = [0u32; 2];
    for q in 0..4 {
        let at = 4 * (16 * (row % 8) + 4 * q + row / 16);
        let word = u32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]) >> (row / 8 % 2 * 8);
        found[0] |= (word & 15 | word >> 12 & 0xF0) << (8 * q);
        found[1] |= (word >> 4 & 15 | word >> 16 & 0xF0) << (8 * q);
    }
    *to = found.map(u32::to_le);
}

/// One field of consecutive items.
fn slab(items: &[u8], item_bytes: usize, shift: usize, mask: u8, codes: &mut [u8]) {
    if item_bytes == 1 {
        codes.iter_mut().zip(items).for_each(|(code, item)| *code = item >> shift & mask);
    } else {
        let words = items.as_chunks::<4>().0;
        codes.iter_mut().zip(words).for_each(|(code, word)| *code = (u32::from_le_bytes(*word) >> shift) as u8 & mask);
    }
}

/// Brings words of [`Layout::Across`] into rows: the definition. The words `c * stride + o` of `octets` octets of rows and
/// `columns` columns become, for each of the rows, words of 8 columns, the lowest first.
pub(crate) fn across(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &mut [u32]) {
    across_part(src, stride, 0..octets, 0..columns.div_ceil(8), columns, dst);
}

/// [`across`] of some of the octets, and some of the words that rows become.
pub(crate) fn across_part(
    src: &[u8],
    stride: usize,
    octets: Range<usize>,
    words: Range<usize>,
    columns: usize,
    dst: &mut [u32],
) {
    let n = columns.div_ceil(8);
    for o in octets {
        for j in words.clone() {
            let mut found = [0u32; 8];
            for c in 8 * j..columns.min(8 * j + 8) {
                let at = 4 * (c * stride + o);
                let word = u32::from_le_bytes([src[at], src[at + 1], src[at + 2], src[at + 3]]);
                for (i, to) in found.iter_mut().enumerate() {
                    *to |= (word >> (4 * i) & 15) << (4 * (c % 8));
                }
            }
            for (i, word) in found.into_iter().enumerate() {
                dst[(8 * o + ACROSS[i]) * n + j] = word.to_le();
            }
        }
    }
}

fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: any word is four bytes, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
}

pub(super) fn bytes_of_mut(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: as above, and any four bytes are a word.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 4 * words.len()) }
}
