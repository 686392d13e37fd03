//! The GGUF header reader.

use std::collections::HashSet;

use super::bitnet::{self, BitNetType};
use super::{
    ALIGNMENT_KEY, ARCHITECTURE_KEY, ARRAY_ID, MAGIC, Scalar, Strings, Tensor, TensorType, Value, ValueType,
    check_alignment, check_key, check_tensor_name, next_offset, round_up, tensor_bytes,
};
use crate::GgmlType;
use crate::container::cursor::Cursor;
use crate::container::{ReadAt, utf8};
use crate::error::{Error, Result};
use crate::limits;

/// Least bytes of a key-value pair: key length, one key byte would come on top, type, smallest value.
const KV_MIN: u64 = 8 + 4 + 1;
/// Least bytes of a tensor info: name length, n_dims, type, offset.
const INFO_MIN: u64 = 8 + 4 + 4 + 8;

/// A parsed and checked header. Strings and arrays stay in `bytes`.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Whether numbers and tensor data are big-endian.
    pub big_endian: bool,
    /// Alignment of the data section and of each tensor.
    pub alignment: u64,
    /// First byte of the data section.
    pub data_start: u64,
    /// Keys and values in file order; keys are unique.
    pub metadata: Vec<(String, Value)>,
    /// Tensors in file order; names are unique.
    pub tensors: Vec<Tensor>,
    /// The header's bytes, from the start of the file.
    pub bytes: Vec<u8>,
}

impl Header {
    /// Reads and checks the header of `source`.
    ///
    /// `inherited` is the alignment to use when the file does not state one: 32, or for a later shard that of the
    /// first (some writers state it there only).
    ///
    /// # Errors
    /// Every violation of sections 1 and 12.2 of the specification, with the byte where it was found.
    pub fn read<S: ReadAt + ?Sized>(source: &S, inherited: u64) -> Result<Self> {
        let mut cursor = Cursor::new(source, limits::GGUF_HEADER);
        let version = preamble(&mut cursor)?;
        let tensor_count = count(&mut cursor, "tensor count")?;
        let kv_count = count(&mut cursor, "metadata count")?;
        bound("metadata keys", kv_count, cursor.remaining() / KV_MIN, limits::METADATA_KEYS)?;
        bound("tensors", tensor_count, cursor.remaining() / INFO_MIN, limits::TENSORS)?;

        let metadata = read_metadata(&mut cursor, kv_count)?;
        let alignment = match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
            None => inherited,
            Some((_, Value::Scalar(ValueType::U32, Scalar::Unsigned(value)))) => *value,
            Some((_, other)) => {
                return Err(Error::format(format!("{ALIGNMENT_KEY} has type {}; it must be u32", other.type_name())));
            }
        };
        check_alignment(alignment)?;
        let bitnet = metadata.iter().any(|(key, value)| match value {
            Value::Str(range) if key == ARCHITECTURE_KEY => {
                std::str::from_utf8(&cursor.bytes()[range.clone()]).is_ok_and(bitnet::is_architecture)
            }
            _ => false,
        });
        let mut tensors = read_infos(&mut cursor, tensor_count, bitnet)?;
        let data_start = round_up(cursor.position() as u64, alignment)?;
        measure(&mut tensors, source.len().saturating_sub(data_start))?;
        place(&mut tensors, data_start, alignment, source.len())?;
        Ok(Self {
            version,
            big_endian: cursor.big_endian,
            alignment,
            data_start,
            metadata,
            tensors,
            bytes: cursor.into_bytes(),
        })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Where a writer that pads the last tensor ends the file.
    pub fn padded_end(&self) -> Option<u64> {
        let Some(last) = self.tensors.last() else { return Some(self.data_start) };
        last.offset.checked_add(round_up(last.nbytes, self.alignment).ok()?)
    }

    /// The value of `key` as text, if it is a UTF-8 string.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Str(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        }
    }
}

fn preamble<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>) -> Result<u32> {
    let magic = cursor.take(4, "magic")?;
    if cursor.bytes()[magic.clone()] != MAGIC {
        return Err(Error::format(format!(
            "not a GGUF file: the first bytes are {:02x?}, expected 'GGUF'",
            &cursor.bytes()[magic]
        )));
    }
    let mut version = cursor.u32("version")?;
    if version & 0xffff == 0 {
        // Only the magic is the same in both byte orders; a version this large is a small one swapped.
        version = version.swap_bytes();
        cursor.big_endian = true;
    }
    match version {
        2 | 3 => Ok(version),
        1 => Err(Error::unsupported(
            "GGUF version 1 (32-bit counts) is read by nothing today; convert the model again from its source",
        )),
        _ => Err(Error::unsupported(format!("GGUF version {version}; versions 2 and 3 are known"))),
    }
}

fn count<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, what: &str) -> Result<u64> {
    let at = cursor.position() as u64;
    let value = cursor.u64(what)?;
    if value > i64::MAX as u64 {
        return Err(Error::corrupt(format!("{what} is {value}; counts are at most 2^63 - 1")).at_byte(at));
    }
    Ok(value)
}

fn bound(what: &str, count: u64, possible: u64, ceiling: u64) -> Result<()> {
    if count > possible {
        return Err(Error::corrupt(format!(
            "{count} {what} are announced, the rest of the file has room for at most {possible}"
        )));
    }
    if count > ceiling {
        return Err(Error::limit(format!("{count} {what}; at most {ceiling} are read")));
    }
    Ok(())
}

fn read_metadata<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, count: u64) -> Result<Vec<(String, Value)>> {
    let mut metadata: Vec<(String, Value)> = Vec::new();
    for index in 0..count {
        let at = cursor.position() as u64;
        let key = string(cursor, "metadata key").and_then(|range| {
            let key = utf8(&cursor.bytes()[range], "metadata key")?;
            check_key(key)?;
            Ok(key.to_string())
        });
        let key =
            key.map_err(|e| Error { message: format!("metadata entry {index}: {}", e.message), ..e }.at_byte(at))?;
        let value =
            read_value(cursor).map_err(|e| Error { message: format!("metadata '{key}': {}", e.message), ..e })?;
        metadata.push((key, value));
    }
    let mut seen = HashSet::with_capacity(metadata.len());
    if let Some((key, _)) = metadata.iter().find(|(key, _)| !seen.insert(key.as_str())) {
        return Err(Error::corrupt(format!("metadata key '{key}' occurs twice")));
    }
    Ok(metadata)
}

fn read_value<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>) -> Result<Value> {
    let at = cursor.position() as u64;
    let id = cursor.i32("value type")?;
    if id == ARRAY_ID {
        return read_array(cursor);
    }
    let value_type = element_type(id).map_err(|e| e.at_byte(at))?;
    if value_type == ValueType::Str {
        return Ok(Value::Str(string(cursor, "string")?));
    }
    let at = cursor.position() as u64;
    let scalar = match value_type {
        ValueType::U8 => Scalar::Unsigned(cursor.u8("value")?.into()),
        ValueType::I8 => Scalar::Signed((cursor.u8("value")? as i8).into()),
        ValueType::U16 => Scalar::Unsigned(cursor.u16("value")?.into()),
        ValueType::I16 => Scalar::Signed((cursor.u16("value")? as i16).into()),
        ValueType::U32 => Scalar::Unsigned(cursor.u32("value")?.into()),
        ValueType::I32 => Scalar::Signed(cursor.i32("value")?.into()),
        ValueType::F32 => Scalar::Float(f32::from_bits(cursor.u32("value")?).into()),
        ValueType::U64 => Scalar::Unsigned(cursor.u64("value")?),
        ValueType::I64 => Scalar::Signed(cursor.u64("value")? as i64),
        ValueType::F64 => Scalar::Float(f64::from_bits(cursor.u64("value")?)),
        ValueType::Bool => match cursor.u8("value")? {
            byte @ (0 | 1) => Scalar::Bool(byte == 1),
            byte => return Err(Error::corrupt(format!("bool stored as {byte}; it must be 0 or 1")).at_byte(at)),
        },
        ValueType::Str => unreachable!("strings returned above"),
    };
    Ok(Value::Scalar(value_type, scalar))
}

fn element_type(id: i32) -> Result<ValueType> {
    ValueType::from_id(id).ok_or_else(|| Error::corrupt(format!("unknown value type {id}; known are 0 to 12")))
}

fn read_array<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>) -> Result<Value> {
    let at = cursor.position() as u64;
    let id = cursor.i32("array element type")?;
    if id == ARRAY_ID {
        return Err(Error::unsupported("an array of arrays; GGUF readers do not accept nesting").at_byte(at));
    }
    let element = element_type(id).map_err(|e| e.at_byte(at))?;
    let at = cursor.position() as u64;
    let count = cursor.u64("array length")?;
    let possible = cursor.remaining() / element.bytes() as u64;
    if count > possible {
        return Err(Error::corrupt(format!(
            "array of {count} {} values, the rest of the file has room for at most {possible}",
            element.name()
        ))
        .at_byte(at));
    }
    if element == ValueType::Str {
        return read_strings(cursor, count).map(Value::Strings);
    }
    let range = cursor.take(count * element.bytes() as u64, "array")?;
    if element == ValueType::Bool
        && let Some(index) = cursor.bytes()[range.clone()].iter().position(|byte| *byte > 1)
    {
        return Err(Error::corrupt(format!("element {index} of a bool array is neither 0 nor 1")).at_byte(at));
    }
    Ok(Value::Numbers(element, range))
}

/// Walks a string array once: checks every length and notes where each string begins.
fn read_strings<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, count: u64) -> Result<Strings> {
    let start = cursor.position();
    let mut offsets = Vec::with_capacity(count.min(1 << 16) as usize + 1);
    for _ in 0..count {
        offsets.push((cursor.position() - start) as u32);
        string(cursor, "string of an array")?;
    }
    offsets.push((cursor.position() - start) as u32);
    Ok(Strings { start, offsets })
}

#[inline]
fn string<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, what: &str) -> Result<std::ops::Range<usize>> {
    let length = cursor.u64(what)?;
    cursor.take(length, what)
}

/// Reads the tensor infos; `offset` still is the number stored, relative to the data section.
fn read_infos<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, count: u64, bitnet: bool) -> Result<Vec<Tensor>> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for index in 0..count {
        let at = cursor.position() as u64;
        let name = string(cursor, "tensor name").and_then(|range| {
            let name = utf8(&cursor.bytes()[range], "tensor name")?;
            check_tensor_name(name)?;
            Ok(name.to_string())
        });
        let name = name.map_err(|e| Error { message: format!("tensor {index}: {}", e.message), ..e }.at_byte(at))?;
        let tensor = read_info(cursor, &name, bitnet).map_err(|e| e.in_tensor(name).at_byte(at))?;
        tensors.push(tensor);
    }
    let mut seen = HashSet::with_capacity(tensors.len());
    if let Some(twice) = tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
        return Err(Error::corrupt("two tensors have this name").in_tensor(twice.name.clone()));
    }
    Ok(tensors)
}

fn read_info<S: ReadAt + ?Sized>(cursor: &mut Cursor<'_, S>, name: &str, bitnet: bool) -> Result<Tensor> {
    let dim_count = cursor.u32("number of dimensions")?;
    if dim_count > limits::GGUF_DIMS {
        return Err(Error::corrupt(format!("{dim_count} dimensions; GGUF allows {}", limits::GGUF_DIMS)));
    }
    let dims = (0..dim_count).map(|_| cursor.u64("dimension")).collect::<Result<Vec<u64>>>()?;
    let id = cursor.i32("tensor type")?;
    let known = u32::try_from(id).ok();
    let kind = match known.and_then(BitNetType::from_id).filter(|_| bitnet) {
        Some(kind) => TensorType::BitNet(kind),
        None => TensorType::Ggml(known.and_then(GgmlType::from_id).ok_or_else(|| unknown(id))?),
    };
    let nbytes = match kind {
        TensorType::Ggml(ggml_type) => tensor_bytes(ggml_type, &dims)?,
        TensorType::BitNet(_) => 0, // see `measure`
    };
    let offset = cursor.u64("tensor offset")?;
    Ok(Tensor { name: name.to_string(), kind, dims, offset, nbytes })
}

fn unknown(id: i32) -> Error {
    let fork = u32::try_from(id).ok().and_then(BitNetType::from_id).map_or(String::new(), |kind| {
        let name = TensorType::BitNet(kind).name();
        format!(" ({name} of BitNet's fork counts only where {ARCHITECTURE_KEY} begins with 'bitnet')")
    });
    Error::unsupported(format!("ggml type {id} is unknown or was removed from ggml{fork}; convert the model again"))
}

/// Sets the sizes of the tensors that the place of the next one tells.
fn measure(tensors: &mut [Tensor], data_bytes: u64) -> Result<()> {
    for index in 0..tensors.len() {
        let TensorType::BitNet(kind) = tensors[index].kind else { continue };
        let end = tensors.get(index + 1).map_or(data_bytes, |next| next.offset);
        let tensor = &mut tensors[index];
        let room = end.saturating_sub(tensor.offset);
        tensor.nbytes = kind.bytes(&tensor.dims, room).map_err(|e| e.in_tensor(tensor.name.clone()))?;
    }
    Ok(())
}

/// Checks that the tensors follow each other as ggml requires and lie inside the file; makes offsets absolute.
fn place(tensors: &mut [Tensor], data_start: u64, alignment: u64, file_length: u64) -> Result<()> {
    let mut expected = 0u64;
    for tensor in tensors {
        let found = tensor.offset;
        if found != expected {
            return Err(Error::corrupt(format!(
                "data offset {found}, expected {expected}: tensors must follow each other, padded to {alignment} bytes"
            ))
            .in_tensor(tensor.name.clone()));
        }
        let end = data_start.checked_add(found).and_then(|start| start.checked_add(tensor.nbytes));
        if tensor.nbytes > 0 && end.is_none_or(|end| end > file_length) {
            return Err(Error::corrupt(format!(
                "{} bytes at offset {found} of the data section (byte {data_start}) end past the file's {file_length} \
                 bytes: the file is truncated",
                tensor.nbytes
            ))
            .in_tensor(tensor.name.clone()));
        }
        expected = next_offset(found, tensor.nbytes, alignment).map_err(|e| e.in_tensor(tensor.name.clone()))?;
        tensor.offset = data_start + found;
    }
    Ok(())
}
