//! Block formats: the ggml tensor types. One file per type (or pair): its doc comment is the layout's specification,
//! followed by the scalar decode and encode that define it. The vector versions are in [`crate::kernels::generic`];
//! [`rows`] applies either to whole tensors.

pub mod iquant;
pub mod kquant;
pub mod legacy;
pub mod microfloat;
pub mod rows;
pub mod search;
pub mod ternary;
pub mod validate;

use crate::ggml::GgmlType;
use crate::kernels::simd::Simd;

/// Whole rows to encode: `x.len()` is a multiple of `n_per_row`, which is a multiple of the block size.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Values, row after row; all finite.
    pub x: &'a [f32],
    /// Elements per row.
    pub n_per_row: usize,
    /// Importance weights of the columns (`n_per_row` of them), the same for every row.
    pub importance: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// The blocks of `N` consecutive elements in order, each with its importance weights.
    pub fn blocks<const N: usize>(self) -> impl Iterator<Item = (&'a [f32; N], Option<&'a [f32; N]>)> {
        let per_row = self.n_per_row / N;
        let (blocks, _) = self.x.as_chunks::<N>();
        let weights = self.importance.map(|w| w.as_chunks::<N>().0);
        blocks.iter().enumerate().map(move |(i, b)| (b, weights.map(|w| &w[i % per_row])))
    }
}

/// A block format: its type, its scalar definition, and its vector kernels.
///
/// The scalar functions are the definition; the vector ones must give the same bits for every input, blocks with NaN or
/// infinite scales included (NaN payloads aside). A format without its own vector kernel inherits the scalar one.
pub trait BlockFormat {
    /// The ggml type.
    const TYPE: GgmlType;

    /// Decodes whole blocks. `dst.len()` = blocks × block size (checked by the caller).
    fn decode(src: &[u8], dst: &mut [f32]);

    /// Encodes whole rows. Lengths, finiteness and the presence of required importance are checked by the caller.
    /// `dst` arrives with arbitrary content: every byte is written.
    fn encode(rows: Rows<'_>, dst: &mut [u8]);

    /// Vector decode; with `STREAM`, `dst` is 64-byte aligned and stores bypass the caches.
    ///
    /// # Safety
    /// The processor has the features of `S`; lengths as for [`BlockFormat::decode`].
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        Self::decode(src, dst);
    }

    /// Vector encode.
    ///
    /// # Safety
    /// The processor has the features of `S`; lengths as for [`BlockFormat::encode`].
    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        Self::encode(rows, dst);
    }
}

/// Panics unless `src` holds exactly the blocks of `dst`: the kernels' precondition.
#[inline]
pub fn check_blocks<B: BlockFormat>(src: &[u8], dst: &[f32]) {
    assert!(dst.len() % B::TYPE.block() == 0 && src.len() == dst.len() / B::TYPE.block() * B::TYPE.block_bytes());
}

/// Panics unless `dst` holds exactly the blocks of `rows`: the kernels' precondition.
#[inline]
pub fn check_rows<B: BlockFormat>(rows: Rows<'_>, dst: &[u8]) {
    let block = B::TYPE.block();
    assert!(rows.n_per_row > 0 && rows.n_per_row % block == 0 && rows.x.len() % rows.n_per_row == 0);
    assert!(dst.len() == rows.x.len() / block * B::TYPE.block_bytes());
    assert!(rows.importance.is_none_or(|w| w.len() == rows.n_per_row));
}

/// Reads a little-endian u16 at `at`.
#[inline(always)]
pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// Reads a little-endian u32 at `at`.
#[inline(always)]
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Reads an f16 at `at` as f32.
#[inline(always)]
pub(crate) fn f16_at(b: &[u8], at: usize) -> f32 {
    crate::float::f16_to_f32(u16_at(b, at))
}

/// Stores `x` as f16 at `at`.
#[inline(always)]
pub(crate) fn put_f16(b: &mut [u8], at: usize, x: f32) {
    b[at..at + 2].copy_from_slice(&crate::float::f32_to_f16(x).to_le_bytes());
}
