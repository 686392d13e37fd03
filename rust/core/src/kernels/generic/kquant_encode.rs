//! Vector encoders of the K-quants, 16 blocks at a time.
//!
//! 1. Searches: lane = block, one sub-block after the other, so the results already are vectors of scales.
//! 2. Scales are rounded against the super-scale, lane = block.
//! 3. Every block by itself: 16 consecutive elements per vector are quantized again with the rounded scales and packed.

use crate::block::Rows;
use crate::block::kquant::{q2_k, q4_k, q5_k};
use crate::block::search::Sweep;
use crate::kernels::generic::search::{self, Affine, Batch, load_lanes};
use crate::kernels::simd::{LANES, Simd};

/// Elements of a block, transposed: sub-block, element, lane = block.
pub(super) type Block<F, const N: usize, const SUBS: usize> = [[F; N]; SUBS];

/// What step 3 needs to know of a batch.
pub(super) struct Requantize<const SUBS: usize> {
    /// Scale of each sub-block as it will be decoded.
    dl: [[f32; LANES]; SUBS],
    /// Offset of each sub-block as it will be decoded (0 in symmetric types).
    ml: [[f32; LANES]; SUBS],
    /// Codes of the search, by element; only written where a lane's `dl` is 0.
    pub(super) codes: [[u8; LANES]; 256],
}

impl<const SUBS: usize> Requantize<SUBS> {
    pub(super) const NEW: Self = Self { dl: [[0.0; LANES]; SUBS], ml: [[0.0; LANES]; SUBS], codes: [[0; LANES]; 256] };

    /// Notes the scale of sub-block `j`. Returns whether the codes of the search are needed.
    #[inline(always)]
    pub(super) unsafe fn set<S: Simd>(&mut self, j: usize, dl: S::F, ml: S::F) -> bool {
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
    pub(super) unsafe fn codes4<S: Simd>(&self, x: *const f32, i: usize, lane: usize, lo: i32, hi: i32) -> [S::I; 4] {
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
pub(super) unsafe fn load_block<S: Simd, const N: usize, const SUBS: usize>(
    p: &[*const f32; LANES],
) -> Block<S::F, N, SUBS> {
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
pub(super) unsafe fn sigma2<S: Simd, const N: usize, const SUBS: usize>(x: &Block<S::F, N, SUBS>, factor: f32) -> S::F {
    unsafe { S::div(S::mul(S::splat(factor), search::sum_squares::<S>(x.as_flattened())), S::splat(256.0)) }
}

/// Rounds through f16: stores the bits, returns the value as it will be decoded.
#[inline(always)]
pub(super) unsafe fn round_f16<S: Simd>(bits: &mut [u16; LANES], v: S::F) -> S::F {
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
pub(super) unsafe fn column<const K: usize>(bytes: &[[u8; LANES]; K], lane: usize, to: *mut u8) {
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
