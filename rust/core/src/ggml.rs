//! The ggml tensor types: ids, names, block sizes (specification: GGUF, section 2).

use crate::error::{Error, Result};

/// Whether an encoder takes importance weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Weights are accepted and have no effect, as in ggml.
    Ignored,
    /// Weights are used when given.
    Optional,
    /// The encoder refuses to run without weights.
    Required,
}

macro_rules! types {
    ($($id:literal $variant:ident $name:literal $block:literal $bytes:literal $importance:ident $doc:literal;)*) => {
        /// A ggml tensor type. The discriminant is the id stored in GGUF files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)]
        #[repr(u32)]
        pub enum GgmlType { $(#[doc = $doc] $variant = $id,)* }

        impl GgmlType {
            /// Every type, by id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant,)*];
            /// The upper-case name ggml uses (`Q4_K`).
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name,)* }
            }
            /// Elements in one block.
            pub const fn block(self) -> usize {
                match self { $(GgmlType::$variant => $block,)* }
            }
            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$variant => $bytes,)* }
            }
            /// What the encoder does with importance weights.
            pub const fn importance(self) -> Importance {
                match self { $(GgmlType::$variant => Importance::$importance,)* }
            }
        }
    };
}

types! {
    0 F32 "F32" 1 4 Ignored "IEEE binary32";
    1 F16 "F16" 1 2 Ignored "IEEE binary16";
    2 Q4_0 "Q4_0" 32 18 Optional "4 bit, f16 scale per 32";
    3 Q4_1 "Q4_1" 32 20 Optional "4 bit, f16 scale and minimum per 32";
    6 Q5_0 "Q5_0" 32 22 Optional "5 bit, f16 scale per 32";
    7 Q5_1 "Q5_1" 32 24 Optional "5 bit, f16 scale and minimum per 32";
    8 Q8_0 "Q8_0" 32 34 Ignored "8 bit, f16 scale per 32";
    9 Q8_1 "Q8_1" 32 36 Ignored "8 bit activations, f16 scale and sum per 32";
    10 Q2_K "Q2_K" 256 84 Optional "2 bit, 4-bit scales and minima per 16 in 256";
    11 Q3_K "Q3_K" 256 110 Optional "3 bit, 6-bit scales per 16 in 256";
    12 Q4_K "Q4_K" 256 144 Optional "4 bit, 6-bit scales and minima per 32 in 256";
    13 Q5_K "Q5_K" 256 176 Optional "5 bit, 6-bit scales and minima per 32 in 256";
    14 Q6_K "Q6_K" 256 210 Optional "6 bit, 8-bit scales per 16 in 256";
    15 Q8_K "Q8_K" 256 292 Ignored "8 bit activations, f32 scale and sums per 256";
    16 IQ2_XXS "IQ2_XXS" 256 66 Required "2.06 bit codebook of 256 rows of 8";
    17 IQ2_XS "IQ2_XS" 256 74 Required "2.31 bit codebook of 512 rows of 8";
    18 IQ3_XXS "IQ3_XXS" 256 98 Optional "3.06 bit codebook of 256 rows of 4";
    19 IQ1_S "IQ1_S" 256 50 Required "1.56 bit ternary codebook of 2048 rows of 8";
    20 IQ4_NL "IQ4_NL" 32 18 Optional "4 bit non-linear levels, f16 scale per 32";
    21 IQ3_S "IQ3_S" 256 110 Optional "3.44 bit codebook of 512 rows of 4";
    22 IQ2_S "IQ2_S" 256 82 Optional "2.56 bit codebook of 1024 rows of 8";
    23 IQ4_XS "IQ4_XS" 256 136 Optional "4 bit non-linear levels, 6-bit scales per 32 in 256";
    24 I8 "I8" 1 1 Ignored "8-bit integer";
    25 I16 "I16" 1 2 Ignored "16-bit integer";
    26 I32 "I32" 1 4 Ignored "32-bit integer";
    27 I64 "I64" 1 8 Ignored "64-bit integer";
    28 F64 "F64" 1 8 Ignored "IEEE binary64";
    29 IQ1_M "IQ1_M" 256 56 Optional "1.75 bit ternary codebook, 3-bit scales per 16 in 256";
    30 BF16 "BF16" 1 2 Ignored "bfloat16";
    34 TQ1_0 "TQ1_0" 256 54 Ignored "ternary, five trits per byte, f16 scale per 256";
    35 TQ2_0 "TQ2_0" 256 66 Ignored "ternary, two bits each, f16 scale per 256";
    39 MXFP4 "MXFP4" 32 17 Ignored "E2M1 with E8M0 scale per 32";
    40 NVFP4 "NVFP4" 64 36 Ignored "E2M1 with UE4M3 scale per 16";
    41 Q1_0 "Q1_0" 128 18 Ignored "sign bit, f16 scale per 128";
    42 Q2_0 "Q2_0" 64 18 Ignored "2 bit (-1, 0, 1, 2), f16 scale per 64";
}

impl GgmlType {
    /// The type with this id, if ggml (still) has one.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| *t as u32 == id)
    }

    /// The type with this name, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `columns` elements; an error if the row is not a whole number of blocks.
    pub fn row_bytes(self, columns: u64) -> Result<u64> {
        let block = self.block() as u64;
        if columns % block != 0 {
            return Err(Error::argument(format!(
                "{} stores rows in blocks of {block} elements; a row of {columns} is not a multiple of {block}",
                self.name()
            )));
        }
        (columns / block)
            .checked_mul(self.block_bytes() as u64)
            .ok_or_else(|| Error::limit(format!("a row of {columns} elements is too long")))
    }

    /// Position in [`GgmlType::ALL`].
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|t| *t == self).expect("every type is in ALL")
    }

    /// Whether values can be decoded to floats (all weight and float types; not integers, not Q8_1).
    pub fn decodes(self) -> bool {
        self.encodes() && self != Self::Q8_1
    }

    /// Whether floats can be encoded (every type but the integers).
    pub fn encodes(self) -> bool {
        !matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }
}
