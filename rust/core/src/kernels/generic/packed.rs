//! Vector kernels of packed codes: decoding with parameters per group, and exchanging rows and columns of words.

use crate::kernels::generic::convert;
use crate::kernels::simd::{LANES, Simd};
use crate::pack::groups::{Op, Row, Steps};
use crate::pack::layout::{ACROSS, across_part, lay_across as lay_across_scalar};
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
        match (row.op, row.steps) {
            (Op::Affine, Steps::F32) => run::<S, STREAM, EACH, AFFINE, IN_F32>(row, out),
            (Op::Biased, Steps::F32) => run::<S, STREAM, EACH, BIASED, IN_F32>(row, out),
            (Op::Table, _) if row.steps != Steps::F32 => row.decode(0, out),
            (Op::Table, _) if row.bits == 4 => run::<S, STREAM, EACH, TABLE, IN_F32>(row, out),
            (Op::Table, _) => run::<S, STREAM, EACH, LONG_TABLE, IN_F32>(row, out),
            // What is rounded to 16 bits is written as 16 bits, from a tile in the caches.
            _ if STREAM => row.decode(0, out),
            (Op::Affine, Steps::F16) => run::<S, false, EACH, AFFINE, IN_F16>(row, out),
            (Op::Biased, Steps::F16) => run::<S, false, EACH, BIASED, IN_F16>(row, out),
            (Op::Affine, Steps::Bf16) => run::<S, false, EACH, AFFINE, IN_BF16>(row, out),
            (Op::Biased, Steps::Bf16) => run::<S, false, EACH, BIASED, IN_BF16>(row, out),
        }
    }
}

const AFFINE: u8 = 0;
const BIASED: u8 = 1;
const TABLE: u8 = 2;
const LONG_TABLE: u8 = 3;

const IN_F32: u8 = 0;
const IN_F16: u8 = 1;
const IN_BF16: u8 = 2;

/// Rounds to a 16-bit type.
#[inline(always)]
unsafe fn rounded<S: Simd, const STEPS: u8>(x: S::F) -> S::F {
    unsafe {
        match STEPS {
            IN_F16 => {
                let mut half = [0u16; LANES];
                S::store_f16(half.as_mut_ptr(), x);
                S::load_f16(half.as_ptr())
            }
            IN_BF16 => S::from_bits(S::ishl::<16>(convert::bf16_bits::<S>(x))),
            _ => x,
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

/// `OP` and `STEPS`: [`Op`] and [`Steps`] as numbers. `EACH`: every code has its own parameters; otherwise 16 codes always
/// share theirs.
#[inline(always)]
unsafe fn run<S: Simd, const STREAM: bool, const EACH: bool, const OP: u8, const STEPS: u8>(
    row: &Row<'_>,
    out: &mut [f32],
) {
    let bits = row.bits;
    let mask = ((1u64 << bits) - 1) * 0x0101_0101_0101_0101;
    let offsets = OP == AFFINE || OP == BIASED;
    // Both reads of 8 bytes stay inside the row.
    let safe = row.words.len().saturating_sub(bits + 8) / (2 * bits) * LANES;
    let whole = (out.len() / LANES * LANES).min(if row.words.len() < bits + 8 { 0 } else { safe + LANES });
    let mut done = 0;
    unsafe {
        let table = if OP == TABLE { S::load(row.table.as_ptr()) } else { S::splat(0.0) };
        while done < whole {
            let group = (row.first + done) / row.group;
            let until = if EACH { whole } else { whole.min((group + 1).saturating_mul(row.group) - row.first) };
            let (mut scale, mut offset) = (S::splat(0.0), S::splat(0.0));
            if !EACH {
                scale = S::splat(*row.scales.get_unchecked(group));
                if offsets {
                    offset = S::splat(*row.offsets.get_unchecked(group));
                }
            }
            let mut at = row.words.as_ptr().add((done / 8).wrapping_mul(bits));
            while done < until {
                if EACH {
                    scale = S::load(row.scales.as_ptr().add(row.first.wrapping_add(done)));
                    if offsets {
                        offset = S::load(row.offsets.as_ptr().add(row.first.wrapping_add(done)));
                    }
                }
                let codes = codes16::<S>(at, bits, mask, row.high_first);
                at = at.wrapping_add(bits.wrapping_mul(2));
                let value = match OP {
                    AFFINE => S::mul(rounded::<S, STEPS>(S::sub(S::widen8(codes), offset)), scale),
                    BIASED => S::add(rounded::<S, STEPS>(S::mul(S::widen8(codes), scale)), offset),
                    TABLE => S::mul(S::lookup(table, S::load_u8(codes.map(u64::to_le).as_ptr().cast())), scale),
                    _ => {
                        let mut values = [0f32; LANES];
                        for (value, code) in values.iter_mut().zip(codes.map(u64::to_le_bytes).as_flattened()) {
                            *value = *row.table.get_unchecked(usize::from(*code));
                        }
                        S::mul(S::load(values.as_ptr()), scale)
                    }
                };
                S::put::<STREAM>(out.as_mut_ptr().add(done), rounded::<S, STEPS>(value));
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
            let values = match row.steps {
                Steps::F32 => of_group::<S, IN_F32>(row, codes, group),
                Steps::F16 => of_group::<S, IN_F16>(row, codes, group),
                Steps::Bf16 => of_group::<S, IN_BF16>(row, codes, group),
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

/// The values of the codes in a group.
#[inline(always)]
unsafe fn of_group<S: Simd, const STEPS: u8>(row: &Row<'_>, codes: S::F, group: usize) -> S::F {
    unsafe {
        let scale = S::splat(*row.scales.get_unchecked(group));
        let offset = S::splat(if row.op == Op::Table { 0.0 } else { *row.offsets.get_unchecked(group) });
        rounded::<S, STEPS>(match row.op {
            Op::Affine => S::mul(rounded::<S, STEPS>(S::sub(codes, offset)), scale),
            Op::Biased => S::add(rounded::<S, STEPS>(S::mul(codes, scale)), offset),
            Op::Table => S::mul(S::load(row.table.as_ptr()), scale),
        })
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
                    S::prefetch(word(w + i + 2 * LANES, r).cast());
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

/// [`crate::pack::layout::across`] bit for bit. Source and destination hold the words.
#[inline(always)]
pub unsafe fn across<S: Simd>(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &mut [u32]) {
    let n = columns.div_ceil(8);
    let (whole_octets, whole) = (octets / LANES * LANES, columns / 8 / LANES * LANES);
    unsafe {
        let mut turned = [[S::isplat(0); LANES]; 8];
        for j in (0..whole).step_by(LANES) {
            for o in (0..whole_octets).step_by(LANES) {
                for jj in 0..LANES {
                    let mut v = [S::isplat(0); 8];
                    let at = src.as_ptr().add(4 * (8 * (j + jj) * stride + o));
                    for (c, v) in v.iter_mut().enumerate() {
                        *v = S::iload(at.wrapping_add(c.wrapping_mul(stride).wrapping_mul(4)).cast());
                        S::prefetch(at.wrapping_add((c + 32).wrapping_mul(stride).wrapping_mul(4)));
                    }
                    turn_nibbles::<S>(&mut v);
                    for (turned, v) in turned.iter_mut().zip(v) {
                        turned[jj] = v;
                    }
                }
                for (turned, row) in turned.iter().zip(ACROSS) {
                    let mut v = [S::splat(0.0); LANES];
                    for (v, turned) in v.iter_mut().zip(turned) {
                        *v = S::from_bits(*turned);
                    }
                    S::transpose(&mut v);
                    for (l, v) in v.iter().enumerate() {
                        S::store(dst.as_mut_ptr().add((8 * (o + l) + row) * n + j).cast(), *v);
                    }
                }
            }
        }
    }
    across_part(src, stride, 0..whole_octets, whole..n, columns, dst);
    across_part(src, stride, whole_octets..octets, 0..n, columns, dst);
}

/// [`crate::pack::layout::lay_across`] bit for bit. Source and destination hold the words.
#[inline(always)]
pub unsafe fn lay_across<S: Simd>(src: &[u8], stride: usize, octets: usize, n: usize, dst: &mut [u32]) {
    let whole_octets = octets / LANES * LANES;
    if whole_octets < octets || n % LANES != 0 {
        return lay_across_scalar(src, stride, octets, n, dst);
    }
    unsafe {
        let mut turned = [[S::isplat(0); LANES]; 8];
        for o in (0..octets).step_by(LANES) {
            for j in (0..n).step_by(LANES) {
                for (turned, row) in turned.iter_mut().zip(ACROSS) {
                    let mut v = [S::splat(0.0); LANES];
                    for (l, v) in v.iter_mut().enumerate() {
                        *v = S::load(src.as_ptr().add(4 * ((8 * (o + l) + row) * stride + j)).cast());
                    }
                    S::transpose(&mut v);
                    for (turned, v) in turned.iter_mut().zip(v) {
                        *turned = S::bits(v);
                    }
                }
                for jj in 0..LANES {
                    let mut v = [S::isplat(0); 8];
                    for (v, turned) in v.iter_mut().zip(&turned) {
                        *v = turned[jj];
                    }
                    turn_nibbles::<S>(&mut v);
                    for (c, v) in v.into_iter().enumerate() {
                        S::istore(dst.as_mut_ptr().add((8 * (j + jj) + c) * octets + o).cast(), v);
                    }
                }
            }
        }
    }
}

/// Exchanges word and nibble: nibble `i` of word `k` becomes nibble `k` of word `i`, in every lane.
#[inline(always)]
unsafe fn turn_nibbles<S: Simd>(v: &mut [S::I; 8]) {
    unsafe {
        swap::<S, 16>(v, 4, 0x0000_FFFF);
        swap::<S, 8>(v, 2, 0x00FF_00FF);
        swap::<S, 4>(v, 1, 0x0F0F_0F0F);
    }
}

/// Exchanges the upper parts of word `k` (those that `mask` does not have) with the lower parts of word `k + apart`.
#[inline(always)]
unsafe fn swap<S: Simd, const BITS: i32>(v: &mut [S::I; 8], apart: usize, mask: i32) {
    for k in 0..8 {
        if k & apart == 0 {
            unsafe {
                let moved = S::ixor(S::ishr::<BITS>(v[k]), v[k + apart]);
                let moved = S::iand(moved, S::isplat(mask));
                v[k + apart] = S::ixor(v[k + apart], moved);
                v[k] = S::ixor(v[k], S::ishl::<BITS>(moved));
            }
        }
    }
}
