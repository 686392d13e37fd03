//! Packed codes: into bytes and back, decoded with parameters per group, laid out in rows.

use crate::arrays::{Bytes, BytesMut, cast, cast_mut};
use crate::errors::to_py;
use pyo3::prelude::*;
use subbyte_core::block::rows::Floats;
use subbyte_core::pack::assemble::Assembly;
use subbyte_core::pack::groups::{Op, Steps};
use subbyte_core::pack::layer::{Layer, Parameters};
use subbyte_core::pack::layout::{Layout, lay};
use subbyte_core::pack::{self, Order};
use subbyte_core::{Error, GgmlType, Result};

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

/// Lays rows of whole words, each a stream of bits, `"down"` or (4 bits) `"across"`.
#[pyfunction]
fn lay_words(py: Python<'_>, layout: &str, rows: usize, words: Bytes, mut out: BytesMut) -> PyResult<()> {
    py.detach(|| {
        let layout = match layout {
            "down" => Layout::Down,
            "across" => Layout::Across,
            other => return Err(Error::argument(format!("words cannot be laid '{other}'"))),
        };
        let words = words.get();
        lay(layout, rows, cast(words)?, cast_mut(out.get(&[words])?)?)
    })
    .map_err(to_py)
}

fn named(order: &str) -> Result<Order> {
    Order::from_name(order).ok_or_else(|| Error::argument(format!("no order of codes is called '{order}'")))
}

/// A weight of packed codes: `subbyte_core::pack::layer::Layer`.
#[pyclass(frozen)]
struct PackedLayer {
    words: Bytes,
    bits: usize,
    layout: Layout,
    signed: bool,
    rows: usize,
    columns: usize,
}

impl PackedLayer {
    fn layer(&self) -> Layer<'_> {
        let &PackedLayer { bits, layout, signed, rows, columns, .. } = self;
        Layer { words: self.words.get(), bits, layout, signed, rows, columns }
    }
}

#[pymethods]
impl PackedLayer {
    /// `layout` is `"rows"` (with `row_bytes` and `high_first`), `"down"`, `"across"`, `"fours"`, `"tiles"` or `"slabs"`
    /// (with `item_bytes` and, where the first field is the highest, `fields`).
    #[new]
    #[pyo3(signature = (
        words, bits, rows, columns, layout, *, row_bytes=0, high_first=false, item_bytes=1, fields=None, signed=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "the one call that Python makes, all plain values")]
    fn new(
        words: Bytes,
        bits: usize,
        rows: usize,
        columns: usize,
        layout: &str,
        row_bytes: usize,
        high_first: bool,
        item_bytes: usize,
        fields: Option<usize>,
        signed: bool,
    ) -> PyResult<Self> {
        let layout = match layout {
            "rows" => Layout::Rows { row_bytes, high_first },
            "down" => Layout::Down,
            "across" => Layout::Across,
            "fours" => Layout::Fours,
            "tiles" => Layout::Tiles,
            "slabs" => Layout::Slabs { item_bytes, items: words.get().len() / item_bytes.max(1), high_first: fields },
            other => return Err(to_py(Error::argument(format!("no layout of codes is called '{other}'")))),
        };
        let made = PackedLayer { words, bits, layout, signed, rows, columns };
        made.layer().check().map_err(to_py)?;
        Ok(made)
    }

    /// Decodes rows from `first` on into `out`, with float32 scales and offsets; each step is rounded to `steps`.
    #[pyo3(signature = (op, steps, first, dtype, out, *, group, flat, group_of, scales, offsets, table))]
    #[expect(clippy::too_many_arguments, reason = "the one call that Python makes, all plain values")]
    fn decode(
        &self,
        py: Python<'_>,
        op: &str,
        steps: &str,
        first: usize,
        dtype: &str,
        mut out: BytesMut,
        group: usize,
        flat: bool,
        group_of: Option<Bytes>,
        scales: Bytes,
        offsets: Option<Bytes>,
        table: Option<Bytes>,
    ) -> PyResult<()> {
        let run = || -> Result<()> {
            let op =
                Op::from_name(op).ok_or_else(|| Error::argument(format!("no operation on codes is called '{op}'")))?;
            let layer = self.layer();
            let out = out.get(&[layer.words, scales.get()])?;
            let group_of = group_of.as_ref().map(|g| cast(g.get())).transpose()?;
            let offsets: &[f32] = offsets.as_ref().map(|o| cast(o.get())).transpose()?.unwrap_or(&[]);
            let table: &[f32] = table.as_ref().map(|t| cast(t.get())).transpose()?.unwrap_or(&[]);
            let steps =
                Steps::from_name(steps).ok_or_else(|| Error::argument(format!("no steps are called '{steps}'")))?;
            let scales = cast(scales.get())?;
            let parameters = Parameters { op, steps, group, flat, group_of, scales, offsets, table };
            let elements = match dtype {
                "float32" => out.len() / 4,
                _ => out.len() / 2,
            };
            let rows = first..first.saturating_add(elements / layer.columns.max(1));
            let floats = match dtype {
                "float32" => Floats::F32(cast_mut(out)?),
                "float16" => Floats::F16(cast_mut(out)?),
                "bfloat16" => Floats::Bf16(cast_mut(out)?),
                _ => return Err(Error::argument(format!("dtype '{dtype}': expected float32, float16 or bfloat16"))),
            };
            layer.decode(&parameters, rows, floats)
        };
        py.detach(run).map_err(to_py)
    }

    /// ggml blocks of rows from `first` on: see `subbyte_core::pack::assemble`.
    #[pyo3(signature = (ty, first, out, *, group, zeros, scales, minima))]
    #[expect(clippy::too_many_arguments, reason = "the one call that Python makes, all plain values")]
    fn assemble(
        &self,
        py: Python<'_>,
        ty: &str,
        first: usize,
        mut out: BytesMut,
        group: usize,
        zeros: Option<Bytes>,
        scales: Bytes,
        minima: Option<Bytes>,
    ) -> PyResult<()> {
        py.detach(|| {
            let ty =
                GgmlType::from_name(ty).ok_or_else(|| Error::argument(format!("no ggml type is called '{ty}'")))?;
            let layer = self.layer();
            let zeros = zeros.as_ref().map(|z| cast(z.get())).transpose()?.unwrap_or(&[]);
            let minima = minima.as_ref().map(|m| cast(m.get())).transpose()?.unwrap_or(&[]);
            let assembly = Assembly { ty, group, zeros, scales: cast(scales.get())?, minima };
            let row = (layer.columns / ty.block() * ty.block_bytes()).max(1);
            let out = out.get(&[layer.words])?;
            let rows = first..first.saturating_add(out.len() / row);
            assembly.run(&layer, rows, out)
        })
        .map_err(to_py)
    }

    /// The codes of rows from `first` on as rows of whole words, each one stream of bits.
    fn stream(&self, py: Python<'_>, first: usize, mut out: BytesMut) -> PyResult<()> {
        py.detach(|| {
            let layer = self.layer();
            let row = (layer.columns * layer.bits).div_ceil(32).max(1);
            let out = out.get(&[layer.words])?;
            let rows = first..first.saturating_add(out.len() / 4 / row);
            layer.stream(rows, cast_mut(out)?)
        })
        .map_err(to_py)
    }
}

/// Adds the functions of this file to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PackedLayer>()?;
    m.add_function(wrap_pyfunction!(unpack, m)?)?;
    m.add_function(wrap_pyfunction!(lay_words, m)?)?;
    m.add_function(wrap_pyfunction!(pack_codes, m)?)
}
