//! Threads that share an operation's output. How many there are never shows in a result: an operation cuts its output
//! into parts that are computed alone.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} compute threads; ask for fewer or raise the limit on threads")]
pub struct PoolError {
    /// Threads asked for.
    pub threads: usize,
    source: rayon::ThreadPoolBuildError,
}

/// A fixed number of compute threads.
#[derive(Debug)]
pub struct Pool {
    /// None computes on the caller's thread.
    threads: Option<rayon::ThreadPool>,
}

impl Pool {
    /// The most threads of a pool. What they need beside each other is planned for so many, on whichever host a model is
    /// loaded, and more of them would wait for the same memory.
    pub const MAX_THREADS: usize = 256;

    /// Starts `threads` threads, [`Pool::MAX_THREADS`] at most; 0 and 1 compute on the caller's thread instead.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        if threads <= 1 {
            return Ok(Self::inline());
        }
        let threads = threads.min(Self::MAX_THREADS);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|source| PoolError { threads, source })?;
        Ok(Self { threads: Some(pool) })
    }

    /// Computes everything on the caller's thread.
    pub fn inline() -> Self {
        Self { threads: None }
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `work` on one of the pool's threads. Wrap a whole step of a model in it: the operations inside then hand
    /// their parts to the neighbours without crossing from a foreign thread each time.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            None => work(),
            Some(pool) => pool.install(work),
        }
    }

    /// The calling thread's number, below [`Pool::threads`]: the index of its scratch.
    pub(crate) fn slot(&self) -> usize {
        self.threads.as_ref().and_then(rayon::ThreadPool::current_thread_index).unwrap_or(0)
    }

    /// Calls `work` for every index below `count`, in any order and on any thread. `cost` is about how many
    /// multiplications one call makes; little work stays on few threads.
    pub(crate) fn for_each(&self, count: usize, cost: usize, work: impl Fn(usize) + Sync) {
        match &self.threads {
            Some(pool) if count > 1 && count.saturating_mul(cost) > INLINE_COST => {
                let grain = grain(count, cost, self.threads());
                pool.install(|| (0..count).into_par_iter().with_min_len(grain).for_each(&work));
            }
            _ => (0..count).for_each(work),
        }
    }

    /// Calls `work` with each row of `len` values of `out` and its number.
    pub(crate) fn for_rows<T: Send>(
        &self,
        out: &mut [T],
        len: usize,
        cost: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(len > 0 && out.len().is_multiple_of(len), "{} values are not whole rows of {len}", out.len());
        let count = out.len() / len;
        match &self.threads {
            Some(pool) if count > 1 && count.saturating_mul(cost) > INLINE_COST => {
                let grain = grain(count, cost, self.threads());
                pool.install(|| {
                    out.par_chunks_exact_mut(len)
                        .enumerate()
                        .with_min_len(grain)
                        .for_each(|(row, values)| work(row, values));
                });
            }
            _ => out.chunks_exact_mut(len).enumerate().for_each(|(row, values)| work(row, values)),
        }
    }
}

/// Below this many multiplications handing out work costs more than it saves.
const INLINE_COST: usize = 1 << 14;

/// Indices that one thread takes at a time: at least some microseconds of work, and a few portions a thread.
fn grain(count: usize, cost: usize, threads: usize) -> usize {
    let worth_it = INLINE_COST.div_ceil(cost.max(1));
    let portions = count.div_ceil(threads * 8);
    worth_it.max(portions).clamp(1, count)
}

/// An output that several threads write in disjoint places.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out access under the promises of its unsafe functions, which exclude overlap between threads.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(out: &'a mut [T]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), life: PhantomData }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// While this value lives, no other thread may write or borrow the same index.
    pub(crate) unsafe fn write(&self, index: usize, value: T) {
        assert!(index < self.len, "write at {index} of {}", self.len);
        // SAFETY: in range by the assertion; alone on the index by the caller's promise.
        unsafe { *self.start.add(index) = value };
    }

    /// Borrows a part.
    ///
    /// # Safety
    /// While the borrow lives, nobody else may write or borrow any of its indices.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: in range by the assertion; alone on the part by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_index_is_visited_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads.max(1));
            for count in [0, 1, 7, 1000] {
                let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(count, 1 << 20, |i| {
                    assert!(pool.slot() < pool.threads());
                    visits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1));
            }
            let mut out = vec![0usize; 300];
            pool.run(|| pool.for_rows(&mut out, 3, 1 << 20, |row, values| values.fill(row)));
            assert!(out.iter().enumerate().all(|(i, v)| *v == i / 3));
        }
    }
}
