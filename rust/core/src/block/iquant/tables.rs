//! Codebook grids of the IQ formats: which combinations of levels a code may name.
//!
//! The grids are data of ggml (MIT licence, see NOTICE), embedded in packed form from `grids.bin`: per row one
//! little-endian u16 with one field per element, the first element in the low bits; 2 bits for the grids of 8 elements,
//! 3 bits for those of 4. The order is IQ2_XXS, IQ2_XS, IQ2_S, IQ1 (IQ1_S and IQ1_M), IQ3_XXS, IQ3_S. Tables of values
//! are derived from these at compile time.

const PACKED: &[u8; 9216] = include_bytes!("grids.bin");

/// `N` packed rows from row `first` of the file on.
const fn packed<const N: usize>(first: usize) -> [u16; N] {
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {
        let at = 2 * (first + i);
        rows[i] = u16::from_le_bytes([PACKED[at], PACKED[at + 1]]);
        i += 1;
    }
    rows
}

/// Packed rows of IQ2_XXS (8 elements, 2 bits each, levels 0..=2).
pub static IQ2XXS: [u16; 256] = packed(0);
/// Packed rows of IQ2_XS (8 elements, 2 bits each, levels 0..=2).
pub static IQ2XS: [u16; 512] = packed(256);
/// Packed rows of IQ2_S (8 elements, 2 bits each, levels 0..=2).
pub static IQ2S: [u16; 1024] = packed(768);
/// Packed rows of IQ1_S and IQ1_M (8 elements, 2 bits each, levels 0..=2 for -1, 0, 1).
pub static IQ1: [u16; 2048] = packed(1792);
/// Packed rows of IQ3_XXS (4 elements, 3 bits each, levels 0..=7).
pub static IQ3XXS: [u16; 256] = packed(3840);
/// Packed rows of IQ3_S (4 elements, 3 bits each, levels 0..=7).
pub static IQ3S: [u16; 512] = packed(4096);

/// Values of the levels of IQ2_XXS, IQ2_XS and IQ2_S.
pub const VALUES_IQ2: [u8; 4] = [8, 25, 43, 0];
/// Values of the levels of IQ3_XXS.
pub const VALUES_IQ3XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// Values of the levels of IQ3_S.
pub const VALUES_IQ3S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Rows of 8 elements as bytes, the first in the lowest byte.
const fn rows8<const N: usize>(packed: &[u16; N], values: [u8; 4]) -> [u64; N] {
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 8 {
            rows[i] |= (values[(packed[i] >> (2 * j)) as usize & 3] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    rows
}

/// Rows of 4 elements as bytes, the first in the lowest byte.
const fn rows4<const N: usize>(packed: &[u16; N], values: [u8; 8]) -> [u32; N] {
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 4 {
            rows[i] |= (values[(packed[i] >> (3 * j)) as usize & 7] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    rows
}

/// Values of the rows of [`IQ2XXS`].
pub static IQ2XXS_ROWS: [u64; 256] = rows8(&IQ2XXS, VALUES_IQ2);
/// Values of the rows of [`IQ2XS`].
pub static IQ2XS_ROWS: [u64; 512] = rows8(&IQ2XS, VALUES_IQ2);
/// Values of the rows of [`IQ2S`].
pub static IQ2S_ROWS: [u64; 1024] = rows8(&IQ2S, VALUES_IQ2);
/// Values of the rows of [`IQ1`]: bytes are two's complement.
pub static IQ1_ROWS: [u64; 2048] = rows8(&IQ1, [0xFF, 0, 1, 0]);
/// Values of the rows of [`IQ3XXS`].
pub static IQ3XXS_ROWS: [u32; 256] = rows4(&IQ3XXS, VALUES_IQ3XXS);
/// Values of the rows of [`IQ3S`].
pub static IQ3S_ROWS: [u32; 512] = rows4(&IQ3S, VALUES_IQ3S);

/// The eight sign bits of a 7-bit sign code: the eighth makes the number of set bits even.
#[inline(always)]
pub const fn even_signs(code: u8) -> u8 {
    code | ((code.count_ones() as u8 & 1) << 7)
}
