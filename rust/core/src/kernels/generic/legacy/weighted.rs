//! Encoders with importance weights: the searches of [`search`] with a block of 32 elements per lane.

use crate::block::Rows;
use crate::block::search::Sweep;
use crate::kernels::generic::groups::f16_lanes;
use crate::kernels::generic::search::{self, Batch, load_lanes};
use crate::kernels::simd::{LANES, Simd};

/// Mean square of each row, summed in order: 16 rows side by side.
#[inline(always)]
unsafe fn mean_squares<S: Simd>(rows: Rows<'_>) -> Vec<f32> {
    let n = rows.n_per_row;
    let count = rows.x.len() / n;
    let mut out = vec![0f32; count.next_multiple_of(LANES)];
    for first in (0..count).step_by(LANES) {
        let batch = Batch::new(&Rows { importance: None, ..rows }, n, first);
        unsafe {
            let mut sum = S::splat(0.0);
            for at in (0..n).step_by(LANES) {
                for x in load_lanes::<S, LANES>(&batch.x, at) {
                    sum = S::add(sum, S::mul(x, x));
                }
            }
            S::store(out.as_mut_ptr().add(first), S::div(sum, S::splat(n as f32)));
        }
    }
    out
}

/// Values and weights of a batch of blocks.
#[inline(always)]
unsafe fn load<S: Simd>(batch: &Batch, sigma2: &[f32], first: usize, per_row: usize) -> ([S::F; 32], [S::F; 32]) {
    let mut sigma2_lanes = [0f32; LANES];
    for (lane, s) in sigma2_lanes.iter_mut().enumerate() {
        *s = sigma2[(first + lane.min(batch.count - 1)) / per_row];
    }
    unsafe {
        let x = load_lanes::<S, 32>(&batch.x, 0);
        let mut w = x;
        if let Some(importance) = &batch.importance {
            let importance = load_lanes::<S, 32>(importance, 0);
            w = search::weights::<S, 32>(&importance, S::load(sigma2_lanes.as_ptr()), &x);
        }
        (x, w)
    }
}

/// Bits 0..4 of the codes as bytes of 16 blocks, and bit 4 of all 32 codes as a word.
#[inline(always)]
unsafe fn pack<S: Simd>(q: &[S::I; 32]) -> ([[i32; LANES]; 4], [i32; LANES]) {
    let mut nibbles = [[0i32; LANES]; 4];
    let mut high = [0i32; LANES];
    unsafe {
        let four = S::isplat(15);
        for (k, word) in nibbles.iter_mut().enumerate() {
            let mut w = S::isplat(0);
            for byte in (0..4).rev() {
                let (a, b) = (q[4 * k + byte], q[4 * k + byte + 16]);
                let b = S::ishl::<4>(S::iand(b, four));
                w = S::ior(S::ishl::<8>(w), S::ior(S::iand(a, four), b));
            }
            S::istore(word.as_mut_ptr(), w);
        }
        let mut h = S::isplat(0);
        for q in q.iter().rev() {
            h = S::ior(S::iadd(h, h), S::ishr::<4>(*q));
        }
        S::istore(high.as_mut_ptr(), h);
    }
    (nibbles, high)
}

/// Writes the blocks of a batch: head, fifth bits if `FIVE`, nibbles.
#[inline(always)]
unsafe fn write<S: Simd, const FIVE: bool>(
    dst: *mut u8,
    count: usize,
    d: [u16; LANES],
    m: Option<[u16; LANES]>,
    q: &[S::I; 32],
) {
    unsafe {
        let (nibbles, high) = pack::<S>(q);
        let mut p = dst;
        for lane in 0..count {
            p.cast::<u16>().write_unaligned(d[lane]);
            p = p.add(2);
            if let Some(m) = &m {
                p.cast::<u16>().write_unaligned(m[lane]);
                p = p.add(2);
            }
            if FIVE {
                p.cast::<i32>().write_unaligned(high[lane]);
                p = p.add(4);
            }
            for (k, word) in nibbles.iter().enumerate() {
                p.add(4 * k).cast::<i32>().write_unaligned(word[lane]);
            }
            p = p.add(16);
        }
    }
}

/// Q4_0 (`N` = 8) and Q5_0 (16) with importance weights.
#[inline(always)]
pub unsafe fn encode_symmetric<S: Simd, const N: i32, const FIVE: bool>(rows: Rows<'_>, dst: &mut [u8]) {
    let block_bytes = if FIVE { 22 } else { 18 };
    unsafe {
        let sigma2 = mean_squares::<S>(rows);
        for first in (0..rows.x.len() / 32).step_by(LANES) {
            let batch = Batch::new(&rows, 32, first);
            let (x, w) = load::<S>(&batch, &sigma2, first, rows.n_per_row / 32);
            let found = search::qx::<S, 32>(N, &x, &w);
            let mut q = [S::isplat(0); 32];
            for (q, x) in q.iter_mut().zip(x) {
                *q = found.code::<S>(N, x);
            }
            let p = dst.as_mut_ptr().add(first * block_bytes);
            write::<S, FIVE>(p, batch.count, f16_lanes::<S>(found.scale), None, &q);
        }
    }
}

/// Q4_1 (`TOP` = 15) and Q5_1 (31) with importance weights.
#[inline(always)]
pub unsafe fn encode_affine<S: Simd, const TOP: i32, const FIVE: bool>(rows: Rows<'_>, dst: &mut [u8]) {
    let block_bytes = if FIVE { 24 } else { 20 };
    unsafe {
        let sigma2 = mean_squares::<S>(rows);
        for first in (0..rows.x.len() / 32).step_by(LANES) {
            let batch = Batch::new(&rows, 32, first);
            let (x, w) = load::<S>(&batch, &sigma2, first, rows.n_per_row / 32);
            let found = search::qk::<S, 32>(TOP, &x, &w, &Sweep::IMPORTANCE);
            let mut q = [S::isplat(0); 32];
            for (q, x) in q.iter_mut().zip(x) {
                *q = search::affine_code::<S>(TOP, found.isc, found.min, x);
            }
            // A lane without a range has codes 0, whatever its elements.
            let m = f16_lanes::<S>(S::neg(found.themin));
            let p = dst.as_mut_ptr().add(first * block_bytes);
            write::<S, FIVE>(p, batch.count, f16_lanes::<S>(found.scale), Some(m), &q);
        }
    }
}
