//! Vector kernels of IQ4_NL and IQ4_XS.

use crate::block::Rows;
use crate::block::search::EPS;
use crate::float::{self, KNL};
use crate::kernels::generic::search::{Batch, first_max, load_lanes, squares, sum_squares, weights};
use crate::kernels::simd::{LANES, Simd};

/// Decodes IQ4_NL blocks.
#[inline(always)]
pub unsafe fn decode_nl<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 32 {
        unsafe {
            let d = S::splat_f16(p.cast());
            levels::<S, STREAM>(d, p.add(2), y);
            p = p.add(18);
            y = y.add(32);
        }
    }
}

/// Decodes IQ4_XS blocks.
#[inline(always)]
pub unsafe fn decode_xs<S: Simd, const STREAM: bool>(src: &[u8], dst: &mut [f32]) {
    let (mut p, mut y) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..dst.len() / 256 {
        unsafe {
            let d = float::f16_to_f32(p.cast::<u16>().read_unaligned());
            let high = u32::from(p.add(2).cast::<u16>().read_unaligned());
            let low = p.add(4).cast::<u32>().read_unaligned();
            for i in 0..8 {
                let l = low >> (4 * i) & 15 | (high >> (2 * i) & 3) << 4;
                let dl = S::splat(d * (l as i32).wrapping_sub(32) as f32);
                levels::<S, STREAM>(dl, p.add(8 + 16 * i), y.add(32 * i));
            }
            p = p.add(136);
            y = y.add(256);
        }
    }
}

/// `y = d·level` for 16 bytes of nibbles.
#[inline(always)]
unsafe fn levels<S: Simd, const STREAM: bool>(d: S::F, qs: *const u8, y: *mut f32) {
    unsafe {
        let (low, high) = S::nibble_levels(qs, &KNL);
        S::put::<STREAM>(y, S::mul(d, low));
        S::put::<STREAM>(y.add(16), S::mul(d, high));
    }
}

/// The search for the nearest level. `round(v·(A − B·|v|))` is a bucket that holds at most one of the midpoints between
/// levels (the levels' spacing grows about so with their magnitude), none of them within 0.09 of its border: rounding
/// never moves a value across a midpoint. One comparison then chooses between the levels on both sides.
/// The buckets 8 and −8 of values beyond the ends share an entry, whose "midpoint" is 0.
struct Nearest<S: Simd> {
    middle: S::F,
    below: S::F,
    above: S::F,
}

const A: f32 = 0.0898;
const B: f32 = 0.00023;

/// By bucket modulo 16: the midpoint, and the index of the level below it.
const BUCKETS: [(f32, usize); 16] = {
    let mut t = [(0.0, 0); 16];
    let mut i = 0;
    while i < 15 {
        t[(i + 9) % 16] = ((KNL[i] as i32 + KNL[i + 1] as i32) as f32 * 0.5, i);
        i += 1;
    }
    t
};
/// The index above the midpoint.
const fn above(bucket: usize) -> usize {
    if bucket == 8 { 15 } else { BUCKETS[bucket].1 + 1 }
}

impl<S: Simd> Nearest<S> {
    #[inline(always)]
    unsafe fn new() -> Self {
        let (mut middle, mut below, mut high) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for b in 0..16 {
            middle[b] = BUCKETS[b].0;
            below[b] = f32::from(KNL[BUCKETS[b].1]);
            high[b] = f32::from(KNL[above(b)]);
        }
        unsafe {
            Self { middle: S::load(middle.as_ptr()), below: S::load(below.as_ptr()), above: S::load(high.as_ptr()) }
        }
    }

    /// The bucket of each value, |v| ≤ 140.
    #[inline(always)]
    unsafe fn bucket(v: S::F) -> S::I {
        unsafe {
            let t = S::mul(v, S::sub(S::splat(A), S::mul(S::splat(B), S::abs(v))));
            S::bits(S::add(t, S::splat(12_582_912.0)))
        }
    }

    /// The level nearest to each value, |v| ≤ 140.
    #[inline(always)]
    unsafe fn level(&self, v: S::F) -> S::F {
        unsafe {
            let b = Self::bucket(v);
            let below = S::lt(v, S::lookup(self.middle, b));
            S::select(below, S::lookup(self.below, b), S::lookup(self.above, b))
        }
    }

    /// The index of the level nearest to each value; NaN gives 15.
    #[inline(always)]
    unsafe fn index(&self, v: S::F) -> S::I {
        const BELOW: [i32; 16] = {
            let mut t = [0; 16];
            let mut b = 0;
            while b < 16 {
                t[b] = BUCKETS[b].1 as i32;
                b += 1;
            }
            t
        };
        const ABOVE: [i32; 16] = {
            let mut t = [0; 16];
            let mut b = 0;
            while b < 16 {
                t[b] = above(b) as i32;
                b += 1;
            }
            t
        };
        unsafe {
            let v = S::max(S::min(v, S::splat(113.0)), S::splat(-127.0));
            let b = Self::bucket(v);
            let below = S::lt(v, S::lookup(self.middle, b));
            let (low, high) = (S::iload(BELOW.as_ptr()), S::iload(ABOVE.as_ptr()));
            S::iselect(below, S::ilookup(low, b), S::ilookup(high, b))
        }
    }

    /// The best of 16 scales for the 32 elements of each lane.
    #[inline(always)]
    unsafe fn scale(&self, x: &[S::F; 32], w: &[S::F; 32]) -> S::F {
        unsafe {
            let zero = S::splat(0.0);
            let (amax, max) = first_max::<S, 32>(x);
            let first = S::splat(f32::from(KNL[0]));
            let (a, b) = self.sums(x, w, S::div(S::splat(1.0), S::div(S::neg(max), first)));
            let mut scale = S::select(S::lt(zero, b), S::div(a, b), zero);
            let mut best = S::mul(scale, a);
            for t in -7..=7 {
                let (a, b) = self.sums(x, w, S::div(S::add(S::splat(t as f32), first), max));
                let better = S::m_and(S::lt(zero, b), S::lt(S::mul(best, b), S::mul(a, a)));
                if S::m_any(better) {
                    scale = S::select(better, S::div(a, b), scale);
                    best = S::select(better, S::mul(scale, a), best);
                }
            }
            S::select(S::lt(amax, S::splat(EPS)), zero, scale)
        }
    }

    /// `Σ (w·q)·x` and `Σ (w·q)·q` with the levels `q` nearest to `id·x`.
    #[inline(always)]
    unsafe fn sums(&self, x: &[S::F; 32], w: &[S::F; 32], id: S::F) -> (S::F, S::F) {
        unsafe {
            let (mut a, mut b) = (S::splat(0.0), S::splat(0.0));
            for (x, w) in x.iter().zip(w) {
                let q = self.level(S::mul(id, *x));
                let wq = S::mul(*w, q);
                a = S::add(a, S::mul(wq, *x));
                b = S::add(b, S::mul(wq, q));
            }
            (a, b)
        }
    }

    /// The nibbles of the 32 elements of each lane: word `k` holds bytes `4k..4k + 4`.
    #[inline(always)]
    unsafe fn nibbles(&self, x: &[S::F; 32], scale: S::F) -> [[u32; LANES]; 4] {
        unsafe {
            let nonzero = S::m_not(S::eq(scale, S::splat(0.0)));
            let id = S::select(nonzero, S::div(S::splat(1.0), scale), S::splat(0.0));
            let mut words = [[0u32; LANES]; 4];
            for (k, word) in words.iter_mut().enumerate() {
                let mut packed = S::isplat(0);
                for i in (0..4).rev() {
                    let (low, high) = (S::mul(x[4 * k + i], id), S::mul(x[4 * k + i + 16], id));
                    let byte = S::ior(self.index(low), S::ishl::<4>(self.index(high)));
                    packed = S::ior(S::ishl::<8>(packed), byte);
                }
                S::istore(word.as_mut_ptr().cast(), packed);
            }
            words
        }
    }
}

/// The weights of 32 elements from `at` on: `x²`, or `importance·sqrt(σ² + x²)`.
#[inline(always)]
unsafe fn group_weights<S: Simd>(batch: &Batch, at: usize, x: &[S::F; 32], sigma2: S::F) -> [S::F; 32] {
    unsafe {
        match &batch.importance {
            None => squares::<S, 32>(x),
            Some(importance) => weights::<S, 32>(&load_lanes::<S, 32>(importance, at), sigma2, x),
        }
    }
}

/// Encodes rows as IQ4_NL, 16 blocks at a time.
#[inline(always)]
pub unsafe fn encode_nl<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    unsafe {
        let nearest = Nearest::<S>::new();
        for first in (0..rows.x.len() / 32).step_by(LANES) {
            let batch = Batch::new(&rows, 32, first);
            let x = load_lanes::<S, 32>(&batch.x, 0);
            let sum = sum_squares::<S>(&x);
            let w = group_weights::<S>(&batch, 0, &x, S::mul(sum, S::splat(2.0 / 32.0)));
            let scale = nearest.scale(&x, &w);
            let words = nearest.nibbles(&x, scale);
            let mut d = [0u16; LANES];
            S::store_f16(d.as_mut_ptr(), scale);
            for lane in 0..batch.count {
                let p = dst.as_mut_ptr().add((first + lane) * 18);
                p.cast::<u16>().write_unaligned(d[lane]);
                for (k, word) in words.iter().enumerate() {
                    p.add(2 + 4 * k).cast::<u32>().write_unaligned(word[lane]);
                }
            }
        }
    }
}

/// Encodes rows as IQ4_XS, 16 blocks at a time.
#[inline(always)]
pub unsafe fn encode_xs<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    unsafe {
        let nearest = Nearest::<S>::new();
        let zero = S::splat(0.0);
        for first in (0..rows.x.len() / 256).step_by(LANES) {
            let batch = Batch::new(&rows, 256, first);
            let mut groups = [[zero; 32]; 8];
            for (i, x) in groups.iter_mut().enumerate() {
                *x = load_lanes::<S, 32>(&batch.x, 32 * i);
            }
            let sigma2 = S::mul(sum_squares::<S>(groups.as_flattened()), S::splat(2.0 / 256.0));
            let mut scales = [zero; 8];
            for (i, (s, x)) in scales.iter_mut().zip(&groups).enumerate() {
                *s = nearest.scale(x, &group_weights::<S>(&batch, 32 * i, x, sigma2));
            }
            let (_, max) = first_max::<S, 8>(&scales);
            let d = S::div(S::neg(max), S::splat(32.0));
            let nonzero = S::m_not(S::eq(d, zero));
            let id = S::select(nonzero, S::div(S::splat(1.0), d), zero);
            let mut half = [0u16; LANES];
            S::store_f16(half.as_mut_ptr(), d);
            let (mut low, mut high) = (S::isplat(0), S::isplat(0));
            for (i, x) in groups.iter().enumerate() {
                let l = S::nint(S::mul(id, scales[i]));
                let l = S::imin(S::imax(l, S::isplat(-32)), S::isplat(31));
                let stored = S::iadd(l, S::isplat(32));
                let at = S::isplat(i as i32);
                let nibble = S::iand(stored, S::isplat(15));
                low = S::ior(low, S::ishlv(nibble, S::ishl::<2>(at)));
                high = S::ior(high, S::ishlv(S::ishr::<4>(stored), S::ishl::<1>(at)));
                let words = nearest.nibbles(x, S::mul(d, S::to_f(l)));
                for lane in 0..batch.count {
                    let p = dst.as_mut_ptr().add((first + lane) * 136 + 8 + 16 * i);
                    for (k, word) in words.iter().enumerate() {
                        p.add(4 * k).cast::<u32>().write_unaligned(word[lane]);
                    }
                }
            }
            let (mut lows, mut highs) = ([0i32; LANES], [0i32; LANES]);
            S::istore(lows.as_mut_ptr(), low);
            S::istore(highs.as_mut_ptr(), high);
            for lane in 0..batch.count {
                let p = dst.as_mut_ptr().add((first + lane) * 136);
                p.cast::<u16>().write_unaligned(half[lane]);
                p.add(2).cast::<u16>().write_unaligned(highs[lane] as u16);
                p.add(4).cast::<i32>().write_unaligned(lows[lane]);
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::block::search::best_nl;
    use crate::kernels::{Level, avx2::Avx2, avx512::Avx512};

    #[inline(always)]
    unsafe fn compare<S: Simd>(v: &[f32; LANES]) {
        unsafe {
            let nearest = Nearest::<S>::new();
            let (mut level, mut index) = ([0f32; LANES], [0i32; LANES]);
            S::store(level.as_mut_ptr(), nearest.level(S::load(v.as_ptr())));
            S::istore(index.as_mut_ptr(), nearest.index(S::load(v.as_ptr())));
            for lane in 0..LANES {
                let want = best_nl(v[lane]);
                assert_eq!(index[lane], want as i32, "{:?}", v[lane]);
                if v[lane].abs() <= 140.0 {
                    assert_eq!(level[lane], f32::from(KNL[want]), "{:?}", v[lane]);
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn compare_avx2(v: &[f32; LANES]) {
        unsafe { compare::<Avx2>(v) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn compare_avx512(v: &[f32; LANES]) {
        unsafe { compare::<Avx512>(v) }
    }

    /// All floats, one in `step` (a prime), and all within 64 of a midpoint or a level.
    #[test]
    fn nearest_level_is_that_of_the_binary_search() {
        let step: usize = std::env::var("SUBBYTE_TEST_STEP").map_or(1009, |s| s.parse().unwrap());
        let corners = KNL.iter().chain(KNL[1..].iter()).enumerate().flat_map(|(i, k)| {
            let corner = if i < 16 { f32::from(*k) } else { (f32::from(KNL[i - 16]) + f32::from(*k)) * 0.5 };
            (0..=128).map(move |d| f32::from_bits((corner.to_bits() + d).wrapping_sub(64)))
        });
        let all = (0..=u32::MAX).step_by(step).map(f32::from_bits);
        let mut v = [0f32; LANES];
        let run = |v: &[f32; LANES]| unsafe {
            if Level::Avx2.is_available() {
                compare_avx2(v);
            }
            if Level::Avx512.is_available() {
                compare_avx512(v);
            }
        };
        for (n, x) in corners.chain(all).enumerate() {
            v[n % LANES] = x;
            if n % LANES == LANES - 1 {
                run(&v);
            }
        }
        run(&v);
    }
}
