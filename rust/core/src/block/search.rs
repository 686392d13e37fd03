//! Scalar searches for scales (specification: GGUF, section 5, helpers H1 to H6). Accumulations run in index order;
//! comparisons are strict as written: both decide bytes. [`crate::kernels::generic::search`] runs the same searches with
//! one (sub-)block per lane.

use crate::float::{KNL, nint};

/// A block whose largest magnitude is below this counts as zero.
pub const EPS: f32 = 1e-15;

/// The first element with the largest magnitude, as (magnitude, signed value). A NaN is never taken, and an all-zero
/// block gives +0 for both.
pub fn first_max(x: &[f32]) -> (f32, f32) {
    let (mut amax, mut max) = (0f32, 0f32);
    for x in x {
        if x.abs() > amax {
            (amax, max) = (x.abs(), *x);
        }
    }
    (amax, max)
}

/// Signed code in `-n..n` of `x` under the inverse scale `isc`.
#[inline]
pub fn signed_code(n: i32, isc: f32, x: f32) -> i32 {
    nint(isc * x).clamp(-n, n - 1)
}

/// Sums A = Σ (w·x)·l and B = Σ (w·l)·l of the codes under `isc`.
fn symmetric_sums(n: i32, isc: f32, x: &[f32], w: Option<&[f32]>) -> (f32, f32) {
    let (mut a, mut b) = (0f32, 0f32);
    for (i, x) in x.iter().enumerate() {
        let w = w.map_or(x * x, |w| w[i]);
        let l = signed_code(n, isc, *x) as f32;
        a += w * x * l;
        b += w * l * l;
    }
    (a, b)
}

/// H1: symmetric search with codes in `0..2n` (`n` stands for zero). Without `w` the weights are x².
/// Returns the scale; a zero block gives scale 0 and codes 0.
pub fn qx(n: i32, x: &[f32], w: Option<&[f32]>, l: &mut [u8]) -> f32 {
    let (amax, max) = first_max(x);
    if amax < EPS {
        l.fill(0);
        return 0.0;
    }
    let mut best_isc = -(n as f32) / max;
    let (a, b) = symmetric_sums(n, best_isc, x, w);
    let mut scale = if b != 0.0 { a / b } else { 0.0 };
    let mut best = scale * a;
    for s in (-9..=9).filter(|s| *s != 0) {
        let isc = -(n as f32 + 0.1 * s as f32) / max;
        let (a, b) = symmetric_sums(n, isc, x, w);
        if b > 0.0 && a * a > best * b {
            best_isc = isc;
            scale = a / b;
            best = scale * a;
        }
    }
    for (l, x) in l.iter_mut().zip(x) {
        *l = (signed_code(n, best_isc, *x) + n) as u8;
    }
    scale
}

/// Longest block of [`q3`].
const Q3_MAX: usize = 32;

/// H2: symmetric search by coordinate descent, weights x², codes in `0..2n`. At most 32 elements.
pub fn q3(n: i32, x: &[f32], l: &mut [u8]) -> f32 {
    let (amax, max) = first_max(x);
    if amax < EPS {
        l.fill(0);
        return 0.0;
    }
    let isc = -(n as f32) / max;
    let (mut a, mut b) = symmetric_sums(n, isc, x, None);
    let mut codes = [0i32; Q3_MAX];
    for (c, x) in codes.iter_mut().zip(x) {
        *c = signed_code(n, isc, *x);
    }
    for _ in 0..5 {
        let mut changed = false;
        for (c, x) in codes.iter_mut().zip(x) {
            let (w, old) = (x * x, *c as f32);
            let mut a1 = a - w * x * old;
            if a1 > 0.0 {
                let mut b1 = b - w * old * old;
                let new = nint(x * b1 / a1).clamp(-n, n - 1);
                if new != *c {
                    a1 += w * x * new as f32;
                    b1 += w * new as f32 * new as f32;
                    if b1 > 0.0 && a1 * a1 * b > a * a * b1 {
                        (*c, a, b) = (new, a1, b1);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for (l, c) in l.iter_mut().zip(codes) {
        *l = (c + n) as u8;
    }
    if b > 0.0 { a / b } else { 0.0 }
}

/// How [`qk`] sweeps its candidates: inverse scales `(rmin + rdelta·s + n) / (max - min)` for `s` in `0..=steps`.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// Offset of the first candidate.
    pub rmin: f32,
    /// Distance of candidates.
    pub rdelta: f32,
    /// The last candidate.
    pub steps: i32,
    /// Whether errors count by magnitude instead of by square.
    pub mad: bool,
}

impl Sweep {
    /// The sweep that every type uses with importance weights.
    pub const IMPORTANCE: Sweep = Sweep { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };

    /// Numerator of candidate `s` for codes up to `n`.
    #[inline(always)]
    pub fn numerator(&self, s: i32, n: i32) -> f32 {
        self.rmin + self.rdelta * s as f32 + n as f32
    }
}

/// Code in `0..=n` of `x` under the inverse scale `isc` and the minimum `min`.
#[inline]
pub fn affine_code(n: i32, isc: f32, min: f32, x: f32) -> i32 {
    nint(isc * (x - min)).clamp(0, n)
}

/// Weighted error of decoding the codes under (`isc`, `from`) with (`scale`, `min`).
fn affine_error(n: i32, (isc, from): (f32, f32), (scale, min): (f32, f32), x: &[f32], w: &[f32], mad: bool) -> f32 {
    let mut error = 0f32;
    for (x, w) in x.iter().zip(w) {
        let e = scale * affine_code(n, isc, from, *x) as f32 + min - x;
        error += w * if mad { e.abs() } else { e * e };
    }
    error
}

/// H3: affine search with codes in `0..=n`. Returns (scale, -minimum): `x ≈ scale·l - (-minimum)`.
pub fn qk(n: i32, x: &[f32], w: &[f32], sweep: &Sweep, l: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sw, mut sx) = (w[0], w[0] * x[0]);
    for (x, w) in x.iter().zip(w).skip(1) {
        if *x < min {
            min = *x;
        }
        if *x > max {
            max = *x;
        }
        sw += w;
        sx += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        l.fill(0);
        return (0.0, -min);
    }
    let isc = n as f32 / (max - min);
    let mut scale = 1.0 / isc;
    // The codes of the best candidate so far are those under this inverse scale and minimum.
    let mut codes = (isc, min);
    let mut error = affine_error(n, codes, (scale, min), x, w, sweep.mad);
    for s in 0..=sweep.steps {
        // `min` is the one of the last improvement, in the range as in the differences.
        let isc = sweep.numerator(s, n) / (max - min);
        let (mut sl, mut sll, mut sxl) = (0f32, 0f32, 0f32);
        for (x, w) in x.iter().zip(w) {
            let l = affine_code(n, isc, min, *x) as f32;
            sl += w * l;
            sll += w * l * l;
            sxl += w * l * x;
        }
        let d = sw * sll - sl * sl;
        if d > 0.0 {
            let mut scale1 = (sw * sxl - sx * sl) / d;
            let mut min1 = (sll * sx - sl * sxl) / d;
            if min1 > 0.0 {
                min1 = 0.0;
                scale1 = sxl / sll;
            }
            let error1 = affine_error(n, (isc, min), (scale1, min1), x, w, sweep.mad);
            if error1 < error {
                codes = (isc, min);
                (error, scale, min) = (error1, scale1, min1);
            }
        }
    }
    for (l, x) in l.iter_mut().zip(x) {
        *l = affine_code(n, codes.0, codes.1, *x) as u8;
    }
    (scale, -min)
}

/// H4: search for a scale of non-negative values, codes in `0..=n` (wrapped to 8 bits where `x` is negative).
pub fn qp(n: i32, x: &[f32], w: &[f32], l: &mut [u8]) -> f32 {
    let max = x.iter().fold(0f32, |m, x| if m > *x { m } else { *x });
    if max < EPS {
        l.fill(0);
        return 0.0;
    }
    let code = |v: f32| nint(v).min(n);
    let mut isc = n as f32 / max;
    let scale = 1.0 / isc;
    let mut mse = 0f32;
    for (x, w) in x.iter().zip(w) {
        let e = x - scale * f32::from(nint(isc * x) as u8);
        mse += w * e * e;
    }
    for s in (-4..=4).filter(|s| *s != 0) {
        let isc1 = (0.1 * s as f32 + n as f32) / max;
        let scale1 = 1.0 / isc1;
        let mut mse1 = 0f32;
        for (x, w) in x.iter().zip(w) {
            let e = x - scale1 * code(isc1 * x) as f32;
            mse1 += w * e * e;
        }
        if mse1 < mse {
            (mse, isc) = (mse1, isc1);
        }
    }
    let (mut a, mut b) = (0f32, 0f32);
    for ((x, w), l) in x.iter().zip(w).zip(l.iter_mut()) {
        let c = code(isc * x);
        *l = c as u8;
        a += w * x * c as f32;
        b += w * c as f32 * c as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), l) in x.iter().zip(w).zip(l.iter_mut()) {
            let old = f32::from(*l);
            let mut a1 = a - w * x * old;
            let mut b1 = b - w * old * old;
            if a1 > 0.0 && b1 > 0.0 {
                let new = code(x * b1 / a1);
                if new != i32::from(*l) {
                    a1 += w * x * new as f32;
                    b1 += w * new as f32 * new as f32;
                    if a1 * a1 * b > a * a * b1 {
                        *l = new as u8;
                        (a, b) = (a1, b1);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if b > 0.0 { a / b } else { 0.0 }
}

/// H5: index of the level of [`KNL`] nearest to `v`; a tie goes to the upper level, a NaN to the last.
pub fn best_nl(v: f32) -> usize {
    let level = |i: usize| f32::from(KNL[i]);
    if v <= level(0) {
        return 0;
    }
    if v >= level(15) {
        return 15;
    }
    let (mut lo, mut hi) = (0, 15);
    while hi - lo > 1 {
        let mid = (lo + hi) / 2;
        if v < level(mid) {
            hi = mid;
        } else {
            lo = mid;
        }
    }
    if v - level(hi - 1) < level(hi) - v { hi - 1 } else { hi }
}

/// H6: the weight of element `x` with importance `qw`, `qw·sqrt(σ² + x²)`.
#[inline(always)]
pub fn weight(qw: f32, sigma2: f32, x: f32) -> f32 {
    qw * (sigma2 + x * x).sqrt()
}

/// Σ x² in index order.
pub fn sum_squares(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |s, x| s + x * x)
}

/// H7, `lv`: the level in `0..n` whose value `2·level + 1` is nearest to `v`.
#[inline(always)]
pub fn nearest_level(v: f32, n: i32) -> i32 {
    nint(0.5 * (v - 1.0)).clamp(0, n - 1)
}
