//! Files that Python reads by range requests (`subbyte.io.remote`), as a source for the parsers.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use subbyte_core::container::ReadAt;
use subbyte_core::{Error, Result};
use subbyte_io::{Bytes, Source};

use crate::errors::from_py;

/// A Python object with `path`, `size` and `read_range(offset, length) -> bytes`.
pub struct RemoteSource {
    object: Py<PyAny>,
    path: PathBuf,
    length: u64,
}

impl RemoteSource {
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let path: String = object.getattr("path")?.extract()?;
        let length = object.getattr("size")?.extract()?;
        Ok(Self { object: object.clone().unbind(), path: path.into(), length })
    }

    /// The file `name` beside it, as the object's method `sibling` opens it.
    pub fn sibling(object: &Py<PyAny>, name: &str) -> Result<Box<dyn Source>> {
        let open = |py: Python<'_>| Self::new(&object.bind(py).call_method1("sibling", (name,))?);
        Python::attach(open).map(|source| Box::new(source) as Box<dyn Source>).map_err(from_py)
    }

    fn read<T>(&self, offset: u64, length: usize, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let outside = || Error::corrupt(format!("{length} bytes lie outside the file")).at_byte(offset);
        offset.checked_add(length as u64).filter(|end| *end <= self.length).ok_or_else(outside)?;
        Python::attach(|py| {
            let data = self.object.bind(py).call_method1("read_range", (offset, length)).map_err(from_py)?;
            let bytes = data.cast::<PyBytes>().map_err(|e| from_py(e.into()))?.as_bytes();
            if bytes.len() != length {
                return Err(Error::corrupt(format!("{} bytes came, {length} were asked for", bytes.len())));
            }
            Ok(take(bytes))
        })
    }
}

impl ReadAt for RemoteSource {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf.len(), |bytes| buf.copy_from_slice(bytes))
    }
}

impl Source for RemoteSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self, offset: u64, nbytes: u64) -> Result<Bytes> {
        let length = usize::try_from(nbytes).map_err(|_| Error::limit(format!("{nbytes} bytes in one piece")))?;
        self.read(offset, length, |bytes| Bytes::Owned(bytes.to_vec()))
    }
}
