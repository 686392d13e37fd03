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

/// Bytes of a tensor whose elements come in blocks of `block` that take `block_bits`; all arithmetic is checked.
///
/// Dimensions of zero are left out of the checks: they must not hide that the others overflow, since array libraries
/// compute strides from all of them.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] for more than 2^63 - 1 elements or bytes, or elements that do not fill whole bytes.
pub(crate) fn checked_bytes(shape: &[u64], block: usize, block_bits: u64) -> Result<u64> {
    let elements = shape
        .iter()
        .filter(|d| **d != 0)
        .try_fold(1u64, |product, d| product.checked_mul(*d).filter(|p| *p <= i64::MAX as u64))
        .ok_or_else(|| Error::corrupt(format!("shape {shape:?} has more than 2^63 - 1 elements")))?;
    let bits = u128::from(elements) * u128::from(block_bits) / block as u128;
    let bytes = i64::try_from(bits / 8)
        .map_err(|_| Error::corrupt(format!("shape {shape:?}: {elements} elements exceed 2^63 - 1 bytes")))?;
    if shape.contains(&0) {
        return Ok(0);
    }
    if bits % 8 != 0 {
        return Err(Error::corrupt(format!("{elements} elements do not fill whole bytes")));
    }
    Ok(bytes as u64)
}
