//! Packings of small unsigned codes into 32-bit words, as integer checkpoints use them.
//!
//! A row of codes becomes a row of little-endian words. The functions here are the definition; code `i` of `bits` bits
//! lies, in a row of `columns`:
//!
//! * [`Order::Stream`]: at bits `i * bits` and up of the row taken as one stream of bits, least significant bit first;
//!   codes may straddle words (GPTQ of 2, 3, 4, 8 bits; compressed-tensors since 0.18; MLX);
//! * [`Order::Aligned`]: in word `i / n` at bit `bits * (i % n)`, where `n = 32 / bits` rounded down; upper bits are zero
//!   (compressed-tensors before 0.18);
//! * [`Order::Planar`]: 32 codes become `bits` words: the planes of bits of widths that divide 32, low plane first, each
//!   plane in `Aligned` order (GPTQ `gptq_p`).

pub mod assemble;
pub mod groups;
pub mod layer;
pub mod layout;

use crate::kernels::kernels;
use crate::{Error, Result};

/// How codes lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One stream of bits.
    Stream,
    /// Whole codes per word.
    Aligned,
    /// Planes of bits of 32 codes.
    Planar,
}

impl Order {
    /// The order called `name`: `"stream"`, `"aligned"` or `"planar"`.
    pub fn from_name(name: &str) -> Option<Self> {
        [("stream", Order::Stream), ("aligned", Order::Aligned), ("planar", Order::Planar)]
            .into_iter()
            .find_map(|(known, order)| (known == name).then_some(order))
    }

    /// Words of a row of `columns` codes of `bits` bits.
    pub fn words(self, bits: usize, columns: usize) -> usize {
        match self {
            Order::Stream => (columns * bits).div_ceil(32),
            Order::Aligned => columns.div_ceil(32 / bits),
            Order::Planar => columns.div_ceil(32) * bits,
        }
    }
}

/// Widths of the planes of [`Order::Planar`], low plane first.
fn planes(bits: usize) -> &'static [usize] {
    match bits {
        1 => &[1],
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        7 => &[4, 2, 1],
        _ => &[8],
    }
}

/// Unpacks rows of `columns` codes of `bits` bits (1 to 8) into one byte each.
///
/// # Errors
///
/// [`crate::ErrorKind::Argument`]: `bits` is none of 1 to 8, or lengths do not fit.
pub fn unpack(order: Order, bits: usize, words: &[u8], columns: usize, codes: &mut [u8]) -> Result<()> {
    let row = check(order, bits, words.len(), columns, codes.len())?;
    for (words, codes) in words.chunks_exact(row).zip(codes.chunks_exact_mut(columns)) {
        match order {
            Order::Stream => (kernels().unpack_row)(bits, words, codes),
            _ => unpack_row(order, bits, words, codes),
        }
    }
    Ok(())
}

/// Packs rows of `columns` codes of `bits` bits (1 to 8); unused bits become zero.
///
/// # Errors
///
/// [`crate::ErrorKind::Argument`]: `bits` is none of 1 to 8, lengths do not fit, or a code has more bits.
pub fn pack(order: Order, bits: usize, codes: &[u8], columns: usize, words: &mut [u8]) -> Result<()> {
    let row = check(order, bits, words.len(), columns, codes.len())?;
    let every = codes.iter().fold(0, |every, code| every | code);
    if usize::from(every) >> bits != 0 {
        let at = codes.iter().position(|code| usize::from(*code) >> bits != 0).expect("some code has more bits");
        let mut error = Error::argument(format!("code {} does not fit in {bits} bits", codes[at]));
        error.element = Some((at / columns, at % columns));
        return Err(error);
    }
    words.fill(0);
    for (words, codes) in words.chunks_exact_mut(row).zip(codes.chunks_exact(columns)) {
        pack_row(order, bits, codes, words);
    }
    Ok(())
}

/// Bytes of a row of words.
fn check(order: Order, bits: usize, words: usize, columns: usize, codes: usize) -> Result<usize> {
    if !(1..=8).contains(&bits) {
        return Err(Error::argument(format!("codes of {bits} bits: expected 1 to 8")));
    }
    if columns == 0 || !codes.is_multiple_of(columns) {
        return Err(Error::argument(format!("{codes} codes are no whole number of rows of {columns}")));
    }
    let row = order.words(bits, columns) * 4;
    if words != codes / columns * row {
        return Err(Error::argument(format!(
            "{words} bytes of words: expected {row} for each of {} rows of {columns} codes of {bits} bits",
            codes / columns
        )));
    }
    Ok(row)
}

/// Unpacks the codes of a row: the definition.
pub fn unpack_row(order: Order, bits: usize, words: &[u8], codes: &mut [u8]) {
    let mask = ((1u32 << bits) - 1) as u8;
    match order {
        Order::Stream => {
            for (i, code) in codes.iter_mut().enumerate() {
                let (byte, shift) = (i * bits / 8, i * bits % 8);
                let high = words.get(byte + 1).map_or(0, |b| u16::from(*b) << 8);
                *code = ((u16::from(words[byte]) | high) >> shift) as u8 & mask;
            }
        }
        Order::Aligned => {
            for (group, word) in codes.chunks_mut(32 / bits).zip(words.as_chunks::<4>().0) {
                let word = u32::from_le_bytes(*word);
                for (i, code) in group.iter_mut().enumerate() {
                    *code = (word >> (bits * i)) as u8 & mask;
                }
            }
        }
        Order::Planar => {
            for (group, words) in codes.chunks_mut(32).zip(words.chunks_exact(4 * bits)) {
                group.fill(0);
                let mut from = 0;
                for &width in planes(bits) {
                    let mut plane = [0; 32];
                    unpack_row(Order::Aligned, width, &words[4 * from..4 * (from + width)], &mut plane);
                    for (code, part) in group.iter_mut().zip(plane) {
                        *code |= part << from;
                    }
                    from += width;
                }
            }
        }
    }
}

/// Eight codes, one in each byte, as a stream of bits: neighbours are joined, then pairs, then fours.
fn fold(codes: u64, bits: usize) -> u64 {
    const BYTES: u64 = 0x00FF_00FF_00FF_00FF;
    const PAIRS: u64 = 0x0000_FFFF_0000_FFFF;
    let pairs = codes & BYTES | (codes >> 8 & BYTES) << bits;
    let fours = pairs & PAIRS | (pairs >> 16 & PAIRS) << (2 * bits);
    fours & 0xFFFF_FFFF | (fours >> 32) << (4 * bits)
}

fn pack_row(order: Order, bits: usize, codes: &[u8], words: &mut [u8]) {
    match order {
        Order::Stream => {
            let (eights, rest) = codes.as_chunks::<8>();
            for (eight, to) in eights.iter().zip(words.chunks_exact_mut(bits)) {
                to.copy_from_slice(&fold(u64::from_le_bytes(*eight), bits).to_le_bytes()[..bits]);
            }
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            let tail = fold(u64::from_le_bytes(last), bits).to_le_bytes();
            let bytes = (rest.len() * bits).div_ceil(8);
            words[eights.len() * bits..][..bytes].copy_from_slice(&tail[..bytes]);
        }
        Order::Aligned => {
            for (group, word) in codes.chunks(32 / bits).zip(words.as_chunks_mut::<4>().0) {
                let fields = group.iter().enumerate().fold(0, |word, (i, code)| word | u32::from(*code) << (bits * i));
                *word = fields.to_le_bytes();
            }
        }
        Order::Planar => {
            for (group, words) in codes.chunks(32).zip(words.chunks_exact_mut(4 * bits)) {
                let mut from = 0;
                for &width in planes(bits) {
                    let mut plane = [0; 32];
                    for (part, code) in plane.iter_mut().zip(group) {
                        *part = code >> from & ((1u32 << width) - 1) as u8;
                    }
                    pack_row(Order::Aligned, width, &plane, &mut words[4 * from..4 * (from + width)]);
                    from += width;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_return() {
        for order in [Order::Stream, Order::Aligned, Order::Planar] {
            for bits in 1..=8 {
                for columns in [1, 31, 32, 53, 160] {
                    let mut state = 7u32;
                    let codes: Vec<u8> = std::iter::repeat_with(|| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 24) as u8 >> (8 - bits)
                    })
                    .take(3 * columns)
                    .collect();
                    let mut words = vec![0xff; 3 * order.words(bits, columns) * 4];
                    pack(order, bits, &codes, columns, &mut words).unwrap();
                    let mut back = vec![0; codes.len()];
                    unpack(order, bits, &words, columns, &mut back).unwrap();
                    assert_eq!(codes, back, "{order:?}, {bits} bits, {columns} columns");
                }
            }
        }
    }

    #[test]
    fn three_bits_straddle_words() {
        let codes: Vec<u8> = (0..32).map(|i| i % 8).collect();
        let mut words = [0; 12];
        pack(Order::Stream, 3, &codes, 32, &mut words).unwrap();
        // value 10 (= 2): low two bits at bits 30 and 31 of word 0, high bit at bit 0 of word 1
        assert_eq!(u32::from_le_bytes(words[..4].try_into().unwrap()) >> 30, 2);
        assert_eq!(words[4] & 1, 0);
        assert_eq!(words[4] >> 1 & 7, 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(pack(Order::Stream, 3, &[8], 1, &mut [0; 4]).is_err());
        assert!(unpack(Order::Stream, 9, &[0; 4], 1, &mut [0]).is_err());
        assert!(unpack(Order::Stream, 4, &[0; 4], 16, &mut [0; 16]).is_err());
        assert!(unpack(Order::Stream, 4, &[0; 4], 0, &mut [0; 16]).is_err());
    }
}
