//! Vector encoders of the K-quants without minimum, Q3_K, Q6_K and Q8_K; in the steps of [`super::kquant_encode`].

use crate::block::Rows;
use crate::block::search::EPS;
use crate::kernels::generic::kquant_encode::{Block, Requantize, column, load_block, round_f16, sigma2};
use crate::kernels::generic::search::{self, Batch, load_lanes};
use crate::kernels::simd::{LANES, Simd};

/// Rounds signed scales against the one with the largest magnitude, which becomes `-top`:
/// (largest magnitude, super-scale, signed codes).
#[inline(always)]
unsafe fn round_signed<S: Simd>(scales: &[S::F; 16], top: i32) -> (S::F, S::F, [S::I; 16]) {
    unsafe {
        let (amax, max) = search::first_max::<S, 16>(scales);
        let isc = S::div(S::splat(-(top as f32)), max);
        let mut codes = [S::isplat(0); 16];
        for (c, s) in codes.iter_mut().zip(scales) {
            *c = S::nint(S::mul(isc, *s));
        }
        (amax, S::div(S::splat(1.0), isc), codes)
    }
}

/// The scales of Q3_K: super-scale and codes in 0..64; and the codes of the searches.
#[inline(always)]
unsafe fn search_q3_k<S: Simd>(
    batch: &Batch,
    x: &Block<S::F, 16, 16>,
    codes: &mut [[u8; LANES]; 256],
) -> (S::F, [S::I; 16]) {
    unsafe {
        let zero = S::splat(0.0);
        let mut scales = [zero; 16];
        let mut rounded = [S::isplat(0); 16];
        if let Some(p) = &batch.importance {
            let sigma = sigma2::<S, 16, 16>(x, 2.0);
            let mut sums = [zero; 16];
            for j in 0..16 {
                let w = search::weights::<S, 16>(&load_lanes::<S, 16>(p, 16 * j), sigma, &x[j]);
                sums[j] = search::sum::<S, 16>(&w);
                let found = search::qx::<S, 16>(4, &x[j], &w);
                scales[j] = found.scale;
                for (x, codes) in x[j].iter().zip(&mut codes[16 * j..]) {
                    S::store_u8(codes.as_mut_ptr(), found.code::<S>(4, *x));
                }
            }
            let found = search::qx::<S, 16>(32, &scales, &sums);
            for (r, s) in rounded.iter_mut().zip(&scales) {
                *r = found.code::<S>(32, *s);
            }
            return (found.scale, rounded);
        }
        for (j, x) in x.iter().enumerate() {
            let (scale, l) = search::q3::<S, 16>(4, x);
            scales[j] = scale;
            for (l, codes) in l.iter().zip(&mut codes[16 * j..]) {
                S::store_u8(codes.as_mut_ptr(), *l);
            }
        }
        let (amax, d, codes) = round_signed::<S>(&scales, 32);
        let some = S::gt(amax, zero);
        for (r, c) in rounded.iter_mut().zip(codes) {
            let c = S::imin(S::imax(c, S::isplat(-32)), S::isplat(31));
            *r = S::iselect(some, S::iadd(c, S::isplat(32)), S::isplat(0));
        }
        (S::select(some, d, zero), rounded)
    }
}

/// Encodes rows as Q3_K.
#[inline(always)]
pub unsafe fn encode_q3_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let mut keep = Requantize::<16>::NEW;
    for first in (0..rows.x.len() / 256).step_by(LANES) {
        unsafe {
            let batch = Batch::new(&rows, 256, first);
            let x = load_block::<S, 16, 16>(&batch.x);
            let (d, sc) = search_q3_k::<S>(&batch, &x, &mut keep.codes);
            let mut bits = [0u16; LANES];
            let d = round_f16::<S>(&mut bits, d);
            let mut scales = [[0u8; LANES]; 12];
            let nibble = S::isplat(15);
            for j in 0..8 {
                let packed = S::ior(S::iand(sc[j], nibble), S::ishl::<4>(S::iand(sc[j + 8], nibble)));
                S::store_u8(scales[j].as_mut_ptr(), packed);
            }
            for j in 0..4 {
                let low = S::ior(S::ishr::<4>(sc[j]), S::ishl::<2>(S::ishr::<4>(sc[j + 4])));
                let high = S::ior(S::ishl::<4>(S::ishr::<4>(sc[j + 8])), S::ishl::<6>(S::ishr::<4>(sc[j + 12])));
                S::store_u8(scales[8 + j].as_mut_ptr(), S::ior(low, high));
            }
            for (j, sc) in sc.iter().enumerate() {
                keep.set::<S>(j, S::mul(d, S::to_f(S::isub(*sc, S::isplat(32)))), S::splat(0.0));
            }
            for lane in 0..batch.count {
                let b = dst.as_mut_ptr().add((first + lane) * 110);
                for l in [0, 16] {
                    let mut high = S::isplat(0);
                    for n in 0..2 {
                        let q = keep.codes4::<S>(batch.x[lane], 128 * n + l, lane, -4, 3);
                        let mut low = S::isplat(0);
                        let mut bits = S::isplat(0);
                        for q in q.iter().rev() {
                            low = S::ior(S::ishl::<2>(low), S::iand(*q, S::isplat(3)));
                            bits = S::ior(S::ishl::<1>(bits), S::ishr::<2>(*q));
                        }
                        high = S::ior(high, if n == 0 { bits } else { S::ishl::<4>(bits) });
                        S::store_u8(b.add(32 + 32 * n + l), low);
                    }
                    S::store_u8(b.add(l), high);
                }
                column(&scales, lane, b.add(96));
                b.add(108).cast::<u16>().write_unaligned(bits[lane].to_le());
            }
        }
    }
}

/// Encodes rows as Q6_K.
#[inline(always)]
pub unsafe fn encode_q6_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let mut keep = Requantize::<16>::NEW;
    for first in (0..rows.x.len() / 256).step_by(LANES) {
        unsafe {
            let batch = Batch::new(&rows, 256, first);
            let x = load_block::<S, 16, 16>(&batch.x);
            let zero = S::splat(0.0);
            let mut found = [search::Symmetric { scale: zero, isc: zero }; 16];
            let mut values = [zero; 16];
            for j in 0..16 {
                let w = match &batch.importance {
                    Some(p) => load_lanes::<S, 16>(p, 16 * j),
                    None => search::squares::<S, 16>(&x[j]),
                };
                found[j] = search::qx::<S, 16>(32, &x[j], &w);
                values[j] = found[j].scale;
            }
            let (amax, d, sc) = round_signed::<S>(&values, 128);
            let zero_blocks = S::m_bits(S::lt(amax, S::splat(EPS)));
            let mut bits = [0u16; LANES];
            let d = round_f16::<S>(&mut bits, d);
            let mut scales = [[0u8; LANES]; 16];
            for j in 0..16 {
                let sc = S::iand(S::imin(sc[j], S::isplat(127)), S::isplat(255));
                S::store_u8(scales[j].as_mut_ptr(), sc);
                let signed = S::isub(S::ixor(sc, S::isplat(128)), S::isplat(128));
                if keep.set::<S>(j, S::mul(d, S::to_f(signed)), zero) {
                    for (x, codes) in x[j].iter().zip(&mut keep.codes[16 * j..]) {
                        S::store_u8(codes.as_mut_ptr(), found[j].code::<S>(32, *x));
                    }
                }
            }
            for lane in 0..batch.count {
                let b = dst.as_mut_ptr().add((first + lane) * 210);
                if zero_blocks >> lane & 1 == 1 {
                    b.write_bytes(0, 210);
                    continue;
                }
                for n in 0..2 {
                    for l in [0, 16] {
                        let [q1, q2, q3, q4] = keep.codes4::<S>(batch.x[lane], 128 * n + l, lane, -32, 31);
                        let nibble = S::isplat(15);
                        let a = S::ior(S::iand(q1, nibble), S::ishl::<4>(q3));
                        let c = S::ior(S::iand(q2, nibble), S::ishl::<4>(q4));
                        S::store_u8(b.add(64 * n + l), a);
                        S::store_u8(b.add(64 * n + 32 + l), c);
                        let low = S::ior(S::ishr::<4>(q1), S::ishl::<2>(S::ishr::<4>(q2)));
                        let high = S::ior(S::ishl::<4>(S::ishr::<4>(q3)), S::ishl::<6>(S::ishr::<4>(q4)));
                        S::store_u8(b.add(128 + 32 * n + l), S::ior(low, high));
                    }
                }
                column(&scales, lane, b.add(192));
                b.add(208).cast::<u16>().write_unaligned(bits[lane].to_le());
            }
        }
    }
}

/// Encodes rows as Q8_K.
#[inline(always)]
pub unsafe fn encode_q8_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    for (x, b) in rows.x.as_chunks::<256>().0.iter().zip(dst.as_chunks_mut::<292>().0) {
        unsafe {
            let mut v = [S::splat(0.0); LANES];
            for (v, x) in v.iter_mut().zip(x.as_chunks::<LANES>().0) {
                *v = S::load(x.as_ptr());
            }
            let max = first_max_of_block::<S>(x, &v);
            if max == 0.0 {
                b.fill(0);
                continue;
            }
            let isc = -127.0 / max;
            b[..4].copy_from_slice(&(1.0 / isc).to_le_bytes());
            for (j, v) in v.iter_mut().enumerate() {
                let l = S::imin(S::nint(S::mul(S::splat(isc), *v)), S::isplat(127));
                S::store_u8(b.as_mut_ptr().add(4 + 16 * j), l);
                // Only the low 8 bits are stored and summed.
                let l = S::isub(S::ixor(S::iand(l, S::isplat(255)), S::isplat(128)), S::isplat(128));
                *v = S::from_bits(l);
            }
            S::transpose(&mut v);
            let mut sums = S::isplat(0);
            for v in v {
                sums = S::iadd(sums, S::bits(v));
            }
            S::store_u16(b.as_mut_ptr().add(260).cast(), sums);
        }
    }
}

/// The first of the elements with the largest magnitude; `v` holds them as vectors.
#[inline(always)]
unsafe fn first_max_of_block<S: Simd>(x: &[f32; 256], v: &[S::F; LANES]) -> f32 {
    unsafe {
        let mut largest = S::splat(0.0);
        for v in v {
            largest = S::max(S::abs(*v), largest);
        }
        let mut lanes = [0f32; LANES];
        S::store(lanes.as_mut_ptr(), largest);
        let amax = lanes.iter().fold(0f32, |m, x| m.max(*x));
        for (i, v) in v.iter().enumerate() {
            let equal = S::m_bits(S::eq(S::abs(*v), S::splat(amax)));
            if equal != 0 {
                return x[16 * i + equal.trailing_zeros() as usize];
            }
        }
        0.0
    }
}
