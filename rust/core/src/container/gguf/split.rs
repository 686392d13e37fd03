//! Split GGUF files (specification: GGUF, section 1.4): names of the shards and the checks that tie them together.

use std::collections::HashSet;

use super::Header;
use crate::error::{Error, Result};
use crate::limits;

/// 0-based number of a shard.
pub const NO: &str = "split.no";
/// Number of shards.
pub const COUNT: &str = "split.count";
/// Number of tensors over all shards.
pub const TENSORS: &str = "split.tensors.count";

/// How a model is split, read from its first shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    prefix: String,
    count: u64,
    tensors: u64,
}

impl Split {
    /// The split that `first`, a file called `file_name`, announces; `None` for a file that stands alone.
    ///
    /// # Errors
    /// When the file is a later shard, its name does not follow the pattern, or its keys contradict each other.
    pub fn of(first: &Header, file_name: &str) -> Result<Option<Self>> {
        let Some(count) = number(first, COUNT)? else { return Ok(None) };
        if count <= 1 {
            return Ok(None);
        }
        if count > limits::SHARDS {
            return Err(Error::limit(format!("{COUNT} is {count}; at most {}", limits::SHARDS)));
        }
        let no = number(first, NO)?.ok_or_else(|| Error::corrupt(format!("{COUNT} is {count} but {NO} is missing")))?;
        let tensors = number(first, TENSORS)?
            .ok_or_else(|| Error::corrupt(format!("{COUNT} is {count} but {TENSORS} is missing")))?;
        let Some((prefix, number_in_name, count_in_name)) = parse_name(file_name) else {
            return Err(Error::format(format!(
                "shard {} of {count}, but the name does not end in '-{:05}-of-{count:05}.gguf'; rename the shards back",
                no + 1,
                no + 1
            )));
        };
        if count_in_name != count || number_in_name != no + 1 {
            return Err(Error::corrupt(format!(
                "the name says shard {number_in_name} of {count_in_name}, the metadata says {} of {count}",
                no + 1
            )));
        }
        let split = Self { prefix: prefix.to_string(), count, tensors };
        if no != 0 {
            return Err(Error::format(format!(
                "shard {number_in_name} of {count}; open the first one, '{}'",
                split.name(0)
            )));
        }
        Ok(Some(split))
    }

    /// Number of shards.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// File name of shard `index` (0-based).
    pub fn name(&self, index: u64) -> String {
        shard_name(&self.prefix, index, self.count)
    }

    /// Checks that `header` is that of shard `index`.
    pub fn check_shard(&self, index: u64, header: &Header) -> Result<()> {
        for (key, expected) in [(NO, index), (COUNT, self.count)] {
            match number(header, key)? {
                Some(found) if found == expected => {}
                Some(found) => return Err(Error::corrupt(format!("{key} is {found}, expected {expected}"))),
                None => return Err(Error::corrupt(format!("{key} is missing, expected {expected}"))),
            }
        }
        Ok(())
    }

    /// Checks that the tensors of all shards are as many as announced and differ in name.
    pub fn check_tensors<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                return Err(Error::corrupt("two shards hold a tensor of this name").in_tensor(name));
            }
        }
        if seen.len() as u64 != self.tensors {
            return Err(Error::corrupt(format!(
                "the shards hold {} tensors, {TENSORS} announces {}: shards of different models?",
                seen.len(),
                self.tensors
            )));
        }
        Ok(())
    }
}

/// File name of shard `index` (0-based) of `count`.
pub fn shard_name(prefix: &str, index: u64, count: u64) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1)
}

/// Splits `PREFIX-00001-of-00003.gguf` into prefix, 1-based number and count.
pub fn parse_name(file_name: &str) -> Option<(&str, u64, u64)> {
    let stem = file_name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits =
        |text: &str| (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten();
    Some((prefix, digits(number)?, digits(count)?))
}

fn number(header: &Header, key: &str) -> Result<Option<u64>> {
    header
        .get(key)
        .map(|value| {
            value
                .as_u64()
                .ok_or_else(|| Error::corrupt(format!("{key} is no non-negative integer (type {})", value.type_name())))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_both_ways() {
        assert_eq!(shard_name("m", 1, 3), "m-00002-of-00003.gguf");
        assert_eq!(parse_name("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        for name in ["m.gguf", "m-2-of-3.gguf", "m-00002-of-00003.bin", "m-0000x-of-00003.gguf", "00001-of-00002.gguf"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
