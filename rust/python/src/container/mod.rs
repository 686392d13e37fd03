//! Checkpoint files: bytes of open files as buffers, planned files being written, and the helpers around them.

mod gguf;
mod remote;
mod safetensors;

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use subbyte_core::container::json;
use subbyte_core::container::plan;
use subbyte_core::{Error, Result};
use subbyte_io::{Bytes, StreamWriter, fault};

use crate::arrays;
use crate::errors::to_py;

/// A read-only buffer over bytes of a file; keeps the mapping alive.
#[pyclass(frozen, module = "subbyte._native")]
pub struct FileBytes(Bytes);

#[pymethods]
impl FileBytes {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    // SAFETY: the view holds a reference to this frozen object, whose bytes neither move nor change size.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes: &[u8] = &slf.get().0;
        let (pointer, length) = (bytes.as_ptr().cast_mut().cast(), bytes.len() as ffi::Py_ssize_t);
        // SAFETY: `view` comes from the interpreter; read-only is set, so nobody writes through the pointer.
        match unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), pointer, length, 1, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

/// A file to be written, known in full.
#[pyclass(frozen, module = "subbyte._native")]
pub struct FilePlan(plan::Plan);

#[pymethods]
impl FilePlan {
    /// Size of the complete file in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.total
    }

    /// Reserves the file beside `path` and writes its header.
    fn create(&self, py: Python<'_>, path: PathBuf) -> PyResult<FileWriter> {
        let plan = self.0.clone();
        let writer = py.detach(|| StreamWriter::create(&path, plan)).map_err(to_py)?;
        Ok(FileWriter(Mutex::new(Some(Arc::new(writer)))))
    }

    /// Like `create`, into the file `partial`, which stays until `commit` or `discard`; with `resume`, a file that is
    /// there already is used if it has the planned length. Also returns whether it was.
    fn create_partial(
        &self,
        py: Python<'_>,
        path: PathBuf,
        partial: PathBuf,
        resume: bool,
    ) -> PyResult<(FileWriter, bool)> {
        let plan = self.0.clone();
        let create = || StreamWriter::create_partial(&path, &partial, plan, resume);
        let (writer, resumed) = py.detach(create).map_err(to_py)?;
        Ok((FileWriter(Mutex::new(Some(Arc::new(writer)))), resumed))
    }

    /// The first bytes of the file, up to the first tensor.
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.header)
    }
}

/// A planned file being filled in.
#[pyclass(frozen, module = "subbyte._native")]
pub struct FileWriter(Mutex<Option<Arc<StreamWriter>>>);

impl FileWriter {
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<StreamWriter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` without the interpreter's lock.
    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&StreamWriter) -> Result<T> + Send) -> PyResult<T> {
        let writer = self.slot().clone().ok_or_else(|| to_py(Error::argument("the file is closed")))?;
        py.detach(|| {
            let result = call(&writer);
            drop(writer);
            result
        })
        .map_err(to_py)
    }
}

#[pymethods]
impl FileWriter {
    /// Writes `data` at `offset` of tensor `name`.
    fn write(&self, py: Python<'_>, name: &str, data: arrays::Bytes, offset: u64) -> PyResult<()> {
        let bytes = data.get();
        self.with(py, |writer| writer.write(name, offset, bytes))
    }

    /// Counts `count` bytes at `offset` of tensor `name` as written.
    fn mark(&self, py: Python<'_>, name: &str, offset: u64, count: u64) -> PyResult<()> {
        self.with(py, |writer| writer.mark(name, offset, count))
    }

    /// Reads back `count` bytes at `offset` of tensor `name`.
    fn read<'py>(&self, py: Python<'py>, name: &str, offset: u64, count: usize) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.with(py, |writer| writer.read(name, offset, count))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Makes what was written so far durable.
    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, StreamWriter::sync)
    }

    /// Makes the complete file durable and visible.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        let Some(writer) = self.slot().take() else { return Ok(()) };
        let busy = || Error::argument("another thread is still writing; the file is discarded");
        py.detach(|| Arc::try_unwrap(writer).map_err(|_| busy())?.commit()).map_err(to_py)
    }

    /// Lets go of the file: discards it, unless it is resumable.
    fn abort(&self) {
        self.slot().take();
    }

    /// Removes the file.
    fn discard(&self) {
        if let Some(writer) = self.slot().take().and_then(Arc::into_inner) {
            writer.discard();
        }
    }
}

/// The lines that a resumable run notes; locked against a second run.
#[pyclass(frozen, module = "subbyte._native")]
pub struct Journal(Mutex<Option<subbyte_io::Journal>>);

impl Journal {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut subbyte_io::Journal) -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.as_mut().map(call).unwrap_or_else(|| Err(Error::argument("the journal is closed")))
        })
        .map_err(to_py)
    }
}

#[pymethods]
impl Journal {
    /// Opens or creates the journal at `path`; None when another run has it.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Option<Self>> {
        let journal = py.detach(|| subbyte_io::Journal::open(&path)).map_err(to_py)?;
        Ok(journal.map(|journal| Self(Mutex::new(Some(journal)))))
    }

    /// All bytes, of which there may be `most`.
    fn read<'py>(&self, py: Python<'py>, most: u64) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.with(py, |journal| journal.read(most))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Cuts the journal after `length` bytes.
    fn truncate(&self, py: Python<'_>, length: u64) -> PyResult<()> {
        self.with(py, |journal| journal.truncate(length))
    }

    /// Appends bytes.
    fn append(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.with(py, |journal| journal.append(data))
    }

    /// Removes and unlocks the journal.
    fn remove(&self, py: Python<'_>) -> PyResult<()> {
        let journal = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| journal.map_or(Ok(()), subbyte_io::Journal::remove)).map_err(to_py)
    }

    /// Unlocks the journal and leaves it.
    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Offset in the file and length of `count` bytes from byte `start` of a tensor; all that follow without `count`.
fn part(offset: u64, nbytes: u64, start: u64, count: Option<u64>) -> Result<(u64, u64)> {
    let rest = nbytes.checked_sub(start);
    match (rest, count.or(rest)) {
        (Some(rest), Some(count)) if count <= rest => Ok((offset + start, count)),
        (_, count) => {
            let count = count.map_or(String::new(), |count| format!("{count} "));
            Err(Error::argument(format!("{count}bytes from {start} were asked for, the tensor has {nbytes}")))
        }
    }
}

/// Text of a file; bytes that are not UTF-8 become lone surrogates, so that nothing is lost.
fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.into_pyobject(py)?.into_any()),
        Err(_) => PyBytes::new(py, bytes).call_method1("decode", ("utf-8", "surrogateescape")),
    }
}

/// Whether two paths are the same file (device and inode).
#[pyfunction]
fn same_file(py: Python<'_>, a: PathBuf, b: PathBuf) -> PyResult<bool> {
    py.detach(|| subbyte_io::same_file(&a, &b)).map_err(to_py)
}

/// The bytes of a JSON file of at most `most` bytes, checked for depth and syntax.
#[pyfunction]
fn read_json(py: Python<'_>, path: PathBuf, most: u64) -> PyResult<Bound<'_, PyBytes>> {
    let read = || -> Result<Vec<u8>> {
        let bytes = subbyte_io::read_file(&path, most)?;
        json::check(&bytes).map_err(|e| e.in_file(path.display().to_string()))?;
        Ok(bytes)
    };
    let bytes = py.detach(read).map_err(to_py)?;
    Ok(PyBytes::new(py, &bytes))
}

/// Writes a small file at once.
#[pyfunction]
fn write_file(py: Python<'_>, path: PathBuf, data: &[u8]) -> PyResult<()> {
    py.detach(|| subbyte_io::write_file(&path, data)).map_err(to_py)
}

/// Gives a complete folder its name; what had the name has the other one afterwards.
#[pyfunction]
fn place_folder(py: Python<'_>, from: PathBuf, to: PathBuf) -> PyResult<()> {
    py.detach(|| subbyte_io::place_folder(&from, &to)).map_err(to_py)
}

/// Removes a file; there being none is fine.
#[pyfunction]
fn remove_file(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| subbyte_io::remove_if_there(&path)).map_err(to_py)
}

/// For tests: makes the `nth` call to the operating system fail with `errno`, come up short when that is 0, or be the
/// last thing the process does when it is -1.
#[pyfunction]
fn fault_arm(nth: u64, errno: i32) {
    let fault = match errno {
        0 => fault::Fault::Short,
        -1 => fault::Fault::Die,
        errno => fault::Fault::Errno(errno),
    };
    fault::arm(nth, fault);
}

/// For tests: turns fault injection off; returns the number of calls since it was armed.
#[pyfunction]
fn fault_disarm() -> u64 {
    fault::disarm()
}

/// Adds the classes and functions of this module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<FileBytes>()?;
    m.add_class::<FilePlan>()?;
    m.add_class::<FileWriter>()?;
    m.add_class::<Journal>()?;
    m.add_class::<gguf::GgufReader>()?;
    m.add_class::<gguf::GgufStrings>()?;
    m.add_class::<gguf::GgufBuilder>()?;
    m.add_class::<safetensors::SafetensorsReader>()?;
    m.add_function(wrap_pyfunction!(safetensors::safetensors_plan, m)?)?;
    m.add_function(wrap_pyfunction!(same_file, m)?)?;
    m.add_function(wrap_pyfunction!(read_json, m)?)?;
    m.add_function(wrap_pyfunction!(write_file, m)?)?;
    m.add_function(wrap_pyfunction!(place_folder, m)?)?;
    m.add_function(wrap_pyfunction!(remove_file, m)?)?;
    m.add_function(wrap_pyfunction!(fault_arm, m)?)?;
    m.add_function(wrap_pyfunction!(fault_disarm, m)?)
}
