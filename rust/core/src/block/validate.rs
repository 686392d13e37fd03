//! Checks of encoded blocks (specification: GGUF, section 7, ggml's `validate_row_data`): every stored scale finite.

use crate::float::f16_to_f32;
use crate::ggml::GgmlType;

/// Byte offsets of the f16 fields of one block that must be finite (the sum of Q8_1 need not be).
fn f16_fields(ty: GgmlType) -> &'static [usize] {
    use GgmlType::*;
    match ty {
        Q4_0 | Q5_0 | Q8_0 | Q8_1 | IQ2_XXS | IQ2_XS | IQ3_XXS | IQ1_S | IQ4_NL | IQ3_S | IQ2_S | IQ4_XS | Q1_0
        | Q2_0 => &[0],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        TQ1_0 => &[52],
        TQ2_0 => &[64],
        _ => &[],
    }
}

/// The first block whose scale (or value, for float types) is not finite.
pub fn first_invalid_block(ty: GgmlType, blocks: &[u8]) -> Option<usize> {
    let f16_bad = |b: &[u8], at: usize| b[at + 1] & 0x7C == 0x7C;
    match ty {
        GgmlType::F32 => first_element(blocks, |b| u32::from_le_bytes(b) & 0x7F80_0000 == 0x7F80_0000),
        GgmlType::F64 => first_element(blocks, |b| u64::from_le_bytes(b) << 1 >= 0x7FF << 53),
        GgmlType::F16 => first_element(blocks, |b| u16::from_le_bytes(b) & 0x7C00 == 0x7C00),
        GgmlType::BF16 => first_element(blocks, |b| u16::from_le_bytes(b) & 0x7F80 == 0x7F80),
        _ => {
            let mut chunks = blocks.chunks_exact(ty.block_bytes());
            match ty {
                GgmlType::Q8_K => chunks.position(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
                GgmlType::MXFP4 => chunks.position(|b| b[0] == 255),
                GgmlType::IQ1_M => chunks.position(|b| !f16_to_f32(iq1_m_scale(b)).is_finite()),
                _ => {
                    let fields = f16_fields(ty);
                    chunks.position(|b| fields.iter().any(|at| f16_bad(b, *at)))
                }
            }
        }
    }
}

/// The first bad one of elements of `N` bytes, for types that store every element by itself. Looks at whole tiles before
/// it looks for the place, which the compiler turns into vector code.
fn first_element<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const TILE: usize = 512;
    let (elements, _) = bytes.as_chunks::<N>();
    let tile = elements.chunks(TILE).position(|t| t.iter().fold(false, |any, e| any | bad(*e)))?;
    let place = elements[tile * TILE..].iter().position(|e| bad(*e))?;
    Some(tile * TILE + place)
}

/// The f16 scale of an IQ1_M block, spread over the top nibbles of its four scale words.
pub(crate) fn iq1_m_scale(b: &[u8]) -> u16 {
    let sc = |i: usize| u16::from_le_bytes([b[48 + 2 * i], b[49 + 2 * i]]);
    sc(0) >> 12 | (sc(1) >> 8) & 0x00F0 | (sc(2) >> 4) & 0x0F00 | sc(3) & 0xF000
}
