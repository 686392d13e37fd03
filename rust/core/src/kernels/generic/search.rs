//! The searches of [`crate::block::search`] for 16 blocks at once: lane = (sub-)block, so that every lane keeps the scalar
//! order of operations. A vector `x[i]` holds element `i` of the 16 blocks.
//!
//! Searches return how the codes follow from the elements (an inverse scale, and a minimum) instead of the codes: most
//! callers quantize again with rounded scales and need them only in rare lanes.

use crate::block::Rows;
use crate::block::search::{EPS, Sweep};
use crate::kernels::simd::{LANES, Simd};

/// Where the 16 lanes of a batch of blocks begin. Lanes beyond the last block repeat it; their results are dropped.
pub struct Batch {
    /// Lanes that stand for a block.
    pub count: usize,
    /// First element of each block.
    pub x: [*const f32; LANES],
    /// First importance weight of each block.
    pub importance: Option<[*const f32; LANES]>,
}

impl Batch {
    /// The blocks `first..first + 16` of `rows`, in blocks of `block` elements. There is at least one.
    #[inline(always)]
    pub fn new(rows: &Rows<'_>, block: usize, first: usize) -> Self {
        let count = (rows.x.len() / block - first).min(LANES);
        let mut x = [rows.x.as_ptr(); LANES];
        for (lane, x) in x.iter_mut().enumerate() {
            *x = rows.x[(first + lane.min(count - 1)) * block..].as_ptr();
        }
        let importance = rows.importance.map(|w| {
            let per_row = rows.n_per_row / block;
            let mut p = [w.as_ptr(); LANES];
            for (lane, p) in p.iter_mut().enumerate() {
                *p = w[(first + lane.min(count - 1)) % per_row * block..].as_ptr();
            }
            p
        });
        Self { count, x, importance }
    }
}

/// Loads `N` elements (a multiple of 16) from `at` elements behind the 16 pointers, transposed: vector = element,
/// lane = pointer.
#[inline(always)]
pub unsafe fn load_lanes<S: Simd, const N: usize>(p: &[*const f32; LANES], at: usize) -> [S::F; N] {
    unsafe {
        let mut out = [S::splat(0.0); N];
        for part in 0..N / LANES {
            let mut rows = [S::splat(0.0); LANES];
            for (row, p) in rows.iter_mut().zip(p) {
                *row = S::load(p.add(at.wrapping_add(part.wrapping_mul(LANES))));
            }
            S::transpose(&mut rows);
            out[part * LANES..][..LANES].copy_from_slice(&rows);
        }
        out
    }
}

/// x², the weights of [`crate::block::search::qx`] without importance.
#[inline(always)]
pub unsafe fn squares<S: Simd, const N: usize>(x: &[S::F; N]) -> [S::F; N] {
    let mut w = *x;
    for w in &mut w {
        *w = unsafe { S::mul(*w, *w) };
    }
    w
}

/// Σ of the vectors in index order, from 0.
#[inline(always)]
pub unsafe fn sum<S: Simd, const N: usize>(x: &[S::F; N]) -> S::F {
    unsafe {
        let mut s = S::splat(0.0);
        for x in x {
            s = S::add(s, *x);
        }
        s
    }
}

/// Σ x² of the elements in order.
#[inline(always)]
pub unsafe fn sum_squares<S: Simd>(x: &[S::F]) -> S::F {
    unsafe {
        let mut s = S::splat(0.0);
        for x in x {
            s = S::add(s, S::mul(*x, *x));
        }
        s
    }
}

/// H6: weights importance · √(σ² + x²).
#[inline(always)]
pub unsafe fn weights<S: Simd, const N: usize>(importance: &[S::F; N], sigma2: S::F, x: &[S::F; N]) -> [S::F; N] {
    let mut w = *importance;
    for (w, x) in w.iter_mut().zip(x) {
        *w = unsafe { S::mul(*w, S::sqrt(S::add(sigma2, S::mul(*x, *x)))) };
    }
    w
}

/// The first element with the largest magnitude, as (magnitude, signed value).
#[inline(always)]
pub unsafe fn first_max<S: Simd, const N: usize>(x: &[S::F; N]) -> (S::F, S::F) {
    unsafe {
        let (mut amax, mut max) = (S::splat(0.0), S::splat(0.0));
        for x in x {
            let a = S::abs(*x);
            let more = S::gt(a, amax);
            amax = S::select(more, a, amax);
            max = S::select(more, *x, max);
        }
        (amax, max)
    }
}

#[inline(always)]
unsafe fn clamp<S: Simd>(l: S::I, lo: S::I, hi: S::I) -> S::I {
    unsafe { S::imin(S::imax(l, lo), hi) }
}

/// Signed codes in `-n..n` under the inverse scale `isc`.
#[inline(always)]
pub unsafe fn signed_code<S: Simd>(n: i32, isc: S::F, x: S::F) -> S::I {
    unsafe { clamp::<S>(S::nint(S::mul(isc, x)), S::isplat(-n), S::isplat(n - 1)) }
}

/// Result of [`qx`].
#[derive(Clone, Copy)]
pub struct Symmetric<F> {
    /// The scale.
    pub scale: F,
    /// The inverse scale that gives the codes; NaN in lanes that count as zero, whose codes are 0.
    pub isc: F,
}

impl<F: Copy> Symmetric<F> {
    /// Codes in `0..2n` of the element `x`.
    #[inline(always)]
    pub unsafe fn code<S: Simd<F = F>>(&self, n: i32, x: F) -> S::I {
        unsafe {
            let l = S::iadd(signed_code::<S>(n, self.isc, x), S::isplat(n));
            S::iselect(S::eq(self.isc, self.isc), l, S::isplat(0))
        }
    }
}

/// Added and subtracted, it rounds magnitudes below 2^22 to whole numbers.
const ROUND: f32 = 12_582_912.0;

/// Codes in `lo..=hi` as floats of |v| < 2^22: [`Simd::nint`], limits and conversion in one.
#[inline(always)]
unsafe fn small_code<S: Simd>(v: S::F, lo: i32, hi: i32) -> S::F {
    unsafe {
        let (lo, hi) = (S::splat(ROUND + lo as f32), S::splat(ROUND + hi as f32));
        let l = clamp::<S>(S::bits(S::add(v, S::splat(ROUND))), S::bits(lo), S::bits(hi));
        S::sub(S::from_bits(l), S::splat(ROUND))
    }
}

/// H1: symmetric search with weights `w`.
#[inline(always)]
pub unsafe fn qx<S: Simd, const N: usize>(n: i32, x: &[S::F; N], w: &[S::F; N]) -> Symmetric<S::F> {
    unsafe {
        let zero = S::splat(0.0);
        let (amax, max) = first_max::<S, N>(x);
        let skip = S::lt(amax, S::splat(EPS));
        // No product with an inverse scale exceeds n + 1 in magnitude, unless an element is infinite.
        let wild = S::m_any(S::ge(amax, S::splat(f32::INFINITY)));
        let (mut scale, mut best, mut best_isc) = (zero, zero, zero);
        let mut wx = *x;
        for (wx, w) in wx.iter_mut().zip(w) {
            *wx = S::mul(*w, *wx);
        }
        for t in -10i32..=9 {
            // 0 first, then -9..=9 without 0.
            let s = match t {
                -10 => 0,
                0 => continue,
                _ => t,
            };
            let isc = S::div(S::splat(-(n as f32 + 0.1 * s as f32)), max);
            let (mut a, mut b) = (zero, zero);
            for i in 0..N {
                let l = if wild {
                    S::to_f(signed_code::<S>(n, isc, x[i]))
                } else {
                    small_code::<S>(S::mul(isc, x[i]), -n, n - 1)
                };
                a = S::add(a, S::mul(wx[i], l));
                b = S::add(b, S::mul(S::mul(w[i], l), l));
            }
            let quotient = S::div(a, b);
            if s == 0 {
                scale = S::select(S::eq(b, zero), zero, quotient);
                best = S::mul(scale, a);
                best_isc = isc;
            } else {
                let better = S::m_and(S::gt(b, zero), S::gt(S::mul(a, a), S::mul(best, b)));
                scale = S::select(better, quotient, scale);
                best = S::select(better, S::mul(quotient, a), best);
                best_isc = S::select(better, isc, best_isc);
            }
        }
        Symmetric { scale: S::select(skip, zero, scale), isc: S::select(skip, S::splat(f32::NAN), best_isc) }
    }
}

/// Largest magnitude for which the sums of [`q3`] stay below 2^126, where [`Simd::div_approx`] is good.
const Q3_TAME: f32 = (1u64 << 36) as f32;

/// H2: symmetric search by coordinate descent. Returns the scale and the codes in `0..2n`.
///
/// The quotient that gives a new code is estimated, and divided out only where the estimate is too near to the middle
/// between two codes. Most elements keep their code: nothing more is done when all lanes do.
#[inline(always)]
pub unsafe fn q3<S: Simd, const N: usize>(n: i32, x: &[S::F; N]) -> (S::F, [S::I; N]) {
    unsafe {
        let zero = S::splat(0.0);
        let (mut a, mut b) = (zero, zero);
        // Signed codes as floats: they are whole and small, so every comparison and product is that of the integers.
        // `wxl` and `wll` are their terms in A and B.
        let (mut codes, mut wxl, mut wll) = ([zero; N], [zero; N], [zero; N]);
        let (amax, max) = first_max::<S, N>(x);
        let skip = S::lt(amax, S::splat(EPS));
        let wild = S::m_any(S::gt(amax, S::splat(Q3_TAME)));
        let isc = S::div(S::splat(-(n as f32)), max);
        for i in 0..N {
            let c = S::to_f(signed_code::<S>(n, isc, x[i]));
            let w = S::mul(x[i], x[i]);
            wxl[i] = S::mul(S::mul(w, x[i]), c);
            wll[i] = S::mul(S::mul(w, c), c);
            a = S::add(a, wxl[i]);
            b = S::add(b, wll[i]);
            codes[i] = c;
        }
        // Estimates beyond the codes need not be exact: clamping makes up for it.
        let margin = S::splat(0.5 - (n + 2) as f32 * S::DIV_APPROX_ERROR);
        let (lowest, highest) = (S::splat(-n as f32), S::splat((n - 1) as f32));
        for _ in 0..5 {
            // Lanes without a change are at a fixed point, so they may go on while others still move.
            let mut changed = 0;
            for i in 0..N {
                let (x, old) = (x[i], codes[i]);
                let a1 = S::sub(a, wxl[i]);
                let b1 = S::sub(b, wll[i]);
                let valid = S::gt(a1, zero);
                let dividend = S::mul(x, b1);
                let quotient = S::div_approx(dividend, a1);
                let whole = S::sub(S::add(quotient, S::splat(ROUND)), S::splat(ROUND));
                let near = S::lt(S::abs(S::sub(quotient, whole)), margin);
                let sure = S::m_and(near, S::lt(S::abs(quotient), S::splat(1_048_576.0)));
                let mut new = S::min(S::max(whole, lowest), highest);
                if wild || S::m_any(S::m_and(valid, S::m_not(sure))) {
                    let exact = S::nint(S::div(dividend, a1));
                    new = S::to_f(clamp::<S>(exact, S::isplat(-n), S::isplat(n - 1)));
                }
                let differs = S::m_and(valid, S::m_not(S::eq(new, old)));
                if !S::m_any(differs) {
                    continue;
                }
                let w = S::mul(x, x);
                let wxl1 = S::mul(S::mul(w, x), new);
                let wll1 = S::mul(S::mul(w, new), new);
                let a1 = S::add(a1, wxl1);
                let b1 = S::add(b1, wll1);
                let better = S::gt(S::mul(S::mul(a1, a1), b), S::mul(S::mul(a, a), b1));
                let accept = S::m_and(S::m_and(differs, S::gt(b1, zero)), better);
                a = S::select(accept, a1, a);
                b = S::select(accept, b1, b);
                codes[i] = S::select(accept, new, old);
                wxl[i] = S::select(accept, wxl1, wxl[i]);
                wll[i] = S::select(accept, wll1, wll[i]);
                changed |= S::m_bits(accept);
            }
            if changed == 0 {
                break;
            }
        }
        let mut l = [S::isplat(0); N];
        for (l, c) in l.iter_mut().zip(codes) {
            *l = S::iadd(S::trunc(S::select(skip, lowest, c)), S::isplat(n));
        }
        let keep = S::m_and(S::gt(b, zero), S::m_not(skip));
        (S::select(keep, S::div(a, b), zero), l)
    }
}

/// Codes in `0..=n` under the inverse scale `isc` and the minimum `min`.
#[inline(always)]
pub unsafe fn affine_code<S: Simd>(n: i32, isc: S::F, min: S::F, x: S::F) -> S::I {
    unsafe { clamp::<S>(S::nint(S::mul(isc, S::sub(x, min))), S::isplat(0), S::isplat(n)) }
}

/// Result of [`qk`]: `x ≈ scale·l - themin`, with the codes `l` = [`affine_code`] under (`isc`, `min`).
#[derive(Clone, Copy)]
pub struct Affine<F> {
    /// The scale.
    pub scale: F,
    /// The negated minimum.
    pub themin: F,
    /// Inverse scale that gives the codes; 0 in lanes whose codes are 0.
    pub isc: F,
    /// Minimum that gives the codes (not always `-themin`).
    pub min: F,
}

#[inline(always)]
unsafe fn affine_error<S: Simd, const N: usize>(
    l: &[S::F; N],
    scale: S::F,
    min: S::F,
    x: &[S::F; N],
    w: &[S::F; N],
    mad: bool,
) -> S::F {
    unsafe {
        let mut error = S::splat(0.0);
        for i in 0..N {
            let e = S::sub(S::add(S::mul(scale, l[i]), min), x[i]);
            let e = if mad { S::abs(e) } else { S::mul(e, e) };
            error = S::add(error, S::mul(w[i], e));
        }
        error
    }
}

/// H3: affine search with codes in `0..=n`.
#[inline(always)]
pub unsafe fn qk<S: Simd, const N: usize>(n: i32, x: &[S::F; N], w: &[S::F; N], sweep: &Sweep) -> Affine<S::F> {
    unsafe {
        let zero = S::splat(0.0);
        let (mut min, mut max) = (x[0], x[0]);
        let (mut sw, mut sx) = (w[0], S::mul(w[0], x[0]));
        for i in 1..N {
            min = S::select(S::lt(x[i], min), x[i], min);
            max = S::select(S::gt(x[i], max), x[i], max);
            sw = S::add(sw, w[i]);
            sx = S::add(sx, S::mul(w[i], x[i]));
        }
        let smallest = min;
        min = S::select(S::gt(min, zero), zero, min);
        let flat = S::le(max, min);
        let flat_min = min;
        let isc = S::div(S::splat(n as f32), S::sub(max, min));
        let mut scale = S::div(S::splat(1.0), isc);
        let mut l = [zero; N];
        for i in 0..N {
            l[i] = S::to_f(affine_code::<S>(n, isc, min, x[i]));
        }
        let mut error = affine_error::<S, N>(&l, scale, min, x, w, sweep.mad);
        let (mut best_isc, mut best_min) = (isc, min);
        let small = S::splat(4_194_304.0);
        for s in 0..=sweep.steps {
            let isc = S::div(S::splat(sweep.numerator(s, n)), S::sub(max, min));
            // The products with the inverse scale lie between those of the smallest and the largest element.
            let first = S::abs(S::mul(isc, S::sub(smallest, min)));
            let last = S::abs(S::mul(isc, S::sub(max, min)));
            let tame = S::m_or(flat, S::m_and(S::lt(first, small), S::lt(last, small)));
            let wild = S::m_any(S::m_not(tame));
            let (mut sl, mut sll, mut sxl) = (zero, zero, zero);
            for i in 0..N {
                l[i] = if wild {
                    S::to_f(affine_code::<S>(n, isc, min, x[i]))
                } else {
                    small_code::<S>(S::mul(isc, S::sub(x[i], min)), 0, n)
                };
                let wl = S::mul(w[i], l[i]);
                sl = S::add(sl, wl);
                sll = S::add(sll, S::mul(wl, l[i]));
                sxl = S::add(sxl, S::mul(wl, x[i]));
            }
            let d = S::sub(S::mul(sw, sll), S::mul(sl, sl));
            let mut scale1 = S::div(S::sub(S::mul(sw, sxl), S::mul(sx, sl)), d);
            let mut min1 = S::div(S::sub(S::mul(sll, sx), S::mul(sl, sxl)), d);
            let positive = S::gt(min1, zero);
            if S::m_any(positive) {
                min1 = S::select(positive, zero, min1);
                scale1 = S::select(positive, S::div(sxl, sll), scale1);
            }
            let error1 = affine_error::<S, N>(&l, scale1, min1, x, w, sweep.mad);
            let better = S::m_and(S::gt(d, zero), S::lt(error1, error));
            best_isc = S::select(better, isc, best_isc);
            best_min = S::select(better, min, best_min);
            error = S::select(better, error1, error);
            scale = S::select(better, scale1, scale);
            min = S::select(better, min1, min);
        }
        Affine {
            scale: S::select(flat, zero, scale),
            themin: S::neg(S::select(flat, flat_min, min)),
            isc: S::select(flat, zero, best_isc),
            min: S::select(flat, zero, best_min),
        }
    }
}

/// H4: search for a scale of non-negative values. Returns the scale and the codes, wrapped to 8 bits.
#[inline(always)]
pub unsafe fn qp<S: Simd, const N: usize>(n: i32, x: &[S::F; N], w: &[S::F; N]) -> (S::F, [S::I; N]) {
    unsafe {
        let zero = S::splat(0.0);
        let byte = S::isplat(255);
        let top = S::isplat(n);
        let mut max = zero;
        for x in x {
            max = S::max(max, *x);
        }
        let skip = S::lt(max, S::splat(EPS));
        let mut isc = S::div(S::splat(n as f32), max);
        let scale = S::div(S::splat(1.0), isc);
        let mut mse = zero;
        for i in 0..N {
            let l = S::to_f(S::iand(S::nint(S::mul(isc, x[i])), byte));
            let e = S::sub(x[i], S::mul(scale, l));
            mse = S::add(mse, S::mul(S::mul(w[i], e), e));
        }
        for s in -4i32..=4 {
            if s == 0 {
                continue;
            }
            let isc1 = S::div(S::splat(0.1 * s as f32 + n as f32), max);
            let scale1 = S::div(S::splat(1.0), isc1);
            let mut mse1 = zero;
            for i in 0..N {
                let l = S::to_f(S::imin(S::nint(S::mul(isc1, x[i])), top));
                let e = S::sub(x[i], S::mul(scale1, l));
                mse1 = S::add(mse1, S::mul(S::mul(w[i], e), e));
            }
            let better = S::lt(mse1, mse);
            mse = S::select(better, mse1, mse);
            isc = S::select(better, isc1, isc);
        }
        let (mut a, mut b) = (zero, zero);
        let mut codes = [S::isplat(0); N];
        for i in 0..N {
            let c = S::imin(S::nint(S::mul(isc, x[i])), top);
            let l = S::to_f(c);
            codes[i] = S::iand(c, byte);
            a = S::add(a, S::mul(S::mul(w[i], x[i]), l));
            b = S::add(b, S::mul(S::mul(w[i], l), l));
        }
        for _ in 0..5 {
            // Lanes without a change are at a fixed point, so they may go on while others still move.
            let mut changed = S::lt(zero, zero);
            for i in 0..N {
                let wx = S::mul(w[i], x[i]);
                let old = S::to_f(codes[i]);
                let a1 = S::sub(a, S::mul(wx, old));
                let b1 = S::sub(b, S::mul(S::mul(w[i], old), old));
                let c = S::imin(S::nint(S::div(S::mul(x[i], b1), a1)), top);
                let new = S::to_f(c);
                let valid = S::m_and(S::gt(a1, zero), S::gt(b1, zero));
                let differs = S::m_and(valid, S::m_not(S::ieq(c, codes[i])));
                let a1 = S::add(a1, S::mul(wx, new));
                let b1 = S::add(b1, S::mul(S::mul(w[i], new), new));
                let better = S::gt(S::mul(S::mul(a1, a1), b), S::mul(S::mul(a, a), b1));
                let accept = S::m_and(differs, better);
                a = S::select(accept, a1, a);
                b = S::select(accept, b1, b);
                codes[i] = S::iselect(accept, S::iand(c, byte), codes[i]);
                changed = S::m_or(changed, accept);
            }
            if !S::m_any(changed) {
                break;
            }
        }
        for c in &mut codes {
            *c = S::iselect(skip, S::isplat(0), *c);
        }
        let keep = S::m_and(S::gt(b, zero), S::m_not(skip));
        (S::select(keep, S::div(a, b), zero), codes)
    }
}
