//! Q6_K: 256 weights in 210 bytes (6.5625 bits per weight), 16 sub-blocks of 16 with an 8-bit scale.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `ql[128]` | low 4 bits: element 128·n + 32·g + l in byte 64·n + 32·(g % 2) + l, low nibble for g < 2, high nibble for g ≥ 2 |
//! | 128 | `qh[64]` | high 2 bits: element 128·n + 32·g + l at bits 2·g of byte 32·n + l |
//! | 192 | `scales[16]` | i8 scales of the sub-blocks |
//! | 208 | `d` | f16 scale of the scales |
//!
//! Decode: `y = (d·scale)·(q - 32)`. Encode: symmetric search per sub-block, weights x² or the importance itself; the
//! scales are rounded against the one with the largest magnitude / -128. A block whose scales all vanish is zero bytes.

use super::rounded;
use crate::block::search::{self, EPS, first_max};
use crate::block::{BlockFormat, Rows, f16_at, put_f16};
use crate::float::nint;
use crate::ggml::GgmlType;
use crate::kernels::{generic, simd::Simd};

/// The Q6_K format.
#[derive(Clone, Copy, Debug)]
pub struct Q6K;

fn encode_block(x: &[f32; 256], importance: Option<&[f32; 256]>, b: &mut [u8]) {
    let mut codes = [0u8; 256];
    let mut scales = [0f32; 16];
    for (j, l) in codes.chunks_exact_mut(16).enumerate() {
        let at = 16 * j..16 * j + 16;
        scales[j] = search::qx(32, &x[at.clone()], importance.map(|w| &w[at]), l);
    }
    let (amax, max) = first_max(&scales);
    if amax < EPS {
        b.fill(0);
        return;
    }
    let isc = -128.0 / max;
    let d = 1.0 / isc;
    put_f16(b, 208, d);
    let d = rounded(d);
    for j in 0..16 {
        let scale = nint(isc * scales[j]).min(127) as i8;
        b[192 + j] = scale as u8;
        let dl = d * f32::from(scale);
        if dl != 0.0 {
            for i in 16 * j..16 * j + 16 {
                codes[i] = (nint(x[i] / dl).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for n in 0..2 {
        for l in 0..32 {
            let [q1, q2, q3, q4] = std::array::from_fn(|g| codes[128 * n + 32 * g + l]);
            b[64 * n + l] = q1 & 15 | q3 << 4;
            b[64 * n + 32 + l] = q2 & 15 | q4 << 4;
            b[128 + 32 * n + l] = q1 >> 4 | q2 >> 4 << 2 | q3 >> 4 << 4 | q4 >> 4 << 6;
        }
    }
}

impl BlockFormat for Q6K {
    const TYPE: GgmlType = GgmlType::Q6_K;

    fn decode(src: &[u8], dst: &mut [f32]) {
        for (b, y) in src.chunks_exact(210).zip(dst.chunks_exact_mut(256)) {
            let d = f16_at(b, 208);
            for (s, y) in y.chunks_exact_mut(16).enumerate() {
                let dl = d * f32::from(b[192 + s] as i8);
                let (n, g, l) = (s / 8, s % 8 / 2, s % 2 * 16);
                let (ql, qh) = (&b[64 * n + 32 * (g % 2) + l..], &b[128 + 32 * n + l..]);
                for ((y, q), h) in y.iter_mut().zip(ql).zip(qh) {
                    let q = q >> (g / 2 * 4) & 15 | (h >> (2 * g) & 3) << 4;
                    *y = dl * (i32::from(q) - 32) as f32;
                }
            }
        }
    }

    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
        for ((x, w), b) in rows.blocks::<256>().zip(dst.chunks_exact_mut(210)) {
            encode_block(x, w, b);
        }
    }
    #[inline(always)]
    unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
        unsafe { generic::kquant_decode::decode_q6_k::<S, STREAM>(src, dst) }
    }

    #[inline(always)]
    unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
        unsafe { generic::kquant_encode_signed::encode_q6_k::<S>(rows, dst) }
    }
}
