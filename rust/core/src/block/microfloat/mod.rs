//! Floats, plain and with block scales: F32, F16, BF16, F64, MXFP4, NVFP4.

pub(crate) mod mxfp4;
pub(crate) mod nvfp4;
mod plain;

pub use mxfp4::Mxfp4;
pub use nvfp4::Nvfp4;
pub use plain::{Bf16, F16, F32, F64};

use crate::float::KV4;

/// The E2M1 code (of the doubled table [`KV4`]) nearest to `x` at scale `d`: the first of the smallest errors, so a zero
/// is always code 0.
fn nearest_e2m1(x: f32, d: f32) -> u8 {
    let error = |code: usize| (f32::from(KV4[code]) * d - x).abs();
    let (mut best, mut least) = (0, error(0));
    for code in 1..16 {
        let e = error(code);
        if e < least {
            (best, least) = (code, e);
        }
    }
    best as u8
}
