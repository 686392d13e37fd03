//! SIMD levels, and the table of kernels of each level.
//!
//! * [`simd`]: the 16-lane vector trait; `avx2/`, `avx512/`, `neon/` implement it and hold what is tuned by hand.
//! * [`generic`]: the algorithms, once each, over that trait.
//! * This file: detection, `SUBBYTE_SIMD`, and [`Kernels`]. The scalar level is the reference code of [`crate::block`].
//!
//! A kernel table can only be obtained for a level that the processor has, which is what makes calling its entries sound.

pub mod generic;
pub mod simd;

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;

use crate::block::{self, Rows};
use crate::ggml::GgmlType;
use crate::pack::groups::Row as PackedRow;
use std::sync::OnceLock;

/// A set of instructions that kernels are built for, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The reference code; runs everywhere.
    Scalar,
    /// AArch64 NEON.
    Neon,
    /// AVX2, F16C, BMI2.
    Avx2,
    /// AVX-512 F, BW, VL, DQ, VBMI, VBMI2, VNNI, BITALG (Ice Lake, Zen 4).
    Avx512,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Level; 4] = [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512];

    /// The name used by `SUBBYTE_SIMD` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Whether this processor can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bitalg")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// Decodes whole blocks of `src` into `dst` (`dst.len()` = blocks × block size). With `stream`, stores bypass the
/// caches and `dst` must be 64-byte aligned (checked).
pub type DecodeFn = fn(src: &[u8], dst: &mut [f32], stream: bool);
/// Encodes whole rows into `dst`.
pub type EncodeFn = fn(rows: Rows<'_>, dst: &mut [u8]);

/// The kernels of one type.
#[derive(Clone, Copy)]
pub struct BlockKernels {
    /// Blocks to f32.
    pub decode: DecodeFn,
    /// Rows to blocks.
    pub encode: EncodeFn,
}

/// The kernels of one level.
pub struct Kernels {
    /// Which level.
    pub level: Level,
    /// By [`GgmlType::index`]; integer types have entries that are never called.
    block: [BlockKernels; GgmlType::ALL.len()],
    /// f32 to f16 bits, rounding once.
    pub to_f16: fn(src: &[f32], dst: &mut [u16]),
    /// f32 to bf16 bits, rounding once.
    pub to_bf16: fn(src: &[f32], dst: &mut [u16]),
    /// Index of the first value that is NaN or infinite.
    pub first_non_finite: fn(src: &[f32]) -> Option<usize>,
    /// [`crate::pack::groups::Row::decode`] of a whole row. With `stream`, stores bypass the caches where `dst` is 64-byte
    /// aligned, and [`fence`] has to follow.
    pub decode_row: fn(row: &PackedRow<'_>, dst: &mut [f32], stream: bool),
    /// `decode_row`, rounded to f16 bits.
    pub decode_row_f16: fn(row: &PackedRow<'_>, dst: &mut [u16], stream: bool),
    /// `decode_row`, rounded to bf16 bits.
    pub decode_row_bf16: fn(row: &PackedRow<'_>, dst: &mut [u16], stream: bool),
    /// Unpacks a stream of codes of 1 to 8 bits into bytes.
    pub unpack_row: fn(bits: usize, words: &[u8], codes: &mut [u8]),
    /// Exchanges rows and columns of words: `dst[r * n + w]` = word `w * stride + r` of `src`, for `rows` rows.
    pub turn: fn(src: &[u8], stride: usize, rows: usize, n: usize, dst: &mut [u32]),
    /// Brings words of AWQ's `gemm` layout into rows: see [`crate::pack::layout::Layout::Across`]. `columns` words of
    /// `octets` octets of rows, `stride` words apart, become rows of words.
    pub across: fn(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &mut [u32]),
    /// The reverse: `n` words of each of `8 * octets` rows, `stride` words apart, become the words of `8 * n` columns.
    pub lay_across: fn(src: &[u8], stride: usize, octets: usize, n: usize, dst: &mut [u32]),
    /// Writes `x` everywhere past the caches: the write limit that benches compare decoders with.
    pub stream_fill: fn(dst: &mut [f32], x: f32),
}

impl Kernels {
    /// The kernels of a type.
    pub fn block(&self, ty: GgmlType) -> &BlockKernels {
        &self.block[ty.index()]
    }

    /// The table of a level, or `None` if the processor lacks it.
    pub fn get(level: Level) -> Option<&'static Kernels> {
        if !level.is_available() {
            return None;
        }
        match level {
            Level::Scalar => Some(&SCALAR),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Some(&AVX2),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Some(&AVX512),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => Some(&NEON),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// Every table that can run here, lowest level first.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        Level::ALL.into_iter().filter_map(Kernels::get)
    }
}

/// The kernels in use: the best available level, or the one `SUBBYTE_SIMD` names if that is lower. An unknown or
/// unavailable name in the variable is ignored here; the Python package warns about it.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let best = Kernels::available().last().expect("scalar is always available");
        std::env::var("SUBBYTE_SIMD")
            .ok()
            .and_then(|name| Level::ALL.into_iter().find(|l| l.name() == name.trim().to_ascii_lowercase()))
            .and_then(Kernels::get)
            .filter(|k| k.level < best.level)
            .unwrap_or(best)
    })
}

/// One table over all block formats. `$entry!(Format)` gives the [`BlockKernels`] of a format.
macro_rules! formats {
    ($entry:ident) => {{
        use block::*;
        let mut table = [BlockKernels { decode: no_decode, encode: no_encode }; GgmlType::ALL.len()];
        let mut i = 0;
        while i < GgmlType::ALL.len() {
            table[i] = match GgmlType::ALL[i] {
                GgmlType::F32 => $entry!(microfloat::F32),
                GgmlType::F16 => $entry!(microfloat::F16),
                GgmlType::BF16 => $entry!(microfloat::Bf16),
                GgmlType::F64 => $entry!(microfloat::F64),
                GgmlType::MXFP4 => $entry!(microfloat::Mxfp4),
                GgmlType::NVFP4 => $entry!(microfloat::Nvfp4),
                GgmlType::Q4_0 => $entry!(legacy::Q4_0),
                GgmlType::Q4_1 => $entry!(legacy::Q4_1),
                GgmlType::Q5_0 => $entry!(legacy::Q5_0),
                GgmlType::Q5_1 => $entry!(legacy::Q5_1),
                GgmlType::Q8_0 => $entry!(legacy::Q8_0),
                GgmlType::Q8_1 => $entry!(legacy::Q8_1),
                GgmlType::Q1_0 => $entry!(legacy::Q1_0),
                GgmlType::Q2_0 => $entry!(legacy::Q2_0),
                GgmlType::Q2_K => $entry!(kquant::Q2K),
                GgmlType::Q3_K => $entry!(kquant::Q3K),
                GgmlType::Q4_K => $entry!(kquant::Q4K),
                GgmlType::Q5_K => $entry!(kquant::Q5K),
                GgmlType::Q6_K => $entry!(kquant::Q6K),
                GgmlType::Q8_K => $entry!(kquant::Q8K),
                GgmlType::IQ2_XXS => $entry!(iquant::Iq2Xxs),
                GgmlType::IQ2_XS => $entry!(iquant::Iq2Xs),
                GgmlType::IQ2_S => $entry!(iquant::Iq2S),
                GgmlType::IQ3_XXS => $entry!(iquant::Iq3Xxs),
                GgmlType::IQ3_S => $entry!(iquant::Iq3S),
                GgmlType::IQ1_S => $entry!(iquant::Iq1S),
                GgmlType::IQ1_M => $entry!(iquant::Iq1M),
                GgmlType::IQ4_NL => $entry!(iquant::Iq4Nl),
                GgmlType::IQ4_XS => $entry!(iquant::Iq4Xs),
                GgmlType::TQ1_0 => $entry!(ternary::Tq1_0),
                GgmlType::TQ2_0 => $entry!(ternary::Tq2_0),
                GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 => table[i],
            };
            i += 1;
        }
        table
    }};
}

fn no_decode(_: &[u8], _: &mut [f32], _: bool) {
    unreachable!("the row drivers refuse types without a decoder")
}

fn no_encode(_: Rows<'_>, _: &mut [u8]) {
    unreachable!("the row drivers refuse types without an encoder")
}

macro_rules! scalar_entry {
    ($format:ty) => {{
        fn decode(src: &[u8], dst: &mut [f32], _stream: bool) {
            block::check_blocks::<$format>(src, dst);
            <$format>::decode(src, dst);
        }
        fn encode(rows: Rows<'_>, dst: &mut [u8]) {
            block::check_rows::<$format>(rows, dst);
            <$format>::encode(rows, dst);
        }
        BlockKernels { decode, encode }
    }};
}

static SCALAR: Kernels = Kernels {
    level: Level::Scalar,
    block: formats!(scalar_entry),
    to_f16: |src, dst| src.iter().zip(dst).for_each(|(x, h)| *h = crate::float::f32_to_f16(*x)),
    to_bf16: |src, dst| src.iter().zip(dst).for_each(|(x, h)| *h = crate::float::f32_to_bf16(*x)),
    first_non_finite: |src| src.iter().position(|x| !x.is_finite()),
    decode_row: |row, dst, _| {
        row.check(dst.len());
        row.decode(0, dst);
    },
    decode_row_f16: |row, dst, _| narrow_row(row, dst, crate::float::f32_to_f16),
    decode_row_bf16: |row, dst, _| narrow_row(row, dst, crate::float::f32_to_bf16),
    unpack_row: |bits, words, codes| {
        check_unpack(bits, words, codes);
        crate::pack::unpack_row(crate::pack::Order::Stream, bits, words, codes);
    },
    turn: |src, stride, rows, n, dst| {
        check_turn(src, stride, rows, n, dst);
        for r in 0..rows {
            for w in 0..n {
                let at = 4 * (w * stride + r);
                dst[r * n + w] = u32::from_ne_bytes([src[at], src[at + 1], src[at + 2], src[at + 3]]);
            }
        }
    },
    across: |src, stride, octets, columns, dst| {
        check_across(src, stride, octets, columns, dst);
        crate::pack::layout::across(src, stride, octets, columns, dst);
    },
    lay_across: |src, stride, octets, n, dst| {
        check_lay_across(src, stride, octets, n, dst);
        crate::pack::layout::lay_across(src, stride, octets, n, dst);
    },
    stream_fill: |dst, x| dst.fill(x),
};

fn narrow_row(row: &PackedRow<'_>, dst: &mut [u16], narrow: fn(f32) -> u16) {
    row.check(dst.len());
    let mut wide = vec![0f32; dst.len()];
    row.decode(0, &mut wide);
    dst.iter_mut().zip(wide).for_each(|(to, x)| *to = narrow(x));
}

fn check_unpack(bits: usize, words: &[u8], codes: &[u8]) {
    assert!((1..=8).contains(&bits) && words.len() >= (codes.len() * bits).div_ceil(8));
}

fn check_turn(src: &[u8], stride: usize, rows: usize, n: usize, dst: &[u32]) {
    assert!(dst.len() == rows * n && rows <= stride);
    assert!(dst.is_empty() || src.len() >= 4 * ((n - 1) * stride + rows));
}

fn check_across(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &[u32]) {
    assert!(dst.len() == 8 * octets * columns.div_ceil(8) && octets <= stride);
    assert!(dst.is_empty() || src.len() >= 4 * ((columns - 1) * stride + octets));
}

fn check_lay_across(src: &[u8], stride: usize, octets: usize, n: usize, dst: &[u32]) {
    assert!(dst.len() == 8 * n * octets && n <= stride);
    assert!(dst.is_empty() || src.len() >= 4 * ((8 * octets - 1) * stride + n));
}

/// Orders streaming stores before whatever follows.
pub(crate) fn fence() {
    generic::fence();
}

/// Defines the table `$name` of a SIMD level: every generic kernel compiled with the level's target features.
#[allow(unused_macros)]
macro_rules! level {
    ($name:ident, $level:ident, $simd:ty, $features:literal) => {
        static $name: Kernels = {
            macro_rules! entry {
                ($format:ty) => {{
                    fn decode(src: &[u8], dst: &mut [f32], stream: bool) {
                        #[target_feature(enable = $features)]
                        unsafe fn cached(src: &[u8], dst: &mut [f32]) {
                            unsafe { <$format>::decode_simd::<$simd, false>(src, dst) }
                        }
                        #[target_feature(enable = $features)]
                        unsafe fn streamed(src: &[u8], dst: &mut [f32]) {
                            unsafe { <$format>::decode_simd::<$simd, true>(src, dst) }
                        }
                        block::check_blocks::<$format>(src, dst);
                        // SAFETY: the table is only handed out after detection; lengths were checked, and streaming
                        // stores only go to aligned destinations.
                        unsafe {
                            if stream && dst.as_ptr().addr() % 64 == 0 {
                                streamed(src, dst);
                                generic::fence();
                            } else {
                                cached(src, dst)
                            }
                        }
                    }
                    fn encode(rows: Rows<'_>, dst: &mut [u8]) {
                        #[target_feature(enable = $features)]
                        unsafe fn run(rows: Rows<'_>, dst: &mut [u8]) {
                            unsafe { <$format>::encode_simd::<$simd>(rows, dst) }
                        }
                        block::check_rows::<$format>(rows, dst);
                        // SAFETY: as above.
                        unsafe { run(rows, dst) }
                    }
                    BlockKernels { decode, encode }
                }};
            }
            fn to_f16(src: &[f32], dst: &mut [u16]) {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[f32], dst: &mut [u16]) {
                    unsafe { generic::convert::to_f16::<$simd>(src, dst) }
                }
                // SAFETY: as above.
                unsafe { run(src, dst) }
            }
            fn to_bf16(src: &[f32], dst: &mut [u16]) {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[f32], dst: &mut [u16]) {
                    unsafe { generic::convert::to_bf16::<$simd>(src, dst) }
                }
                // SAFETY: as above.
                unsafe { run(src, dst) }
            }
            fn first_non_finite(src: &[f32]) -> Option<usize> {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[f32]) -> Option<usize> {
                    unsafe { generic::convert::first_non_finite::<$simd>(src) }
                }
                // SAFETY: as above.
                unsafe { run(src) }
            }
            fn decode_row(row: &PackedRow<'_>, dst: &mut [f32], stream: bool) {
                #[target_feature(enable = $features)]
                unsafe fn cached(row: &PackedRow<'_>, dst: &mut [f32]) {
                    unsafe { generic::packed::decode_row::<$simd, false>(row, dst) }
                }
                #[target_feature(enable = $features)]
                unsafe fn streamed(row: &PackedRow<'_>, dst: &mut [f32]) {
                    unsafe { generic::packed::decode_row::<$simd, true>(row, dst) }
                }
                row.check(dst.len());
                // SAFETY: as above.
                unsafe { if stream && dst.as_ptr().addr() % 64 == 0 { streamed(row, dst) } else { cached(row, dst) } }
            }
            fn decode_row_f16(row: &PackedRow<'_>, dst: &mut [u16], stream: bool) {
                narrowed::<true>(row, dst, stream)
            }
            fn decode_row_bf16(row: &PackedRow<'_>, dst: &mut [u16], stream: bool) {
                narrowed::<false>(row, dst, stream)
            }
            fn narrowed<const F16: bool>(row: &PackedRow<'_>, dst: &mut [u16], stream: bool) {
                #[target_feature(enable = $features)]
                unsafe fn cached<const F16: bool>(row: &PackedRow<'_>, dst: &mut [u16]) {
                    unsafe { generic::packed::decode_row16::<$simd, F16, false>(row, dst) }
                }
                #[target_feature(enable = $features)]
                unsafe fn streamed<const F16: bool>(row: &PackedRow<'_>, dst: &mut [u16]) {
                    unsafe { generic::packed::decode_row16::<$simd, F16, true>(row, dst) }
                }
                row.check(dst.len());
                // SAFETY: as above.
                unsafe {
                    if stream && dst.as_ptr().addr() % 64 == 0 {
                        streamed::<F16>(row, dst)
                    } else {
                        cached::<F16>(row, dst)
                    }
                }
            }
            fn unpack_row(bits: usize, words: &[u8], codes: &mut [u8]) {
                #[target_feature(enable = $features)]
                unsafe fn run(bits: usize, words: &[u8], codes: &mut [u8]) {
                    unsafe { generic::packed::unpack::<$simd>(bits, words, codes) }
                }
                check_unpack(bits, words, codes);
                // SAFETY: as above.
                unsafe { run(bits, words, codes) }
            }
            fn turn(src: &[u8], stride: usize, rows: usize, n: usize, dst: &mut [u32]) {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[u8], stride: usize, rows: usize, n: usize, dst: &mut [u32]) {
                    unsafe { generic::packed::turn::<$simd>(src.as_ptr(), stride, rows, n, dst.as_mut_ptr()) }
                }
                check_turn(src, stride, rows, n, dst);
                // SAFETY: as above; source and destination hold the words.
                unsafe { run(src, stride, rows, n, dst) }
            }
            fn across(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &mut [u32]) {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[u8], stride: usize, octets: usize, columns: usize, dst: &mut [u32]) {
                    unsafe { generic::packed::across::<$simd>(src, stride, octets, columns, dst) }
                }
                check_across(src, stride, octets, columns, dst);
                // SAFETY: as above.
                unsafe { run(src, stride, octets, columns, dst) }
            }
            fn lay_across(src: &[u8], stride: usize, octets: usize, n: usize, dst: &mut [u32]) {
                #[target_feature(enable = $features)]
                unsafe fn run(src: &[u8], stride: usize, octets: usize, n: usize, dst: &mut [u32]) {
                    unsafe { generic::packed::lay_across::<$simd>(src, stride, octets, n, dst) }
                }
                check_lay_across(src, stride, octets, n, dst);
                // SAFETY: as above.
                unsafe { run(src, stride, octets, n, dst) }
            }
            fn stream_fill(dst: &mut [f32], x: f32) {
                #[target_feature(enable = $features)]
                unsafe fn run(dst: &mut [f32], x: f32) {
                    unsafe { generic::convert::stream_fill::<$simd>(dst, x) }
                }
                // SAFETY: as above.
                unsafe { run(dst, x) }
                generic::fence();
            }
            Kernels {
                level: Level::$level,
                block: formats!(entry),
                to_f16,
                to_bf16,
                first_non_finite,
                decode_row,
                decode_row_f16,
                decode_row_bf16,
                unpack_row,
                turn,
                across,
                lay_across,
                stream_fill,
            }
        };
    };
}

#[cfg(target_arch = "x86_64")]
level!(AVX2, Avx2, avx2::Avx2, "avx2,f16c,bmi1,bmi2,lzcnt,popcnt");
#[cfg(target_arch = "x86_64")]
level!(
    AVX512,
    Avx512,
    avx512::Avx512,
    "avx2,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bitalg"
);
#[cfg(target_arch = "aarch64")]
level!(NEON, Neon, neon::Neon, "neon");
