//! Vector kernels of packed codes: decoding with parameters per group, and exchanging rows and columns of words.

use crate::kernels::generic::convert;
use crate::kernels::simd::{LANES, Simd};
use crate::pack::groups::{Op, Row};
use crate::pack::{Order, unpack_row};

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
            let mut at = row.words.as_ptr().add((done / 8).wrapping_mul(bits));
            while done < until {
                if EACH {
                    scale = S::load(row.scales.as_ptr().add(row.first.wrapping_add(done)));
                    if OP != 2 {
                        offset = S::load(row.offsets.as_ptr().add(row.first.wrapping_add(done)));
                    }
                }
                let codes = codes16::<S>(at, bits, mask, row.high_first);
                at = at.wrapping_add(bits.wrapping_mul(2));
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

/// Decodes the row and rounds to f16 or bf16. `row.check(out.len())` has passed.
#[inline(always)]
pub unsafe fn decode_row16<S: Simd, const F16: bool, const STREAM: bool>(row: &Row<'_>, out: &mut [u16]) {
    const TILE: usize = 256;
    let single = row.first / row.group == (row.first + out.len().max(1) - 1) / row.group;
    let whole = row.group % 32 == 0 && row.first % 32 == 0;
    unsafe {
        if row.bits <= 4 && row.group >= 32 && (single || whole) {
            return by_table::<S, F16, STREAM>(row, out);
        }
        let mut tile = [0f32; TILE];
        for (i, out) in out.chunks_mut(TILE).enumerate() {
            let tile = &mut tile[..out.len()];
            // A tile is a whole number of bytes of codes.
            let part = Row { words: &row.words[i * TILE / 8 * row.bits..], first: row.first + i * TILE, ..*row };
            decode_row::<S, false>(&part, tile);
            if F16 {
                convert::to_f16::<S>(tile, out);
            } else {
                convert::to_bf16::<S>(tile, out);
            }
        }
    }
}

/// Codes of up to 4 bits in groups of whole 32s: the few values that a group can have are rounded once.
#[inline(always)]
unsafe fn by_table<S: Simd, const F16: bool, const STREAM: bool>(row: &Row<'_>, out: &mut [u16]) {
    let bits = row.bits;
    let mask = ((1u64 << bits) - 1) * 0x0101_0101_0101_0101;
    // All four reads of 8 bytes stay inside the row.
    let reads = 3 * bits + 8;
    let safe = if row.words.len() < reads { 0 } else { (row.words.len() - reads) / (4 * bits) * 32 + 32 };
    let whole = (out.len() / 32 * 32).min(safe);
    let mut done = 0;
    unsafe {
        let codes = S::iload([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].as_ptr());
        let codes = S::to_f(codes);
        while done < whole {
            let group = (row.first + done) / row.group;
            let until = whole.min((group + 1).saturating_mul(row.group) - row.first);
            let scale = S::splat(*row.scales.get_unchecked(group));
            let values = match row.op {
                Op::Affine => S::mul(S::sub(codes, S::splat(*row.offsets.get_unchecked(group))), scale),
                Op::Biased => S::add(S::mul(codes, scale), S::splat(*row.offsets.get_unchecked(group))),
                Op::Table => S::mul(S::load(row.table.as_ptr()), scale),
            };
            let (mut wide, mut table) = ([0f32; LANES], [0u16; LANES]);
            S::store(wide.as_mut_ptr(), values);
            if F16 {
                convert::write_f16::<S>(&wide, table.as_mut_ptr());
            } else {
                convert::write_bf16::<S>(&wide, table.as_mut_ptr());
            }
            let mut at = row.words.as_ptr().add((done / 8).wrapping_mul(bits));
            while bits == 4 && done < until {
                S::pick_nibbles::<STREAM>(&table, at, row.high_first, out.as_mut_ptr().add(done));
                at = at.wrapping_add(16);
                done = done.wrapping_add(32);
            }
            while done < until {
                let low = codes16::<S>(at, bits, mask, row.high_first);
                let high = codes16::<S>(at.wrapping_add(bits.wrapping_mul(2)), bits, mask, row.high_first);
                S::pick16::<STREAM>(&table, [low[0], low[1], high[0], high[1]], out.as_mut_ptr().add(done));
                at = at.wrapping_add(bits.wrapping_mul(4));
                done = done.wrapping_add(32);
            }
        }
        let mut tail = [0f32; 32];
        while done < out.len() {
            let n = 32.min(out.len() - done);
            row.decode(done, &mut tail[..n]);
            let to = out.as_mut_ptr().add(done);
            if F16 {
                convert::write_f16::<S>(&tail[..n], to);
            } else {
                convert::write_bf16::<S>(&tail[..n], to);
            }
            done += n;
        }
    }
}

/// Unpacks a stream of codes, [`unpack_row`] bit for bit. The bytes of all codes are there.
#[inline(always)]
pub unsafe fn unpack<S: Simd>(bits: usize, words: &[u8], codes: &mut [u8]) {
    let mask = ((1u64 << bits) - 1) * 0x0101_0101_0101_0101;
    let safe = if words.len() < 8 { 0 } else { (words.len() - 8) / bits * 8 + 8 };
    let whole = (codes.len() / 8 * 8).min(safe);
    unsafe {
        let (mut from, mut to) = (words.as_ptr(), codes.as_mut_ptr());
        for _ in 0..whole / 8 {
            let eight = S::deposit(u64::from_le(from.cast::<u64>().read_unaligned()), bits as u32, mask);
            to.cast::<u64>().write_unaligned(eight.to_le());
            from = from.wrapping_add(bits);
            to = to.wrapping_add(8);
        }
    }
    unpack_row(Order::Stream, bits, &words[whole / 8 * bits..], &mut codes[whole..]);
}

/// `dst[r * n + w] = src[w * stride + r]` for `r < rows`, `w < n`, in words of 32 bits.
#[inline(always)]
pub unsafe fn turn<S: Simd>(src: *const u8, stride: usize, rows: usize, n: usize, dst: *mut u32) {
    let word =
        |w: usize, r: usize| src.wrapping_add(w.wrapping_mul(stride).wrapping_add(r).wrapping_mul(4)).cast::<u32>();
    let (whole_rows, whole_words) = (rows / LANES * LANES, n / LANES * LANES);
    unsafe {
        for w in (0..whole_words).step_by(LANES) {
            for r in (0..whole_rows).step_by(LANES) {
                let mut v = [S::splat(0.0); LANES];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = S::load(word(w + i, r).cast());
                }
                S::transpose(&mut v);
                for (i, v) in v.iter().enumerate() {
                    S::store(dst.add((r + i).wrapping_mul(n).wrapping_add(w)).cast(), *v);
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
