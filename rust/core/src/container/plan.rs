//! A file to be written, known in full before the first byte of tensor data: header, places and total size.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Where the data of one tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Tensor name.
    pub name: String,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u64,
}

/// Header bytes, tensor places and total size of a file. What lies between is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first bytes of the file.
    pub header: Vec<u8>,
    /// Places of the tensors, in the order they were given.
    pub regions: Vec<Region>,
    /// Size of the complete file.
    pub total: u64,
}

/// Which bytes of a region have been written, as disjoint, non-touching ranges `start -> end`.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<u64, u64>);

impl Coverage {
    /// Notes that `start..end` is written; writing a byte again is allowed.
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.0.remove(&s);
        }
        self.0.insert(start, end);
    }

    /// The first byte below `length` that is not written.
    pub fn gap(&self, length: u64) -> Option<u64> {
        let covered = match self.0.first_key_value() {
            Some((0, &end)) => end,
            _ => 0,
        };
        (covered < length).then_some(covered)
    }
}

impl Region {
    /// Absolute offset of `count` bytes at `offset` of this region.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] when they do not fit.
    pub fn locate(&self, offset: u64, count: u64) -> Result<u64> {
        if offset > self.nbytes || count > self.nbytes - offset {
            return Err(Error::argument(format!(
                "{count} bytes at offset {offset} do not fit: the tensor has {} bytes",
                self.nbytes
            ))
            .in_tensor(self.name.clone()));
        }
        Ok(self.offset + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_in_any_order() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.gap(0), None);
        assert_eq!(coverage.gap(10), Some(0));
        coverage.add(5, 8);
        coverage.add(0, 2);
        assert_eq!(coverage.gap(10), Some(2));
        coverage.add(1, 6);
        assert_eq!(coverage.gap(10), Some(8));
        coverage.add(9, 10);
        coverage.add(8, 9);
        assert_eq!(coverage.gap(10), None);
        assert_eq!(coverage.0.len(), 1);
    }

    #[test]
    fn locate_does_not_wrap() {
        let region = Region { name: "t".into(), offset: 100, nbytes: 10 };
        assert_eq!(region.locate(4, 6), Ok(104));
        assert!(region.locate(4, 7).is_err());
        assert!(region.locate(u64::MAX, 2).is_err());
    }
}
