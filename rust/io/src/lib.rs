//! Files: the only crate of subbyte that opens, maps, reads, writes, syncs and renames.
//!
//! * [`read`]: a regular file, by positional reads or memory-mapped;
//! * [`write`]: a file that appears under its name only when complete;
//! * [`stream`]: writing a planned checkpoint file, tensor data in any order;
//! * [`journal`]: the lines that a resumable run notes as it goes, locked against a second run;
//! * [`gguf`]: opening all shards of a GGUF model;
//! * [`fault`]: every call of this crate to the operating system can be made to fail in tests.

pub mod fault;
pub mod gguf;
pub mod journal;
pub mod read;
pub mod stream;
pub mod write;

use std::path::Path;

use subbyte_core::Error;

pub use journal::Journal;
pub use read::{Bytes, FileSource, Source, read_file, same_file};
pub use stream::StreamWriter;
pub use write::{AtomicFile, place_folder, remove_if_there, write_file};

/// `error` with the file's name.
pub(crate) fn in_file(error: impl Into<Error>, path: &Path) -> Error {
    error.into().in_file(path.display().to_string())
}
