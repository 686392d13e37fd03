//! Safetensors files: reading one, and planning a new one.

use std::path::PathBuf;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use subbyte_core::container::safetensors::{Dtype, Header, plan};
use subbyte_core::{Error, Result};
use subbyte_io::{FileSource, Source};

use super::remote::RemoteSource;
use super::{FileBytes, FilePlan, part};
use crate::errors::to_py;

/// An open file. Tensors are addressed by number; `subbyte.io.safetensors` gives them names.
#[pyclass(frozen, module = "subbyte._native")]
pub struct SafetensorsReader {
    source: Box<dyn Source>,
    header: Header,
}

impl SafetensorsReader {
    fn read(source: Box<dyn Source>) -> Result<Self> {
        let header = Header::read(&*source).map_err(|e| e.in_file(source.path().display().to_string()))?;
        Ok(Self { source, header })
    }
}

#[pymethods]
impl SafetensorsReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, mapped: bool) -> PyResult<Self> {
        py.detach(|| Self::read(Box::new(FileSource::open(&path, mapped)?))).map_err(to_py)
    }

    /// The remote file `object`.
    #[staticmethod]
    fn remote(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let source = Box::new(RemoteSource::new(object)?);
        object.py().detach(|| Self::read(source)).map_err(to_py)
    }

    /// Size of the file in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.source.len()
    }

    /// Keys and values of `__metadata__`.
    fn metadata(&self) -> Vec<(String, String)> {
        self.header.metadata.clone()
    }

    /// Name, dtype, shape, bytes and offset of each tensor.
    fn tensors(&self) -> Vec<(&str, &'static str, &[u64], u64, u64)> {
        let tensors = self.header.tensors.iter();
        tensors.map(|t| (t.name.as_str(), t.dtype.name(), t.shape.as_slice(), t.nbytes, t.offset)).collect()
    }

    /// `count` bytes from byte `start` (all that follow by default) of tensor `index`.
    #[pyo3(signature = (index, start = 0, count = None))]
    fn raw(&self, py: Python<'_>, index: usize, start: u64, count: Option<u64>) -> PyResult<FileBytes> {
        let tensor = self.header.tensors.get(index).ok_or_else(|| PyIndexError::new_err("no such tensor"))?;
        let read = || {
            let (offset, count) = part(tensor.offset, tensor.nbytes, start, count)?;
            self.source.bytes(offset, count)
        };
        py.detach(read)
            .map(FileBytes)
            .map_err(|e| to_py(e.in_tensor(tensor.name.clone()).in_file(self.source.path().display().to_string())))
    }
}

/// Lays out a file of tensors (name, dtype, shape) with `metadata`.
#[pyfunction]
pub fn safetensors_plan(
    tensors: Vec<(String, String, Vec<u64>)>,
    metadata: Vec<(String, String)>,
) -> PyResult<FilePlan> {
    let typed = tensors
        .into_iter()
        .map(|(name, dtype, shape)| match Dtype::from_name(&dtype) {
            Ok(dtype) => Ok((name, dtype, shape)),
            Err(e) => Err(Error::argument(e.message).in_tensor(name)),
        })
        .collect::<Result<Vec<_>>>();
    typed.and_then(|tensors| plan(&tensors, &metadata)).map(FilePlan).map_err(to_py)
}
