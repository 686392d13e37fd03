//! GGUF models: reading all shards of one, and building the header of a new file.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use subbyte_core::container::gguf::{HeaderBuilder, Scalar, Strings, Tensor, Value, ValueType, endian};
use subbyte_core::{Error, GgmlType, Result};
use subbyte_io::Bytes;
use subbyte_io::gguf::{Shard, open, open_with};

use super::remote::RemoteSource;
use super::{FileBytes, FilePlan, part, text};
use crate::arrays;
use crate::errors::to_py;

/// An open model. Tensors and metadata are addressed by number; `subbyte.io.gguf` gives them names.
#[pyclass(frozen, module = "subbyte._native")]
pub struct GgufReader(Arc<Vec<Shard>>);

impl GgufReader {
    fn tensor(&self, shard: usize, index: usize) -> PyResult<(&Shard, &Tensor)> {
        let found = self.0.get(shard).and_then(|s| Some((s, s.header.tensors.get(index)?)));
        found.ok_or_else(|| PyIndexError::new_err("no such tensor"))
    }
}

#[pymethods]
impl GgufReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, mapped: bool) -> PyResult<Self> {
        Ok(Self(Arc::new(py.detach(|| open(&path, mapped)).map_err(to_py)?)))
    }

    /// The model whose only or first file is the remote file `object`, called `name`.
    #[staticmethod]
    fn remote(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        let first = Box::new(RemoteSource::new(object)?);
        let handle = object.clone().unbind();
        let shards = object.py().detach(|| open_with(first, name, &|other| RemoteSource::sibling(&handle, other)));
        Ok(Self(Arc::new(shards.map_err(to_py)?)))
    }

    /// Version, whether big-endian, and alignment of the first file.
    fn facts(&self) -> (u32, bool, u64) {
        let header = &self.0[0].header;
        (header.version, header.big_endian, header.alignment)
    }

    /// Path and size of each file.
    fn files(&self) -> Vec<(&OsStr, u64)> {
        self.0.iter().map(|s| (s.source.path().as_os_str(), s.source.len())).collect()
    }

    /// Key and type name of each metadata entry.
    fn metadata(&self) -> Vec<(&str, String)> {
        self.0[0].header.metadata.iter().map(|(key, value)| (key.as_str(), value.type_name())).collect()
    }

    /// Metadata value `index`: a number, bool or string; `bytes` of a numeric array; `GgufStrings`.
    fn value<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let header = &self.0[0].header;
        let (_, value) = header.metadata.get(index).ok_or_else(|| PyIndexError::new_err("no such entry"))?;
        Ok(match value {
            Value::Scalar(_, Scalar::Unsigned(v)) => v.into_pyobject(py)?.into_any(),
            Value::Scalar(_, Scalar::Signed(v)) => v.into_pyobject(py)?.into_any(),
            Value::Scalar(_, Scalar::Float(v)) => v.into_pyobject(py)?.into_any(),
            Value::Scalar(_, Scalar::Bool(v)) => v.into_pyobject(py)?.to_owned().into_any(),
            Value::Str(range) => text(py, &header.bytes[range.clone()])?,
            Value::Numbers(_, range) => PyBytes::new(py, &header.bytes[range.clone()]).into_any(),
            Value::Strings(_) => Bound::new(py, GgufStrings { shards: Arc::clone(&self.0), index })?.into_any(),
        })
    }

    /// Of each tensor: name, type, dimensions (fastest first), bytes of a row (None where there are no rows), bytes,
    /// offset, file, number in the file.
    #[allow(clippy::type_complexity)]
    fn tensors(&self) -> PyResult<Vec<(&str, &'static str, &[u64], Option<u64>, u64, u64, usize, usize)>> {
        let mut list = Vec::new();
        for (number, shard) in self.0.iter().enumerate() {
            for (index, t) in shard.header.tensors.iter().enumerate() {
                let row = t.kind.row_bytes(t.dims.first().copied().unwrap_or(1)).map_err(to_py)?;
                let (name, kind, dims) = (t.name.as_str(), t.kind.name(), t.dims.as_slice());
                list.push((name, kind, dims, row, t.nbytes, t.offset, number, index));
            }
        }
        Ok(list)
    }

    /// `count` bytes from byte `start` (all that follow by default) of tensor `index` of file `shard`, in little-endian
    /// order. In a big-endian file both have to be whole blocks.
    #[pyo3(signature = (shard, index, start = 0, count = None))]
    fn raw(&self, py: Python<'_>, shard: usize, index: usize, start: u64, count: Option<u64>) -> PyResult<FileBytes> {
        let (shard, tensor) = self.tensor(shard, index)?;
        let read = || -> Result<Bytes> {
            let (offset, count) = part(tensor.offset, tensor.nbytes, start, count)?;
            let bytes = shard.source.bytes(offset, count)?;
            if !shard.header.big_endian {
                return Ok(bytes);
            }
            let ggml_type = tensor.kind.ggml()?;
            if endian::fields(ggml_type)?.is_empty() {
                return Ok(bytes);
            }
            let mut copy = bytes.to_vec();
            endian::to_little(ggml_type, &mut copy)?;
            Ok(Bytes::Owned(copy))
        };
        let place =
            |e: Error| to_py(e.in_tensor(tensor.name.clone()).in_file(shard.source.path().display().to_string()));
        py.detach(read).map(FileBytes).map_err(place)
    }
}

/// A string array of the metadata, left in the header until asked for.
#[pyclass(frozen, module = "subbyte._native")]
pub struct GgufStrings {
    shards: Arc<Vec<Shard>>,
    index: usize,
}

impl GgufStrings {
    fn parts(&self) -> (&[u8], &Strings) {
        let header = &self.shards[0].header;
        match &header.metadata[self.index].1 {
            Value::Strings(strings) => (&header.bytes, strings),
            _ => unreachable!("made from a string array"),
        }
    }
}

#[pymethods]
impl GgufStrings {
    fn __len__(&self) -> usize {
        self.parts().1.len()
    }

    /// String `index`.
    fn get<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let (header, strings) = self.parts();
        if index >= strings.len() {
            return Err(PyIndexError::new_err("index out of range"));
        }
        text(py, strings.get(header, index))
    }

    /// Strings `start`, `start + 1` … `stop - 1`.
    fn range<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> PyResult<Bound<'py, PyList>> {
        let (header, strings) = self.parts();
        let stop = stop.min(strings.len());
        let texts = (start.min(stop)..stop).map(|i| text(py, strings.get(header, i)));
        PyList::new(py, texts.collect::<PyResult<Vec<_>>>()?)
    }
}

/// Metadata of a file to be written, in order.
#[pyclass(frozen, module = "subbyte._native")]
pub struct GgufBuilder(Mutex<HeaderBuilder>);

impl GgufBuilder {
    fn with<T>(&self, act: impl FnOnce(&mut HeaderBuilder) -> Result<T>) -> PyResult<T> {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)).map_err(to_py)
    }
}

fn value_type(name: &str) -> PyResult<ValueType> {
    ValueType::from_name(name).ok_or_else(|| {
        to_py(Error::argument(format!("unknown metadata type '{name}'; known are u8 to f64, bool, str")))
    })
}

#[pymethods]
impl GgufBuilder {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(HeaderBuilder::new()))
    }

    /// Adds a number or bool, stored as `type_name`.
    fn scalar(&self, key: &str, type_name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let value_type = value_type(type_name)?;
        let scalar = match value_type {
            ValueType::Bool => value.extract().map(Scalar::Bool),
            ValueType::F32 | ValueType::F64 => value.extract().map(Scalar::Float),
            _ => value.extract().map(Scalar::Unsigned).or_else(|_| value.extract().map(Scalar::Signed)),
        };
        let unfit = |_| to_py(Error::argument(format!("metadata '{key}': {value} does not fit {type_name}")));
        let scalar = scalar.map_err(unfit)?;
        self.with(|builder| builder.scalar(key, value_type, scalar))
    }

    /// Adds a string.
    fn text(&self, key: &str, value: &Bound<'_, PyString>) -> PyResult<()> {
        let bytes = utf8(key, value)?;
        self.with(|builder| builder.text(key, &bytes))
    }

    /// Adds an array of numbers or bools given as little-endian bytes.
    fn numbers(&self, key: &str, type_name: &str, data: arrays::Bytes) -> PyResult<()> {
        let element = value_type(type_name)?;
        self.with(|builder| builder.numbers(key, element, data.get()))
    }

    /// Adds an array of strings.
    fn strings(&self, key: &str, values: Vec<Bound<'_, PyString>>) -> PyResult<()> {
        let texts = values.iter().map(|value| utf8(key, value)).collect::<PyResult<Vec<_>>>()?;
        self.with(|builder| builder.strings(key, &texts))
    }

    /// Adds a string array of an open file, byte for byte.
    fn copy_strings(&self, key: &str, values: &GgufStrings) -> PyResult<()> {
        let (header, strings) = values.parts();
        let texts: Vec<&[u8]> = (0..strings.len()).map(|i| strings.get(header, i)).collect();
        self.with(|builder| builder.strings(key, &texts))
    }

    /// Lays out the tensors (name, type, dimensions with the fastest first).
    fn finish(&self, tensors: Vec<(String, String, Vec<u64>)>, alignment: Option<u64>) -> PyResult<FilePlan> {
        let typed = tensors
            .into_iter()
            .map(|(name, type_name, dims)| match GgmlType::from_name(&type_name) {
                Some(ggml_type) => Ok((name, ggml_type, dims)),
                None => Err(Error::argument(format!("unknown ggml type '{type_name}'")).in_tensor(name)),
            })
            .collect::<Result<Vec<_>>>()
            .map_err(to_py)?;
        self.with(|builder| std::mem::take(builder).finish(&typed, alignment)).map(FilePlan)
    }
}

/// The bytes of a string; lone surrogates that stand for raw bytes become those bytes again.
fn utf8(key: &str, value: &Bound<'_, PyString>) -> PyResult<Vec<u8>> {
    if let Ok(text) = value.to_str() {
        return Ok(text.as_bytes().to_vec());
    }
    value
        .call_method1("encode", ("utf-8", "surrogateescape"))
        .and_then(|bytes| Ok(bytes.cast_into::<PyBytes>()?.as_bytes().to_vec()))
        .map_err(|_| to_py(Error::argument(format!("metadata '{key}': a string has lone surrogates"))))
}
