//! Tensor data of big-endian GGUF files (specification: GGUF, section 1.3).
//!
//! A big-endian file holds every multi-byte field of a block in big-endian order. Swapping those fields gives the
//! little-endian blocks the codecs work on. Types whose blocks pack several meanings into one wide field
//! (IQ2_XXS, IQ3_XXS, IQ1_M) were never written by a big-endian program and are refused.

use crate::GgmlType;
use crate::error::{Error, Result};

/// Runs of equal fields inside a block: (offset, bytes of a field, number of fields).
type Fields = &'static [(usize, usize, usize)];

/// The multi-byte fields of a block of `ggml_type` (section 2).
///
/// # Errors
/// [`crate::ErrorKind::Unsupported`] for types that have no big-endian form.
pub fn fields(ggml_type: GgmlType) -> Result<Fields> {
    use GgmlType as T;
    Ok(match ggml_type {
        T::I8 | T::MXFP4 | T::NVFP4 => &[],
        T::F16 | T::BF16 | T::I16 => &[(0, 2, 1)],
        T::F32 | T::I32 => &[(0, 4, 1)],
        T::F64 | T::I64 => &[(0, 8, 1)],
        T::Q4_0 | T::Q5_0 | T::Q8_0 | T::Q1_0 | T::Q2_0 | T::IQ4_NL | T::IQ2_S | T::IQ3_S => &[(0, 2, 1)],
        T::Q4_1 | T::Q5_1 | T::Q8_1 | T::Q4_K | T::Q5_K => &[(0, 2, 2)],
        T::Q2_K => &[(80, 2, 2)],
        T::Q3_K => &[(108, 2, 1)],
        T::Q6_K => &[(208, 2, 1)],
        T::Q8_K => &[(0, 4, 1), (260, 2, 16)],
        T::TQ1_0 => &[(52, 2, 1)],
        T::TQ2_0 => &[(64, 2, 1)],
        T::IQ2_XS => &[(0, 2, 33)],
        T::IQ1_S => &[(0, 2, 1), (34, 2, 8)],
        T::IQ4_XS => &[(0, 2, 2)],
        T::IQ2_XXS | T::IQ3_XXS | T::IQ1_M => {
            return Err(Error::unsupported(format!(
                "{} in a big-endian file has no defined byte order; use a little-endian file",
                ggml_type.name()
            )));
        }
    })
}

/// Turns whole big-endian blocks of `ggml_type` into little-endian ones, in place.
///
/// # Errors
/// As [`fields`]; [`crate::ErrorKind::Argument`] when `data` is not a whole number of blocks.
pub fn to_little(ggml_type: GgmlType, data: &mut [u8]) -> Result<()> {
    let fields = fields(ggml_type)?;
    if !data.len().is_multiple_of(ggml_type.block_bytes()) {
        return Err(Error::argument(format!("{} bytes are not whole blocks of {}", data.len(), ggml_type.name())));
    }
    for block in data.chunks_exact_mut(ggml_type.block_bytes()) {
        for &(offset, size, count) in fields {
            block[offset..offset + size * count].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_inside_their_block() {
        for &ggml_type in GgmlType::ALL {
            for &(offset, size, count) in fields(ggml_type).unwrap_or(&[]) {
                assert!(offset + size * count <= ggml_type.block_bytes(), "{}", ggml_type.name());
            }
        }
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        for &ggml_type in GgmlType::ALL {
            let original: Vec<u8> = (0..3 * ggml_type.block_bytes()).map(|i| i as u8).collect();
            let mut data = original.clone();
            if to_little(ggml_type, &mut data).is_ok() {
                to_little(ggml_type, &mut data).unwrap();
                assert_eq!(data, original, "{}", ggml_type.name());
            }
        }
    }

    #[test]
    fn q8_k_swaps_scale_and_sums_only() {
        let mut data = vec![0u8; 292];
        data[..4].copy_from_slice(&1.5f32.to_be_bytes());
        data[4] = 7;
        data[260..262].copy_from_slice(&(-300i16).to_be_bytes());
        to_little(GgmlType::Q8_K, &mut data).unwrap();
        assert_eq!(data[..4], 1.5f32.to_le_bytes());
        assert_eq!(data[4], 7);
        assert_eq!(data[260..262], (-300i16).to_le_bytes());
    }
}
