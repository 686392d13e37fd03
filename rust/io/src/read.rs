//! Reading regular files by position, and mapping them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;
use subbyte_core::container::ReadAt;
use subbyte_core::{Error, Result};

use crate::{fault, in_file};

/// Most bytes of one `pread`; Linux moves at most 2 GiB - 4 KiB at once.
const MOST_AT_ONCE: usize = 1 << 30;

/// An open regular file whose length was taken once. Headers are always read with positional reads; tensor data is
/// mapped, or read as well when mapping is off.
///
/// A mapped file must not shrink: touching a page past its new end kills the process (SIGBUS). The length is checked
/// again each time bytes are handed out, which finds files cut while open; it cannot protect bytes handed out before.
/// Use `mapped = false` for files that others may truncate, such as those on network disks.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    length: u64,
    path: PathBuf,
    mapped: bool,
    mapping: OnceLock<Arc<Mmap>>,
}

/// A file of a checkpoint: a local one, or one read by range requests.
pub trait Source: ReadAt + Send + Sync {
    /// The path it was opened with, or its address.
    fn path(&self) -> &Path;
    /// `nbytes` bytes at `offset`.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Corrupt`] when they lie outside the file, also because it shrank meanwhile.
    fn bytes(&self, offset: u64, nbytes: u64) -> Result<Bytes>;
}

/// Bytes of a file: a view of the mapping, or a copy.
#[derive(Debug)]
pub enum Bytes {
    /// Bytes of a mapped file, which stays mapped as long as any view of it lives.
    Mapped(Arc<Mmap>, Range<usize>),
    /// Bytes that were read.
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map, range) => &map[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

impl FileSource {
    /// Opens a regular file; symbolic links are followed, pipes, devices and folders refused.
    pub fn open(path: &Path, mapped: bool) -> Result<Self> {
        let (file, metadata) = open_regular(path).map_err(|e| in_file(e, path))?;
        Ok(Self { file, length: metadata.len(), path: path.to_path_buf(), mapped, mapping: OnceLock::new() })
    }

    fn mapping(&self) -> Result<Arc<Mmap>> {
        if let Some(map) = self.mapping.get() {
            return Ok(Arc::clone(map));
        }
        // SAFETY: the mapping is read-only and outlives every view (Arc). The file changing or shrinking underneath
        // is the known limit of mapping files, documented on the type.
        let map = fault::call(|| unsafe { memmap2::MmapOptions::new().len(self.length as usize).map(&self.file) })
            .map_err(|e| self.error(e))?;
        Ok(Arc::clone(self.mapping.get_or_init(|| Arc::new(map))))
    }

    fn error(&self, error: impl Into<Error>) -> Error {
        in_file(error, &self.path)
    }
}

impl Source for FileSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self, offset: u64, nbytes: u64) -> Result<Bytes> {
        if nbytes == 0 {
            return Ok(Bytes::Owned(Vec::new()));
        }
        let end = offset.checked_add(nbytes).filter(|end| *end <= self.length).ok_or_else(|| {
            self.error(Error::corrupt(format!("{nbytes} bytes lie outside the file")).at_byte(offset))
        })?;
        if !self.mapped {
            let mut bytes = vec![0; to_usize(nbytes).map_err(|e| self.error(e))?];
            self.read_exact_at(offset, &mut bytes)?;
            return Ok(Bytes::Owned(bytes));
        }
        let now = fault::call(|| self.file.metadata()).map_err(|e| self.error(e))?.len();
        if end > now {
            return Err(self.error(Error::corrupt(format!(
                "the file shrank from {} to {now} bytes while it was open",
                self.length
            ))));
        }
        let map = self.mapping()?;
        Ok(Bytes::Mapped(map, to_usize(offset).map_err(|e| self.error(e))?..to_usize(end).map_err(|e| self.error(e))?))
    }
}

impl ReadAt for FileSource {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, buf).map_err(|e| self.error(e))
    }
}

/// Fills `buf` from byte `offset` of `file`.
pub(crate) fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let rest = &mut buf[done..];
        let length = rest.len().min(MOST_AT_ONCE);
        match fault::transfer(length, |n| pread(file, &mut rest[..n], at))? {
            0 => return Err(Error::corrupt("the file ends here; it shrank while open").at_byte(at)),
            n => done += n,
        }
    }
    Ok(())
}

#[cfg(unix)]
fn pread(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(windows)]
fn pread(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, offset)
}

fn to_usize(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::limit(format!("{value} bytes do not fit the address space")))
}

fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.read(true);
    // A pipe must be refused, not waited for.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = fault::call(|| options.open(path))?;
    let metadata = fault::call(|| file.metadata())?;
    if !metadata.is_file() {
        return Err(Error::format("not a regular file; a file or a folder of files is expected"));
    }
    Ok((file, metadata))
}

/// The whole of a regular file of at most `most` bytes.
///
/// # Errors
/// [`subbyte_core::ErrorKind::Limit`] for a longer one, before anything is read.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    let source = FileSource::open(path, false)?;
    if source.length > most {
        let message = format!("{} bytes; at most {most} are read of such a file", source.length);
        return Err(in_file(Error::limit(message), path));
    }
    let mut bytes = vec![0; to_usize(source.length)?];
    source.read_exact_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Whether two paths are the same file, by device and inode: names do not tell (symbolic and hard links). A path
/// that does not exist is the same as no other.
pub fn same_file(a: &Path, b: &Path) -> Result<bool> {
    let identity = |path: &Path| match fault::call(|| identify(path)) {
        Ok(id) => Ok(Some(id)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(in_file(e, path)),
    };
    let (a, b) = (identity(a)?, identity(b)?);
    Ok(a.is_some() && a == b)
}

#[cfg(unix)]
fn identify(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Whether `path` still is the open `file`.
#[cfg(unix)]
pub(crate) fn same_open_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match identify(path) {
        Ok(id) => Ok(id == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Other systems do not remove a file that is open.
#[cfg(not(unix))]
pub(crate) fn same_open_file(_: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// Without inodes the resolved path has to do; hard links are not recognised.
#[cfg(not(unix))]
fn identify(path: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(path)
}
