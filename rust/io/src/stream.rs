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
        let index = *self.by_name.get(name).ok_or_else(|| {
            Error::argument("the file was planned without this tensor").in_tensor(name).in_file(self.path.clone())
        })?;
        let region = &self.regions[index];
        let start = region.locate(offset, bytes.len() as u64).map_err(|e| e.in_file(self.path.clone()))?;
        self.file.write_all_at(start, bytes).map_err(|e| e.in_tensor(name))?;
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index]
            .add(offset, offset + bytes.len() as u64);
        Ok(())
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
