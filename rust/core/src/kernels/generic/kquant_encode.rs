//! Vector encoders of the K-quants, 16 blocks at a time.
//!
//! 1. Searches: lane = block, one sub-block after the other, so the results already are vectors of scales.
//! 2. Scales are rounded against the super-scale, lane = block.
//! 3. Every block by itself: 16 consecutive elements per vector are quantized again with the rounded scales and packed.

use crate::block::Rows;
use crate::block::kquant::{q2_k, q4_k, q5_k};
use crate::block::search::{EPS, Sweep};
use crate::kernels::generic::search::{self, Affine, Batch, load_lanes};
use crate::kernels::simd::{LANES, Simd};

/// Elements of a block, transposed: sub-block, element, lane = block.
type Block<F, const N: usize, const SUBS: usize> = [[F; N]; SUBS];

/// What step 3 needs to know of a batch.
struct Requantize<const SUBS: usize> {
    /// Scale of each sub-block as it will be decoded.
    dl: [[f32; LANES]; SUBS],
    /// Offset of each sub-block as it will be decoded (0 in symmetric types).
    ml: [[f32; LANES]; SUBS],
    /// Codes of the search, by element; only written where a lane's `dl` is 0.
    codes: [[u8; LANES]; 256],
}

impl<const SUBS: usize> Requantize<SUBS> {
    const NEW: Self = Self { dl: [[0.0; LANES]; SUBS], ml: [[0.0; LANES]; SUBS], codes: [[0; LANES]; 256] };

    /// Notes the scale of sub-block `j`. Returns whether the codes of the search are needed.
    #[inline(always)]
    unsafe fn set<S: Simd>(&mut self, j: usize, dl: S::F, ml: S::F) -> bool {
        unsafe {
            S::store(self.dl[j].as_mut_ptr(), dl);
            S::store(self.ml[j].as_mut_ptr(), ml);
            S::m_any(S::eq(dl, S::splat(0.0)))
        }
    }

    /// The codes of the search for the 16 elements from `i` of the block in `lane`.
    #[cold]
    #[inline(never)]
    fn kept(&self, i: usize, lane: usize) -> [i32; LANES] {
        std::array::from_fn(|k| i32::from(self.codes[i + k][lane]))
    }

    /// Codes of the 16 elements from `i` of the block in `lane`: `lo..=hi` shifted to start at 0.
    #[inline(always)]
    unsafe fn codes<S: Simd>(&self, x: *const f32, i: usize, lane: usize, lo: i32, hi: i32) -> S::I {
        unsafe {
            let j = i / (256 / SUBS);
            let dl = self.dl[j][lane];
            if dl == 0.0 {
                return S::iload(self.kept(i, lane).as_ptr());
            }
            let x = S::load(x.add(i));
            // Symmetric types divide x itself; adding +0 changes nothing but the sign of a zero.
            let v = S::div(S::add(x, S::splat(self.ml[j][lane])), S::splat(dl));
            let l = S::imin(S::imax(S::nint(v), S::isplat(lo)), S::isplat(hi));
            S::isub(l, S::isplat(lo))
        }
    }

    /// [`Self::codes`] of the elements from `i`, `i + 32`, `i + 64` and `i + 96`.
    #[inline(always)]
    unsafe fn codes4<S: Simd>(&self, x: *const f32, i: usize, lane: usize, lo: i32, hi: i32) -> [S::I; 4] {
        unsafe {
            let mut q = [S::isplat(0); 4];
            for (g, q) in q.iter_mut().enumerate() {
                *q = self.codes::<S>(x, i + 32 * g, lane, lo, hi);
            }
            q
        }
    }
}

#[inline(always)]
unsafe fn load_block<S: Simd, const N: usize, const SUBS: usize>(p: &[*const f32; LANES]) -> Block<S::F, N, SUBS> {
    unsafe {
        let mut x = [[S::splat(0.0); N]; SUBS];
        for (j, x) in x.iter_mut().enumerate() {
            *x = load_lanes::<S, N>(p, j * N);
        }
        x
    }
}

/// σ² of the importance weights: `factor` · Σ x² / 256.
#[inline(always)]
unsafe fn sigma2<S: Simd, const N: usize, const SUBS: usize>(x: &Block<S::F, N, SUBS>, factor: f32) -> S::F {
    unsafe { S::div(S::mul(S::splat(factor), search::sum_squares::<S>(x.as_flattened())), S::splat(256.0)) }
}

/// Rounds through f16: stores the bits, returns the value as it will be decoded.
#[inline(always)]
unsafe fn round_f16<S: Simd>(bits: &mut [u16; LANES], v: S::F) -> S::F {
    unsafe {
        S::store_f16(bits.as_mut_ptr(), v);
        S::load_f16(bits.as_ptr())
    }
}

/// The largest value above 0, else 0.
#[inline(always)]
unsafe fn positive_max<S: Simd>(x: &[S::F]) -> S::F {
    unsafe {
        let mut max = S::splat(0.0);
        for x in x {
            max = S::select(S::gt(*x, max), *x, max);
        }
        max
    }
}

/// Rounds values against their maximum, which becomes `top`: (super-scale, codes wrapped to 8 bits).
#[inline(always)]
unsafe fn round_affine<S: Simd, const SUBS: usize>(x: &[S::F; SUBS], top: f32) -> (S::F, [S::I; SUBS]) {
    unsafe {
        let max = positive_max::<S>(x);
        let inverse = S::select(S::gt(max, S::splat(0.0)), S::div(S::splat(top), max), S::splat(0.0));
        let mut codes = [S::isplat(0); SUBS];
        for (c, x) in codes.iter_mut().zip(x) {
            *c = S::iand(S::nint(S::mul(inverse, *x)), S::isplat(255));
        }
        (S::div(max, S::splat(top)), codes)
    }
}

/// What [`search_affine`] does without importance, and the factor of σ² with it.
struct AffineSearch {
    n: i32,
    sweep: Sweep,
    /// Whether the root mean square of the sub-block is added to |x| in the weights without importance.
    rms: bool,
    sigma2_factor: f32,
}

/// Affine search in every sub-block. Returns the results, and the sums of the importance weights.
#[inline(always)]
unsafe fn search_affine<S: Simd, const N: usize, const SUBS: usize>(
    how: &AffineSearch,
    batch: &Batch,
    x: &Block<S::F, N, SUBS>,
) -> ([Affine<S::F>; SUBS], [S::F; SUBS]) {
    unsafe {
        let zero = S::splat(0.0);
        let mut found = [Affine { scale: zero, themin: zero, isc: zero, min: zero }; SUBS];
        let mut sums = [zero; SUBS];
        let mut sigma = zero;
        let mut sweep = how.sweep;
        if batch.importance.is_some() {
            sigma = sigma2::<S, N, SUBS>(x, how.sigma2_factor);
            sweep = Sweep::IMPORTANCE;
        }
        for j in 0..SUBS {
            let w = match &batch.importance {
                Some(p) => {
                    let w = search::weights::<S, N>(&load_lanes::<S, N>(p, j * N), sigma, &x[j]);
                    sums[j] = search::sum::<S, N>(&w);
                    w
                }
                None => {
                    let mut w = x[j];
                    let rms = S::sqrt(S::div(search::sum_squares::<S>(&x[j]), S::splat(N as f32)));
                    for w in &mut w {
                        *w = if how.rms { S::add(rms, S::abs(*w)) } else { S::abs(*w) };
                    }
                    w
                }
            };
            found[j] = search::qk::<S, N>(how.n, &x[j], &w, &sweep);
        }
        (found, sums)
    }
}

/// Super-scales and codes of the scales and the minimums of [`search_affine`].
#[inline(always)]
unsafe fn round_scales<S: Simd, const SUBS: usize>(
    found: &[Affine<S::F>; SUBS],
    sums: &[S::F; SUBS],
    top: i32,
    importance: bool,
) -> [(S::F, [S::I; SUBS]); 2] {
    unsafe {
        let mut scales = [S::splat(0.0); SUBS];
        let mut mins = scales;
        for j in 0..SUBS {
            scales[j] = found[j].scale;
            mins[j] = found[j].themin;
        }
        let mut rounded = [(scales[0], [S::isplat(0); SUBS]); 2];
        for (r, values) in rounded.iter_mut().zip([scales, mins]) {
            *r = if importance {
                search::qp::<S, SUBS>(top, &values, sums)
            } else {
                round_affine::<S, SUBS>(&values, top as f32)
            };
        }
        rounded
    }
}

/// Keeps the codes of the search for sub-block `j`.
#[inline(always)]
unsafe fn keep_affine<S: Simd, const N: usize, const SUBS: usize>(
    keep: &mut Requantize<SUBS>,
    j: usize,
    n: i32,
    found: &Affine<S::F>,
    x: &[S::F; N],
) {
    for (x, codes) in x.iter().zip(&mut keep.codes[j * N..]) {
        unsafe { S::store_u8(codes.as_mut_ptr(), search::affine_code::<S>(n, found.isc, found.min, *x)) }
    }
}

/// Writes byte `k` of every block's packed scales.
#[inline(always)]
unsafe fn column<const K: usize>(bytes: &[[u8; LANES]; K], lane: usize, to: *mut u8) {
    for (k, b) in bytes.iter().enumerate() {
        unsafe { *to.add(k) = b[lane] }
    }
}

/// Encodes rows as Q2_K.
#[inline(always)]
pub unsafe fn encode_q2_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let how = AffineSearch { n: 3, sweep: q2_k::SWEEP, rms: false, sigma2_factor: 1.0 };
    let mut keep = Requantize::<16>::NEW;
    for first in (0..rows.x.len() / 256).step_by(LANES) {
        unsafe {
            let batch = Batch::new(&rows, 256, first);
            let x = load_block::<S, 16, 16>(&batch.x);
            let (found, sums) = search_affine::<S, 16, 16>(&how, &batch, &x);
            let [(d, sc), (dmin, m)] = round_scales::<S, 16>(&found, &sums, 15, batch.importance.is_some());
            let mut bits = [[0u16; LANES]; 2];
            let d = round_f16::<S>(&mut bits[0], d);
            let dmin = round_f16::<S>(&mut bits[1], dmin);
            let mut scales = [[0u8; LANES]; 16];
            for j in 0..16 {
                let packed = S::iand(S::ior(sc[j], S::ishl::<4>(m[j])), S::isplat(255));
                S::store_u8(scales[j].as_mut_ptr(), packed);
                let dl = S::mul(d, S::to_f(S::iand(packed, S::isplat(15))));
                let ml = S::mul(dmin, S::to_f(S::ishr::<4>(packed)));
                if keep.set::<S>(j, dl, ml) {
                    keep_affine::<S, 16, 16>(&mut keep, j, 3, &found[j], &x[j]);
                }
            }
            for lane in 0..batch.count {
                let b = dst.as_mut_ptr().add((first + lane) * 84);
                column(&scales, lane, b);
                for l in [0, 16, 128, 144] {
                    let q = keep.codes4::<S>(batch.x[lane], l, lane, 0, 3);
                    let low = S::ior(q[0], S::ishl::<2>(q[1]));
                    let high = S::ior(S::ishl::<4>(q[2]), S::ishl::<6>(q[3]));
                    S::store_u8(b.add(16 + l / 128 * 32 + l % 128), S::ior(low, high));
                }
                b.add(80).cast::<u16>().write_unaligned(bits[0][lane].to_le());
                b.add(82).cast::<u16>().write_unaligned(bits[1][lane].to_le());
            }
        }
    }
}

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

/// The first 16 bytes of Q4_K and Q5_K blocks, and the codes.
struct Scales {
    d: [u16; LANES],
    dmin: [u16; LANES],
    packed: [[u8; LANES]; 12],
}

/// Searches and rounds the scales of a batch for Q4_K and Q5_K.
#[inline(always)]
unsafe fn affine_scales<S: Simd>(how: &AffineSearch, limit: i32, batch: &Batch, keep: &mut Requantize<8>) -> Scales {
    unsafe {
        let x = load_block::<S, 32, 8>(&batch.x);
        let (found, sums) = search_affine::<S, 32, 8>(how, batch, &x);
        let importance = batch.importance.is_some();
        let [(d, mut sc), (dmin, mut m)] = round_scales::<S, 8>(&found, &sums, 63, importance);
        let limit = S::isplat(if importance { limit } else { 63 });
        for c in sc.iter_mut().chain(&mut m) {
            *c = S::imin(*c, limit);
        }
        let mut out = Scales { d: [0; LANES], dmin: [0; LANES], packed: [[0; LANES]; 12] };
        let d = round_f16::<S>(&mut out.d, d);
        let dmin = round_f16::<S>(&mut out.dmin, dmin);
        let (low4, low6) = (S::isplat(15), S::isplat(63));
        for j in 0..4 {
            // A code beyond 6 bits spills into its neighbour; the codes that count are those read back.
            let a = S::iand(S::ior(sc[j], S::ishl::<6>(S::ishr::<4>(sc[j + 4]))), S::isplat(255));
            let b = S::iand(S::ior(m[j], S::ishl::<6>(S::ishr::<4>(m[j + 4]))), S::isplat(255));
            let c = S::ior(S::iand(sc[j + 4], low4), S::ishl::<4>(S::iand(m[j + 4], low4)));
            S::store_u8(out.packed[j].as_mut_ptr(), a);
            S::store_u8(out.packed[4 + j].as_mut_ptr(), b);
            S::store_u8(out.packed[8 + j].as_mut_ptr(), c);
            let first = (S::iand(a, low6), S::iand(b, low6));
            let second = (
                S::ior(S::iand(c, low4), S::ishl::<4>(S::ishr::<6>(a))),
                S::ior(S::ishr::<4>(c), S::ishl::<4>(S::ishr::<6>(b))),
            );
            for (j, (sc, m)) in [(j, first), (j + 4, second)] {
                let (dl, ml) = (S::mul(d, S::to_f(sc)), S::mul(dmin, S::to_f(m)));
                if keep.set::<S>(j, dl, ml) {
                    keep_affine::<S, 32, 8>(keep, j, how.n, &found[j], &x[j]);
                }
            }
        }
        out
    }
}

impl Scales {
    /// Writes the first 16 bytes of a block.
    #[inline(always)]
    unsafe fn put(&self, lane: usize, b: *mut u8) {
        unsafe {
            b.cast::<u16>().write_unaligned(self.d[lane].to_le());
            b.add(2).cast::<u16>().write_unaligned(self.dmin[lane].to_le());
            column(&self.packed, lane, b.add(4));
        }
    }
}

/// Encodes rows as Q4_K.
#[inline(always)]
pub unsafe fn encode_q4_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let how = AffineSearch { n: 15, sweep: q4_k::SWEEP, rms: true, sigma2_factor: 2.0 };
    let mut keep = Requantize::<8>::NEW;
    for first in (0..rows.x.len() / 256).step_by(LANES) {
        unsafe {
            let batch = Batch::new(&rows, 256, first);
            let scales = affine_scales::<S>(&how, 255, &batch, &mut keep);
            for lane in 0..batch.count {
                let b = dst.as_mut_ptr().add((first + lane) * 144);
                scales.put(lane, b);
                for k in 0..8 {
                    let i = k / 2 * 64 + k % 2 * 16;
                    let low = keep.codes::<S>(batch.x[lane], i, lane, 0, 15);
                    let high = keep.codes::<S>(batch.x[lane], i + 32, lane, 0, 15);
                    S::store_u8(b.add(16 + 16 * k), S::ior(low, S::ishl::<4>(high)));
                }
            }
        }
    }
}

/// Encodes rows as Q5_K.
#[inline(always)]
pub unsafe fn encode_q5_k<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let how = AffineSearch { n: 31, sweep: q5_k::SWEEP, rms: true, sigma2_factor: 2.0 };
    let mut keep = Requantize::<8>::NEW;
    for first in (0..rows.x.len() / 256).step_by(LANES) {
        unsafe {
            let batch = Batch::new(&rows, 256, first);
            let scales = affine_scales::<S>(&how, 63, &batch, &mut keep);
            for lane in 0..batch.count {
                let b = dst.as_mut_ptr().add((first + lane) * 176);
                scales.put(lane, b);
                let mut bits = [S::isplat(0); 2];
                for k in 0..8 {
                    let i = k / 2 * 64 + k % 2 * 16;
                    let low = keep.codes::<S>(batch.x[lane], i, lane, 0, 31);
                    let high = keep.codes::<S>(batch.x[lane], i + 32, lane, 0, 31);
                    let nibbles = S::ior(S::iand(low, S::isplat(15)), S::ishl::<4>(high));
                    S::store_u8(b.add(48 + 16 * k), nibbles);
                    let two = S::ior(S::ishr::<4>(low), S::ishl::<1>(S::ishr::<4>(high)));
                    bits[k % 2] = S::ior(bits[k % 2], S::ishlv(two, S::isplat(k as i32 / 2 * 2)));
                }
                S::store_u8(b.add(16), bits[0]);
                S::store_u8(b.add(32), bits[1]);
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
