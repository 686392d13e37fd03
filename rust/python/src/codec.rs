//! The block formats: table, decode, encode.

use crate::arrays::{Bytes, BytesMut, cast, cast_mut};
use crate::errors::to_py;
use pyo3::prelude::*;
use subbyte_core::block::rows::{self, Floats, Source};
use subbyte_core::block::validate;
use subbyte_core::ggml::Importance;
use subbyte_core::kernels::{Level, kernels};
use subbyte_core::{Error, GgmlType, Result, parallel};

/// Name, id, elements and bytes per block, use of importance weights, has a decoder, has an encoder; for every ggml type.
#[pyfunction]
fn ggml_types() -> Vec<(&'static str, u32, usize, usize, &'static str, bool, bool)> {
    let importance = |t: GgmlType| match t.importance() {
        Importance::Ignored => "ignored",
        Importance::Optional => "optional",
        Importance::Required => "required",
    };
    GgmlType::ALL
        .iter()
        .map(|t| (t.name(), *t as u32, t.block(), t.block_bytes(), importance(*t), t.decodes(), t.encodes()))
        .collect()
}

/// Decodes rows of `columns` elements stored as `name` into `out`, whose elements are of type `dtype`.
#[pyfunction]
fn decode(py: Python<'_>, name: &str, blocks: Bytes, columns: usize, dtype: &str, mut out: BytesMut) -> PyResult<()> {
    let run = || -> Result<()> {
        let blocks = blocks.get();
        let out = out.get(&[blocks])?;
        let floats = match dtype {
            "float32" => Floats::F32(cast_mut(out)?),
            "float16" => Floats::F16(cast_mut(out)?),
            "bfloat16" => Floats::Bf16(cast_mut(out)?),
            _ => return Err(unknown_dtype(dtype)),
        };
        rows::decode(ggml_type(name)?, blocks, columns, floats)
    };
    py.detach(run).map_err(to_py)
}

/// Encodes `groups` equal parts of `array` (rows of `columns` elements of type `dtype`) as `name` into `out`.
/// `importance` holds `columns` float32 weights for each group.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the one call that Python makes, all plain values")]
fn encode(
    py: Python<'_>,
    name: &str,
    array: Bytes,
    dtype: &str,
    columns: usize,
    groups: usize,
    importance: Option<Bytes>,
    mut out: BytesMut,
) -> PyResult<()> {
    let run = || -> Result<()> {
        let array = array.get();
        let weights = importance.as_ref().map_or(&[][..], Bytes::get);
        let out = out.get(&[array, weights])?;
        let source = match dtype {
            "float32" => Source::F32(cast(array)?),
            "float16" => Source::F16(cast(array)?),
            "bfloat16" => Source::Bf16(cast(array)?),
            _ => return Err(unknown_dtype(dtype)),
        };
        let weights = if importance.is_some() { Some(cast(weights)?) } else { None };
        rows::encode_groups(ggml_type(name)?, source, columns, groups, weights, out)
    };
    py.detach(run).map_err(to_py)
}

/// The first block of `blocks` that ggml's own check refuses (a scale or value that is not finite), if there is one.
#[pyfunction]
fn first_invalid_block(py: Python<'_>, name: &str, blocks: Bytes) -> PyResult<Option<usize>> {
    py.detach(|| Ok(validate::first_invalid_block(ggml_type(name)?, blocks.get()))).map_err(to_py)
}

fn ggml_type(name: &str) -> Result<GgmlType> {
    GgmlType::from_name(name).ok_or_else(|| Error::argument(format!("no ggml type is called '{name}'")))
}

fn unknown_dtype(dtype: &str) -> Error {
    Error::argument(format!("dtype '{dtype}': expected float32, float16 or bfloat16"))
}

/// The SIMD level in use.
#[pyfunction]
fn level() -> &'static str {
    kernels().level.name()
}

/// Every SIMD level, lowest first, and whether this processor can run it.
#[pyfunction]
fn levels() -> Vec<(&'static str, bool)> {
    Level::ALL.iter().map(|l| (l.name(), l.is_available())).collect()
}

/// Fills a float32 buffer with `x` past the caches: the write limit that benches compare decoders with. (Zeros are not
/// representative: some processors write lines of zeros several times faster.)
#[pyfunction]
fn stream_fill(py: Python<'_>, mut out: BytesMut, x: f32) -> PyResult<()> {
    py.detach(|| cast_mut(out.get(&[])?).map(|out| (kernels().stream_fill)(out, x))).map_err(to_py)
}

/// Threads that long calls use.
#[pyfunction]
fn num_threads() -> usize {
    parallel::num_threads()
}

/// Adds the functions of this file to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(ggml_types, m)?)?;
    m.add_function(wrap_pyfunction!(decode, m)?)?;
    m.add_function(wrap_pyfunction!(encode, m)?)?;
    m.add_function(wrap_pyfunction!(first_invalid_block, m)?)?;
    m.add_function(wrap_pyfunction!(stream_fill, m)?)?;
    m.add_function(wrap_pyfunction!(level, m)?)?;
    m.add_function(wrap_pyfunction!(levels, m)?)?;
    m.add_function(wrap_pyfunction!(num_threads, m)?)
}
