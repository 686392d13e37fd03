//! Q3_K: 256 weights in 110 bytes (3.4375 bits per weight), 16 sub-blocks of 16 with a signed 6-bit scale.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `hmask[32]` | high bits of the codes: element 32·g + l at bit g of byte l |
//! | 32 | `qs[64]` | low 2 bits: element 128·n + 32·g + l at bits 2·g of byte 32·n + l |
//! | 96 | `scales[12]` | scale + 32 of sub-block s: low 4 bits in the nibble s/8 of byte s % 8, high 2 bits at bits 2·(s/4) of byte 8 + s % 4 |
//! | 108 | `d` | f16 scale of the scales |
//!
//! Decode: `y = (d·scale)·(q - 4)`. Encode: symmetric search per sub-block by coordinate descent; the scales are rounded
//! against the one with the largest magnitude / -32. With importance the weights are `importance·sqrt(σ² + x²)`,
//! σ² = twice the mean square, and both levels use the symmetric candidate search.

use super::{importance_weights, rounded, twice_mean_square};
use crate::block::search::{self, first_max};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q3_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q3K;

/// Packs the 6-bit codes of the scales.
fn pack_scales(codes: &[u8; 16]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => codes[i] & 15 | (codes[i + 8] & 15) << 4,
        _ => (0..4).fold(0, |byte, k| byte | codes[i - 8 + 4 * k] >> 4 << (2 * k)),
    })
}

/// The scale of sub-block `s`.
fn scale(b: &[u8], s: usize) -> i32 {
    let low = b[96 + s % 8] >> (s / 8 * 4) & 15;
    let high = b[104 + s % 4] >> (s / 4 * 2) & 3;
    i32::from(low | high << 4) - 32
}

/// Super-scale and codes (0..64) of the scales without importance.
fn round_scales(scales: &[f32; 16]) -> (f32, [u8; 16]) {
    let (_, max) = first_max(scales);
    if max == 0.0 {
        return (0.0, [0; 16]);
    }
    let isc = -32.0 / max;
    (1.0 / isc, scales.map(|s| (nint(isc * s).clamp(-32, 31) + 32) as u8))
}

fn encode_block(x: &[f32; 256], importance: Option<&[f32; 256]>, b: &mut [u8]) {
    let mut codes = [0u8; 256];
    let mut scales = [0f32; 16];
    let (d, rounded_scales) = match importance {
        None => {
            for ((s, x), l) in scales.iter_mut().zip(x.chunks_exact(16)).zip(codes.chunks_exact_mut(16)) {
                *s = search::q3(4, x, l);
            }
            round_scales(&scales)
        }
        Some(importance) => {
            let (w, sums) = importance_weights::<16>(x, importance, twice_mean_square(x));
            for (j, l) in codes.chunks_exact_mut(16).enumerate() {
                let at = 16 * j..16 * j + 16;
                scales[j] = search::qx(4, &x[at.clone()], Some(&w[at]), l);
            }
            let mut l = [0u8; 16];
            (search::qx(32, &scales, Some(&sums), &mut l), l)
        }
    };
    b[96..108].copy_from_slice(&pack_scales(&rounded_scales));
    put_f16(b, 108, d);
    let d = rounded(d);
    for j in 0..16 {
        let dl = d * scale(b, j) as f32;
        if dl != 0.0 {
            for i in 16 * j..16 * j + 16 {
                codes[i] = (nint(x[i] / dl).clamp(-4, 3) + 4) as u8;
            }
        }
    }
    for l in 0..32 {
        b[l] = (0..8).fold(0, |byte, g| byte | codes[32 * g + l] >> 2 << g);
    }
    for (half, qs) in codes.chunks_exact(128).zip(b[32..96].chunks_exact_mut(32)) {
        for (l, q) in qs.iter_mut().enumerate() {
            *q = (0..4).fold(0, |byte, g| byte | (half[32 * g + l] & 3) << (2 * g));
        }
    }
}

impl BlockFormat for Q3K {
    const TYPE: GgmlType = GgmlType::Q3_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(110).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 108);
            for (s, y) in y.chunks_exact_mut(16).enumerate() {
                let dl = d * scale(b, s) as f32;
                let l = s % 2 * 16;
                let (qs, shift) = (&b[32 + 32 * (s / 8) + l..], s % 8 / 2 * 2);
                for ((y, q), h) in y.iter_mut().zip(qs).zip(&b[l..]) {
                    let q = i32::from(q >> shift & 3) - if h >> (s / 2) & 1 == 1 { 0 } else { 4 };
                    *y = dl * q as f32;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, w), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(110)) {
            encode_block(x, w, b);
        }
    }
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q3_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode_signed::encode_q3_k::<S>(rows, dst) }
    }
}
