//! Vector kernels of packed codes: decoding with parameters per group, and exchanging rows and columns of words.

use crate::kernels::simd::{LANES, Simd};
use crate::pack::groups::{Op, Row};

/// Decodes the row, [`Row::decode`] bit for bit. `row.check(out.len())` has passed.
#[inline(always)]
pub unsafe fn decode_row<S: Simd, const STREAM: bool>(row: &Row<'_>, out: &mut [f32]) {
    let single = row.first / row.group == (row.first + out.len().max(1) - 1) / row.group;
    let whole = row.group % LANES == 0 && row.first % LANES == 0;
    unsafe {
        if row.group == 1 {
            dispatch::<S, STREAM, true>(row, out);
        } else if single || whole {
            dispatch::<S, STREAM, false>(row, out);
        } else {
            row.decode(0, out);
        }
    }
}

#[inline(always)]
unsafe fn dispatch<S: Simd, const STREAM: bool, const EACH: bool>(row: &Row<'_>, out: &mut [f32]) {
    unsafe {
        match row.op {
            Op::Affine => run::<S, STREAM, EACH, 0>(row, out),
            Op::Biased => run::<S, STREAM, EACH, 1>(row, out),
            Op::Table => run::<S, STREAM, EACH, 2>(row, out),
        }
    }
}

/// 16 codes of `bits` bits from `p`, one byte each. Reads 8 bytes from `p` and from `p + bits`.
#[inline(always)]
unsafe fn codes16<S: Simd>(p: *const u8, bits: usize, mask: u64, swap: bool) -> [u64; 2] {
    unsafe {
        let mut x = [p.cast::<u64>().read_unaligned(), p.add(bits).cast::<u64>().read_unaligned()].map(u64::from_le);
        if swap {
            const LOW: u64 = 0x0F0F_0F0F_0F0F_0F0F;
            x = x.map(|x| (x & LOW) << 4 | x >> 4 & LOW);
        }
        x.map(|x| S::deposit(x, bits as u32, mask))
    }
}

/// `OP`: [`Op`] as a number. `EACH`: every code has its own parameters; otherwise 16 codes always share theirs.
#[inline(always)]
unsafe fn run<S: Simd, const STREAM: bool, const EACH: bool, const OP: u8>(row: &Row<'_>, out: &mut [f32]) {
    let bits = row.bits;
    let mask = ((1u64 << bits) - 1) * 0x0101_0101_0101_0101;
    // Both reads of 8 bytes stay inside the row.
    let safe = row.words.len().saturating_sub(bits + 8) / (2 * bits) * LANES;
    let whole = (out.len() / LANES * LANES).min(if row.words.len() < bits + 8 { 0 } else { safe + LANES });
    let mut done = 0;
    unsafe {
        let table = S::load(row.table.as_ptr());
        while done < whole {
            let group = (row.first + done) / row.group;
            let until = if EACH { whole } else { whole.min((group + 1).saturating_mul(row.group) - row.first) };
            let (mut scale, mut offset) = (S::splat(0.0), S::splat(0.0));
            if !EACH {
                scale = S::splat(*row.scales.get_unchecked(group));
                if OP != 2 {
                    offset = S::splat(*row.offsets.get_unchecked(group));
                }
            }
            while done < until {
                if EACH {
                    scale = S::load(row.scales.as_ptr().add(row.first.wrapping_add(done)));
                    if OP != 2 {
                        offset = S::load(row.offsets.as_ptr().add(row.first.wrapping_add(done)));
                    }
                }
                let at = row.words.as_ptr().add(done / 8 * bits);
                let codes = codes16::<S>(at, bits, mask, row.high_first);
                let value = match OP {
                    0 => S::mul(S::sub(S::widen8(codes), offset), scale),
                    1 => S::add(S::mul(S::widen8(codes), scale), offset),
                    _ => S::mul(S::lookup(table, S::load_u8(codes.map(u64::to_le).as_ptr().cast())), scale),
                };
                S::put::<STREAM>(out.as_mut_ptr().add(done), value);
                done = done.wrapping_add(LANES);
            }
        }
    }
    row.decode(done, &mut out[done..]);
}

/// `dst[r * n + w] = src[w * stride + r]` for `r < rows`, `w < n`, in words of 32 bits.
#[inline(always)]
pub unsafe fn turn<S: Simd>(src: *const u8, stride: usize, rows: usize, n: usize, dst: *mut u32) {
    let word = |w: usize, r: usize| src.wrapping_add(4 * (w * stride + r)).cast::<u32>();
    let (whole_rows, whole_words) = (rows / LANES * LANES, n / LANES * LANES);
    unsafe {
        for r in (0..whole_rows).step_by(LANES) {
            for w in (0..whole_words).step_by(LANES) {
                let mut v = [S::splat(0.0); LANES];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = S::load(word(w + i, r).cast());
                }
                S::transpose(&mut v);
                for (i, v) in v.iter().enumerate() {
                    S::store(dst.add((r + i) * n + w).cast(), *v);
                }
            }
        }
        for r in 0..rows {
            let from = if r < whole_rows { whole_words } else { 0 };
            for w in from..n {
                dst.add(r * n + w).write_unaligned(word(w, r).read_unaligned());
            }
        }
    }
}
