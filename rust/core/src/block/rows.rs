//! Row drivers: whole tensors in, whole tensors out, in parallel, with every check made before a kernel runs.

use crate::block::{Rows, validate};
use crate::error::{Error, Result};
use crate::ggml::{GgmlType, Importance};
use crate::kernels::{Kernels, kernels};
use crate::parallel;
use rayon::prelude::*;

/// Destinations of at least this many bytes are written past the caches (larger than any second-level cache).
const STREAM_BYTES: usize = 8 << 20;
/// Elements per parallel task: enough to amortise the hand-over, few enough to balance and to stay in the caches.
const TASK: usize = 1 << 16;

/// Destination of a decode, by element type.
pub enum Floats<'a> {
    /// f32 values.
    F32(&'a mut [f32]),
    /// f16 bits, rounded once from f32.
    F16(&'a mut [u16]),
    /// bf16 bits, rounded once from f32.
    Bf16(&'a mut [u16]),
}

impl Floats<'_> {
    fn len(&self) -> usize {
        match self {
            Floats::F32(d) => d.len(),
            Floats::F16(d) | Floats::Bf16(d) => d.len(),
        }
    }
}

/// Decodes rows of `columns` elements stored as `ty` into `dst`; bit for bit what ggml gives.
///
/// # Errors
/// `Argument` if a row is not a whole number of blocks or the lengths disagree; `Unsupported` if the type has no decoder.
pub fn decode(ty: GgmlType, src: &[u8], columns: usize, dst: Floats<'_>) -> Result<()> {
    decode_with(kernels(), ty, src, columns, dst)
}

/// [`decode`] with the kernels of a given level.
pub fn decode_with(k: &Kernels, ty: GgmlType, src: &[u8], columns: usize, dst: Floats<'_>) -> Result<()> {
    if !ty.decodes() {
        return Err(Error::unsupported(format!("{} has no decoder to floats", ty.name())));
    }
    check_sizes(ty, src.len(), columns, dst.len())?;
    let decode = k.block(ty).decode;
    let task = (TASK / ty.block()).max(1);
    let (block, bytes) = (ty.block() * task, ty.block_bytes() * task);
    match dst {
        Floats::F32(dst) => {
            let stream = std::mem::size_of_val(dst) >= STREAM_BYTES;
            if dst.len() <= block || parallel::num_threads() == 1 {
                decode(src, dst, stream);
            } else {
                parallel::install(|| {
                    dst.par_chunks_mut(block).zip(src.par_chunks(bytes)).for_each(|(d, s)| decode(s, d, stream));
                });
            }
        }
        Floats::F16(dst) => decode_narrow(ty, src, dst, decode, k.to_f16),
        Floats::Bf16(dst) => decode_narrow(ty, src, dst, decode, k.to_bf16),
    }
    Ok(())
}

/// Decodes through an f32 buffer that stays in the first-level cache, rounding once.
fn decode_narrow(
    ty: GgmlType,
    src: &[u8],
    dst: &mut [u16],
    decode: fn(&[u8], &mut [f32], bool),
    narrow: fn(&[f32], &mut [u16]),
) {
    const TILE: usize = 2048;
    let bytes = TILE / ty.block() * ty.block_bytes();
    let run = |d: &mut [u16], s: &[u8]| {
        let mut tile = [0f32; TILE];
        for (d, s) in d.chunks_mut(TILE).zip(s.chunks(bytes)) {
            let t = &mut tile[..d.len()];
            decode(s, t, false);
            narrow(t, d);
        }
    };
    let tiles = TASK / TILE;
    parallel::install(|| {
        dst.par_chunks_mut(TILE * tiles).zip(src.par_chunks(bytes * tiles)).for_each(|(d, s)| run(d, s));
    });
}

fn check_sizes(ty: GgmlType, bytes: usize, columns: usize, elements: usize) -> Result<()> {
    let row = ty.row_bytes(columns as u64)? as usize;
    if columns == 0 || elements == 0 {
        return if bytes == 0 && elements == 0 {
            Ok(())
        } else {
            Err(Error::argument(format!("{bytes} bytes of {} for {elements} elements", ty.name())))
        };
    }
    let rows = elements / columns;
    if rows * columns != elements || rows.checked_mul(row) != Some(bytes) {
        return Err(Error::argument(format!(
            "{elements} elements in rows of {columns} take {} bytes as {}, found {bytes}",
            (rows as u128) * (row as u128),
            ty.name()
        )));
    }
    Ok(())
}

/// Source of an encode, by element type. 16-bit floats are widened exactly, tile by tile.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// f32 values.
    F32(&'a [f32]),
    /// f16 bits.
    F16(&'a [u16]),
    /// bf16 bits.
    Bf16(&'a [u16]),
}

impl<'a> Source<'a> {
    fn slice(self, range: std::ops::Range<usize>) -> Source<'a> {
        match self {
            Source::F32(s) => Source::F32(&s[range]),
            Source::F16(s) => Source::F16(&s[range]),
            Source::Bf16(s) => Source::Bf16(&s[range]),
        }
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Source::F32(s) => s.len(),
            Source::F16(s) | Source::Bf16(s) => s.len(),
        }
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Encodes rows of `columns` elements as `ty` into `dst`: the bytes of ggml's reference quantizer.
///
/// `importance` holds `columns` weights, used for every row. Every level and thread count gives the same bytes.
///
/// # Errors
/// `Argument` for lengths that disagree and for missing or misplaced importance; `NonFinite` (with row and column) for
/// NaN or infinity in the source, and where a result would hold a scale that is not finite; `Unsupported` for integers.
pub fn encode(ty: GgmlType, src: Source<'_>, columns: usize, importance: Option<&[f32]>, dst: &mut [u8]) -> Result<()> {
    encode_with(kernels(), ty, src, columns, importance, dst)
}

/// [`encode`] of `groups` equally large parts in a row (the experts of a layer), each with its own `columns` weights in
/// `importance`. Errors name the row in the whole.
///
/// # Errors
/// As [`encode`]; `Argument` if the source, the weights or the destination cannot be divided so.
pub fn encode_groups(
    ty: GgmlType,
    src: Source<'_>,
    columns: usize,
    groups: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<()> {
    let (elements, bytes) = (src.len() / groups.max(1), dst.len() / groups.max(1));
    let weights = importance.is_none_or(|w| w.len() / groups.max(1) == columns && w.len() % columns.max(1) == 0);
    if elements * groups != src.len() || bytes * groups != dst.len() || !weights {
        return Err(Error::argument(format!(
            "{} elements in rows of {columns}, {} importance weights and {} bytes do not divide into {groups} groups",
            src.len(),
            importance.map_or(0, <[f32]>::len),
            dst.len()
        )));
    }
    for g in 0..groups {
        let part = src.slice(g * elements..(g + 1) * elements);
        let weights = importance.map(|w| &w[g * columns..(g + 1) * columns]);
        encode(ty, part, columns, weights, &mut dst[g * bytes..(g + 1) * bytes]).map_err(|e| Error {
            element: e.element.map(|(row, column)| (row + g * elements / columns, column)),
            ..e
        })?;
    }
    Ok(())
}

/// [`encode`] with the kernels of a given level.
pub fn encode_with(
    k: &Kernels,
    ty: GgmlType,
    src: Source<'_>,
    columns: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<()> {
    if !ty.encodes() {
        return Err(Error::unsupported(format!("{} has no encoder from floats", ty.name())));
    }
    check_sizes(ty, dst.len(), columns, src.len())?;
    let importance = match (ty.importance(), importance) {
        (Importance::Ignored, _) => None,
        (Importance::Required, None) => {
            return Err(Error::argument(format!(
                "{} cannot be encoded without importance weights (an importance matrix): pass importance=, or choose a type that does not need them",
                ty.name()
            )));
        }
        (_, w) => w,
    };
    if let Some(w) = importance {
        if w.len() != columns {
            return Err(Error::argument(format!("{} importance weights for rows of {columns}", w.len())));
        }
        if let Some(c) = w.iter().position(|w| !w.is_finite() || *w < 0.0) {
            return Err(Error::argument(format!(
                "importance weight {c} is {}: weights must be finite and not negative",
                w[c]
            )));
        }
    }
    if src.is_empty() {
        return Ok(());
    }
    let row_bytes = dst.len() / (src.len() / columns);
    let rows_per_task = (TASK / columns).max(1);
    let run = |(task, d): (usize, &mut [u8])| {
        let start = task * rows_per_task * columns;
        let end = (start + rows_per_task * columns).min(src.len());
        encode_task(k, ty, src, start..end, columns, importance, d)
    };
    if parallel::num_threads() == 1 || src.len() <= TASK {
        return dst.chunks_mut(row_bytes * rows_per_task).enumerate().try_for_each(run);
    }
    // The first error by position, whatever finishes first.
    let results: Vec<Result<()>> =
        parallel::install(|| dst.par_chunks_mut(row_bytes * rows_per_task).enumerate().map(run).collect());
    results.into_iter().collect()
}

/// 16-bit floats of type `ty` as f32, exactly.
fn widen(k: &Kernels, ty: GgmlType, src: &[u16]) -> Vec<f32> {
    let mut wide = vec![0f32; src.len()];
    // SAFETY: the same memory as bytes, which are read in the processor's order, that of the stored formats.
    let bytes = unsafe { std::slice::from_raw_parts(src.as_ptr().cast::<u8>(), size_of_val(src)) };
    (k.block(ty).decode)(bytes, &mut wide, false);
    wide
}

fn encode_task(
    k: &Kernels,
    ty: GgmlType,
    src: Source<'_>,
    range: std::ops::Range<usize>,
    columns: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<()> {
    let start = range.start;
    let wide: Vec<f32>;
    let x = match src {
        Source::F32(s) => &s[range],
        Source::F16(s) => {
            wide = widen(k, GgmlType::F16, &s[range]);
            &wide
        }
        Source::Bf16(s) => {
            wide = widen(k, GgmlType::BF16, &s[range]);
            &wide
        }
    };
    let check_source = || match (k.first_non_finite)(x) {
        Some(i) => Err(Error::non_finite(
            format!("the value is {}; only finite values can be encoded", x[i]),
            (start + i) / columns,
            (start + i) % columns,
        )),
        None => Ok(()),
    };
    // Where every element is stored by itself, the check of the result finds what the check of the source would.
    if ty.block() > 1 {
        check_source()?;
    }
    (k.block(ty).encode)(Rows { x, n_per_row: columns, importance }, dst);
    if let Some(b) = validate::first_invalid_block(ty, dst) {
        check_source()?;
        let at = start + b * ty.block();
        let (row, column) = (at / columns, at % columns);
        let problem = if ty.block() == 1 {
            format!("the value {:e} is too large for {}", x[b], ty.name())
        } else {
            let last = column + ty.block() - 1;
            format!("the values from here to column {last} are too large for {}: a scale overflows", ty.name())
        };
        return Err(Error::non_finite(problem, row, column));
    }
    Ok(())
}
