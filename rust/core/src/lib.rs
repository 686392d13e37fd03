//! Codecs, kernels and container headers of subbyte.
//!
//! Everything here works on byte slices: no Python, no files. The parts:
//!
//! * [`block`]: the block formats (ggml tensor types), one file per type, and the row drivers that apply them;
//! * [`kernels`]: SIMD levels, the small vector trait, and the table of kernels of each level;
//! * [`pack`]: codes of integer checkpoints in 32-bit words;
//! * [`container`]: hardened parsers and writers of safetensors and GGUF headers;
//! * [`float`]: the scalar conversions (f16, bf16, E8M0, UE4M3) everything else is defined by;
//! * [`error`] and [`limits`]: what can go wrong, and every ceiling in one place.

pub mod block;
pub mod container;
pub mod error;
pub mod float;
pub mod ggml;
pub mod kernels;
pub mod limits;
pub mod pack;
pub mod parallel;

pub use error::{Error, ErrorKind, Result};
pub use ggml::GgmlType;
