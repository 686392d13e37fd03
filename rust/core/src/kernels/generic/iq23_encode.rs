//! Vector encoder of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: [`crate::block::iquant::sweep`] on vectors.
//!
//! The sweep has one scale per lane: a sub-block's levels change little from scale to scale, so that few distinct
//! combinations have to be looked up, each for several lanes at once. Everything before and after it has one sub-block
//! per lane, 16 of them (one or two blocks) at a time.

use crate::block::Rows;
use crate::block::iquant::neighbours::{Codebook, Packed};
use crate::block::iquant::sweep::{GridSweep, Refit, SubBlock, finish};
use crate::kernels::generic::search::{Batch, load_lanes, sum_squares};
use crate::kernels::simd::{LANES, Simd};

/// Most elements of a sub-block.
const SUB: usize = 32;

/// Errors of the levels of one group: `[element][level][lane]`, 8 elements of 4 levels or 4 of 8.
#[repr(align(64))]
struct Costs([[f32; LANES]; 32]);

/// Values of the sub-blocks, `[sub-block][element]`.
#[repr(align(64))]
struct Elements([[f32; SUB]; LANES]);

/// Scales of the sweep, relative to the one that gives the largest value the highest level.
const fn steps<F: GridSweep>() -> [f32; 32] {
    let mut t = [1.0; 32];
    let mut i = 0;
    while i <= 2 * F::STEPS {
        t[i as usize] = (2 * F::LEVELS - 1) as f32 + (i - F::STEPS) as f32 * F::STEP;
        i += 1;
    }
    t
}

/// One group in 16 lanes.
struct Matched<I> {
    /// Grid rows, packed.
    codes: I,
    /// Lanes whose nearest levels are on the grid.
    on_grid: u32,
}

/// Finds the grid rows of a group at `scale` = 1/`id` in the lanes `live`.
#[inline(always)]
unsafe fn match_group<S: Simd, F: GridSweep>(
    book: &Codebook,
    x: &[S::F],
    wa: &[S::F],
    (id, scale): (S::F, S::F),
    live: u32,
    costs: &mut Costs,
) -> Matched<S::I> {
    let levels = 32 / F::GROUP;
    let bits = if F::GROUP == 8 { 2 } else { 3 };
    let costs = costs.0.as_mut_ptr().cast::<f32>();
    unsafe {
        let mut values = [S::splat(0.0); 8];
        for l in 0..F::LEVELS as usize {
            values[l] = S::mul(scale, S::splat((2 * l + 1) as f32));
        }
        let mut keys = S::isplat(0);
        for i in 0..F::GROUP {
            let level = nearest_level::<S>(S::mul(id, x[i]), F::LEVELS);
            keys = S::ior(keys, S::ishlv(level, S::isplat(bits * i as i32)));
            for l in 0..F::LEVELS as usize {
                let e = S::sub(values[l], x[i]);
                S::store(costs.add((i * levels + l) * LANES), S::mul(S::mul(wa[i], e), e));
            }
        }
        let mut lanes = [0i32; LANES];
        S::istore(lanes.as_mut_ptr(), keys);
        let (mut codes, mut on_grid, mut rest) = (keys, 0, live);
        while rest != 0 {
            let key = lanes[rest.trailing_zeros() as usize];
            let same = S::ieq(keys, S::isplat(key));
            let here = S::m_bits(same) & rest;
            rest ^= here;
            match book.find_packed(key as usize) {
                Packed::Row(_) => on_grid |= here,
                Packed::Near { codes: near, count } => {
                    let mut best = S::splat(f32::MAX);
                    let mut best_code = S::isplat(i32::from(near[0]));
                    for code in &near[..count] {
                        let at = |i: usize| {
                            let level = usize::from(*code) >> (bits as usize * i) & (levels - 1);
                            costs.add((i * levels + level) * LANES)
                        };
                        let mut d2 = S::load(at(0));
                        for i in 1..F::GROUP {
                            d2 = S::add(d2, S::load(at(i)));
                        }
                        let better = S::lt(d2, best);
                        best = S::min(d2, best);
                        best_code = S::iselect(better, S::isplat(i32::from(*code)), best_code);
                    }
                    codes = S::iselect(same, best_code, codes);
                }
            }
        }
        Matched { codes, on_grid }
    }
}

/// The level in `0..n` whose value `2·level + 1` is nearest to `v`.
#[inline(always)]
unsafe fn nearest_level<S: Simd>(v: S::F, n: i32) -> S::I {
    unsafe {
        let l = S::nint(S::mul(S::splat(0.5), S::sub(v, S::splat(1.0))));
        S::imin(S::imax(l, S::isplat(0)), S::isplat(n - 1))
    }
}

/// Sums A = Σ (w·xv)·q and B = Σ (w·q)·q.
struct Sums<S: Simd> {
    a: S::F,
    b: S::F,
}

impl<S: Simd> Sums<S> {
    #[inline(always)]
    unsafe fn new() -> Self {
        unsafe { Self { a: S::splat(0.0), b: S::splat(0.0) } }
    }

    /// Adds element `i` of a group with the given rows; `wx` = w·xv.
    #[inline(always)]
    unsafe fn add<F: GridSweep>(&mut self, codes: S::I, i: usize, wx: S::F, w: S::F) {
        const ODD: [f32; LANES] = [1., 3., 5., 7., 9., 11., 13., 15., 1., 3., 5., 7., 9., 11., 13., 15.];
        const ODD4: [f32; LANES] = [1., 3., 5., 7., 1., 3., 5., 7., 1., 3., 5., 7., 1., 3., 5., 7.];
        unsafe {
            let q = if F::GROUP == 8 {
                S::lookup4(S::load(ODD4.as_ptr()), S::ishrv(codes, S::isplat(2 * i as i32)))
            } else if S::FAST_LOOKUP {
                S::lookup(S::load(ODD.as_ptr()), S::ishrv(codes, S::isplat(3 * i as i32)))
            } else {
                let doubled = S::ishrv(S::ishl::<1>(codes), S::isplat(3 * i as i32));
                S::to_f(S::ior(S::iand(doubled, S::isplat(14)), S::isplat(1)))
            };
            self.a = S::add(self.a, S::mul(wx, q));
            self.b = S::add(self.b, S::mul(S::mul(w, q), q));
        }
    }
}

/// Encodes whole rows.
#[inline(always)]
pub unsafe fn encode<S: Simd, F: GridSweep>(rows: Rows<'_>, dst: &mut [u8]) {
    let blocks = rows.x.len() / 256;
    let per_batch = LANES * F::SUB / 256;
    let book = F::book();
    for first in (0..blocks).step_by(LANES) {
        let sigma2 = unsafe { sigma2::<S, F>(&rows, first) };
        for at in (0..LANES.min(blocks - first)).step_by(per_batch) {
            let batch = Batch::new(&rows, F::SUB, (first + at) * 256 / F::SUB);
            let mut sigma = [0f32; LANES];
            for (lane, s) in sigma.iter_mut().enumerate() {
                *s = sigma2[at + lane.min(batch.count - 1) * F::SUB / 256];
            }
            let subs = unsafe { sub_blocks::<S, F>(book, &batch, &sigma) };
            let bytes = F::TYPE.block_bytes();
            let dst = &mut dst[(first + at) * bytes..];
            for (subs, block) in subs[..batch.count].chunks_exact(256 / F::SUB).zip(dst.chunks_exact_mut(bytes)) {
                finish::<F>(subs, block);
            }
        }
    }
}

/// σ² of 16 blocks from `first` on.
#[inline(always)]
unsafe fn sigma2<S: Simd, F: GridSweep>(rows: &Rows<'_>, first: usize) -> [f32; LANES] {
    let batch = Batch::new(rows, 256, first);
    let mut out = [0f32; LANES];
    unsafe {
        let x = load_lanes::<S, 256>(&batch.x, 0);
        let sum = S::mul(S::splat(F::SIGMA), sum_squares::<S>(&x));
        S::store(out.as_mut_ptr(), S::div(sum, S::splat(256.0)));
    }
    out
}

/// Stores `[element]` vectors of lanes as `[lane][element]`.
#[inline(always)]
unsafe fn store_elements<S: Simd>(v: &[S::F; SUB], n: usize, out: &mut Elements) {
    unsafe {
        for part in 0..n / LANES {
            let mut t = [v[0]; LANES];
            t.copy_from_slice(&v[LANES * part..LANES * (part + 1)]);
            S::transpose(&mut t);
            for (out, t) in out.0.iter_mut().zip(t) {
                S::store(out.as_mut_ptr().add(LANES * part), t);
            }
        }
    }
}

/// Loads the first `n` elements of each lane.
#[inline(always)]
unsafe fn load<S: Simd>(p: &[*const f32; LANES], n: usize) -> [S::F; SUB] {
    unsafe {
        let mut out = [S::splat(0.0); SUB];
        for part in 0..n / LANES {
            out[LANES * part..LANES * (part + 1)].copy_from_slice(&load_lanes::<S, LANES>(p, LANES * part));
        }
        out
    }
}

/// Replaces the values by their magnitudes; the sign bits of all elements per lane.
#[inline(always)]
unsafe fn take_signs<S: Simd, F: GridSweep>(x: &mut [S::F; SUB], w: &[S::F; SUB]) -> [u32; LANES] {
    unsafe {
        let (zero, one) = (S::splat(0.0), S::isplat(1));
        let mut signs = S::isplat(0);
        for group in 0..F::SUB / 8 {
            let mut bits = S::isplat(0);
            let (mut least, mut which) = (zero, S::isplat(0));
            let mut count = S::isplat(0);
            for i in 0..8 {
                let at = 8 * group + i;
                let v = x[at];
                let positive = S::ge(v, zero);
                let set = S::iselect(positive, S::isplat(0), one);
                bits = S::ior(bits, S::ishlv(set, S::isplat(i as i32)));
                if F::EVEN_SIGNS {
                    count = S::ixor(count, set);
                    let cost = S::mul(S::mul(w[at], v), v);
                    if i == 0 {
                        least = cost;
                    } else {
                        let less = S::lt(cost, least);
                        least = S::select(less, cost, least);
                        which = S::iselect(less, S::isplat(i as i32), which);
                    }
                }
                x[at] = S::select(positive, v, S::neg(v));
            }
            if F::EVEN_SIGNS {
                let odd = S::ieq(count, one);
                let which = S::iselect(odd, which, S::isplat(-1));
                for i in 0..8 {
                    let at = 8 * group + i;
                    x[at] = S::select(S::ieq(which, S::isplat(i as i32)), S::neg(x[at]), x[at]);
                }
                bits = S::ixor(bits, S::iselect(odd, S::ishlv(one, which), S::isplat(0)));
                bits = S::iand(bits, S::isplat(0x7F));
            }
            signs = S::ior(signs, S::ishlv(bits, S::isplat(8 * group as i32)));
        }
        let mut out = [0u32; LANES];
        S::istore(out.as_mut_ptr().cast(), signs);
        out
    }
}

/// What the sweep finds for one sub-block.
struct Best {
    scale: f32,
    codes: [u16; 8],
    on_grid: [bool; 8],
}

/// The sweep over the scales of one sub-block: lane = scale.
#[inline(always)]
unsafe fn sweep<S: Simd, F: GridSweep>(
    book: &Codebook,
    (x, wa, wx, w): (&[f32; SUB], &[f32; SUB], &[f32; SUB], &[f32; SUB]),
    (scale, top): (f32, f32),
    costs: &mut Costs,
) -> Best {
    let groups = F::SUB / F::GROUP;
    let count = 2 * F::STEPS as usize + 1;
    let steps = const { steps::<F>() };
    unsafe {
        let (mut a, mut b) = ([0f32; 32], [0f32; 32]);
        let (mut codes, mut on_grid) = ([[0i32; 32]; 8], [0u32; 8]);
        for part in (0..count).step_by(LANES) {
            let live = (1 << (count - part).min(LANES)) - 1;
            let id = S::div(S::load(steps.as_ptr().add(part)), S::splat(top));
            let this = S::div(S::splat(1.0), id);
            let mut sums = Sums::<S>::new();
            for k in 0..groups {
                let (mut gx, mut gw) = ([id; 8], [id; 8]);
                for i in 0..F::GROUP {
                    gx[i] = S::splat(x[F::GROUP * k + i]);
                    gw[i] = S::splat(wa[F::GROUP * k + i]);
                }
                let m = match_group::<S, F>(book, &gx, &gw, (id, this), live, costs);
                S::istore(codes[k].as_mut_ptr().add(part), m.codes);
                on_grid[k] |= m.on_grid << part;
                for i in 0..F::GROUP {
                    let at = F::GROUP * k + i;
                    sums.add::<F>(m.codes, i, S::splat(wx[at]), S::splat(w[at]));
                }
            }
            S::store(a.as_mut_ptr().add(part), sums.a);
            S::store(b.as_mut_ptr().add(part), sums.b);
        }
        let (mut scale, mut best, mut found) = (scale, 0f32, None);
        for s in 0..count {
            if b[s] > 0.0 && a[s] * a[s] > best * b[s] {
                scale = a[s] / b[s];
                best = scale * a[s];
                found = Some(s);
            }
        }
        let mut out = Best { scale, codes: [0; 8], on_grid: [F::REFIT == Refit::OffGrid; 8] };
        if let Some(s) = found {
            for k in 0..groups {
                out.codes[k] = codes[k][s] as u16;
                out.on_grid[k] = on_grid[k] >> s & 1 == 1;
            }
        }
        out
    }
}

/// Encodes 16 sub-blocks.
#[inline(always)]
unsafe fn sub_blocks<S: Simd, F: GridSweep>(
    book: &Codebook,
    batch: &Batch,
    sigma2: &[f32; LANES],
) -> [SubBlock; LANES] {
    let groups = F::SUB / F::GROUP;
    let mut costs = Costs([[0.0; LANES]; 32]);
    unsafe {
        let sigma2 = S::load(sigma2.as_ptr());
        let mut x = load::<S>(&batch.x, F::SUB);
        let mut w = x;
        match &batch.importance {
            Some(p) => {
                let q = load::<S>(p, F::SUB);
                for i in 0..F::SUB {
                    w[i] = S::mul(q[i], S::sqrt(S::add(sigma2, S::mul(x[i], x[i]))));
                }
            }
            None => {
                for w in &mut w[..F::SUB] {
                    let square = S::mul(*w, *w);
                    *w = if F::PLAIN_SIGMA == 0.0 {
                        square
                    } else {
                        S::add(S::mul(S::splat(F::PLAIN_SIGMA), sigma2), square)
                    };
                }
            }
        }
        let mut signs = take_signs::<S, F>(&mut x, &w);
        let (mut wa, mut wx) = (w, w);
        let mut max = x[0];
        for i in 0..F::SUB {
            wa[i] = S::sqrt(w[i]);
            wx[i] = S::mul(w[i], x[i]);
            max = S::max(max, x[i]);
        }
        let (scale, top) = F::start_simd::<S>(&x, &w, max);
        let skip = S::m_or(S::lt(max, S::splat(F::TINY)), S::le(top, S::splat(0.0)));
        let live = !S::m_bits(skip) & ((1 << batch.count) - 1);

        let mut natural = [const { Elements([[0.0; SUB]; LANES]) }; 4];
        for (out, v) in natural.iter_mut().zip([&x, &wa, &wx, &w]) {
            store_elements::<S>(v, F::SUB, out);
        }
        let (mut scales, mut tops) = ([0f32; LANES], [0f32; LANES]);
        S::store(scales.as_mut_ptr(), scale);
        S::store(tops.as_mut_ptr(), top);
        let mut codes = [[0i32; LANES]; 8];
        let (mut off_grid, mut any_off) = ([0u32; 8], 0u32);
        for lane in 0..LANES {
            if live >> lane & 1 == 0 {
                scales[lane] = 0.0;
                continue;
            }
            let [x, wa, wx, w] = &natural;
            let elements = (&x.0[lane], &wa.0[lane], &wx.0[lane], &w.0[lane]);
            let best = sweep::<S, F>(book, elements, (scales[lane], tops[lane]), &mut costs);
            scales[lane] = best.scale;
            for k in 0..groups {
                codes[k][lane] = i32::from(best.codes[k]);
                off_grid[k] |= u32::from(!best.on_grid[k]) << lane;
                any_off |= off_grid[k];
            }
        }

        let scale = S::load(scales.as_ptr());
        let positive = S::m_bits(S::gt(scale, S::splat(0.0)));
        let again = if F::REFIT == Refit::All { positive & live } else { positive & any_off };
        let id = S::div(S::splat(1.0), scale);
        let mut sums = Sums::<S>::new();
        for k in 0..groups {
            let at = F::GROUP * k;
            let which = if F::REFIT == Refit::OffGrid { again & off_grid[k] } else { again };
            let old = S::iload(codes[k].as_ptr());
            let m = match_group::<S, F>(book, &x[at..], &wa[at..], (id, scale), which, &mut costs);
            let new = S::iselect(S::m_from_bits(which), m.codes, old);
            S::istore(codes[k].as_mut_ptr(), new);
            for i in 0..F::GROUP {
                sums.add::<F>(new, i, wx[at + i], w[at + i]);
            }
        }
        let fitted = S::m_and(S::m_from_bits(again), S::gt(sums.b, S::splat(0.0)));
        let scale = S::select(fitted, S::div(sums.a, sums.b), scale);
        S::store(scales.as_mut_ptr(), scale);
        let stored = if F::EVEN_SIGNS { 0x7F7F_7F7F } else { u32::MAX };
        let mut out = [SubBlock::default(); LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            out.skipped = live >> lane & 1 == 0;
            if out.skipped {
                continue;
            }
            if scales[lane] < 0.0 {
                scales[lane] = -scales[lane];
                signs[lane] ^= stored;
            }
            out.scale = scales[lane];
            out.signs = signs[lane].to_le_bytes();
            for k in 0..groups {
                out.rows[k] = book.row(codes[k][lane] as usize) as u16;
            }
        }
        out
    }
}
