//! Packings of codes into words.

use crate::arrays::{Bytes, BytesMut};
use crate::errors::to_py;
use pyo3::prelude::*;
use subbyte_core::pack::{self, Order};
use subbyte_core::{Error, Result};

/// Unpacks rows of `columns` codes of `bits` bits from little-endian 32-bit words into bytes.
#[pyfunction]
fn unpack(py: Python<'_>, order: &str, bits: usize, words: Bytes, columns: usize, mut codes: BytesMut) -> PyResult<()> {
    py.detach(|| {
        let words = words.get();
        pack::unpack(named(order)?, bits, words, columns, codes.get(&[words])?)
    })
    .map_err(to_py)
}

/// Packs rows of `columns` codes, one byte each, into little-endian 32-bit words.
#[pyfunction]
fn pack_codes(
    py: Python<'_>,
    order: &str,
    bits: usize,
    codes: Bytes,
    columns: usize,
    mut words: BytesMut,
) -> PyResult<()> {
    py.detach(|| {
        let codes = codes.get();
        pack::pack(named(order)?, bits, codes, columns, words.get(&[codes])?)
    })
    .map_err(to_py)
}

fn named(order: &str) -> Result<Order> {
    Order::from_name(order).ok_or_else(|| Error::argument(format!("no order of codes is called '{order}'")))
}

/// Adds the functions of this file to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(unpack, m)?)?;
    m.add_function(wrap_pyfunction!(pack_codes, m)?)
}
