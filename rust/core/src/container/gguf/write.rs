//! The GGUF header writer: version 3, little-endian, keys and tensors in the order given.

use std::collections::HashSet;

use super::{
    ALIGNMENT_KEY, ARRAY_ID, MAGIC, Scalar, ValueType, check_alignment, check_key, check_tensor_name, next_offset,
    round_up, tensor_bytes,
};
use crate::GgmlType;
use crate::container::plan::{Plan, Region};
use crate::error::{Error, Result};
use crate::limits;

/// The version written.
const VERSION: u32 = 3;

/// Collects metadata, then lays out the tensors. Every rule the reader enforces is enforced here as well.
#[derive(Clone, Debug, Default)]
pub struct HeaderBuilder {
    metadata: Vec<u8>,
    keys: HashSet<String>,
    alignment: Option<u64>,
}

impl HeaderBuilder {
    /// No metadata yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str) -> Result<()> {
        check_key(key)?;
        if self.keys.len() as u64 >= limits::METADATA_KEYS {
            return Err(Error::limit(format!("more than {} metadata keys", limits::METADATA_KEYS)));
        }
        if !self.keys.insert(key.to_string()) {
            return Err(Error::argument(format!("metadata key '{key}' is given twice")));
        }
        self.string(key.as_bytes());
        Ok(())
    }

    fn string(&mut self, text: &[u8]) {
        self.metadata.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.metadata.extend_from_slice(text);
    }

    fn array(&mut self, element: ValueType, count: u64) {
        self.metadata.extend_from_slice(&ARRAY_ID.to_le_bytes());
        self.metadata.extend_from_slice(&(element as i32).to_le_bytes());
        self.metadata.extend_from_slice(&count.to_le_bytes());
    }

    /// Adds a number or bool, stored as `value_type`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] when the value does not fit the type, or the key is given twice.
    pub fn scalar(&mut self, key: &str, value_type: ValueType, value: Scalar) -> Result<()> {
        let unfit = || Error::argument(format!("metadata '{key}': {value} does not fit {}", value_type.name()));
        let bytes: Vec<u8> = match (value_type, value) {
            (ValueType::Bool, Scalar::Bool(v)) => vec![u8::from(v)],
            // Infinities and NaN are allowed; a finite number must stay finite.
            (ValueType::F32, Scalar::Float(v)) if !v.is_finite() || (v as f32).is_finite() => {
                (v as f32).to_le_bytes().to_vec()
            }
            (ValueType::F64, Scalar::Float(v)) => v.to_le_bytes().to_vec(),
            (_, Scalar::Unsigned(_) | Scalar::Signed(_)) => {
                let wide = match value {
                    Scalar::Signed(v) => i128::from(v),
                    Scalar::Unsigned(v) => i128::from(v),
                    Scalar::Float(_) | Scalar::Bool(_) => return Err(unfit()),
                };
                integer(value_type, wide).ok_or_else(unfit)?
            }
            _ => return Err(unfit()),
        };
        if key == ALIGNMENT_KEY {
            let (ValueType::U32, Scalar::Unsigned(alignment)) = (value_type, value) else {
                return Err(Error::argument(format!("{ALIGNMENT_KEY} has type {}; it must be u32", value_type.name())));
            };
            check_alignment(alignment)?;
            self.alignment = Some(alignment);
        }
        self.key(key)?;
        self.metadata.extend_from_slice(&(value_type as i32).to_le_bytes());
        self.metadata.extend_from_slice(&bytes);
        Ok(())
    }

    /// Adds a string; UTF-8 is meant, but the bytes are stored as they are.
    pub fn text(&mut self, key: &str, text: &[u8]) -> Result<()> {
        self.not_alignment(key)?;
        self.key(key)?;
        self.metadata.extend_from_slice(&(ValueType::Str as i32).to_le_bytes());
        self.string(text);
        Ok(())
    }

    /// Adds an array of numbers or bools given as little-endian bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for strings, partial elements or bools other than 0 and 1.
    pub fn numbers(&mut self, key: &str, element: ValueType, bytes: &[u8]) -> Result<()> {
        self.not_alignment(key)?;
        if element == ValueType::Str || !bytes.len().is_multiple_of(element.bytes()) {
            return Err(Error::argument(format!(
                "metadata '{key}': {} bytes are no array of {}",
                bytes.len(),
                element.name()
            )));
        }
        if element == ValueType::Bool && bytes.iter().any(|b| *b > 1) {
            return Err(Error::argument(format!("metadata '{key}': a bool is stored as 0 or 1")));
        }
        self.key(key)?;
        self.array(element, (bytes.len() / element.bytes()) as u64);
        self.metadata.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds an array of strings; UTF-8 is meant, but the bytes are stored as they are.
    pub fn strings<T: AsRef<[u8]>>(&mut self, key: &str, strings: &[T]) -> Result<()> {
        self.not_alignment(key)?;
        self.key(key)?;
        self.array(ValueType::Str, strings.len() as u64);
        for text in strings {
            self.string(text.as_ref());
        }
        Ok(())
    }

    fn not_alignment(&self, key: &str) -> Result<()> {
        if key == ALIGNMENT_KEY {
            return Err(Error::argument(format!("{ALIGNMENT_KEY} must be a u32")));
        }
        Ok(())
    }

    /// Lays out `tensors` (name, type, dimensions with the fastest-varying first) and completes the header.
    ///
    /// `alignment` must agree with `general.alignment` where the metadata has it; an alignment other than the
    /// default is added to the metadata where it has not.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`], [`crate::ErrorKind::Limit`] or what the reader would say of such a file.
    pub fn finish(mut self, tensors: &[(String, GgmlType, Vec<u64>)], alignment: Option<u64>) -> Result<Plan> {
        let stated = self.alignment;
        let alignment = alignment.or(stated).unwrap_or(super::DEFAULT_ALIGNMENT);
        check_alignment(alignment)?;
        match stated {
            Some(stated) if stated != alignment => {
                return Err(Error::argument(format!(
                    "{ALIGNMENT_KEY} is {stated}, the alignment asked for {alignment}"
                )));
            }
            None if alignment != super::DEFAULT_ALIGNMENT => {
                self.scalar(ALIGNMENT_KEY, ValueType::U32, Scalar::Unsigned(alignment))?;
            }
            _ => {}
        }
        if tensors.len() as u64 > limits::TENSORS {
            return Err(Error::limit(format!("{} tensors; at most {}", tensors.len(), limits::TENSORS)));
        }
        let (infos, mut regions, size) = layout(tensors, alignment)?;
        let mut header = Vec::with_capacity(24 + self.metadata.len() + infos.len() + alignment as usize);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        header.extend_from_slice(&self.metadata);
        header.extend_from_slice(&infos);
        if header.len() as u64 > limits::GGUF_HEADER {
            return Err(Error::limit(format!("a header of {} bytes; at most {}", header.len(), limits::GGUF_HEADER)));
        }
        let data_start = round_up(header.len() as u64, alignment)?;
        header.resize(data_start as usize, 0);
        let total = data_start
            .checked_add(size)
            .filter(|total| *total <= i64::MAX as u64)
            .ok_or_else(|| Error::limit("the file would exceed 2^63 - 1 bytes"))?;
        for region in &mut regions {
            region.offset += data_start;
        }
        Ok(Plan { header, regions, total })
    }
}

/// Tensor infos, places relative to the data section, and the size of that section.
fn layout(tensors: &[(String, GgmlType, Vec<u64>)], alignment: u64) -> Result<(Vec<u8>, Vec<Region>, u64)> {
    let mut infos = Vec::new();
    let mut regions = Vec::with_capacity(tensors.len());
    let mut names = HashSet::with_capacity(tensors.len());
    let mut offset = 0u64;
    for (name, ggml_type, dims) in tensors {
        check_tensor_name(name)?;
        let place = |e: Error| e.in_tensor(name.clone());
        if !names.insert(name.as_str()) {
            return Err(place(Error::argument("this tensor is given twice")));
        }
        let nbytes = tensor_bytes(*ggml_type, dims).map_err(|e| place(Error::argument(e.message)))?;
        infos.extend_from_slice(&(name.len() as u64).to_le_bytes());
        infos.extend_from_slice(name.as_bytes());
        infos.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        for dim in dims {
            infos.extend_from_slice(&dim.to_le_bytes());
        }
        infos.extend_from_slice(&(*ggml_type as u32).to_le_bytes());
        infos.extend_from_slice(&offset.to_le_bytes());
        regions.push(Region { name: name.clone(), offset, nbytes });
        offset = next_offset(offset, nbytes, alignment)
            .ok()
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| place(Error::limit("the tensors up to here exceed 2^63 - 1 bytes")))?;
    }
    Ok((infos, regions, offset))
}

fn integer(value_type: ValueType, value: i128) -> Option<Vec<u8>> {
    macro_rules! to {
        ($type:ty) => {
            <$type>::try_from(value).ok().map(|v| v.to_le_bytes().to_vec())
        };
    }
    match value_type {
        ValueType::U8 => to!(u8),
        ValueType::I8 => to!(i8),
        ValueType::U16 => to!(u16),
        ValueType::I16 => to!(i16),
        ValueType::U32 => to!(u32),
        ValueType::I32 => to!(i32),
        ValueType::U64 => to!(u64),
        ValueType::I64 => to!(i64),
        ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::Str => None,
    }
}
