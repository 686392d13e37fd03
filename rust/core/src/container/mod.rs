//! Hardened parsers and writers of checkpoint headers, over [`ReadAt`].

use crate::error::Result;

/// Reading at an offset: a mapped file, `pread`, a range request, or a byte slice.
pub trait ReadAt {
    /// Total length in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset`, or fails.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}
