//! What an accepted header promises, whatever bytes it came from: shared by the mutation suite and the fuzz targets.

use subbyte_core::container::gguf::{self, DEFAULT_ALIGNMENT, Split, Value, endian, semantics};
use subbyte_core::container::safetensors;

/// Reads a GGUF header and uses everything that was accepted. The result says whether it was.
pub fn gguf(input: &[u8]) -> bool {
    let header = match gguf::Header::read(input, DEFAULT_ALIGNMENT) {
        Ok(header) => header,
        Err(error) => {
            assert!(!error.message.is_empty());
            return false;
        }
    };
    let length = input.len() as u64;
    let mut end = header.data_start;
    for tensor in &header.tensors {
        assert!(tensor.offset >= end, "tensors overlap");
        if let Ok(ggml_type) = tensor.kind.ggml() {
            assert_eq!(gguf::tensor_bytes(ggml_type, &tensor.dims), Ok(tensor.nbytes));
        }
        end = tensor.offset + tensor.nbytes;
        assert!(tensor.nbytes == 0 || end <= length, "tensor past the end");
        if let (true, Ok(ggml_type)) = (header.big_endian, tensor.kind.ggml()) {
            let mut data = input[tensor.offset.min(length) as usize..end.min(length) as usize].to_vec();
            let _ = endian::to_little(ggml_type, &mut data);
        }
    }
    for (_, value) in &header.metadata {
        match value {
            Value::Scalar(..) => {}
            Value::Str(range) => assert!(range.end <= header.bytes.len()),
            Value::Numbers(t, range) => assert_eq!(header.bytes[range.clone()].len() % t.bytes(), 0),
            Value::Strings(strings) => (0..strings.len()).for_each(|i| {
                strings.get(&header.bytes, i);
            }),
        }
    }
    let _ = semantics::check(&header);
    if let Ok(Some(split)) = Split::of(&header, "m-00001-of-00003.gguf") {
        let _ = split.check_shard(0, &header);
        let _ = split.check_tensors(header.tensors.iter().map(|t| t.name.as_str()));
    }
    true
}

/// Reads a safetensors header and uses everything that was accepted. The result says whether it was.
pub fn safetensors(input: &[u8]) -> bool {
    let header = match safetensors::Header::read(input) {
        Ok(header) => header,
        Err(error) => {
            assert!(!error.message.is_empty());
            return false;
        }
    };
    let mut covered = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.dtype.tensor_bytes(&tensor.shape), Ok(tensor.nbytes));
        assert!(tensor.offset >= header.data_start && tensor.offset + tensor.nbytes <= input.len() as u64);
        covered += tensor.nbytes;
    }
    assert_eq!(covered, input.len() as u64 - header.data_start, "bytes outside the tensors");
    true
}
