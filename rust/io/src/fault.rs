//! Fault injection: the Nth call of this crate to the operating system fails, is interrupted, or comes up short.
//!
//! Off unless armed by a test; then one atomic counter is shared by all threads.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this `errno`.
    Errno(i32),
    /// A read or write moves fewer bytes than asked for; other calls succeed.
    Short,
    /// The process is killed there, as by a power cut of its own.
    Die,
}

/// Calls left before the fault; negative when off or past it.
static LEFT: AtomicI64 = AtomicI64::new(-1);
/// 0 for [`Fault::Short`], -1 for [`Fault::Die`], else the errno.
static KIND: AtomicI64 = AtomicI64::new(0);
/// Calls since arming.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Arms the fault for the `nth` call from now (1-based).
pub fn arm(nth: u64, fault: Fault) {
    let kind = match fault {
        Fault::Short => 0,
        Fault::Die => -1,
        Fault::Errno(errno) => i64::from(errno),
    };
    KIND.store(kind, Ordering::SeqCst);
    CALLS.store(0, Ordering::SeqCst);
    LEFT.store(i64::try_from(nth).unwrap_or(i64::MAX), Ordering::SeqCst);
}

/// Turns injection off and returns the number of calls since [`arm`].
pub fn disarm() -> u64 {
    LEFT.store(-1, Ordering::SeqCst);
    CALLS.load(Ordering::SeqCst)
}

/// Counts a call; `Err` when it is to fail, `Ok(true)` when it is to come up short.
fn strike() -> io::Result<bool> {
    if LEFT.load(Ordering::Relaxed) < 0 {
        return Ok(false);
    }
    CALLS.fetch_add(1, Ordering::SeqCst);
    if LEFT.fetch_sub(1, Ordering::SeqCst) != 1 {
        return Ok(false);
    }
    // Stay armed for counting, far from striking again.
    LEFT.store(i64::MAX, Ordering::SeqCst);
    match KIND.load(Ordering::SeqCst) {
        0 => Ok(true),
        -1 => die(),
        errno => Err(io::Error::from_raw_os_error(errno as i32)),
    }
}

/// Ends the process without any cleaning up.
fn die() -> ! {
    #[cfg(unix)]
    // SAFETY: a plain system call; the signal cannot be caught.
    unsafe {
        libc::raise(libc::SIGKILL);
    }
    std::process::abort()
}

/// Runs `call` unless a fault is due; interrupted calls are made again.
pub(crate) fn call<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    retry(|| {
        strike()?;
        call()
    })
}

/// Runs a transfer of `length` bytes through `call`, which is given the number of bytes to try.
pub(crate) fn transfer(length: usize, mut call: impl FnMut(usize) -> io::Result<usize>) -> io::Result<usize> {
    retry(|| {
        let short = strike()? && length > 1;
        call(if short { length / 2 } else { length })
    })
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
