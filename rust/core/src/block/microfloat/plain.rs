//! F32, F16, BF16, F64: one little-endian IEEE number per element. Decoding gives f32 (F64 is rounded once, to nearest
//! even), encoding converts from f32 (F16 and BF16 round to nearest even). Importance weights have no meaning here.

use crate::block::{BlockFormat, Rows};
use crate::float;
use crate::ggml::GgmlType;
use crate::kernels::generic::microfloat::{self, PlainBf16, PlainF16, PlainF32, PlainF64};
use crate::kernels::simd::Simd;

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $ty:ident, $bytes:literal, $decode:expr, $encode:expr, $plain:ty $(, $simd:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl BlockFormat for $name {
            const TYPE: GgmlType = GgmlType::$ty;

            fn decode(src: &[u8], dst: &mut [f32]) {
                let decode: fn([u8; $bytes]) -> f32 = $decode;
                let (src, _) = src.as_chunks::<$bytes>();
                for (b, y) in src.iter().zip(dst) {
                    *y = decode(*b);
                }
            }

            fn encode(rows: Rows<'_>, dst: &mut [u8]) {
                let encode: fn(f32) -> [u8; $bytes] = $encode;
                let (dst, _) = dst.as_chunks_mut::<$bytes>();
                for (x, b) in rows.x.iter().zip(dst) {
                    *b = encode(*x);
                }
            }

            #[inline(always)]
            unsafe fn decode_simd<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
                unsafe { microfloat::decode_plain::<S, $plain, STREAM>(src, dst) }
            }
            $(
                #[inline(always)]
                unsafe fn encode_simd<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
                    unsafe { microfloat::$simd::<S>(rows, dst) }
                }
            )?
        }
    };
}

plain!(
    /// IEEE binary32.
    F32, F32, 4, f32::from_le_bytes, f32::to_le_bytes, PlainF32
);
plain!(
    /// IEEE binary16.
    F16, F16, 2, |b| float::f16_to_f32(u16::from_le_bytes(b)), |x| float::f32_to_f16(x).to_le_bytes(), PlainF16, encode_f16
);
plain!(
    /// bfloat16.
    Bf16, BF16, 2, |b| float::bf16_to_f32(u16::from_le_bytes(b)), |x| float::f32_to_bf16(x).to_le_bytes(), PlainBf16, encode_bf16
);
plain!(
    /// IEEE binary64.
    F64, F64, 8, |b| f64::from_le_bytes(b) as f32, |x| f64::from(x).to_le_bytes(), PlainF64
);
