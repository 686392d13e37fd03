//! Encoders that handle 16 consecutive blocks at a time: scales of 16 blocks in the lanes of a vector, codes block by
//! block.

use crate::block::{BlockFormat, Rows};
use crate::kernels::simd::{LANES, Simd};

/// A format with an encoder for 16 consecutive blocks.
pub trait Encode16: BlockFormat {
    /// Encodes 16 blocks of `x` into `dst`.
    unsafe fn encode16<S: Simd>(x: *const f32, dst: *mut u8);
}

/// Encodes rows whose blocks are independent of each other. The last group overlaps the one before (and writes the same
/// bytes again); fewer than 16 blocks are left to the scalar code.
#[inline(always)]
pub unsafe fn encode<S: Simd, B: Encode16>(rows: Rows<'_>, dst: &mut [u8]) {
    let blocks = rows.x.len() / B::TYPE.block();
    let Some(last) = blocks.checked_sub(LANES) else {
        return B::encode(rows, dst);
    };
    for group in 0..blocks.div_ceil(LANES) {
        let first = (group * LANES).min(last);
        unsafe {
            B::encode16::<S>(
                rows.x.as_ptr().add(first * B::TYPE.block()),
                dst.as_mut_ptr().add(first * B::TYPE.block_bytes()),
            )
        }
    }
}

/// The largest magnitude of each of 16 consecutive blocks of `N` (a multiple of 16) elements, none of them NaN.
#[inline(always)]
pub unsafe fn abs_max<S: Simd, const N: usize>(x: *const f32) -> S::F {
    unsafe {
        let mut part = [S::splat(0.0); LANES];
        for (block, part) in part.iter_mut().enumerate() {
            let x = x.add(block * N);
            for at in (0..N).step_by(LANES) {
                *part = S::max(S::abs(S::load(x.add(at))), *part);
            }
        }
        S::across_max(part)
    }
}

/// The smallest and the largest element of each of 16 consecutive blocks of 32, none of them NaN; the sign of a zero is
/// not specified.
#[inline(always)]
pub unsafe fn min_max<S: Simd>(x: *const f32) -> (S::F, S::F) {
    unsafe {
        let mut low = [S::splat(0.0); LANES];
        let mut high = low;
        for block in 0..LANES {
            let (a, b) = (S::load(x.add(32 * block)), S::load(x.add(32 * block + 16)));
            low[block] = S::neg(S::min(a, b));
            high[block] = S::max(a, b);
        }
        (S::neg(S::across_max(low)), S::across_max(high))
    }
}

/// 1/d, 0 where `d` is 0.
#[inline(always)]
pub unsafe fn inverse<S: Simd>(d: S::F) -> S::F {
    unsafe {
        let zero = S::splat(0.0);
        S::select(S::eq(d, zero), zero, S::div(S::splat(1.0), d))
    }
}

/// The lanes.
#[inline(always)]
pub unsafe fn lanes<S: Simd>(v: S::F) -> [f32; LANES] {
    let mut out = [0f32; LANES];
    unsafe { S::store(out.as_mut_ptr(), v) };
    out
}

/// The lanes as f16 bits.
#[inline(always)]
pub unsafe fn f16_lanes<S: Simd>(v: S::F) -> [u16; LANES] {
    let mut out = [0u16; LANES];
    unsafe { S::store_f16(out.as_mut_ptr(), v) };
    out
}
