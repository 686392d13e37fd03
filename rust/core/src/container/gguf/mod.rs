//! GGUF files: header reader and writer (specification: GGUF, sections 1, 2 and 12.2).
//!
//! * [`bitnet`]: the tensor types of BitNet's fork of ggml;
//! * [`read`]: versions 2 and 3, either byte order; everything is checked before it is believed;
//! * [`write`]: version 3, little-endian;
//! * [`split`]: the rules that tie the shards of one model together;
//! * [`endian`]: tensor data of big-endian files, turned into the little-endian blocks the codecs work on;
//! * [`semantics`]: metadata that contradicts itself.

pub mod bitnet;
pub mod endian;
pub mod read;
pub mod semantics;
pub mod split;
pub mod write;

use std::fmt;
use std::ops::Range;

use super::{check_name, checked_bytes, round_up};
use crate::GgmlType;
use crate::error::{Error, Result};
use crate::limits;

pub use bitnet::TensorType;
pub use read::Header;
pub use split::Split;
pub use write::HeaderBuilder;

/// The first four bytes of every GGUF file, in either byte order.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of the data section and of every tensor unless `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key that overrides [`DEFAULT_ALIGNMENT`].
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Metadata key of the model's architecture.
pub const ARCHITECTURE_KEY: &str = "general.architecture";

macro_rules! value_types {
    ($($id:literal $variant:ident $name:literal $bytes:literal;)*) => {
        /// Type of a metadata value or array element. The discriminant is the id stored in files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum ValueType { $($variant = $id,)* }

        impl ValueType {
            /// Every type, by id; arrays (id 9) are not an element type and not listed.
            pub const ALL: &'static [ValueType] = &[$(ValueType::$variant,)*];
            /// Short name: `u32`, `f32`, `bool`, `str` …
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }
            /// Bytes of one value; for a string the least it can take (its length).
            pub const fn bytes(self) -> usize {
                match self { $(ValueType::$variant => $bytes,)* }
            }
        }
    };
}

value_types! {
    0 U8 "u8" 1;
    1 I8 "i8" 1;
    2 U16 "u16" 2;
    3 I16 "i16" 2;
    4 U32 "u32" 4;
    5 I32 "i32" 4;
    6 F32 "f32" 4;
    7 Bool "bool" 1;
    8 Str "str" 8;
    10 U64 "u64" 8;
    11 I64 "i64" 8;
    12 F64 "f64" 8;
}

/// Id of arrays, which have an element type and a length.
pub const ARRAY_ID: i32 = 9;

impl ValueType {
    /// The type with this id, if there is one.
    pub fn from_id(id: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| *t as i32 == id)
    }
    /// The type with this short name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.name() == name)
    }
}

/// A number of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// `f32` (exactly) or `f64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Unsigned(v) => v.fmt(f),
            Scalar::Signed(v) => v.fmt(f),
            Scalar::Float(v) => fmt::Debug::fmt(v, f), // with an exponent where it is short
            Scalar::Bool(v) => v.fmt(f),
        }
    }
}

/// A metadata value; strings and arrays stay in the header's bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number or bool of the given type.
    Scalar(ValueType, Scalar),
    /// A string.
    Str(Range<usize>),
    /// An array of numbers or bools, in the file's byte order.
    Numbers(ValueType, Range<usize>),
    /// An array of strings.
    Strings(Strings),
}

/// An indexed string array: where each string begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Strings {
    /// Position of the first string's length in the header.
    pub start: usize,
    /// `count + 1` offsets from `start`, each that of a string's length field; the last is the end.
    /// 32 bits suffice: [`limits::GGUF_HEADER`] is far below 4 GiB.
    pub offsets: Vec<u32>,
}

impl Strings {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes of string `index`, given the header's bytes.
    ///
    /// # Panics
    /// When `index >= len()`.
    pub fn get<'a>(&self, header: &'a [u8], index: usize) -> &'a [u8] {
        &header[self.start + self.offsets[index] as usize + 8..self.start + self.offsets[index + 1] as usize]
    }
}

impl Value {
    /// Name as shown to users: `u32`, `str`, `arr[f32]` …
    pub fn type_name(&self) -> String {
        match self {
            Self::Scalar(t, _) => t.name().to_string(),
            Self::Str(_) => "str".to_string(),
            Self::Numbers(t, _) => format!("arr[{}]", t.name()),
            Self::Strings(_) => "arr[str]".to_string(),
        }
    }
    /// Number of elements, if an array.
    pub fn array_len(&self) -> Option<usize> {
        match self {
            Self::Scalar(..) | Self::Str(_) => None,
            Self::Numbers(t, range) => Some(range.len() / t.bytes()),
            Self::Strings(strings) => Some(strings.len()),
        }
    }
    /// The value as a non-negative integer, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Scalar(_, Scalar::Unsigned(v)) => Some(*v),
            Self::Scalar(_, Scalar::Signed(v)) => u64::try_from(*v).ok(),
            _ => None,
        }
    }
}

/// A tensor of a file, its place checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, unique in the file.
    pub name: String,
    /// Storage type.
    pub kind: TensorType,
    /// Dimensions as stored: fastest-varying first (the reverse of NumPy's shape). Trailing ones are kept.
    pub dims: Vec<u64>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, without padding.
    pub nbytes: u64,
}

/// Bytes of a tensor, all arithmetic checked.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] for too many dimensions or elements, or a row that is no whole number of blocks.
pub fn tensor_bytes(ggml_type: GgmlType, dims: &[u64]) -> Result<u64> {
    if dims.len() > limits::GGUF_DIMS as usize {
        return Err(Error::corrupt(format!("{} dimensions; GGUF allows {}", dims.len(), limits::GGUF_DIMS)));
    }
    let row = dims.first().copied().unwrap_or(1);
    ggml_type.row_bytes(row).map_err(|e| Error::corrupt(e.message))?;
    checked_bytes(dims, ggml_type.block(), 8 * ggml_type.block_bytes() as u64)
}

/// Refuses a metadata key that cannot be stored or read back.
pub fn check_key(key: &str) -> Result<()> {
    check_name(key, "metadata key")?;
    if key.len() as u64 > limits::GGUF_KEY {
        return Err(Error::limit(format!("a metadata key of {} bytes; at most {}", key.len(), limits::GGUF_KEY)));
    }
    Ok(())
}

/// Refuses a tensor name that cannot be stored or read back.
pub fn check_tensor_name(name: &str) -> Result<()> {
    check_name(name, "tensor name")?;
    if name.len() as u64 > limits::GGUF_NAME {
        return Err(Error::limit(format!(
            "tensor name '{name}' has {} bytes; GGUF allows {}",
            name.len(),
            limits::GGUF_NAME
        )));
    }
    Ok(())
}

/// Refuses an alignment that is zero, no power of two, or above [`limits::GGUF_ALIGNMENT`].
pub fn check_alignment(alignment: u64) -> Result<()> {
    if !alignment.is_power_of_two() {
        return Err(Error::format(format!("{ALIGNMENT_KEY} is {alignment}; it must be a power of two")));
    }
    if alignment > limits::GGUF_ALIGNMENT {
        return Err(Error::limit(format!("{ALIGNMENT_KEY} is {alignment}; at most {}", limits::GGUF_ALIGNMENT)));
    }
    Ok(())
}

/// Offset of the tensor after one at `offset` of `nbytes`, both relative to the data section.
pub(crate) fn next_offset(offset: u64, nbytes: u64, alignment: u64) -> Result<u64> {
    round_up(nbytes, alignment)?
        .checked_add(offset)
        .ok_or_else(|| Error::corrupt("the sizes of the tensors exceed 2^64 bytes"))
}
