//! Opening a GGUF model: one file, or all shards of a split one.

use std::path::Path;

use subbyte_core::container::gguf::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, Split, semantics};
use subbyte_core::{Error, Result};

use crate::in_file;
use crate::read::{FileSource, Source};

/// One file of a model and its header.
pub struct Shard {
    /// The open file.
    pub source: Box<dyn Source>,
    /// Its header.
    pub header: Header,
}

/// Opens the file of this name beside the first one.
type Opener<'a> = &'a dyn Fn(&str) -> Result<Box<dyn Source>>;

/// Opens the model whose only or first file is `path`; the others are found by name beside it.
///
/// # Errors
/// What [`Header::read`], [`semantics::check`] and [`Split`] say, with the file's name.
pub fn open(path: &Path, mapped: bool) -> Result<Vec<Shard>> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    open_with(Box::new(FileSource::open(path, mapped)?), &name, &|sibling| {
        Ok(Box::new(FileSource::open(&path.with_file_name(sibling), mapped)?))
    })
}

/// Opens the model whose only or first file is `first`, called `name`; `opener` opens the others by name.
///
/// # Errors
/// As [`open`], and what `opener` says.
pub fn open_with(first: Box<dyn Source>, name: &str, opener: Opener<'_>) -> Result<Vec<Shard>> {
    let first = read(first, DEFAULT_ALIGNMENT)?;
    let path = first.source.path().to_path_buf();
    let place = |e: Error| in_file(e, &path);
    semantics::check(&first.header).map_err(place)?;
    let Some(split) = Split::of(&first.header, name).map_err(place)? else { return Ok(vec![first]) };
    split.check_shard(0, &first.header).map_err(place)?;
    let alignment = first.header.alignment;
    let mut shards = vec![first];
    for index in 1..split.count() {
        let shard = open_later(&split.name(index), opener, alignment)?;
        split.check_shard(index, &shard.header).map_err(|e| in_file(e, shard.source.path()))?;
        shards.push(shard);
    }
    let names = shards.iter().flat_map(|s| s.header.tensors.iter().map(|t| t.name.as_str()));
    split.check_tensors(names).map_err(place)?;
    Ok(shards)
}

/// Opens a later shard. Some writers state a custom alignment in the first shard only, yet pad all of them to it; the
/// length of the file tells which of the two alignments it was written with.
fn open_later(name: &str, opener: Opener<'_>, inherited: u64) -> Result<Shard> {
    let shard = read(opener(name)?, DEFAULT_ALIGNMENT);
    let exact = |shard: &Shard| shard.header.padded_end() == Some(shard.source.len());
    let stated = |shard: &Shard| shard.header.get(ALIGNMENT_KEY).is_some();
    if inherited == DEFAULT_ALIGNMENT || shard.as_ref().is_ok_and(|s| stated(s) || exact(s)) {
        return shard;
    }
    read(opener(name)?, inherited).ok().filter(exact).map_or(shard, Ok)
}

fn read(source: Box<dyn Source>, alignment: u64) -> Result<Shard> {
    let header = Header::read(&*source, alignment).map_err(|e| in_file(e, source.path()))?;
    Ok(Shard { source, header })
}
