//! From the core's error to the exception classes of `subbyte.errors`. The classes live in Python; this file only picks one.

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};
use subbyte_core::{Error, ErrorKind};

thread_local! {
    /// The exception behind an [`ErrorKind::Caller`] on its way through the core, which knows no Python.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// The error that stands for an exception until [`to_py`] raises it again, in the same thread.
pub fn from_py(exception: PyErr) -> Error {
    let error = Error::new(ErrorKind::Caller, exception.to_string());
    RAISED.set(Some(exception));
    error
}

/// The exception for an error of the core or of the file layer: use it as `.map_err(to_py)`.
pub fn to_py(error: Error) -> PyErr {
    if error.kind == ErrorKind::Caller
        && let Some(raised) = RAISED.take()
    {
        return raised;
    }
    Python::attach(|py| match build(py, &error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    })
}

fn build<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || PyResult::Ok(PyModule::import(py, "subbyte.errors")?.unbind()))?.bind(py);
    let class = match error.kind {
        ErrorKind::Format => "FormatError",
        ErrorKind::Corrupt => "CorruptError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Limit => "LimitError",
        ErrorKind::Argument => "ArgumentError",
        ErrorKind::NonFinite => "NonFiniteError",
        ErrorKind::Caller => "Error",
        ErrorKind::Io(errno) => {
            // Python shows the number as `errno`; the standard library's suffix would only repeat it.
            let message = match errno {
                Some(n) => error.message.trim_end_matches(&format!(" (os error {n})")),
                None => &error.message,
            };
            let arguments = (errno, message, &error.file, &error.tensor);
            return module.getattr("IoError")?.call_method1("from_errno", arguments);
        }
    };
    let places = PyDict::new(py);
    places.set_item("file", &error.file)?;
    places.set_item("tensor", &error.tensor)?;
    places.set_item("byte", error.byte)?;
    places.set_item("row", error.element.map(|(row, _)| row))?;
    places.set_item("column", error.element.map(|(_, column)| column))?;
    module.getattr(class)?.call((&error.message,), Some(&places))
}
