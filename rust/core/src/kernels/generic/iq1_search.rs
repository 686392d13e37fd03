//! Parts of the vector encoders of IQ1_S and IQ1_M: sorting, the best split, the step to grid rows. Lane = block; only
//! the search among the neighbours of a combination off the grid takes one combination at a time, with its neighbours in
//! the lanes.

use crate::block::iquant::iq1::SHIFTED;
use crate::block::iquant::neighbours::{Codebook, Packed};
use crate::kernels::simd::{LANES, Simd};

/// Ranks of the `N` elements of each lane in ascending order; equal values keep their order.
#[inline(always)]
pub unsafe fn ranks<S: Simd, const N: usize>(x: &[S::F; N]) -> [S::I; N] {
    unsafe {
        let mut ranks = [S::isplat(0); N];
        for i in 1..N {
            let (xi, mut rank) = (x[i], S::isplat(0));
            for j in 0..i {
                rank = S::inc(rank, S::le(x[j], xi));
                ranks[j] = S::inc(ranks[j], S::lt(xi, x[j]));
            }
            ranks[i] = rank;
        }
        ranks
    }
}

/// Where element `j` of each lane goes in a table `[rank][lane]`.
#[inline(always)]
pub unsafe fn places<S: Simd, const N: usize>(ranks: &[S::I; N]) -> [[u32; LANES]; N] {
    const LANE: [i32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    unsafe {
        let lane = S::iload(LANE.as_ptr());
        let mut places = [[0; LANES]; N];
        for (place, rank) in places.iter_mut().zip(ranks) {
            S::istore(place.as_mut_ptr().cast(), S::ior(S::ishl::<4>(*rank), lane));
        }
        places
    }
}

/// Moves element `j` of each lane, `from <= j < to`, to its rank; the other ranks get 0.
#[inline(always)]
pub unsafe fn sorted<S: Simd, const N: usize>(
    places: &[[u32; LANES]; N],
    v: &[S::F; N],
    from: usize,
    to: usize,
) -> [[f32; LANES]; N] {
    unsafe {
        let mut table = [[0f32; LANES]; N];
        let out = table.as_mut_ptr().cast::<f32>();
        for j in from..to {
            let mut lanes = [0f32; LANES];
            S::store(lanes.as_mut_ptr(), v[j]);
            for (place, v) in places[j].iter().zip(lanes) {
                *out.add(*place as usize) = v;
            }
        }
        table
    }
}

/// Prefix sums over ranks: vector `j` is the sum of the first `j`.
#[inline(always)]
pub unsafe fn prefixes<S: Simd, const N: usize, const M: usize>(table: &[[f32; LANES]; N]) -> [S::F; M] {
    const { assert!(M == N + 1) };
    unsafe {
        let mut sums = [S::splat(0.0); M];
        for j in 0..N {
            sums[j + 1] = S::add(sums[j], S::load(table[j].as_ptr()));
        }
        sums
    }
}

/// The best split found so far in each lane.
pub struct Best<S: Simd> {
    scale: S::F,
    /// `scale·a`, the decrease of the error.
    gain: S::F,
    /// `i1 | i2 << 8 | shifts << 16`, -1 before the first.
    split: S::I,
}

impl<S: Simd> Best<S> {
    /// Nothing yet.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        unsafe { Self { scale: S::splat(0.0), gain: S::splat(-f32::MAX), split: S::isplat(-1) } }
    }

    /// Lanes where a split with the sums `a`, `b` might be better (`b > 0` is left to [`Best::offer`]).
    #[inline(always)]
    pub unsafe fn promising(&self, a: S::F, b: S::F) -> S::M {
        unsafe { S::lt(S::mul(self.gain, b), S::mul(a, a)) }
    }

    /// Takes a split where it is better: `b > 0` and `a²/b` larger than before.
    #[inline(always)]
    pub unsafe fn offer(&mut self, a: S::F, b: S::F, split: usize) {
        unsafe {
            let better = S::m_and(S::lt(S::splat(0.0), b), self.promising(a, b));
            self.scale = S::select(better, S::div(a, b), self.scale);
            self.gain = S::select(better, S::mul(self.scale, a), self.gain);
            self.split = S::iselect(better, S::isplat(split as i32), self.split);
        }
    }
}

/// Results of `N` elements with one scale, and what the grid search needs.
pub struct Group<S: Simd, const N: usize> {
    /// Not negative; 0 in lanes without a split.
    pub scale: S::F,
    /// Lanes with a split.
    pub found: S::M,
    /// Per element.
    pub levels: [S::I; N],
    /// Bit `h`: the shift of part `h` is −1/8.
    pub shifts: S::I,
}

/// Turns the best split into levels; negative scales become positive with mirrored levels and shifts.
#[inline(always)]
pub unsafe fn settle<S: Simd, const N: usize>(best: Best<S>, ranks: &[S::I; N], live: S::M, parts: i32) -> Group<S, N> {
    unsafe {
        let (byte, zero) = (S::isplat(255), S::splat(0.0));
        let found = S::m_and(live, S::igt(best.split, S::isplat(-1)));
        let i1 = S::iand(best.split, byte);
        let i2 = S::iand(S::ishr::<8>(best.split), byte);
        let negative = S::lt(best.scale, zero);
        let mut levels = *ranks;
        for level in &mut levels {
            let l = S::isub(S::isplat(2), S::inc(S::inc(S::isplat(0), S::igt(i1, *level)), S::igt(i2, *level)));
            *level = S::iselect(negative, S::isub(S::isplat(2), l), l);
        }
        let flip = S::iselect(negative, S::isplat((1 << parts) - 1), S::isplat(0));
        let shifts = S::ixor(S::ishr::<16>(best.split), flip);
        Group {
            scale: S::select(found, S::select(negative, S::neg(best.scale), best.scale), zero),
            found,
            levels,
            shifts: S::iselect(found, shifts, S::isplat(0)),
        }
    }
}

/// The three values of the levels in the lanes whose bit `part` of `shifts` is set or not.
#[inline(always)]
pub unsafe fn values<S: Simd>(shifts: S::I, part: usize) -> [S::F; 3] {
    unsafe {
        let minus = S::ieq(S::iand(S::ishrv(shifts, S::isplat(part as i32)), S::isplat(1)), S::isplat(1));
        let mut values = [S::splat(0.0); 3];
        for (l, v) in values.iter_mut().enumerate() {
            *v = S::select(minus, S::splat(SHIFTED[1][l]), S::splat(SHIFTED[0][l]));
        }
        values
    }
}

/// Grid rows of 8 elements in each lane.
pub struct OnGrid<S: Simd> {
    /// Row numbers; 0 in lanes left out.
    pub rows: [u16; LANES],
    /// Packed levels of the rows; 0 in lanes left out.
    pub codes: S::I,
    /// Lanes whose levels were off the grid.
    pub moved: u32,
    /// Lanes where no neighbour has a finite error.
    pub failed: u32,
}

/// Finds the rows of 8 levels per lane: on the grid, or the neighbour with the smallest weighted error.
#[inline(always)]
pub unsafe fn rows_of<S: Simd>(
    book: &Codebook,
    lanes: u32,
    levels: &[S::I],
    x: &[S::F],
    w: &[S::F],
    scale: S::F,
    values: &[S::F; 3],
) -> OnGrid<S> {
    unsafe {
        let mut key = levels[0];
        for (i, l) in levels.iter().enumerate().skip(1) {
            key = S::ior(key, S::ishlv(*l, S::isplat(2 * i as i32)));
        }
        let mut codes = [0i32; LANES];
        S::istore(codes.as_mut_ptr(), key);
        let (mut rows, mut near) = ([0u16; LANES], 0u32);
        let mut lists = [(std::ptr::null(), 0usize); LANES];
        let mut rest = lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            match book.find_packed(codes[lane] as usize) {
                Packed::Row(row) => rows[lane] = row as u16,
                Packed::Near { codes, count } => {
                    lists[lane] = (codes.as_ptr(), count);
                    near |= 1 << lane;
                }
            }
        }
        let mut failed = 0;
        if near != 0 {
            let costs = costs::<S>(x, w, scale, values);
            let mut rest = near;
            while rest != 0 {
                let lane = rest.trailing_zeros() as usize;
                rest &= rest.wrapping_sub(1);
                let (list, count) = lists[lane];
                let best = cheapest::<S>(list, count, &costs[0][lane], &costs[1][lane]);
                if best < 0 {
                    failed |= 1 << lane;
                    continue;
                }
                codes[lane] = i32::from(*list.add(best as usize));
                rows[lane] = book.row(codes[lane] as usize) as u16;
            }
        }
        let mut none = [0i32; LANES];
        for (lane, code) in none.iter_mut().enumerate() {
            if lanes >> lane & 1 != 0 {
                *code = codes[lane];
            }
        }
        OnGrid { rows, codes: S::iload(none.as_ptr()), moved: near, failed }
    }
}

/// Errors of the levels, per half of 8 elements and lane: `[element][level]`, the fourth level unused.
#[inline(always)]
unsafe fn costs<S: Simd>(x: &[S::F], w: &[S::F], scale: S::F, values: &[S::F; 3]) -> [[[f32; LANES]; LANES]; 2] {
    unsafe {
        let scaled = [S::mul(scale, values[0]), S::mul(scale, values[1]), S::mul(scale, values[2])];
        let mut out = [[[0f32; LANES]; LANES]; 2];
        for (half, out) in out.iter_mut().enumerate() {
            let mut m = [S::splat(0.0); LANES];
            for i in 0..4 {
                for l in 0..3 {
                    let j = 4 * half + i;
                    let e = S::sub(scaled[l], x[j]);
                    m[4 * i + l] = S::mul(S::mul(w[j], e), e);
                }
            }
            S::transpose(&mut m);
            for (out, v) in out.iter_mut().zip(m) {
                S::store(out.as_mut_ptr(), v);
            }
        }
        out
    }
}

/// Index of the packed row with the smallest sum of costs, the first of equal ones; -1 if none is below `f32::MAX`.
/// At least 15 more rows than `count` can be read.
#[inline(always)]
unsafe fn cheapest<S: Simd>(list: *const u16, count: usize, low: &[f32; LANES], high: &[f32; LANES]) -> i32 {
    const LANE: [i32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    unsafe {
        let mut tables = [S::splat(0.0); 8];
        for i in 0..4 {
            tables[i] = S::splat4(low.as_ptr().add(4 * i));
            tables[i + 4] = S::splat4(high.as_ptr().add(4 * i));
        }
        let (mut best, mut which) = (S::splat(f32::MAX), S::isplat(-1));
        let mut index = S::iload(LANE.as_ptr());
        let end = S::isplat(count as i32);
        for at in (0..count).step_by(LANES) {
            let code = S::load_u16(list.add(at));
            let mut sum = S::lookup4(tables[0], code);
            sum = S::add(sum, S::lookup4(tables[1], S::ishr::<2>(code)));
            sum = S::add(sum, S::lookup4(tables[2], S::ishr::<4>(code)));
            sum = S::add(sum, S::lookup4(tables[3], S::ishr::<6>(code)));
            sum = S::add(sum, S::lookup4(tables[4], S::ishr::<8>(code)));
            sum = S::add(sum, S::lookup4(tables[5], S::ishr::<10>(code)));
            sum = S::add(sum, S::lookup4(tables[6], S::ishr::<12>(code)));
            sum = S::add(sum, S::lookup4(tables[7], S::ishr::<14>(code)));
            let better = S::m_and(S::igt(end, index), S::lt(sum, best));
            best = S::select(better, sum, best);
            which = S::iselect(better, index, which);
            index = S::iadd(index, S::isplat(LANES as i32));
        }
        // Lanes never improved hold f32::MAX and -1; as unsigned numbers the indices order them last.
        let least = S::splat(S::min_lane(best));
        S::umin_lane(S::iselect(S::eq(best, least), which, S::isplat(-1))) as i32
    }
}

/// The level's value of each element of packed rows.
#[inline(always)]
pub unsafe fn value_of<S: Simd>(codes: S::I, i: usize, values: &[S::F; 3]) -> S::F {
    unsafe {
        let l = S::iand(S::ishrv(codes, S::isplat(2 * i as i32)), S::isplat(3));
        let upper = S::select(S::ieq(l, S::isplat(1)), values[1], values[2]);
        S::select(S::ieq(l, S::isplat(0)), values[0], upper)
    }
}

/// Sums of a fit `x ≈ scale·q`.
pub struct Fit<S: Simd> {
    /// `Σ (w·q)·x`.
    pub a: S::F,
    /// `Σ (w·q)·q`.
    pub b: S::F,
}

impl<S: Simd> Fit<S> {
    /// Nothing yet.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        unsafe { Self { a: S::splat(0.0), b: S::splat(0.0) } }
    }

    /// Adds an element.
    #[inline(always)]
    pub unsafe fn add(&mut self, x: S::F, w: S::F, q: S::F) {
        unsafe {
            let wq = S::mul(w, q);
            self.a = S::add(self.a, S::mul(wq, x));
            self.b = S::add(self.b, S::mul(wq, q));
        }
    }

    /// `a/b` in the lanes of `which` where both are positive, else `scale`.
    #[inline(always)]
    pub unsafe fn refit(&self, which: u32, scale: S::F) -> S::F {
        unsafe {
            let zero = S::splat(0.0);
            let positive = S::m_and(S::lt(zero, self.a), S::lt(zero, self.b));
            let m = S::m_and(S::m_from_bits(which), positive);
            S::select(m, S::div(self.a, self.b), scale)
        }
    }
}

/// Level in 0..8 of a group's scale.
#[inline(always)]
pub unsafe fn scale_level<S: Simd>(id: S::F, scale: S::F) -> S::I {
    unsafe {
        let v = S::mul(S::splat(0.5), S::sub(S::mul(id, scale), S::splat(1.0)));
        S::imin(S::imax(S::nint(v), S::isplat(0)), S::isplat(7))
    }
}
