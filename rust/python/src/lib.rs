//! The extension module `subbyte._native`: signatures, checks and error mapping; no logic.

mod arrays;
mod codec;
mod container;
mod dlpack;
mod errors;
mod pack;

use pyo3::prelude::*;

// No function keeps state of its own that threads could race for, so free-threaded Python needs no lock either.
#[pymodule(gil_used = false)]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("SIDE_FILE_BYTES", subbyte_core::limits::SIDE_FILE_BYTES)?;
    codec::register(m)?;
    dlpack::register(m)?;
    pack::register(m)?;
    container::register(m)
}
