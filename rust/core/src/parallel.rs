//! The thread pool: our own, sized by `SUBBYTE_NUM_THREADS` (default: available processors), rebuilt after a fork
//! because the threads of a rayon pool do not exist in a child.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex};

struct Pool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Threads that long calls use.
pub fn num_threads() -> usize {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::env::var("SUBBYTE_NUM_THREADS").ok().and_then(|s| s.trim().parse().ok()).filter(|n| *n > 0).unwrap_or(all)
}

/// Runs `work` inside the pool (or directly when one thread is asked for).
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let threads = num_threads();
    if threads == 1 {
        return work();
    }
    let pool = {
        let mut slot = POOL.lock().unwrap_or_else(|e| e.into_inner());
        let process = std::process::id();
        match &*slot {
            Some(p) if p.process == process && p.threads == threads => p.pool.clone(),
            _ => {
                let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() else {
                    return work();
                };
                let pool = Arc::new(pool);
                // A pool inherited through fork has no threads left; dropping it would wait for them.
                if let Some(old) = slot.take() {
                    if old.process != process {
                        std::mem::forget(old);
                    }
                }
                *slot = Some(Pool { process, threads, pool: pool.clone() });
                pool
            }
        }
    };
    pool.install(work)
}
