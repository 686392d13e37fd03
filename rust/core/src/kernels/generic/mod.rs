//! The vector algorithms, once each, over [`super::simd::Simd`]. One file per family, named as in [`crate::block`].
//!
//! # Safety
//! As for [`super::simd`]; lengths are checked before a kernel is called.

#![allow(clippy::missing_safety_doc)]

pub mod convert;
pub mod groups;
pub mod iq1_decode;
pub mod iq1_encode;
pub mod iq1_search;
pub mod iq23_decode;
pub mod iq23_encode;
pub mod iq4;
pub mod kquant_decode;
pub mod kquant_encode;
pub mod kquant_encode_signed;
pub mod legacy;
pub mod microfloat;
pub mod packed;
pub mod search;
pub mod ternary;

/// Orders streaming stores before whatever follows.
#[inline(always)]
#[allow(dead_code)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the x86-64 baseline.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}
