//! Opening a GGUF model: one file, or all shards of a split one.

use std::path::Path;

use subbyte_core::container::ReadAt;
use subbyte_core::container::gguf::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, Split, semantics};
use subbyte_core::{Error, Result};

use crate::in_file;
use crate::read::FileSource;

/// One file of a model and its header.
#[derive(Debug)]
pub struct Shard {
    /// The open file.
    pub source: FileSource,
    /// Its header.
    pub header: Header,
}

/// Opens the model whose only or first file is `path`; the others are found by name beside it.
///
/// # Errors
/// What [`Header::read`], [`semantics::check`] and [`Split`] say, with the file's name.
pub fn open(path: &Path, mapped: bool) -> Result<Vec<Shard>> {
    let first = open_one(path, mapped, DEFAULT_ALIGNMENT)?;
    let place = |e: Error| in_file(e, path);
    semantics::check(&first.header).map_err(place)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(split) = Split::of(&first.header, &name).map_err(place)? else { return Ok(vec![first]) };
    split.check_shard(0, &first.header).map_err(place)?;
    let alignment = first.header.alignment;
    let mut shards = vec![first];
    for index in 1..split.count() {
        let path = path.with_file_name(split.name(index));
        let shard = open_later(&path, mapped, alignment)?;
        split.check_shard(index, &shard.header).map_err(|e| in_file(e, &path))?;
        shards.push(shard);
    }
    let names = shards.iter().flat_map(|s| s.header.tensors.iter().map(|t| t.name.as_str()));
    split.check_tensors(names).map_err(place)?;
    Ok(shards)
}

/// Opens a later shard. Some writers state a custom alignment in the first shard only, yet pad all of them to it; the
/// length of the file tells which of the two alignments it was written with.
fn open_later(path: &Path, mapped: bool, inherited: u64) -> Result<Shard> {
    let shard = open_one(path, mapped, DEFAULT_ALIGNMENT);
    let exact = |shard: &Shard| shard.header.padded_end() == Some(shard.source.len());
    let stated = |shard: &Shard| shard.header.get(ALIGNMENT_KEY).is_some();
    if inherited == DEFAULT_ALIGNMENT || shard.as_ref().is_ok_and(|s| stated(s) || exact(s)) {
        return shard;
    }
    open_one(path, mapped, inherited).ok().filter(exact).map_or(shard, Ok)
}

fn open_one(path: &Path, mapped: bool, alignment: u64) -> Result<Shard> {
    let source = FileSource::open(path, mapped)?;
    let header = Header::read(&source, alignment).map_err(|e| in_file(e, path))?;
    Ok(Shard { source, header })
}
