//! Safetensors files: header reader and writer.
//!
//! Layout: `u64` little-endian header length N, N bytes of JSON, then the data section to the end of the file. The
//! JSON maps each tensor name to `{"dtype", "shape", "data_offsets": [begin, end)}`, offsets relative to the data
//! section; `__metadata__` maps strings to strings. The tensors cover the data section exactly: no holes, no overlap,
//! so no bytes hide between them and no small file describes many large tensors.

use std::borrow::Cow;
use std::collections::HashSet;

use super::json::{Json, write_string};
use super::plan::{Plan, Region};
use super::{ReadAt, check_name, checked_bytes, round_up};
use crate::error::{Error, Result};
use crate::limits;

/// The key that is no tensor.
const METADATA: &str = "__metadata__";
/// The header is padded with spaces so that the data section starts at a multiple of this.
const HEADER_ALIGNMENT: u64 = 8;

macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal;)*) => {
        /// Element type of a tensor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, non_camel_case_types)]
        pub enum Dtype { $($variant,)* }

        impl Dtype {
            /// Every type.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant,)*];
            /// Name in the header.
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name,)* }
            }
            /// Bits of one element.
            pub const fn bits(self) -> u64 {
                match self { $(Dtype::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    BOOL "BOOL" 8;
    F4 "F4" 4;
    F6_E2M3 "F6_E2M3" 6;
    F6_E3M2 "F6_E3M2" 6;
    U8 "U8" 8;
    I8 "I8" 8;
    F8_E5M2 "F8_E5M2" 8;
    F8_E4M3 "F8_E4M3" 8;
    F8_E8M0 "F8_E8M0" 8;
    F8_E4M3FNUZ "F8_E4M3FNUZ" 8;
    F8_E5M2FNUZ "F8_E5M2FNUZ" 8;
    I16 "I16" 16;
    U16 "U16" 16;
    F16 "F16" 16;
    BF16 "BF16" 16;
    I32 "I32" 32;
    U32 "U32" 32;
    F32 "F32" 32;
    C64 "C64" 64;
    F64 "F64" 64;
    I64 "I64" 64;
    U64 "U64" 64;
}

impl Dtype {
    /// The type of this name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] for an unknown one.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|d| d.name() == name).ok_or_else(|| {
            let shown: String = name.chars().take(32).collect();
            Error::unsupported(format!("dtype {shown:?} is not known to this version"))
        })
    }

    /// Bytes of a tensor of `shape`, all arithmetic checked.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] on overflow or when sub-byte elements do not fill whole bytes.
    pub fn tensor_bytes(self, shape: &[u64]) -> Result<u64> {
        checked_bytes(shape, 1, self.bits())
            .map_err(|e| Error { message: format!("{}: {}", self.name(), e.message), ..e })
    }
}

/// A tensor of a file, its place checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest-varying first.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u64,
}

/// A parsed and checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`, in file order; keys are unique.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the header's order; names are unique.
    pub tensors: Vec<Tensor>,
    /// First byte of the data section.
    pub data_start: u64,
}

impl Header {
    /// Reads and checks the header of `source`.
    ///
    /// # Errors
    /// Any departure from the layout above; [`crate::ErrorKind::Unsupported`] for unknown dtypes and for pickles.
    pub fn read<S: ReadAt + ?Sized>(source: &S) -> Result<Self> {
        let length = source.len();
        let mut prefix = [0u8; 8];
        let known = length.min(8) as usize;
        source.read_exact_at(0, &mut prefix[..known])?;
        refuse_other_formats(&prefix[..known])?;
        if length < 8 {
            return Err(Error::corrupt(format!("not a safetensors file: {length} bytes, at least 8 are needed")));
        }
        let size = u64::from_le_bytes(prefix);
        if size > length - 8 {
            return Err(Error::corrupt(format!(
                "the header is said to have {size} bytes, only {} follow: not a safetensors file, or truncated",
                length - 8
            ))
            .at_byte(0));
        }
        if size > limits::SAFETENSORS_HEADER {
            return Err(Error::limit(format!("a header of {size} bytes; at most {}", limits::SAFETENSORS_HEADER)));
        }
        let mut text = vec![0u8; size as usize];
        source.read_exact_at(8, &mut text)?;
        let (metadata, mut tensors) = parse(&text)?;
        place(&mut tensors, 8 + size, length)?;
        Ok(Self { metadata, tensors, data_start: 8 + size })
    }
}

fn refuse_other_formats(start: &[u8]) -> Result<()> {
    // A header of 640 bytes begins like a pickle: only a length that no header has tells them apart.
    let length = <[u8; 8]>::try_from(start).map_or(u64::MAX, u64::from_le_bytes);
    let pickle = start.starts_with(b"\x80\x02") && length > limits::SAFETENSORS_HEADER;
    if start.starts_with(b"PK\x03\x04") || pickle {
        return Err(Error::unsupported(
            "this is a pickle (PyTorch .bin/.pt/.pth), which runs code when loaded and is never read; convert it to \
             safetensors with a tool you trust, or download the safetensors version of the model",
        ));
    }
    if start.starts_with(b"GGUF") {
        return Err(Error::format("this is a GGUF file; open it with subbyte.io.gguf"));
    }
    if start.starts_with(b"\x89HDF") {
        return Err(Error::unsupported("this is an HDF5 file; convert it to safetensors first"));
    }
    Ok(())
}

type Parsed = (Vec<(String, String)>, Vec<Tensor>);

/// Parses the JSON; `offset` and `nbytes` of the tensors are the two data offsets as stored.
fn parse(text: &[u8]) -> Result<Parsed> {
    if text.first() != Some(&b'{') {
        return Err(Error::format("the header does not begin with '{': not a safetensors file").at_byte(8));
    }
    let mut json = Json::new(text, 8)?;
    let mut metadata = None;
    let mut tensors: Vec<Tensor> = Vec::new();
    json.object(|json, name| {
        if name == METADATA {
            if metadata.is_some() {
                return Err(json.error("__metadata__ occurs twice"));
            }
            metadata = Some(parse_metadata(json)?);
            return Ok(());
        }
        if tensors.len() as u64 >= limits::TENSORS {
            return Err(Error::limit(format!("more than {} tensors", limits::TENSORS)));
        }
        check_name(&name, "tensor name").map_err(|e| json.error(e.message))?;
        let tensor = parse_tensor(json, &name).map_err(|e| e.in_tensor(name))?;
        tensors.push(tensor);
        Ok(())
    })?;
    json.end()?;
    let mut seen = HashSet::with_capacity(tensors.len());
    if let Some(twice) = tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
        return Err(Error::corrupt("two tensors have this name").in_tensor(twice.name.clone()));
    }
    Ok((metadata.unwrap_or_default(), tensors))
}

fn parse_metadata(json: &mut Json<'_>) -> Result<Vec<(String, String)>> {
    let mut entries: Vec<(String, String)> = Vec::new();
    json.object(|json, key| {
        if entries.len() as u64 >= limits::METADATA_KEYS {
            return Err(Error::limit(format!("more than {} metadata keys", limits::METADATA_KEYS)));
        }
        if json.peek() != Some(b'"') {
            return Err(json.error(format!("__metadata__ entry '{key}' is not a string")));
        }
        let value = json.string()?.into_owned();
        entries.push((key.into_owned(), value));
        Ok(())
    })?;
    let mut seen = HashSet::with_capacity(entries.len());
    if let Some((key, _)) = entries.iter().find(|(key, _)| !seen.insert(key.as_str())) {
        return Err(Error::corrupt(format!("__metadata__ key '{key}' occurs twice")));
    }
    Ok(entries)
}

fn parse_tensor(json: &mut Json<'_>, name: &str) -> Result<Tensor> {
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    json.object(|json, field| {
        let twice = match field.as_ref() {
            "dtype" => dtype.replace(Dtype::from_name(&json.string()?)?).is_some(),
            "shape" => shape.replace(integers(json, limits::SAFETENSORS_DIMS, "shape")?).is_some(),
            "data_offsets" => offsets.replace(integers(json, 2, "data_offsets")?).is_some(),
            other => return Err(json.error(format!("unknown field {other:?}; known are dtype, shape, data_offsets"))),
        };
        if twice {
            return Err(json.error(format!("{field} occurs twice")));
        }
        Ok(())
    })?;
    let missing = |field: &str| Error::corrupt(format!("{field} is missing"));
    let dtype = dtype.ok_or_else(|| missing("dtype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let offsets = offsets.ok_or_else(|| missing("data_offsets"))?;
    let &[begin, end] = offsets.as_slice() else {
        return Err(Error::corrupt("data_offsets are not two numbers"));
    };
    let nbytes = dtype.tensor_bytes(&shape)?;
    if begin > end || end - begin != nbytes {
        return Err(Error::corrupt(format!(
            "data_offsets [{begin}, {end}] do not span the {nbytes} bytes of shape {shape:?} {}",
            dtype.name()
        )));
    }
    Ok(Tensor { name: name.to_string(), dtype, shape, offset: begin, nbytes })
}

fn integers(json: &mut Json<'_>, most: usize, what: &str) -> Result<Vec<u64>> {
    let mut values = Vec::new();
    json.array(|json| {
        if values.len() == most {
            return Err(json.error(format!("{what} has more than {most} entries")));
        }
        values.push(json.unsigned()?);
        Ok(())
    })?;
    Ok(values)
}

/// Checks that the tensors cover the data section exactly; makes offsets absolute.
fn place(tensors: &mut [Tensor], data_start: u64, length: u64) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].offset, tensors[i].nbytes));
    let data = length - data_start;
    let mut expected = 0u64;
    for index in order {
        let tensor = &mut tensors[index];
        let problem = if tensor.offset != expected {
            let what = if tensor.offset < expected { "overlap" } else { "leave a hole" };
            Some(format!("begins at byte {} of the data, expected {expected}: tensors {what}", tensor.offset))
        } else if tensor.nbytes > data - expected {
            Some(format!("{} bytes at offset {expected} exceed the {data} bytes of data: truncated?", tensor.nbytes))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Error::corrupt(problem).in_tensor(tensor.name.clone()));
        }
        expected += tensor.nbytes;
        tensor.offset += data_start;
    }
    if expected != data {
        return Err(Error::corrupt(format!(
            "the tensors end at byte {expected} of the data section, which has {data} bytes"
        )));
    }
    Ok(())
}

/// Lays out a file. The data goes in descending element size, in the given order within one size, so that every
/// tensor is aligned to its elements; the header lists the tensors in that same order.
///
/// # Errors
/// [`crate::ErrorKind::Argument`], [`crate::ErrorKind::Limit`] or what the reader would say of such a file.
pub fn plan(tensors: &[(String, Dtype, Vec<u64>)], metadata: &[(String, String)]) -> Result<Plan> {
    if tensors.len() as u64 > limits::TENSORS {
        return Err(Error::limit(format!("{} tensors; at most {}", tensors.len(), limits::TENSORS)));
    }
    let mut text = String::from("{");
    let mut keys = HashSet::new();
    for (index, (key, value)) in metadata.iter().enumerate() {
        if !keys.insert(key.as_str()) {
            return Err(Error::argument(format!("metadata key '{key}' is given twice")));
        }
        text.push_str(if index == 0 { "\"__metadata__\":{" } else { "," });
        write_string(&mut text, key);
        text.push(':');
        write_string(&mut text, value);
    }
    if !metadata.is_empty() {
        text.push('}');
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.bits()));
    let mut regions: Vec<Region> = Vec::with_capacity(tensors.len());
    let mut names = HashSet::with_capacity(tensors.len());
    let mut offset = 0u64;
    for index in order {
        let (name, dtype, shape) = &tensors[index];
        let nbytes = check_planned(name, *dtype, shape, &mut names).map_err(|e| e.in_tensor(name.clone()))?;
        let end = offset
            .checked_add(nbytes)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| Error::limit("the tensors exceed 2^63 - 1 bytes"))?;
        text.push_str(if text.len() == 1 { "" } else { "," });
        write_string(&mut text, name);
        let dims: Vec<Cow<'_, str>> = shape.iter().map(|d| Cow::Owned(d.to_string())).collect();
        text.push_str(&format!(
            ":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{offset},{end}]}}",
            dtype.name(),
            dims.join(",")
        ));
        regions.push(Region { name: name.clone(), offset, nbytes });
        offset = end;
    }
    text.push('}');
    let size = round_up(text.len() as u64, HEADER_ALIGNMENT)?;
    if size > limits::SAFETENSORS_HEADER {
        return Err(Error::limit(format!(
            "a header of {size} bytes; at most {}: split the tensors over several files",
            limits::SAFETENSORS_HEADER
        )));
    }
    let mut header = size.to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    header.resize(8 + size as usize, b' ');
    let total = 8 + size + offset;
    for region in &mut regions {
        region.offset += 8 + size;
    }
    Ok(Plan { header, regions, total })
}

fn check_planned<'a>(name: &'a str, dtype: Dtype, shape: &[u64], names: &mut HashSet<&'a str>) -> Result<u64> {
    check_name(name, "tensor name")?;
    if name == METADATA {
        return Err(Error::argument("this name is reserved"));
    }
    if !names.insert(name) {
        return Err(Error::argument("this tensor is given twice"));
    }
    if shape.len() > limits::SAFETENSORS_DIMS {
        return Err(Error::argument(format!("{} dimensions; at most {}", shape.len(), limits::SAFETENSORS_DIMS)));
    }
    dtype.tensor_bytes(shape).map_err(|e| Error::argument(e.message))
}
