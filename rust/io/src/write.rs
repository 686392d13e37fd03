//! Files that appear under their name only when complete.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use subbyte_core::{Error, Result};

use crate::read::read_exact_at;
use crate::{fault, in_file};

/// Most bytes of one `pwrite`. Larger ones make the page cache look for huge pages: on Linux 6 with ext4, filling 1.7 GB
/// takes 0.3 s in pieces of 64 to 256 KiB and 1 to 4 s in pieces of 1 to 4 MiB.
const MOST_AT_ONCE: usize = 256 << 10;

/// Told apart from anything a user would name.
const SUFFIX: &str = ".subbyte-tmp";

/// A file under construction: an exclusively created sibling of the final name with its space reserved, renamed by
/// [`AtomicFile::commit`] and removed when dropped before that, unless it is to be resumed.
///
/// What was under the final name stays until the rename, so a source that is mapped may be replaced safely.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temp: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl AtomicFile {
    /// Creates the temporary sibling of `target` with `length` bytes reserved and zero.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Io`]; a full disk is found here where the file system can reserve space.
    pub fn create(target: &Path, length: u64) -> Result<Self> {
        let name = target
            .file_name()
            .ok_or_else(|| in_file(Error::argument("not a file name to write to"), target))?
            .to_string_lossy();
        if target.is_dir() {
            return Err(in_file(Error::argument("this is a folder; give the name of a file to write"), target));
        }
        let temp = target.with_file_name(temporary_name(&name));
        Self::create_as(target, temp, length)
    }

    fn create_as(target: &Path, temp: PathBuf, length: u64) -> Result<Self> {
        let file = fault::call(|| OpenOptions::new().write(true).read(true).create_new(true).open(&temp))
            .map_err(|e| in_file(e, target))?;
        let this = Self { file, temp, target: target.to_path_buf(), kept: false };
        this.reserve(length)?;
        Ok(this)
    }

    /// Like [`AtomicFile::create`], under the name `partial`, which a later run can find: whatever has that name is
    /// replaced, and dropping the file leaves it there.
    pub fn create_partial(target: &Path, partial: &Path, length: u64) -> Result<Self> {
        remove_if_there(partial)?;
        let mut this = Self::create_as(target, partial.to_path_buf(), length)?;
        this.kept = true;
        Ok(this)
    }

    /// The file that an earlier run left as `partial`; `None` if there is none of `length` bytes.
    pub fn reopen_partial(target: &Path, partial: &Path, length: u64) -> Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.write(true).read(true);
        // Not through a link that somebody put there, and not waiting for a pipe.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match fault::call(|| options.open(partial)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(in_file(e, partial)),
        };
        let metadata = fault::call(|| file.metadata()).map_err(|e| in_file(e, partial))?;
        let fits = metadata.is_file() && metadata.len() == length;
        let this = Self { file, temp: partial.to_path_buf(), target: target.to_path_buf(), kept: true };
        Ok(fits.then_some(this))
    }

    /// Whether dropping the file before [`AtomicFile::commit`] leaves it under its temporary name.
    pub fn keep(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// Reads back `count` bytes at `offset`.
    pub fn read_at(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        read_exact_at(&self.file, offset, &mut bytes).map_err(|e| in_file(e, &self.temp))?;
        Ok(bytes)
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        fault::call(|| self.file.sync_all()).map_err(|e| in_file(e, &self.target))
    }

    fn reserve(&self, length: u64) -> Result<()> {
        let result = fault::call(|| allocate(&self.file, length));
        match result {
            Ok(()) => Ok(()),
            // Not every file system can reserve; a sparse file of the full length is the next best.
            Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported) => {
                fault::call(|| self.file.set_len(length)).map_err(|e| in_file(e, &self.target))
            }
            Err(e) => {
                let mut error = in_file(e, &self.target);
                error.message = format!("{length} bytes could not be reserved: {}", error.message);
                Err(error)
            }
        }
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, offset, bytes).map_err(|e| in_file(e, &self.target))
    }

    /// Makes the bytes durable, then gives the file its name.
    ///
    /// # Errors
    /// [`subbyte_core::ErrorKind::Io`]. The temporary file is as after dropping it then. If only the last step failed, syncing the
    /// folder, the complete file is in place, but may not survive a power cut.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        fault::call(|| std::fs::rename(&self.temp, &self.target)).map_err(|e| in_file(e, &self.target))?;
        self.kept = true;
        fault::call(|| sync_folder(&self.target)).map_err(|e| {
            let mut error = in_file(e, &self.target);
            error.message = format!("the file is complete, but its folder could not be synced: {}", error.message);
            error
        })
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing sensible can be done about a failure here; the name says what the file is.
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}

/// Writes all of `bytes` at `offset` of `file`.
pub(crate) fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let length = rest.len().min(MOST_AT_ONCE);
        match fault::transfer(length, |n| pwrite(file, &rest[..n], offset + done as u64))? {
            0 => return Err(io::Error::new(io::ErrorKind::WriteZero, "the system wrote nothing")),
            n => done += n,
        }
    }
    Ok(())
}

/// Writes a small file at once: the old content stays visible until the new one is complete.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(path, bytes.len() as u64)?;
    file.write_all_at(0, bytes)?;
    file.commit()
}

/// Removes a file; there being none is fine.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fault::call(|| std::fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(in_file(e, path)),
        _ => Ok(()),
    }
}

/// Gives the folder `from`, whose files are complete and durable, the name `to`. What had that name before has the name
/// `from` afterwards: the two change places, at once where the system can exchange names (Linux).
///
/// # Errors
/// [`subbyte_core::ErrorKind::Io`]. Both folders are there then, one of them perhaps under a temporary name.
pub fn place_folder(from: &Path, to: &Path) -> Result<()> {
    let fail = |e: io::Error| in_file(e, to);
    if to.symlink_metadata().is_err() {
        fault::call(|| std::fs::rename(from, to)).map_err(fail)?;
    } else if !fault::call(|| exchange(from, to)).map_err(fail)? {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let aside = to.with_file_name(temporary_name(&name));
        fault::call(|| std::fs::rename(to, &aside)).map_err(fail)?;
        fault::call(|| std::fs::rename(from, to)).map_err(fail)?;
        fault::call(|| std::fs::rename(&aside, from)).map_err(fail)?;
    }
    fault::call(|| sync_folder(to)).map_err(fail)
}

/// Exchanges two names; `false` where the system or the file system cannot.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt;
    let name = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (a, b) = (name(a)?, name(b)?);
    // SAFETY: a plain system call on two strings that live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(true),
        (_, e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(false),
        (_, e) => Err(e),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// A sibling name of bounded length that no other process or thread uses.
fn temporary_name(name: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let stem: String = name.chars().take(40).collect();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(".{stem}.{}-{now:x}-{unique}{SUFFIX}", std::process::id())
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, length: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let Ok(length) = libc::off_t::try_from(length) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    if length == 0 {
        return Ok(());
    }
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn pwrite(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, offset)
}

#[cfg(windows)]
fn pwrite(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, offset)
}

/// Makes a rename durable. File systems that cannot sync a folder say EINVAL; there is nothing to do then.
#[cfg(unix)]
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
