//! Vector kernels of the legacy block formats.

mod decode;
mod encode;
mod weighted;

pub use decode::*;
pub use weighted::{encode_affine, encode_symmetric};
