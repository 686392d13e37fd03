//! Borrowing memory from Python: contiguous bytes through the buffer protocol, checked before a slice is made of them.
//!
//! The GIL is released while the slices are in use. As with any NumPy code, writing to an array that another thread is
//! encoding or decoding gives arbitrary values in the result; the kernels bound every index they take from the data.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use subbyte_core::{Error, Result};

/// Bytes to read. Keeps the exporter alive and the memory in place.
pub struct Bytes(PyBuffer<u8>);

/// Bytes to write.
pub struct BytesMut(PyBuffer<u8>);

impl<'a, 'py> FromPyObject<'a, 'py> for Bytes {
    type Error = PyErr;
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        contiguous(PyBuffer::get(&object)?).map(Bytes).map_err(crate::errors::to_py)
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for BytesMut {
    type Error = PyErr;
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(&object)?;
        if buffer.readonly() {
            return Err(crate::errors::to_py(Error::argument("the destination is read-only: pass a writable array")));
        }
        contiguous(buffer).map(BytesMut).map_err(crate::errors::to_py)
    }
}

fn contiguous(buffer: PyBuffer<u8>) -> Result<PyBuffer<u8>> {
    if !buffer.is_c_contiguous() {
        return Err(Error::argument("the array is not C-contiguous: pass numpy.ascontiguousarray(array)"));
    }
    Ok(buffer)
}

impl Bytes {
    /// The bytes.
    pub fn get(&self) -> &[u8] {
        match self.0.len_bytes() {
            0 => &[], // an empty exporter may have a null pointer
            // SAFETY: contiguous, alive as long as the buffer is held; see the module comment about other writers.
            n => unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), n) },
        }
    }
}

impl BytesMut {
    /// The bytes, which must not overlap any of `sources`.
    pub fn get(&mut self, sources: &[&[u8]]) -> Result<&mut [u8]> {
        let (start, n) = (self.0.buf_ptr().addr(), self.0.len_bytes());
        if n == 0 {
            return Ok(&mut []);
        }
        let overlaps = |s: &&[u8]| s.as_ptr().addr() < start + n && start < s.as_ptr().addr() + s.len();
        if sources.iter().any(|s| !s.is_empty() && overlaps(s)) {
            return Err(Error::argument("source and destination share memory: pass a separate destination"));
        }
        // SAFETY: contiguous, writable, alive as long as the buffer is held, and disjoint from the sources.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast(), n) })
    }
}

/// Plain numbers whose every bit pattern is a value.
pub trait Plain {}
impl Plain for f32 {}
impl Plain for u16 {}
impl Plain for i16 {}
impl Plain for u32 {}
impl Plain for i32 {}

/// The bytes as numbers; NumPy aligns its arrays, other exporters need not.
pub fn cast<T: Plain>(bytes: &[u8]) -> Result<&[T]> {
    // SAFETY: `Plain`.
    match unsafe { bytes.align_to::<T>() } {
        ([], numbers, []) => Ok(numbers),
        _ => Err(misaligned::<T>(bytes.len())),
    }
}

/// [`cast`] of a destination.
pub fn cast_mut<T: Plain>(bytes: &mut [u8]) -> Result<&mut [T]> {
    let n = bytes.len();
    // SAFETY: `Plain`.
    match unsafe { bytes.align_to_mut::<T>() } {
        ([], numbers, []) => Ok(numbers),
        _ => Err(misaligned::<T>(n)),
    }
}

fn misaligned<T>(bytes: usize) -> Error {
    let size = size_of::<T>();
    Error::argument(format!("{bytes} bytes that do not hold whole, aligned elements of {size} bytes: pass a copy"))
}
