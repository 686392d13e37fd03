//! Neighbour lists of the codebooks (specification: GGUF, section 5, H7): what an encoder considers for a combination of
//! levels that is not a row of the grid.
//!
//! A *key* is a packed combination of levels, as the rows of [`super::tables`]. The neighbours of a key are the rows at
//! one of the `nwant` smallest distinct distances from it, ordered by distance, then by row.

use super::tables;
use std::sync::OnceLock;

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The key is this row.
    Row(usize),
    /// The key is not on the grid: its neighbours, as rows, best first. Never empty.
    Near(&'a [u16]),
}

/// What a key leads to, with neighbours as packed rows (which are keys on the grid).
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// The key is this row.
    Row(usize),
    /// The neighbours are the first `count` of `codes`, which has at least 15 more entries to read.
    Near {
        /// Packed rows.
        codes: &'a [u16],
        /// How many of them are neighbours.
        count: usize,
    },
}

/// A grid with the neighbour lists of every key.
#[derive(Debug)]
pub struct Codebook {
    /// Packed rows.
    pub rows: &'static [u16],
    /// Bits per level: 2 (rows of 8 elements) or 3 (rows of 4 elements).
    pub bits: u32,
    /// By key: the row, or -(offset + 1) into `lists`; [`UNUSED`] for keys that cannot occur.
    map: Vec<i32>,
    /// At each offset the number of neighbours, followed by them.
    lists: Vec<u16>,
    /// The same lists as packed rows, followed by 15 entries for vector loads.
    packed: Vec<u16>,
}

/// Map entry of a key that cannot occur.
const UNUSED: i32 = i32::MIN;

impl Codebook {
    /// Builds the lists of all keys whose levels are below `levels`.
    fn new(rows: &'static [u16], bits: u32, levels: u16, nwant: usize) -> Self {
        let elements = if bits == 2 { 8 } else { 4 };
        let half = bits * elements / 2;
        let level = |code: usize, i: u32| (code >> (bits * i)) & ((1 << bits) - 1);
        // Squared distances between halves of a key; the sum of two is the distance (a quarter of the one between the
        // values 2·level + 1: the order is the same, and it fits a byte).
        let halves = 1usize << half;
        let distance: Vec<u8> = (0..halves * halves)
            .map(|ab| {
                (0..elements / 2).map(|i| level(ab / halves, i).abs_diff(level(ab % halves, i)).pow(2) as u8).sum()
            })
            .collect();
        // ggml's table for 8 elements ends at the largest key whose levels are all below 3.
        let keys = if bits == 2 { 43_692 } else { 4096 };
        let mut map = vec![UNUSED; keys];
        for (i, row) in rows.iter().enumerate() {
            map[usize::from(*row)] = i as i32;
        }
        let mut lists = Vec::new();
        let mut distances = vec![0u8; rows.len()];
        for key in 0..keys {
            if map[key] != UNUSED || (0..elements).any(|i| level(key, i) >= usize::from(levels)) {
                continue;
            }
            let lo = &distance[(key % halves) * halves..][..halves];
            let hi = &distance[(key / halves) * halves..][..halves];
            let mut seen = [false; 256];
            for (d, row) in distances.iter_mut().zip(rows) {
                *d = lo[usize::from(*row) % halves].wrapping_add(hi[usize::from(*row) / halves]);
                seen[usize::from(*d)] = true;
            }
            let at = lists.len();
            map[key] = -(at as i32 + 1);
            lists.push(0);
            for d in (0..=255u8).filter(|d| seen[usize::from(*d)]).take(nwant) {
                // In chunks, because most of them hold no such row.
                for (c, chunk) in distances.chunks_exact(32).enumerate() {
                    if chunk.iter().fold(false, |any, x| any | (*x == d)) {
                        let hits = chunk.iter().enumerate().filter(|(_, x)| **x == d);
                        lists.extend(hits.map(|(i, _)| (32 * c + i) as u16));
                    }
                }
            }
            lists[at] = (lists.len() - at - 1) as u16;
        }
        // Counts become arbitrary rows here; they are read from `lists`.
        let mut packed: Vec<u16> = lists.iter().map(|row| rows[usize::from(*row) % rows.len()]).collect();
        packed.extend([0; 15]);
        Self { rows, bits, map, lists, packed }
    }

    /// The row or the neighbours of a key made of levels that occur.
    #[inline(always)]
    pub fn find(&self, key: usize) -> Found<'_> {
        match self.map[key] {
            row if row >= 0 => Found::Row(row as usize),
            list => {
                let at = -(list + 1) as usize;
                Found::Near(&self.lists[at + 1..][..usize::from(self.lists[at])])
            }
        }
    }

    /// [`Codebook::find`] for vector searches.
    #[inline(always)]
    pub fn find_packed(&self, key: usize) -> Packed<'_> {
        match self.map[key] {
            row if row >= 0 => Packed::Row(row as usize),
            list => {
                let at = -(list + 1) as usize;
                Packed::Near { codes: &self.packed[at + 1..], count: usize::from(self.lists[at]) }
            }
        }
    }

    /// The row of a key that is on the grid.
    #[inline(always)]
    pub fn row(&self, key: usize) -> usize {
        self.map[key] as usize
    }
}

macro_rules! codebooks {
    ($($(#[$doc:meta])* $name:ident: $rows:ident, $bits:literal, $levels:literal, $nwant:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name() -> &'static Codebook {
            static BOOK: OnceLock<Codebook> = OnceLock::new();
            BOOK.get_or_init(|| Codebook::new(&tables::$rows, $bits, $levels, $nwant))
        }
    )*};
}

codebooks! {
    /// The codebook of IQ2_XXS, built on first use.
    iq2_xxs: IQ2XXS, 2, 3, 2;
    /// The codebook of IQ2_XS, built on first use.
    iq2_xs: IQ2XS, 2, 3, 2;
    /// The codebook of IQ2_S, built on first use.
    iq2_s: IQ2S, 2, 3, 1;
    /// The codebook of IQ1_S and IQ1_M, built on first use.
    iq1: IQ1, 2, 3, 3;
    /// The codebook of IQ3_XXS, built on first use.
    iq3_xxs: IQ3XXS, 3, 8, 2;
    /// The codebook of IQ3_S, built on first use.
    iq3_s: IQ3S, 3, 8, 3;
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn hex(bytes: impl Iterator<Item = u8>) -> String {
        Sha256::digest(bytes.collect::<Vec<u8>>()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The arrays inside ggml (0.25.3), over all keys: length and SHA-256 of the lists, SHA-256 of the map.
    #[test]
    fn lists_equal_those_of_ggml() {
        type Grid = (&'static [u16], u32, usize, usize, &'static str, &'static str);
        let expected: [Grid; 6] = [
            (
                &tables::IQ2XXS,
                2,
                2,
                417_400,
                "709b1f45e8457bc27656b3bc37ea881ffc567fe71540df5aae912097b77e2fd1",
                "fb8727a3ecbf6124f63c263d0c1b05925d580426a1d732df1d91514b84a21724",
            ),
            (
                &tables::IQ2XS,
                2,
                2,
                551_722,
                "d6b796100158d2c7de48d0a2d5c38efc400471f822f874f631ab71dd47454326",
                "b94f3f7601b0130674b6e0b7fdccc240b7234d31db4d60601dfc0ff6872a129e",
            ),
            (
                &tables::IQ1,
                2,
                3,
                1_375_339,
                "732ed77320813d3250cbecd7235db1a2d0a661ee4b54fa2a0b5d1cd4e08c5ef0",
                "9a5d4a8807610d7ecdb328c531a60a6e10a202801f9290a6ed17daf3b9a4b054",
            ),
            (
                &tables::IQ2S,
                2,
                1,
                209_100,
                "bdd7645b9d68dcd282605e039b72ed729c4252e518c5d6ffb12282135a8c37c8",
                "7e06788dce7035c2d4fdc983be81429c26fc3106db8d76a2771b285f9c2eb8ed",
            ),
            (
                &tables::IQ3XXS,
                3,
                2,
                22_825,
                "2384bfe6ea71e4257727bfd5ec66d358995a2f0600bd8b6ef16a83559390e751",
                "4b54395c1c3e9766e6cbb7f2f84a3ebb43d9ca391bd344e517577c3c3c3fa01a",
            ),
            (
                &tables::IQ3S,
                3,
                3,
                28_317,
                "53eb24b689961eea61a0a46257a182ac58fe414a9d52163e67ee4a9fc5322659",
                "662208b0d2ce2fa3346c5fb672db4be13bc06f87c78775acfc435550935b5d89",
            ),
        ];
        for (rows, bits, nwant, length, map, lists) in expected {
            let book = Codebook::new(rows, bits, 1 << bits, nwant);
            assert_eq!(book.lists.len(), length);
            assert_eq!(hex(book.map.iter().flat_map(|v| v.to_le_bytes())), map);
            assert_eq!(hex(book.lists.iter().flat_map(|v| v.to_le_bytes())), lists);
        }
    }

    /// Leaving out keys that cannot occur changes nothing for the others.
    #[test]
    fn lists_do_not_depend_on_the_keys_left_out() {
        for (book, nwant) in [(iq2_xxs(), 2), (iq2_s(), 1), (iq1(), 3)] {
            let all = Codebook::new(book.rows, 2, 4, nwant);
            let used = (0..43_691).filter(|key| (key & (key >> 1) & 0x5555) == 0);
            assert_eq!(used.inspect(|key| assert_eq!(book.find(*key), all.find(*key))).count(), 6561);
        }
    }
}
