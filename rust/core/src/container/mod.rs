//! Hardened parsers and writers of checkpoint headers, over [`ReadAt`].
//!
//! Rules of this folder: no file, no unsafe code; every number read from a file is compared with the bytes that
//! remain before it sizes an allocation or a loop; arithmetic on such numbers is checked; ceilings live in
//! [`crate::limits`].

#![forbid(unsafe_code)]

pub mod cursor;
pub mod gguf;
pub mod json;
pub mod plan;
pub mod safetensors;

use crate::error::{Error, Result};

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

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or_else(|| Error::corrupt("read past the end").at_byte(offset))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// Refuses names that no writer emits and that terminals, C strings or paths would misread.
///
/// # Errors
/// [`crate::ErrorKind::Format`] for an empty name or one with a control character (NUL included).
pub fn check_name(name: &str, what: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::format(format!("{what} is empty")));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::format(format!("{what} {name:?} contains a control character")));
    }
    Ok(())
}

/// The UTF-8 text of `bytes`, or [`crate::ErrorKind::Format`] saying which `what` is not UTF-8.
pub(crate) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Error::format(format!("{what} is not UTF-8 (bad byte {} of {})", e.valid_up_to(), bytes.len())))
}

/// `bytes` rounded up to a multiple of `alignment` (a power of two).
pub(crate) fn round_up(bytes: u64, alignment: u64) -> Result<u64> {
    bytes
        .checked_add(alignment - 1)
        .map(|sum| sum & !(alignment - 1))
        .ok_or_else(|| Error::corrupt(format!("a size of {bytes} bytes cannot be padded to {alignment}")))
}

/// A product of dimensions, zero ones left out (they must not hide an overflow of the others).
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] when the product exceeds 2^63 - 1.
pub(crate) fn checked_elements(shape: &[u64]) -> Result<u64> {
    let product = shape
        .iter()
        .filter(|d| **d != 0)
        .try_fold(1u64, |product, d| product.checked_mul(*d).filter(|p| *p <= i64::MAX as u64))
        .ok_or_else(|| Error::corrupt(format!("shape {shape:?} has more than 2^63 - 1 elements")))?;
    Ok(if shape.contains(&0) { 0 } else { product })
}
