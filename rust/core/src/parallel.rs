//! The thread pool: our own, sized by `SUBBYTE_NUM_THREADS` (1 to [`limits::THREADS`]; default, also for anything
//! else the variable holds: the available processors), rebuilt after a fork
//! because the threads of a rayon pool do not exist in a child.

use crate::limits;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Pool {
    process: u32,
    pool: ThreadPool,
}

/// The pool of this process, or of the process it was forked from. Replaced, never freed: a pool that was inherited
/// through a fork has no threads, so that dropping it would wait for ever. No lock, because a fork could copy it locked.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// Threads that long calls use. The environment is read once: reading it while another thread sets it is not safe.
pub fn num_threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let asked = std::env::var("SUBBYTE_NUM_THREADS").ok().and_then(|s| s.trim().parse().ok());
        asked
            .filter(|n| (1..=limits::THREADS).contains(n))
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    })
}

/// Runs `work` inside the pool (or directly when one thread is asked for, or no thread can be started).
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let threads = num_threads();
    if threads == 1 {
        return work();
    }
    let process = std::process::id();
    let current = POOL.load(Ordering::Acquire);
    // SAFETY: a published pool is never freed.
    if let Some(pool) = unsafe { current.as_ref() }.filter(|p| p.process == process) {
        return pool.pool.install(work);
    }
    let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() else {
        return work();
    };
    let new = Box::into_raw(Box::new(Pool { process, pool }));
    match POOL.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: `new` is published now and never freed.
        Ok(_) => unsafe { &*new }.pool.install(work),
        Err(other) => {
            // SAFETY: `new` was not published; `other` was, by a thread of this process.
            drop(unsafe { Box::from_raw(new) });
            unsafe { &*other }.pool.install(work)
        }
    }
}
