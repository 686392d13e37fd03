//! Every ceiling in one place, each with its reason. A file that meets one is refused with
//! [`crate::ErrorKind::Limit`] before anything is allocated.

/// Largest safetensors header in bytes: the reference implementation's own cap (100 MB).
pub const SAFETENSORS_HEADER: u64 = 100_000_000;
/// Most tensors in one file: far above any published checkpoint (~100,000), low enough to list in a second.
pub const TENSORS: u64 = 1 << 20;
/// Most metadata keys in one file.
pub const METADATA_KEYS: u64 = 1 << 20;
/// Largest `general.alignment` of a GGUF file; ggml has no cap, writers use 32 to 4096.
pub const GGUF_ALIGNMENT: u64 = 1 << 20;
/// Longest GGUF tensor name in bytes: ggml's 64 with terminator.
pub const GGUF_NAME: u64 = 63;
/// Most dimensions of a GGUF tensor (ggml's `GGML_MAX_DIMS`).
pub const GGUF_DIMS: u32 = 4;
/// Longest GGUF key in bytes: ggml writes keys far below this (its own cap is 65535).
pub const GGUF_KEY: u64 = 65_535;
/// Most dimensions of a safetensors tensor; NumPy's own limit is 64.
pub const SAFETENSORS_DIMS: usize = 64;
/// Most shards of one checkpoint: five digits in the shard name.
pub const SHARDS: u64 = 99_999;
/// Most threads of the pool: above any machine's processors; tens of thousands would only fight each other.
pub const THREADS: usize = 1024;
/// Largest file beside the weights (config.json, tokenizer files, index) that is read into memory; the largest
/// tokenizers in use take about 35 MB.
pub const SIDE_FILE_BYTES: u64 = 256 << 20;
/// Largest GGUF header in bytes: the largest published (vocabularies of 260,000 tokens with merges) have some 20 MB.
pub const GGUF_HEADER: u64 = 1 << 30;
/// Deepest nesting of a JSON text; config.json, tokenizer.json and indices use fewer than ten levels.
pub const JSON_DEPTH: usize = 64;
/// Longest number in a JSON text, in characters: an exact f64 needs at most 1,100.
pub const JSON_NUMBER: usize = 1_200;
