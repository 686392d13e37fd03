//! Writing a planned checkpoint file: tensor data in any order and from any thread, complete or not at all.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use subbyte_core::container::plan::{Coverage, Plan, Region};
use subbyte_core::{Error, Result};

use crate::write::AtomicFile;

/// A file whose header is written and whose tensors are being filled in.
#[derive(Debug)]
pub struct StreamWriter {
    file: AtomicFile,
    path: String,
    regions: Vec<Region>,
    by_name: HashMap<String, usize>,
    written: Mutex<Vec<Coverage>>,
}

impl StreamWriter {
    /// Reserves the file that `plan` describes, to appear as `path`, and writes its header.
    pub fn create(path: &Path, plan: Plan) -> Result<Self> {
        let file = AtomicFile::create(path, plan.total)?;
        Self::start(path, plan, file)
    }

    /// Like [`StreamWriter::create`], but resumable: bytes go to the file `partial`, which stays when the writer is
    /// dropped. With `resume`, what an earlier run left there is used if it has the planned length; the second result
    /// says so. Its tensors count as unwritten until [`StreamWriter::mark`] says otherwise.
    pub fn create_partial(path: &Path, partial: &Path, plan: Plan, resume: bool) -> Result<(Self, bool)> {
        let found = if resume { AtomicFile::reopen_partial(path, partial, plan.total)? } else { None };
        let resumed = found.is_some();
        let file = match found {
            Some(file) => file,
            None => AtomicFile::create_partial(path, partial, plan.total)?,
        };
        Ok((Self::start(path, plan, file)?, resumed))
    }

    fn start(path: &Path, plan: Plan, file: AtomicFile) -> Result<Self> {
        file.write_all_at(0, &plan.header)?;
        let by_name = plan.regions.iter().enumerate().map(|(i, r)| (r.name.clone(), i)).collect();
        let written = Mutex::new(vec![Coverage::default(); plan.regions.len()]);
        Ok(Self { file, path: path.display().to_string(), regions: plan.regions, by_name, written })
    }

    /// Writes `bytes` at `offset` of tensor `name`. Chunks may come in any order; a byte may be written again.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Argument`] for an unknown tensor or bytes that do not fit it.
    pub fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (index, start) = self.locate(name, offset, bytes.len() as u64)?;
        self.file.write_all_at(start, bytes).map_err(|e| e.in_tensor(name))?;
        self.add(index, offset, bytes.len() as u64);
        Ok(())
    }

    /// Counts `count` bytes at `offset` of tensor `name` as written: an earlier run did.
    ///
    /// # Errors
    /// As [`StreamWriter::write`].
    pub fn mark(&self, name: &str, offset: u64, count: u64) -> Result<()> {
        let (index, _) = self.locate(name, offset, count)?;
        self.add(index, offset, count);
        Ok(())
    }

    /// Reads back `count` bytes at `offset` of tensor `name`.
    ///
    /// # Errors
    /// As [`StreamWriter::write`], and when reading fails.
    pub fn read(&self, name: &str, offset: u64, count: usize) -> Result<Vec<u8>> {
        let (_, start) = self.locate(name, offset, count as u64)?;
        self.file.read_at(start, count).map_err(|e| e.in_tensor(name))
    }

    fn locate(&self, name: &str, offset: u64, count: u64) -> Result<(usize, u64)> {
        let index = *self.by_name.get(name).ok_or_else(|| {
            Error::argument("the file was planned without this tensor").in_tensor(name).in_file(self.path.clone())
        })?;
        let start = self.regions[index].locate(offset, count).map_err(|e| e.in_file(self.path.clone()))?;
        Ok((index, start))
    }

    fn add(&self, index: usize, offset: u64, count: u64) {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index].add(offset, offset + count);
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync()
    }

    /// Removes the file, resumable or not.
    pub fn discard(mut self) {
        self.file.keep(false);
    }

    /// Checks that every byte was written, then makes the file durable and visible.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Argument`] naming the first tensor with missing bytes; what
    /// [`AtomicFile::commit`] says.
    pub fn commit(self) -> Result<()> {
        let written = self.written.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (region, coverage) in self.regions.iter().zip(&written) {
            if let Some(gap) = coverage.gap(region.nbytes) {
                return Err(Error::argument(format!(
                    "byte {gap} of {} was never written; the file is discarded",
                    region.nbytes
                ))
                .in_tensor(region.name.clone())
                .in_file(self.path));
            }
        }
        self.file.commit()
    }
}
