//! The tensor types of BitNet's fork of ggml. Their ids mean something else, or nothing, in ggml itself, so that they
//! count only in files whose architecture is BitNet's. What the bytes hold is no business of the container.

use super::checked_bytes;
use crate::GgmlType;
use crate::error::{Error, Result};

/// Bytes after the codes that hold the scale and padding.
const TAIL: u64 = 32;

/// A tensor type of BitNet's fork (github.com/microsoft/BitNet). The discriminant is the id stored in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
#[repr(u32)]
pub enum BitNetType {
    /// Two bits a weight.
    I2_S = 36,
    /// Pairs of weights in four bits.
    TL1 = 38,
    /// Triples of weights in four bits and a sign, the last columns in pairs.
    TL2 = 39,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// In blocks of a ggml type.
    Ggml(GgmlType),
    /// In a layout of BitNet's fork, which has no rows.
    BitNet(BitNetType),
}

impl TensorType {
    /// The name that ggml or the fork uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ggml(ggml_type) => ggml_type.name(),
            Self::BitNet(BitNetType::I2_S) => "I2_S",
            Self::BitNet(BitNetType::TL1) => "TL1",
            Self::BitNet(BitNetType::TL2) => "TL2",
        }
    }

    /// The ggml type.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] for the types of the fork.
    pub fn ggml(self) -> Result<GgmlType> {
        match self {
            Self::Ggml(ggml_type) => Ok(ggml_type),
            Self::BitNet(_) => Err(Error::unsupported(format!("{} has no big-endian form", self.name()))),
        }
    }

    /// Bytes of a row of `columns` elements; none where there are no rows.
    ///
    /// # Errors
    /// See [`GgmlType::row_bytes`].
    pub fn row_bytes(self, columns: u64) -> Result<Option<u64>> {
        match self {
            Self::Ggml(ggml_type) => ggml_type.row_bytes(columns).map(Some),
            Self::BitNet(_) => Ok(None),
        }
    }
}

impl BitNetType {
    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        [Self::I2_S, Self::TL1, Self::TL2].into_iter().find(|t| *t as u32 == id)
    }

    /// Bytes of a tensor without the tail that holds its scale.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for what is no matrix, or has sizes that the type cannot store.
    fn codes(self, dims: &[u64]) -> Result<u64> {
        let bad = || Error::corrupt(format!("{} cannot store dimensions {dims:?}", TensorType::BitNet(self).name()));
        let (&[columns, rows] | &[columns, rows, 1] | &[columns, rows, 1, 1]) = dims else { return Err(bad()) };
        let elements = checked_bytes(&[columns, rows], 1, 8)?;
        match self {
            Self::I2_S | Self::TL1 if elements % 4 == 0 => Ok(elements / 4),
            // Five bits for a triple of all columns but 256, which are stored in pairs of four bits.
            Self::TL2 if columns >= 256 => {
                let triples = (elements - 256 * rows) / 3;
                let bits = triples.checked_mul(5).ok_or_else(bad)?;
                Ok(bits / 8 + 256 * rows / 2 * 4 / 8)
            }
            _ => Err(bad()),
        }
    }

    /// Bytes of a tensor in a file with `room` for it up to the next one: with the tail, which the quantizer of the
    /// fork writes, or without, as its converter writes the types for lookup kernels.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for sizes that the type cannot store.
    pub fn bytes(self, dims: &[u64], room: u64) -> Result<u64> {
        let codes = self.codes(dims)?;
        let whole = codes.checked_next_multiple_of(TAIL).and_then(|bytes| bytes.checked_add(TAIL));
        let whole = if self == Self::TL2 { whole } else { codes.checked_add(TAIL) };
        let whole = whole.ok_or_else(|| Error::limit(format!("{codes} bytes are too many for a tensor")))?;
        Ok(if self == Self::I2_S || room >= whole { whole } else { codes })
    }
}

/// Whether the fork's types count in files of this architecture (`bitnet`, `bitnet-25`, `bitnet-b1.58`).
pub(super) fn is_architecture(name: &str) -> bool {
    name.starts_with("bitnet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_fork() {
        assert_eq!(BitNetType::I2_S.bytes(&[640, 8], 0), Ok(1312));
        assert_eq!(BitNetType::TL1.bytes(&[128, 64], u64::MAX), Ok(2080));
        assert_eq!(BitNetType::TL1.bytes(&[128, 64], 2079), Ok(2048));
        assert_eq!(BitNetType::TL2.bytes(&[608, 64], 8789), Ok(8789));
        assert_eq!(BitNetType::TL2.bytes(&[608, 64], 8832), Ok(8800 + 32));
    }

    #[test]
    fn impossible_dimensions_are_refused() {
        for dims in [&[][..], &[4], &[3, 5], &[4, 4, 2], &[u64::MAX, u64::MAX], &[1 << 40, 1 << 40]] {
            for kind in [BitNetType::I2_S, BitNetType::TL1, BitNetType::TL2] {
                assert!(kind.bytes(dims, u64::MAX).is_err(), "{kind:?} {dims:?}");
            }
        }
        assert!(BitNetType::TL2.bytes(&[255, 32], u64::MAX).is_err());
    }
}
