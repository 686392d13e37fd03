//! Vector encoders of IQ1_S and IQ1_M, 16 blocks at a time.

use crate::block::iquant::iq1::SHIFTED;
use crate::block::iquant::{iq1_m, iq1_s, neighbours};
use crate::block::{Rows, put_f16};
use crate::kernels::generic::iq1_search::{
    Best, Fit, places, prefixes, ranks, rows_of, scale_level, settle, sorted, value_of, values,
};
use crate::kernels::generic::search::{Batch, first_max, load_lanes, squares, sum_squares, weights};
use crate::kernels::simd::{LANES, Simd};

/// `(w·v)·v`.
#[inline(always)]
unsafe fn times_square<S: Simd>(w: S::F, v: S::F) -> S::F {
    unsafe { S::mul(S::mul(w, v), v) }
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
            let (p, m) = (S::splat(p[2]), S::splat(m[2]));
            *t = [S::mul(x, p), times_square::<S>(w, p), S::mul(x, m), times_square::<S>(w, m)];
        }
        // The middle values are ±1/8: their products differ in sign only.
        let eighth = S::splat(p[1]);
        for i1 in 0..=32 {
            let (p, m) = (S::splat(p[0]), S::splat(m[0]));
            let (ap, am) = (S::mul(sx[i1], p), S::mul(sx[i1], m));
            let (bp, bm) = (times_square::<S>(sw[i1], p), times_square::<S>(sw[i1], m));
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
                if failed >> lane & 1 != 0 {
                    b.fill(0);
                    put_f16(b, 0, f32::NAN);
                    continue;
                }
                // Without a scale only the rows stay.
                let kept = if zeros >> lane & 1 != 0 { 0x0FFF } else { 0xFFFF };
                b[..2].copy_from_slice(&half[lane].to_le_bytes());
                for ib in 0..8 {
                    b[2 + 4 * ib..6 + 4 * ib].copy_from_slice(&low[ib][lane].to_le_bytes());
                    b[34 + 2 * ib..36 + 2 * ib].copy_from_slice(&(words[ib][lane] as u16 & kept).to_le_bytes());
                }
            }
        }
    }
}

/// Prefix sums of the elements of either half, over the ranks in the whole group: adding 0 in the places of the other
/// half's elements changes no sum.
#[inline(always)]
unsafe fn half_prefixes<S: Simd>(places: &[[u32; LANES]; 16], v: &[S::F; 16]) -> [[S::F; 17]; 2] {
    unsafe {
        [
            prefixes::<S, 16, 17>(&sorted::<S, 16>(places, v, 0, 8)),
            prefixes::<S, 16, 17>(&sorted::<S, 16>(places, v, 8, 16)),
        ]
    }
}

/// The best split of 16 elements; `px`, `pw` are the prefix sums of either half's elements.
#[inline(always)]
unsafe fn split_m<S: Simd>(px: &[[S::F; 17]; 2], pw: &[[S::F; 17]; 2]) -> Best<S> {
    unsafe {
        let mut best = Best::<S>::new();
        let zero = S::splat(0.0);
        // By half and shift: the parts of a and b that need neither index, and b's part of the second index.
        let (mut whole, mut second) = ([[(zero, zero); 2]; 2], [[[zero; 2]; 2]; 17]);
        for h in 0..2 {
            for (shift, [_, v1, v2]) in SHIFTED.into_iter().enumerate() {
                let v = S::splat(v2);
                whole[h][shift] = (S::mul(px[h][16], v), times_square::<S>(pw[h][16], v));
                let step = S::splat(v1 * v1 - v2 * v2);
                for (t, w) in second.iter_mut().zip(&pw[h]) {
                    t[h][shift] = S::mul(*w, step);
                }
            }
        }
        for i1 in 0..=16 {
            let mut first = [[zero; 2]; 2];
            for h in 0..2 {
                for (shift, [v0, v1, _]) in SHIFTED.into_iter().enumerate() {
                    let step = S::splat(v0 * v0 - v1 * v1);
                    first[h][shift] = S::add(whole[h][shift].1, S::mul(pw[h][i1], step));
                }
            }
            for i2 in i1..=16 {
                let mut halves = [[(zero, zero); 2]; 2];
                for h in 0..2 {
                    let x = S::add(px[h][i1], px[h][i2]);
                    for shift in 0..2 {
                        let a = S::sub(whole[h][shift].0, x);
                        halves[h][shift] = (a, S::add(first[h][shift], second[i2][h][shift]));
                    }
                }
                let (mut sums, mut hope) = ([(zero, zero); 4], S::m_from_bits(0));
                for (k, sum) in sums.iter_mut().enumerate() {
                    let (x, y) = (halves[0][k >> 1], halves[1][k & 1]);
                    *sum = (S::add(x.0, y.0), S::add(x.1, y.1));
                    hope = S::m_or(hope, best.promising(sum.0, sum.1));
                }
                if S::m_any(hope) {
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
                let (px, pw) = (half_prefixes::<S>(&places, &wx), half_prefixes::<S>(&places, w));
                let group = settle::<S, 16>(split_m::<S>(&px, &pw), &ranks, live, 2);
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
                for (h, codes) in codes[g].into_iter().enumerate() {
                    let mut values = values::<S>(shifts[g], h);
                    for v in &mut values {
                        *v = S::mul(*v, factor);
                    }
                    for i in 0..8 {
                        let j = 8 * h + i;
                        fit.add(groups[g][j], group_weights[g][j], value_of::<S>(codes, i, &values));
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
                if failed >> lane & 1 != 0 {
                    b.fill(0);
                    iq1_m::put_scale(b, f32::NAN);
                    continue;
                }
                b[..32].copy_from_slice(&low[lane]);
                b[32..48].copy_from_slice(&high[lane]);
                if zeros >> lane & 1 != 0 {
                    // Without a scale only the rows stay.
                    b[32..48].iter_mut().for_each(|h| *h &= 0x77);
                    b[48..].fill(0);
                    continue;
                }
                for (i, word) in words.iter().enumerate() {
                    let nibble = half[lane] >> (4 * i) & 15;
                    b[48 + 2 * i..50 + 2 * i].copy_from_slice(&(word[lane] as u16 | nibble << 12).to_le_bytes());
                }
            }
        }
    }
}
