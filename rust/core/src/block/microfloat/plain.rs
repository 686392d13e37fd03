//! F32, F16, BF16, F64: one little-endian IEEE number per element. Decoding gives f32 (F64 is rounded once, to nearest
//! even), encoding converts from f32 (F16 and BF16 round to nearest even). Importance weights have no meaning here.

use crate::block::{BlockFormat, Rows};
use crate::float;
use crate::ggml::GgmlType;

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $ty:ident, $bytes:literal, $decode:expr, $encode:expr) => {
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
        }
    };
}

plain!(
    /// IEEE binary32.
    F32, F32, 4, f32::from_le_bytes, f32::to_le_bytes
);
plain!(
    /// IEEE binary16.
    F16, F16, 2, |b| float::f16_to_f32(u16::from_le_bytes(b)), |x| float::f32_to_f16(x).to_le_bytes()
);
plain!(
    /// bfloat16.
    Bf16, BF16, 2, |b| float::bf16_to_f32(u16::from_le_bytes(b)), |x| float::f32_to_bf16(x).to_le_bytes()
);
plain!(
    /// IEEE binary64.
    F64, F64, 8, |b| f64::from_le_bytes(b) as f32, |x| f64::from(x).to_le_bytes()
);
