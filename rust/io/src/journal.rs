//! A file of lines that grows while a run goes on, locked so that no second run writes to the same target.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use subbyte_core::{Error, Result};

use crate::read::{read_exact_at, same_open_file};
use crate::write::write_all_at;
use crate::{fault, in_file};

/// An open journal, locked by this process until it is dropped (or the process dies).
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Journal {
    /// Opens or creates the journal at `path` and locks it; `None` when another process, or another journal of this
    /// one, holds the lock.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Io`]; [`subbyte_core::ErrorKind::Format`] for something other than a regular file.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let fail = |e: io::Error| in_file(e, path);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = fault::call(|| options.open(path)).map_err(fail)?;
            let metadata = fault::call(|| file.metadata()).map_err(fail)?;
            if !metadata.is_file() {
                return Err(in_file(Error::format("not a regular file; a journal is to be written here"), path));
            }
            match fault::call(|| lock(&file)).map_err(fail)? {
                false => return Ok(None),
                // The holder before may have removed the file between opening and locking.
                true if fault::call(|| same_open_file(&file, path)).map_err(fail)? => {
                    return Ok(Some(Self { file, path: path.to_path_buf(), length: metadata.len() }));
                }
                true => {}
            }
        }
    }

    /// The bytes of the journal, at most `most` of them.
    pub fn read(&mut self, most: u64) -> Result<Vec<u8>> {
        let fail = |e: Error| in_file(e, &self.path);
        self.length = fault::call(|| self.file.metadata()).map_err(|e| fail(e.into()))?.len();
        if self.length > most {
            return Err(fail(Error::limit(format!("{} bytes; at most {most} are read", self.length))));
        }
        let mut bytes = vec![0; self.length as usize];
        read_exact_at(&self.file, 0, &mut bytes).map_err(fail)?;
        Ok(bytes)
    }

    /// Cuts the journal after `length` bytes: a line that a dying run did not finish goes.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        fault::call(|| self.file.set_len(length)).map_err(|e| in_file(e, &self.path))?;
        self.length = length;
        Ok(())
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, self.length, bytes).map_err(|e| in_file(e, &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Removes the journal: the run is complete, or leaves nothing to go on from.
    pub fn remove(self) -> Result<()> {
        crate::write::remove_if_there(&self.path)
    }
}

/// Whether the lock was free.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}
