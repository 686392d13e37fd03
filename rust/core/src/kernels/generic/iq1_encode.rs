//! Vector encoders of IQ1_S and IQ1_M: lane = block, 16 blocks at a time; only the search among the neighbours of a
//! combination off the grid takes one combination at a time, with its neighbours in the lanes.

use crate::block::Rows;
use crate::block::iquant::iq1::SHIFTED;
use crate::block::iquant::neighbours::{self, Codebook, Packed};
use crate::block::iquant::{iq1_m, iq1_s};
use crate::kernels::generic::search::{Batch, first_max, load_lanes, squares, sum_squares, weights};
use crate::kernels::simd::{LANES, Simd};

/// Ranks of the `N` elements of each lane in ascending order; equal values keep their order.
#[inline(always)]
unsafe fn ranks<S: Simd, const N: usize>(x: &[S::F; N]) -> [S::I; N] {
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
unsafe fn places<S: Simd, const N: usize>(ranks: &[S::I; N]) -> [[u32; LANES]; N] {
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
unsafe fn sorted<S: Simd, const N: usize>(
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
unsafe fn prefixes<S: Simd, const N: usize, const M: usize>(table: &[[f32; LANES]; N]) -> [S::F; M] {
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
struct Best<S: Simd> {
    scale: S::F,
    /// `scale·a`, the decrease of the error.
    gain: S::F,
    /// `i1 | i2 << 8 | shifts << 16`, -1 before the first.
    split: S::I,
}

impl<S: Simd> Best<S> {
    #[inline(always)]
    unsafe fn new() -> Self {
        unsafe { Self { scale: S::splat(0.0), gain: S::splat(-f32::MAX), split: S::isplat(-1) } }
    }

    /// Lanes where a split with the sums `a`, `b` might be better (`b > 0` is left to [`Best::offer`]).
    #[inline(always)]
    unsafe fn promising(&self, a: S::F, b: S::F) -> S::M {
        unsafe { S::lt(S::mul(self.gain, b), S::mul(a, a)) }
    }

    #[inline(always)]
    unsafe fn offer(&mut self, a: S::F, b: S::F, split: usize) {
        unsafe {
            let better = S::m_and(S::lt(S::splat(0.0), b), self.promising(a, b));
            self.scale = S::select(better, S::div(a, b), self.scale);
            self.gain = S::select(better, S::mul(self.scale, a), self.gain);
            self.split = S::iselect(better, S::isplat(split as i32), self.split);
        }
    }
}

/// Results of `N` elements with one scale, and what the grid search needs.
struct Group<S: Simd, const N: usize> {
    scale: S::F,
    /// Lanes with a split.
    found: S::M,
    /// Per element.
    levels: [S::I; N],
    /// Bit `h`: the shift of part `h` is −1/8.
    shifts: S::I,
}

/// Turns the best split into levels; negative scales become positive with mirrored levels and shifts.
#[inline(always)]
unsafe fn settle<S: Simd, const N: usize>(best: Best<S>, ranks: &[S::I; N], live: S::M, parts: i32) -> Group<S, N> {
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
unsafe fn values<S: Simd>(shifts: S::I, part: usize) -> [S::F; 3] {
    unsafe {
        let minus = S::ieq(S::iand(S::ishrv(shifts, S::isplat(part as i32)), S::isplat(1)), S::isplat(1));
        let value = |l: usize| S::select(minus, S::splat(SHIFTED[1][l]), S::splat(SHIFTED[0][l]));
        [value(0), value(1), value(2)]
    }
}

/// Grid rows of 8 elements in each lane.
struct OnGrid<S: Simd> {
    rows: [u16; LANES],
    /// Packed levels of the rows.
    codes: S::I,
    /// Lanes whose levels were off the grid.
    moved: u32,
    /// Lanes where no neighbour has a finite error.
    failed: u32,
}

/// Finds the rows of 8 levels per lane: on the grid, or the neighbour with the smallest weighted error.
#[inline(always)]
unsafe fn rows_of<S: Simd>(
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
        let table = |i: usize| S::splat4(if i < 4 { low.as_ptr().add(4 * i) } else { high.as_ptr().add(4 * i - 16) });
        let tables = [table(0), table(1), table(2), table(3), table(4), table(5), table(6), table(7)];
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
unsafe fn value_of<S: Simd>(codes: S::I, i: usize, values: &[S::F; 3]) -> S::F {
    unsafe {
        let l = S::iand(S::ishrv(codes, S::isplat(2 * i as i32)), S::isplat(3));
        let upper = S::select(S::ieq(l, S::isplat(1)), values[1], values[2]);
        S::select(S::ieq(l, S::isplat(0)), values[0], upper)
    }
}

/// `Σ (w·q)·x` and `Σ (w·q)·q`.
struct Fit<S: Simd> {
    a: S::F,
    b: S::F,
}

impl<S: Simd> Fit<S> {
    #[inline(always)]
    unsafe fn new() -> Self {
        unsafe { Self { a: S::splat(0.0), b: S::splat(0.0) } }
    }

    #[inline(always)]
    unsafe fn add(&mut self, x: S::F, w: S::F, q: S::F) {
        unsafe {
            let wq = S::mul(w, q);
            self.a = S::add(self.a, S::mul(wq, x));
            self.b = S::add(self.b, S::mul(wq, q));
        }
    }

    /// `a/b` in the lanes of `which` where both are positive, else `scale`.
    #[inline(always)]
    unsafe fn refit(&self, which: u32, scale: S::F) -> S::F {
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
unsafe fn scale_level<S: Simd>(id: S::F, scale: S::F) -> S::I {
    unsafe {
        let v = S::mul(S::splat(0.5), S::sub(S::mul(id, scale), S::splat(1.0)));
        S::imin(S::imax(S::nint(v), S::isplat(0)), S::isplat(7))
    }
}

/// The best split of 32 elements with one shift.
#[inline(always)]
unsafe fn split_s<S: Simd>(sx: &[S::F; 33], sw: &[S::F; 33]) -> Best<S> {
    unsafe {
        let mut best = Best::<S>::new();
        let [p, m] = SHIFTED;
        let zero = S::splat(0.0);
        // The third run's terms, by its begin: a and b with +1/8, a and b with -1/8.
        let mut last = [[zero; 4]; 33];
        for (i2, t) in last.iter_mut().enumerate() {
            let (x, w) = (S::sub(sx[32], sx[i2]), S::sub(sw[32], sw[i2]));
            let square = |v: f32| S::mul(S::mul(w, S::splat(v)), S::splat(v));
            *t = [S::mul(x, S::splat(p[2])), square(p[2]), S::mul(x, S::splat(m[2])), square(m[2])];
        }
        // The middle values are ±1/8: their products differ in sign only.
        let eighth = S::splat(p[1]);
        for i1 in 0..=32 {
            let square = |v: f32| S::mul(S::mul(sw[i1], S::splat(v)), S::splat(v));
            let (ap, am) = (S::mul(sx[i1], S::splat(p[0])), S::mul(sx[i1], S::splat(m[0])));
            let (bp, bm) = (square(p[0]), square(m[0]));
            for i2 in i1..=32 {
                let x = S::mul(S::sub(sx[i2], sx[i1]), eighth);
                let w = S::mul(S::mul(S::sub(sw[i2], sw[i1]), eighth), eighth);
                let t = &last[i2];
                let (ap, bp) = (S::add(S::add(ap, x), t[0]), S::add(S::add(bp, w), t[1]));
                let (am, bm) = (S::add(S::sub(am, x), t[2]), S::add(S::add(bm, w), t[3]));
                if S::m_any(S::m_or(best.promising(ap, bp), best.promising(am, bm))) {
                    best.offer(ap, bp, i1 | i2 << 8);
                    best.offer(am, bm, i1 | i2 << 8 | 1 << 16);
                }
            }
        }
        best
    }
}

/// Encodes rows as IQ1_S.
#[inline(always)]
pub unsafe fn encode_s<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let book = neighbours::iq1();
    unsafe {
        let zero = S::splat(0.0);
        for first in (0..rows.x.len() / 256).step_by(LANES) {
            let batch = Batch::new(&rows, 256, first);
            let importance = batch.importance.expect("IQ1_S requires importance weights");
            let mut groups = [[zero; 32]; 8];
            for (ib, x) in groups.iter_mut().enumerate() {
                *x = load_lanes::<S, 32>(&batch.x, 32 * ib);
            }
            let sum = sum_squares::<S>(groups.as_flattened());
            let sigma2 = S::div(S::mul(S::splat(2.0), sum), S::splat(256.0));
            let (mut scales, mut max, mut failed) = ([zero; 8], zero, 0);
            let (mut low, mut high) = ([[0u32; LANES]; 8], [S::isplat(0); 8]);
            for (ib, x) in groups.iter().enumerate() {
                let w = weights::<S, 32>(&load_lanes::<S, 32>(&importance, 32 * ib), sigma2, x);
                let live = S::m_not(S::lt(first_max::<S, 32>(x).0, S::splat(iq1_s::EPS)));
                let ranks = ranks::<S, 32>(x);
                let places = places::<S, 32>(&ranks);
                let mut wx = w;
                for (wx, x) in wx.iter_mut().zip(x) {
                    *wx = S::mul(*wx, *x);
                }
                let sx = prefixes::<S, 32, 33>(&sorted::<S, 32>(&places, &wx, 0, 32));
                let sw = prefixes::<S, 32, 33>(&sorted::<S, 32>(&places, &w, 0, 32));
                let group = settle::<S, 32>(split_s::<S>(&sx, &sw), &ranks, live, 1);
                let values = values::<S>(group.shifts, 0);
                let (mut fit, mut moved) = (Fit::<S>::new(), 0);
                let mut h = [0i32; LANES];
                for k in 0..4 {
                    let part = 8 * k..8 * k + 8;
                    let (x, w) = (&x[part.clone()], &w[part.clone()]);
                    let lanes = S::m_bits(group.found);
                    let found = rows_of::<S>(book, lanes, &group.levels[part], x, w, group.scale, &values);
                    for lane in 0..LANES {
                        let row = u32::from(found.rows[lane]);
                        low[ib][lane] |= (row & 255) << (8 * k);
                        h[lane] |= ((row >> 8) << (3 * k)) as i32;
                    }
                    moved |= found.moved;
                    failed |= found.failed;
                    for i in 0..8 {
                        fit.add(x[i], w[i], value_of::<S>(found.codes, i, &values));
                    }
                }
                scales[ib] = fit.refit(moved, group.scale);
                max = S::max(max, scales[ib]);
                high[ib] = S::ior(S::iload(h.as_ptr()), S::ishl::<15>(group.shifts));
            }
            let d = S::div(max, S::splat(15.0));
            let id = S::div(S::splat(1.0), d);
            let mut half = [0u16; LANES];
            S::store_f16(half.as_mut_ptr(), S::mul(d, S::splat(1.125)));
            let zeros = S::m_bits(S::eq(max, zero));
            let mut words = [[0i32; LANES]; 8];
            for ib in 0..8 {
                let l = S::ishl::<12>(scale_level::<S>(id, scales[ib]));
                S::istore(words[ib].as_mut_ptr(), S::ior(high[ib], l));
            }
            for lane in 0..batch.count {
                let b = &mut dst[(first + lane) * 50..][..50];
                if (zeros | failed) >> lane & 1 != 0 {
                    b.fill(0);
                    if failed >> lane & 1 != 0 {
                        crate::block::put_f16(b, 0, f32::NAN);
                    }
                    continue;
                }
                b[..2].copy_from_slice(&half[lane].to_le_bytes());
                for ib in 0..8 {
                    b[2 + 4 * ib..6 + 4 * ib].copy_from_slice(&low[ib][lane].to_le_bytes());
                    b[34 + 2 * ib..36 + 2 * ib].copy_from_slice(&(words[ib][lane] as u16).to_le_bytes());
                }
            }
        }
    }
}

/// The best split of 16 elements; `px`, `pw` are the prefix sums of either half's elements.
#[inline(always)]
unsafe fn split_m<S: Simd>(px: &[[S::F; 17]; 2], pw: &[[S::F; 17]; 2]) -> Best<S> {
    unsafe {
        let mut best = Best::<S>::new();
        let zero = S::splat(0.0);
        let square = |v: f32| v * v;
        // By half and shift: the parts of a and b that need neither index, and b's part of the second index.
        let (mut whole, mut second) = ([[(zero, zero); 2]; 2], [[[zero; 2]; 2]; 17]);
        for h in 0..2 {
            for (shift, [_, v1, v2]) in SHIFTED.into_iter().enumerate() {
                let v = S::splat(v2);
                whole[h][shift] = (S::mul(px[h][16], v), S::mul(S::mul(pw[h][16], v), v));
                let step = S::splat(square(v1) - square(v2));
                for (t, w) in second.iter_mut().zip(&pw[h]) {
                    t[h][shift] = S::mul(*w, step);
                }
            }
        }
        for i1 in 0..=16 {
            let mut first = [[zero; 2]; 2];
            for h in 0..2 {
                for (shift, [v0, v1, _]) in SHIFTED.into_iter().enumerate() {
                    let step = S::splat(square(v0) - square(v1));
                    first[h][shift] = S::add(whole[h][shift].1, S::mul(pw[h][i1], step));
                }
            }
            for i2 in i1..=16 {
                let sum = |h: usize, shift: usize| {
                    let a = S::sub(whole[h][shift].0, S::add(px[h][i1], px[h][i2]));
                    (a, S::add(first[h][shift], second[i2][h][shift]))
                };
                let halves = [[sum(0, 0), sum(0, 1)], [sum(1, 0), sum(1, 1)]];
                let both = |k: usize| {
                    let (x, y) = (halves[0][k >> 1], halves[1][k & 1]);
                    (S::add(x.0, y.0), S::add(x.1, y.1))
                };
                let sums = [both(0), both(1), both(2), both(3)];
                let hope = |k: usize| best.promising(sums[k].0, sums[k].1);
                if S::m_any(S::m_or(S::m_or(hope(0), hope(1)), S::m_or(hope(2), hope(3)))) {
                    // Bit h of the shifts: that of half h.
                    for (k, shifts) in [0, 2, 1, 3].into_iter().enumerate() {
                        best.offer(sums[k].0, sums[k].1, i1 | i2 << 8 | shifts << 16);
                    }
                }
            }
        }
        best
    }
}

/// Encodes rows as IQ1_M.
#[inline(always)]
pub unsafe fn encode_m<S: Simd>(rows: Rows<'_>, dst: &mut [u8]) {
    let book = neighbours::iq1();
    unsafe {
        let (zero, none) = (S::splat(0.0), S::isplat(0));
        for first in (0..rows.x.len() / 256).step_by(LANES) {
            let batch = Batch::new(&rows, 256, first);
            let mut groups = [[zero; 16]; 16];
            for (g, x) in groups.iter_mut().enumerate() {
                *x = load_lanes::<S, 16>(&batch.x, 16 * g);
            }
            let sum = sum_squares::<S>(groups.as_flattened());
            let sigma2 = S::div(S::mul(S::splat(2.0), sum), S::splat(256.0));
            let mut group_weights = [[zero; 16]; 16];
            for (g, (w, x)) in group_weights.iter_mut().zip(&groups).enumerate() {
                *w = match &batch.importance {
                    None => squares::<S, 16>(x),
                    Some(p) => weights::<S, 16>(&load_lanes::<S, 16>(p, 16 * g), sigma2, x),
                };
            }
            let (mut scales, mut shifts, mut codes) = ([zero; 16], [none; 16], [[none; 2]; 16]);
            let (mut max, mut failed) = (zero, 0);
            let (mut low, mut high) = ([[0u8; 32]; LANES], [[0u8; 16]; LANES]);
            for (g, (x, w)) in groups.iter().zip(&group_weights).enumerate() {
                let live = S::m_not(S::lt(first_max::<S, 16>(x).0, S::splat(iq1_m::EPS)));
                let ranks = ranks::<S, 16>(x);
                let places = places::<S, 16>(&ranks);
                let mut wx = *w;
                for (wx, x) in wx.iter_mut().zip(x) {
                    *wx = S::mul(*wx, *x);
                }
                // Adding 0 in the places of the other half's elements changes no sum.
                let sums = |v: &[S::F; 16]| {
                    [
                        prefixes::<S, 16, 17>(&sorted::<S, 16>(&places, v, 0, 8)),
                        prefixes::<S, 16, 17>(&sorted::<S, 16>(&places, v, 8, 16)),
                    ]
                };
                let group = settle::<S, 16>(split_m::<S>(&sums(&wx), &sums(w)), &ranks, live, 2);
                let (mut fit, mut moved) = (Fit::<S>::new(), 0);
                let mut flags = [0i32; LANES];
                S::istore(flags.as_mut_ptr(), group.shifts);
                for h in 0..2 {
                    let part = 8 * h..8 * h + 8;
                    let (x, w) = (&x[part.clone()], &w[part.clone()]);
                    let (lanes, values) = (S::m_bits(group.found), values::<S>(group.shifts, h));
                    let found = rows_of::<S>(book, lanes, &group.levels[part], x, w, group.scale, &values);
                    for lane in 0..LANES {
                        low[lane][2 * g + h] = found.rows[lane] as u8;
                        let bits = (found.rows[lane] >> 8) as u8 | ((flags[lane] >> h & 1) as u8) << 3;
                        high[lane][g] |= bits << (4 * h);
                    }
                    moved |= found.moved;
                    failed |= found.failed;
                    codes[g][h] = found.codes;
                    for i in 0..8 {
                        fit.add(x[i], w[i], value_of::<S>(found.codes, i, &values));
                    }
                }
                scales[g] = fit.refit(moved, group.scale);
                shifts[g] = group.shifts;
                max = S::max(max, scales[g]);
            }
            let d = S::div(max, S::splat(15.0));
            let id = S::div(S::splat(1.0), d);
            let (mut fit, mut packed) = (Fit::<S>::new(), [none; 4]);
            for g in 0..16 {
                let l = scale_level::<S>(id, scales[g]);
                packed[g / 4] = S::ior(packed[g / 4], S::ishlv(l, S::isplat(3 * (g % 4) as i32)));
                let factor = S::to_f(S::inc(S::ishl::<1>(l), S::eq(zero, zero)));
                for h in 0..2 {
                    let values = values::<S>(shifts[g], h).map(|v| S::mul(v, factor));
                    for i in 0..8 {
                        let j = 8 * h + i;
                        fit.add(groups[g][j], group_weights[g][j], value_of::<S>(codes[g][h], i, &values));
                    }
                }
            }
            let d = S::select(S::lt(zero, fit.b), S::div(fit.a, fit.b), d);
            let mut half = [0u16; LANES];
            S::store_f16(half.as_mut_ptr(), S::mul(d, S::splat(1.1125)));
            let zeros = S::m_bits(S::eq(max, zero));
            let mut words = [[0i32; LANES]; 4];
            for (word, v) in words.iter_mut().zip(packed) {
                S::istore(word.as_mut_ptr(), v);
            }
            for lane in 0..batch.count {
                let b = &mut dst[(first + lane) * 56..][..56];
                if (zeros | failed) >> lane & 1 != 0 {
                    b.fill(0);
                    if failed >> lane & 1 != 0 {
                        iq1_m::put_scale(b, f32::NAN);
                    }
                    continue;
                }
                b[..32].copy_from_slice(&low[lane]);
                b[32..48].copy_from_slice(&high[lane]);
                for (i, word) in words.iter().enumerate() {
                    let nibble = half[lane] >> (4 * i) & 15;
                    b[48 + 2 * i..50 + 2 * i].copy_from_slice(&(word[lane] as u16 | nibble << 12).to_le_bytes());
                }
            }
        }
    }
}
