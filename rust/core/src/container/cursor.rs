//! A forward reader over [`ReadAt`] that keeps every byte it has read: headers of unknown length, read once.

use std::ops::Range;

use super::ReadAt;
use crate::error::{Error, Result};

/// Bytes fetched first; most headers without a vocabulary fit.
const FIRST: u64 = 64 << 10;

/// See the module documentation. Offsets are positions in the source, which equal positions in [`Cursor::bytes`].
pub struct Cursor<'a, S: ReadAt + ?Sized> {
    source: &'a S,
    bytes: Vec<u8>,
    position: usize,
    length: u64,
    ceiling: u64,
    /// Whether multi-byte numbers are big-endian.
    pub big_endian: bool,
}

macro_rules! number {
    ($($name:ident $type:ty;)*) => {$(
        #[doc = concat!("The next `", stringify!($type), "` in the byte order of the file.")]
        #[inline]
        pub fn $name(&mut self, what: &str) -> Result<$type> {
            const SIZE: usize = size_of::<$type>();
            let at = self.take(SIZE as u64, what)?;
            let bytes: [u8; SIZE] = self.bytes[at].try_into().expect("take() returns the length asked for");
            Ok(if self.big_endian { <$type>::from_be_bytes(bytes) } else { <$type>::from_le_bytes(bytes) })
        }
    )*};
}

impl<'a, S: ReadAt + ?Sized> Cursor<'a, S> {
    /// A cursor at the start of `source` that never keeps more than `ceiling` bytes.
    pub fn new(source: &'a S, ceiling: u64) -> Self {
        Self { source, bytes: Vec::new(), position: 0, length: source.len(), ceiling, big_endian: false }
    }

    /// Bytes between the position and the end of the source.
    #[inline]
    pub fn remaining(&self) -> u64 {
        self.length - self.position as u64
    }

    /// Position from the start of the source.
    #[inline]
    pub fn position(&self) -> usize {
        self.position
    }

    /// What has been read so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What has been read, cut at the position.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.truncate(self.position);
        self.bytes.shrink_to_fit();
        self.bytes
    }

    /// Moves over the next `count` bytes and returns where they lie in [`Cursor::bytes`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when fewer bytes remain, [`crate::ErrorKind::Limit`] above the ceiling.
    #[inline]
    pub fn take(&mut self, count: u64, what: &str) -> Result<Range<usize>> {
        if count > self.remaining() {
            return Err(self.short(count, what));
        }
        let start = self.position;
        let end = start as u64 + count;
        if end > self.bytes.len() as u64 {
            self.fill(end, what)?;
        }
        self.position = end as usize;
        Ok(start..self.position)
    }

    number! { u8 u8; u16 u16; u32 u32; i32 i32; u64 u64; }

    #[cold]
    fn short(&self, count: u64, what: &str) -> Error {
        let remaining = self.remaining();
        Error::corrupt(format!("{what} needs {count} bytes, only {remaining} remain: the file is truncated or damaged"))
            .at_byte(self.position as u64)
    }

    #[cold]
    fn fill(&mut self, end: u64, what: &str) -> Result<()> {
        if end > self.ceiling {
            return Err(Error::limit(format!("{what} makes the header longer than {} bytes", self.ceiling))
                .at_byte(self.position as u64));
        }
        let have = self.bytes.len();
        let want = end.max(2 * have as u64).max(FIRST).min(self.length).min(self.ceiling) as usize;
        self.bytes.reserve_exact(want - have);
        self.bytes.resize(want, 0);
        self.source.read_exact_at(have as u64, &mut self.bytes[have..])
    }
}
