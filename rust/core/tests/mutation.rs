//! Mutated GGUF and safetensors files: no panic, no hang, bounded memory, and whatever is accepted keeps its promises.
//!
//! Three kinds of input: truncation at every byte, boundary values in every field position, and seeded random edits
//! (byte flips, deletions, insertions, copies, several at once). `SUBBYTE_TEST_MUTATIONS` sets the number of random
//! ones; the seed is fixed, so a failure repeats.

mod common;
#[path = "common/headers.rs"]
mod headers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::Random;
use subbyte_core::GgmlType;
use subbyte_core::container::gguf::{HeaderBuilder, Scalar, ValueType};
use subbyte_core::container::plan::Plan;
use subbyte_core::container::safetensors::{self, Dtype};

/// All inputs of one run, the systematic ones included.
const TOTAL: usize = 1_000_000;
const MOST_TIME: Duration = Duration::from_millis(50);
/// Memory bound: 16 times the input and 16 MB.
const PER_BYTE: usize = 16;
const CONSTANT: usize = 16 << 20;

/// Counts what the current thread has allocated, and the most it had at once.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // The thread's end frees memory after its cells are gone; that does not matter here.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + change);
        PEAK.with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: hands every call on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BOUNDARIES: [u64; 12] =
    [0, 1, 2, 32, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 61, (1 << 62) + 1, 1 << 63, u64::MAX - 31, u64::MAX];

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Gguf,
    Safetensors,
}

/// Parses `input` and uses everything that was accepted. The result says whether it was.
fn parse(format: Format, input: &[u8]) -> bool {
    match format {
        Format::Gguf => headers::gguf(input),
        Format::Safetensors => headers::safetensors(input),
    }
}

#[derive(Default)]
struct Tally {
    inputs: usize,
    accepted: usize,
    slowest: Duration,
}

impl Tally {
    fn run(&mut self, format: Format, input: &[u8], what: &str) {
        PEAK.with(|peak| peak.set(NOW.with(Cell::get)));
        let before = NOW.with(Cell::get);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(format, input)));
        let mut took = started.elapsed();
        let used = (PEAK.with(Cell::get) - before).max(0) as usize;
        let Ok(accepted) = outcome else {
            panic!("panic on {what}: {}", hex(input));
        };
        if took > MOST_TIME {
            // The machine may have been busy elsewhere; an input that really is slow is slow again.
            let started = Instant::now();
            parse(format, input);
            took = took.min(started.elapsed());
        }
        assert!(took <= MOST_TIME, "{took:?} for {what}: {}", hex(input));
        assert!(used <= PER_BYTE * input.len() + CONSTANT, "{used} bytes allocated for {what}: {}", hex(input));
        self.inputs += 1;
        self.accepted += usize::from(accepted);
        self.slowest = self.slowest.max(took);
    }
}

fn hex(input: &[u8]) -> String {
    input.iter().take(4096).map(|b| format!("{b:02x}")).collect()
}

fn file(plan: &Plan) -> Vec<u8> {
    let mut bytes = plan.header.clone();
    bytes.resize(plan.total as usize, 0x5a);
    bytes
}

/// A GGUF file with every kind of value and a small vocabulary.
fn gguf_seed() -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.text("general.architecture", b"llama").unwrap();
    builder.scalar("llama.block_count", ValueType::U32, Scalar::Unsigned(2)).unwrap();
    builder.numbers("llama.attention.head_count", ValueType::U32, &[4, 0, 0, 0, 4, 0, 0, 0]).unwrap();
    builder.scalar("a.i8", ValueType::I8, Scalar::Signed(-3)).unwrap();
    builder.scalar("a.f64", ValueType::F64, Scalar::Float(0.5)).unwrap();
    builder.scalar("a.bool", ValueType::Bool, Scalar::Bool(true)).unwrap();
    builder.numbers("a.bools", ValueType::Bool, &[0, 1, 1]).unwrap();
    builder.strings("tokenizer.ggml.tokens", &["a", "", "caf\u{e9}"]).unwrap();
    builder.numbers("tokenizer.ggml.scores", ValueType::F32, &[0; 12]).unwrap();
    builder.scalar("tokenizer.ggml.bos_token_id", ValueType::U32, Scalar::Unsigned(1)).unwrap();
    builder.scalar("split.no", ValueType::U16, Scalar::Unsigned(0)).unwrap();
    builder.scalar("split.count", ValueType::U16, Scalar::Unsigned(3)).unwrap();
    builder.scalar("split.tensors.count", ValueType::I32, Scalar::Signed(3)).unwrap();
    let tensors = [
        ("blk.0.attn_q.weight".to_string(), GgmlType::Q4_K, vec![256, 2]),
        ("empty".to_string(), GgmlType::F32, vec![0, 7]),
        ("norm".to_string(), GgmlType::BF16, vec![5]),
    ];
    file(&builder.finish(&tensors, Some(64)).unwrap())
}

fn safetensors_seed() -> Vec<u8> {
    let tensors = [
        ("model.embed.weight".to_string(), Dtype::BF16, vec![3, 4]),
        ("scale \"\u{e9}\"".to_string(), Dtype::F32, vec![]),
        ("packed".to_string(), Dtype::F4, vec![2, 8]),
        ("empty".to_string(), Dtype::I64, vec![0, 9]),
    ];
    let metadata = [("format".to_string(), "pt".to_string()), ("a\n".to_string(), "\\ \u{1f600}".to_string())];
    file(&safetensors::plan(&tensors, &metadata).unwrap())
}

fn seeds() -> Vec<(Format, Vec<u8>)> {
    let golden = common::golden().join("gguf");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    vec![
        (Format::Gguf, gguf_seed()),
        (Format::Gguf, read("container/kv_be.gguf")),
        (Format::Gguf, read("container/pysplit-00001-of-00003.gguf")),
        (Format::Gguf, read("malformed/ok_base.gguf")),
        (Format::Safetensors, safetensors_seed()),
        (Format::Safetensors, b"\x02\0\0\0\0\0\0\0{}".to_vec()),
    ]
}

/// Writes the JSON's length over the first eight bytes, so that edits of the text reach the JSON parser.
fn mend_length(input: &mut [u8], grown: isize) {
    if let Some(prefix) = input.first_chunk_mut::<8>() {
        *prefix = u64::from_le_bytes(*prefix).wrapping_add_signed(grown as i64).to_le_bytes();
    }
}

/// Replaces one run of digits by a boundary value.
fn edit_number(input: &mut Vec<u8>, random: &mut Random) {
    let starts: Vec<usize> =
        (9..input.len()).filter(|&i| input[i].is_ascii_digit() && !input[i - 1].is_ascii_digit()).collect();
    if starts.is_empty() {
        return;
    }
    let start = starts[random.below(starts.len())];
    let end = (start..input.len()).find(|&i| !input[i].is_ascii_digit()).unwrap_or(input.len());
    let value = BOUNDARIES[random.below(BOUNDARIES.len())].to_string();
    let grown = value.len() as isize - (end - start) as isize;
    input.splice(start..end, value.into_bytes());
    mend_length(input, grown);
}

fn edit(format: Format, input: &mut Vec<u8>, header: usize, random: &mut Random) {
    let length = input.len().min(header).max(1);
    let at = random.below(length).min(input.len());
    let count = (1 + random.below(16)).min(input.len() - at);
    let mend = format == Format::Safetensors && at >= 8 && random.below(2) == 0;
    match random.below(8) {
        0 | 1 if count > 0 => input[at] ^= 1 << random.below(8),
        2 if count > 0 => input[at] = random.bits() as u8,
        3 => {
            input.drain(at..at + count);
            if mend {
                mend_length(input, -(count as isize));
            }
        }
        4 => {
            let bytes: Vec<u8> = (0..count).map(|_| random.bits() as u8).collect();
            input.splice(at..at, bytes);
            if mend {
                mend_length(input, count as isize);
            }
        }
        5 => {
            let copy = input[at..at + count].to_vec();
            let to = random.below(length).min(input.len());
            input.splice(to..to, copy);
            if mend && to >= 8 {
                mend_length(input, count as isize);
            }
        }
        6 if format == Format::Safetensors => edit_number(input, random),
        6 => {
            let value = BOUNDARIES[random.below(BOUNDARIES.len())].to_le_bytes();
            let size = if random.below(2) == 0 { 4 } else { 8 };
            let end = (at + size).min(input.len());
            input[at..end].copy_from_slice(&value[..end - at]);
        }
        _ => input.truncate(at.max(1)),
    }
}

#[test]
fn mutated_files() {
    let mut tally = Tally::default();
    let started = Instant::now();
    let seeds = seeds();
    for (format, seed) in &seeds {
        assert!(parse(*format, seed), "a seed is refused");
        for length in 0..=seed.len() {
            tally.run(*format, &seed[..length], &format!("truncation to {length}"));
        }
        for at in 0..seed.len().saturating_sub(7) {
            for value in BOUNDARIES {
                let mut input = seed.clone();
                input[at..at + 8].copy_from_slice(&value.to_le_bytes());
                tally.run(*format, &input, &format!("{value:#x} at {at}"));
            }
        }
    }
    let systematic = tally.inputs;
    let wanted = std::env::var("SUBBYTE_TEST_MUTATIONS").ok().and_then(|v| v.parse().ok());
    let mut random = Random(0x5eed_5afe);
    for round in 0..wanted.unwrap_or(TOTAL.saturating_sub(systematic)) {
        let (format, seed) = &seeds[random.below(seeds.len())];
        // Bytes of tensor data say nothing to a parser: nearly all edits go to the header.
        let header = if random.below(16) == 0 { seed.len() } else { seed.len().min(1200) };
        let mut input = seed.clone();
        for _ in 0..1 + random.below(4) {
            edit(*format, &mut input, header, &mut random);
        }
        tally.run(*format, &input, &format!("random edit {round}"));
    }
    println!(
        "{} mutated files ({systematic} systematic), {} accepted, slowest {:?}, {:.1} s",
        tally.inputs,
        tally.accepted,
        tally.slowest,
        started.elapsed().as_secs_f64()
    );
    assert!(wanted.is_some() || tally.inputs >= TOTAL);
}

/// Counts and lengths that are legal but large: work and memory stay in proportion.
#[test]
fn large_but_legal_headers() {
    let mut tally = Tally::default();
    let check = |format, input: &[u8], accept: bool, tally: &mut Tally| {
        PEAK.with(|peak| peak.set(NOW.with(Cell::get)));
        let before = NOW.with(Cell::get);
        assert_eq!(parse(format, input), accept);
        let used = (PEAK.with(Cell::get) - before) as usize;
        assert!(used <= PER_BYTE * input.len() + CONSTANT, "{used} bytes allocated for {}", input.len());
        tally.inputs += 1;
    };
    let mut entries = HeaderBuilder::new();
    for i in 0..200_000u64 {
        entries.scalar(&format!("{i:x}"), ValueType::U8, Scalar::Unsigned(i & 0xff)).unwrap();
    }
    check(Format::Gguf, &file(&entries.finish(&[], None).unwrap()), true, &mut tally);

    let tensors: Vec<_> = (0..100_000).map(|i| (format!("{i:x}"), GgmlType::F32, vec![0])).collect();
    check(Format::Gguf, &file(&HeaderBuilder::new().finish(&tensors, None).unwrap()), true, &mut tally);

    let mut strings = HeaderBuilder::new();
    strings.strings("s", &vec![""; 2_000_000]).unwrap();
    check(Format::Gguf, &file(&strings.finish(&[], None).unwrap()), true, &mut tally);

    let tensors: Vec<_> = (0..100_000).map(|i| (format!("{i:x}"), Dtype::U8, vec![0])).collect();
    check(Format::Safetensors, &file(&safetensors::plan(&tensors, &[]).unwrap()), true, &mut tally);

    let deep = "[".repeat(1_000_000);
    let text = format!("{{\"a\":{deep}");
    let mut input = (text.len() as u64).to_le_bytes().to_vec();
    input.extend_from_slice(text.as_bytes());
    check(Format::Safetensors, &input, false, &mut tally);
    assert_eq!(tally.inputs, 5);
}
