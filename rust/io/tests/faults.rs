//! Every call to the operating system fails once: a file is complete under its name, or not there at all.
//!
//! Fault injection is shared by the whole process, so the tests of this file take turns.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subbyte_core::container::gguf::{HeaderBuilder, Scalar, ValueType};
use subbyte_core::container::plan::Plan;
use subbyte_core::{ErrorKind, GgmlType, Result};
use subbyte_io::fault::{self, Fault};
use subbyte_io::{FileSource, Journal, StreamWriter, gguf};

static TURN: Mutex<()> = Mutex::new(());

/// An empty folder, removed afterwards.
struct Folder(PathBuf, #[allow(dead_code)] MutexGuard<'static, ()>);

impl Folder {
    fn new(name: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("subbyte-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path, turn)
    }
    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fault::disarm();
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plan() -> Plan {
    let mut builder = HeaderBuilder::new();
    builder.text("general.architecture", b"test").unwrap();
    builder.scalar("general.file_type", ValueType::U32, Scalar::Unsigned(7)).unwrap();
    let tensors = [("a", GgmlType::Q8_0, vec![64, 3]), ("b", GgmlType::F32, vec![5])];
    builder.finish(&tensors.map(|(name, t, dims)| (name.to_string(), t, dims)), None).unwrap()
}

fn data(length: u64, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Writes the file in several chunks, last tensor first.
fn job(path: &Path) -> Result<()> {
    let plan = plan();
    let regions = plan.regions.clone();
    let writer = StreamWriter::create(path, plan)?;
    for (index, region) in regions.iter().enumerate().rev() {
        let bytes = data(region.nbytes, index as u8);
        let middle = bytes.len() / 3;
        writer.write(&region.name, middle as u64, &bytes[middle..])?;
        writer.write(&region.name, 0, &bytes[..middle])?;
    }
    writer.commit()
}

/// Calls that a run of `job` makes.
fn calls(path: &Path) -> u64 {
    fault::arm(u64::MAX, Fault::Short);
    job(path).unwrap();
    fault::disarm()
}

#[test]
fn no_failing_call_leaves_anything_behind() {
    let folder = Folder::new("write-faults");
    let path = folder.0.join("model.gguf");
    let total = calls(&path);
    let expected = fs::read(&path).unwrap();
    assert!(total >= 9, "only {total} calls are covered: create, reserve, header, four chunks, sync, rename, folder");
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
        for nth in 1..=total {
            fs::remove_file(&path).ok();
            fault::arm(nth, Fault::Errno(errno));
            let result = job(&path);
            fault::disarm();
            let error = result.expect_err("the call failed, the job must too");
            assert_eq!(error.kind, ErrorKind::Io(Some(errno)), "call {nth}: {error}");
            assert!(error.to_string().contains("model.gguf"), "call {nth}: {error}");
            if nth < total {
                assert_eq!(folder.names(), [""; 0], "call {nth}: {error}");
            } else {
                // Only the folder could not be synced: the file is in place and complete.
                assert!(error.message.contains("complete"), "{error}");
                assert_eq!(fs::read(&path).unwrap(), expected);
                assert_eq!(folder.names(), ["model.gguf"]);
            }
        }
    }
}

#[test]
fn short_and_interrupted_calls_change_nothing() {
    let folder = Folder::new("write-short");
    let path = folder.0.join("model.gguf");
    let total = calls(&path);
    let expected = fs::read(&path).unwrap();
    for fault in [Fault::Short, Fault::Errno(libc::EINTR)] {
        for nth in 1..=total {
            fs::remove_file(&path).unwrap();
            fault::arm(nth, fault);
            job(&path).unwrap_or_else(|e| panic!("{fault:?} at call {nth}: {e}"));
            fault::disarm();
            assert_eq!(fs::read(&path).unwrap(), expected, "{fault:?} at call {nth}");
        }
    }
    // The second call reserves space; file systems that cannot do that are written all the same.
    fs::remove_file(&path).unwrap();
    fault::arm(2, Fault::Errno(libc::EOPNOTSUPP));
    job(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn a_failure_keeps_the_file_that_was_there() {
    let folder = Folder::new("write-keep");
    let path = folder.0.join("model.gguf");
    let total = calls(&path);
    for nth in 1..total {
        fs::write(&path, b"the old file").unwrap();
        fault::arm(nth, Fault::Errno(libc::EIO));
        job(&path).unwrap_err();
        fault::disarm();
        assert_eq!(fs::read(&path).unwrap(), b"the old file");
        assert_eq!(folder.names(), ["model.gguf"]);
    }
}

#[test]
fn incomplete_and_abandoned_files_vanish() {
    let folder = Folder::new("write-gaps");
    let path = folder.0.join("model.gguf");
    let writer = StreamWriter::create(&path, plan()).unwrap();
    writer.write("b", 0, &[0; 20]).unwrap();
    writer.write("a", 0, &[0; 203]).unwrap();
    let error = writer.commit().unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Argument, Some("a")));
    assert!(error.message.contains("byte 203 of 204"), "{error}");
    let writer = StreamWriter::create(&path, plan()).unwrap();
    assert_eq!(folder.names().len(), 1);
    assert_eq!(writer.write("c", 0, &[]).unwrap_err().kind, ErrorKind::Argument);
    assert_eq!(writer.write("b", 4, &[0; 17]).unwrap_err().kind, ErrorKind::Argument);
    drop(writer);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn chunks_from_many_threads() {
    let folder = Folder::new("write-threads");
    let path = folder.0.join("model.gguf");
    let plan = plan();
    let region = plan.regions[0].clone();
    let bytes = data(region.nbytes, 9);
    let writer = StreamWriter::create(&path, plan).unwrap();
    writer.write("b", 0, &[1; 20]).unwrap();
    std::thread::scope(|scope| {
        for (index, chunk) in bytes.chunks(17).enumerate() {
            let writer = &writer;
            scope.spawn(move || writer.write("a", index as u64 * 17, chunk).unwrap());
        }
    });
    writer.commit().unwrap();
    let written = fs::read(&path).unwrap();
    assert_eq!(written[region.offset as usize..][..bytes.len()], bytes);
}

#[test]
fn failing_reads_are_reported_with_the_file() {
    let folder = Folder::new("read-faults");
    let path = folder.0.join("model.gguf");
    job(&path).unwrap();
    let read = |mapped: bool| -> Result<Vec<u8>> {
        let shards = gguf::open(&path, mapped)?;
        let tensor = &shards[0].header.tensors[0];
        Ok(shards[0].source.bytes(tensor.offset, tensor.nbytes)?.to_vec())
    };
    for mapped in [true, false] {
        fault::arm(u64::MAX, Fault::Short);
        let expected = read(mapped).unwrap();
        let total = fault::disarm();
        assert!(total >= 4);
        for nth in 1..=total {
            fault::arm(nth, Fault::Errno(libc::EIO));
            let error = read(mapped).unwrap_err();
            fault::disarm();
            assert_eq!(error.kind, ErrorKind::Io(Some(libc::EIO)), "call {nth}");
            assert!(error.file.is_some_and(|f| f.ends_with("model.gguf")), "call {nth}");
            fault::arm(nth, Fault::Short);
            assert_eq!(read(mapped).unwrap(), expected);
        }
    }
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let folder = Folder::new("read-shrink");
    let path = folder.0.join("model.gguf");
    for mapped in [true, false] {
        job(&path).unwrap();
        let shards = gguf::open(&path, mapped).unwrap();
        let tensor = &shards[0].header.tensors[0];
        shards[0].source.bytes(tensor.offset, tensor.nbytes).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(tensor.offset + 1).unwrap();
        let error = shards[0].source.bytes(tensor.offset, tensor.nbytes).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert!(error.message.contains("shrank"), "{error}");
    }
}

#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new("read-kinds");
    assert_eq!(FileSource::open(&folder.0, true).unwrap_err().kind, ErrorKind::Format);
    let pipe = folder.0.join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    assert_eq!(FileSource::open(&pipe, true).unwrap_err().kind, ErrorKind::Format);
    let missing = FileSource::open(&folder.0.join("missing"), true).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::Io(Some(libc::ENOENT)));
    assert_eq!(StreamWriter::create(&folder.0, plan()).unwrap_err().kind, ErrorKind::Argument);
}

#[test]
fn the_same_file_under_several_names() {
    let folder = Folder::new("same-file");
    let [a, hard, soft, other] = ["a", "hard", "soft", "other"].map(|name| folder.0.join(name));
    fs::write(&a, b"x").unwrap();
    fs::write(&other, b"x").unwrap();
    fs::hard_link(&a, &hard).unwrap();
    std::os::unix::fs::symlink(&a, &soft).unwrap();
    assert!(subbyte_io::same_file(&a, &hard).unwrap());
    assert!(subbyte_io::same_file(&soft, &hard).unwrap());
    assert!(!subbyte_io::same_file(&a, &other).unwrap());
    assert!(!subbyte_io::same_file(&a, &folder.0.join("missing")).unwrap());
}

#[test]
fn a_partial_file_is_found_again() {
    let folder = Folder::new("partial");
    let [path, partial] = ["model.gguf", "model.gguf.part"].map(|name| folder.0.join(name));
    let create = |resume| StreamWriter::create_partial(&path, &partial, plan(), resume).unwrap();
    let (writer, resumed) = create(true);
    assert!(!resumed);
    writer.write("a", 0, &data(204, 0)).unwrap();
    drop(writer);
    assert_eq!(folder.names(), ["model.gguf.part"]);
    let (writer, resumed) = create(true);
    assert!(resumed);
    assert_eq!(writer.read("a", 0, 204).unwrap(), data(204, 0));
    writer.mark("a", 0, 204).unwrap();
    assert_eq!(writer.mark("a", 204, 1).unwrap_err().kind, ErrorKind::Argument);
    writer.write("b", 0, &data(20, 1)).unwrap();
    writer.commit().unwrap();
    assert_eq!(folder.names(), ["model.gguf"]);
    let resumed = fs::read(&path).unwrap();
    job(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), resumed);
    // Another length, or not asked for: a new file.
    fs::write(&partial, [1; 1000]).unwrap();
    assert!(!create(true).1);
    let (writer, resumed) = create(false);
    assert!(!resumed);
    assert_eq!(writer.read("b", 0, 20).unwrap(), [0; 20]);
    writer.discard();
    assert_eq!(folder.names(), ["model.gguf"]);
}

#[test]
fn a_journal_is_locked_until_it_is_dropped() {
    let folder = Folder::new("journal");
    let path = folder.0.join("journal");
    let mut journal = Journal::open(&path).unwrap().unwrap();
    assert!(Journal::open(&path).unwrap().is_none());
    journal.append(b"one\ntwo\n").unwrap();
    drop(journal);
    let mut journal = Journal::open(&path).unwrap().unwrap();
    assert_eq!(journal.read(100).unwrap(), b"one\ntwo\n");
    assert_eq!(journal.read(7).unwrap_err().kind, ErrorKind::Limit);
    journal.truncate(4).unwrap();
    journal.append(b"three\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one\nthree\n");
    journal.remove().unwrap();
    assert_eq!(folder.names(), [""; 0]);
    std::os::unix::fs::symlink(folder.0.join("elsewhere"), &path).unwrap();
    assert!(Journal::open(&path).is_err());
    assert_eq!(folder.names(), ["journal"]);
}
