//! A fixed team of threads that runs one closure at a time on all its members, without allocating.
//!
//! A training step calls a few hundred short parallel loops; each costs one wake-up here. Work is cut into numbered
//! chunks that members take from a shared counter, so a slow or borrowed core does not hold the others up. Which member
//! runs a chunk never shows in a result: chunks write disjoint outputs, or fill numbered partial sums added in order.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a member looks for work before it sleeps: some tens of microseconds.
const SPINS: usize = 4_000;

/// Most runs of chunks that members begin with.
const MAX_RUNS: usize = 64;

/// A number in cache lines of its own (processors bring lines in pairs): what some wait for is not what others write.
#[derive(Default)]
#[repr(align(128))]
struct Apart(AtomicUsize);

impl Deref for Apart {
    type Target = AtomicUsize;

    fn deref(&self) -> &AtomicUsize {
        &self.0
    }
}

type Job = *const (dyn Fn(usize) + Sync);

/// What the leader and the helpers share. Who finds the next generation while it looks for it needs no lock.
#[derive(Default)]
struct Shared {
    /// The running job; written by the leader between jobs only, and read by helpers that have seen its generation.
    job: UnsafeCell<Option<Job>>,
    generation: Apart,
    pending: Apart,
    /// Helpers that sleep, or are about to.
    sleepers: Apart,
    quit: AtomicBool,
    panicked: AtomicBool,
    /// Whether a job is running: a second one beside it, or inside it, would be a mistake.
    busy: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: the job is written while no helper runs, and published by the generation; its pointee is `Sync`, and the leader keeps it alive until
// every member is done with it. Everything else is made to be shared.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Lets the helpers see what was written before. A helper counts itself among the sleepers before it looks for the last time, and here
    /// the order is the reverse: one of both sees the other.
    fn publish(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Who is about to sleep holds the lock until it does.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Waits for a generation after `seen`, and returns it.
    fn next_generation(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let generation = self.generation.load(Ordering::Acquire);
            if generation != seen {
                return generation;
            }
            std::hint::spin_loop();
        }
        let mut lock = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let generation = loop {
            let generation = self.generation.load(Ordering::SeqCst);
            if generation != seen {
                break generation;
            }
            lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        generation
    }
}

/// The calling thread and `n - 1` helpers.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `n_threads` members, the caller included (at least one).
    ///
    /// # Errors
    /// If the operating system does not start a thread.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        // Dropping a team that is not complete ends the helpers that did start.
        let mut team = Self { shared, helpers: Vec::new() };
        for member in 1..n_threads.max(1) {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("sdclr-compute-{member}"));
            team.helpers.push(thread.spawn(move || help(&shared, member))?);
        }
        Ok(team)
    }

    /// Members, the caller included.
    #[must_use]
    pub fn n_members(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `work(member)` once on every member and waits for all of them.
    ///
    /// # Panics
    /// If `work` panics on any member, or a job is already running.
    pub fn broadcast(&self, work: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() {
            return work(0);
        }
        let shared = &*self.shared;
        assert!(!shared.busy.swap(true, Ordering::Acquire), "one job at a time");
        // SAFETY: only the lifetime is erased. `Finish` below waits for every helper even when `work(0)` unwinds, so no
        // helper touches the closure after this function has left.
        let job: Job = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        shared.pending.store(self.helpers.len(), Ordering::Relaxed);
        // SAFETY: no helper runs: the last job's `Finish` waited for all of them, and they read the next one after it is published.
        unsafe { *shared.job.get() = Some(job) };
        shared.publish();
        let finish = Finish(shared);
        work(0);
        drop(finish);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a compute thread panicked");
    }

    /// Runs `work(chunk, member)` for every chunk of `0..n_chunks`, in any order, on whichever member is free.
    ///
    /// Members begin with runs of chunks that are the same in every call, so that what one wrote it mostly finds in its own caches in
    /// the next operation; who is done takes from the others' runs.
    pub fn for_chunks(&self, n_chunks: usize, work: impl Fn(usize, usize) + Sync) {
        if n_chunks <= 1 || self.helpers.is_empty() {
            return (0..n_chunks).for_each(|chunk| work(chunk, 0));
        }
        let n_runs = self.n_members().min(MAX_RUNS);
        let taken = [const { Apart(AtomicUsize::new(0)) }; MAX_RUNS];
        self.broadcast(&|member| {
            for run in (0..n_runs).map(|i| (member + i) % n_runs) {
                let (first, end) = (n_chunks * run / n_runs, n_chunks * (run + 1) / n_runs);
                loop {
                    let chunk = first + taken[run].fetch_add(1, Ordering::Relaxed);
                    if chunk >= end {
                        break;
                    }
                    work(chunk, member);
                }
            }
        });
    }

    /// Runs `work(chunk, part)` for consecutive parts of `data` of `chunk_len` elements.
    pub fn for_parts<T: Send>(&self, data: &mut [T], chunk_len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let len = data.len();
        let data = Shards::new(data);
        self.for_chunks(len.div_ceil(chunk_len), |chunk, _| {
            let at = chunk * chunk_len;
            // SAFETY: parts of different chunks do not overlap, and each chunk is run once.
            work(chunk, unsafe { data.part(at, chunk_len.min(len - at)) });
        });
    }
}

/// Waits until every helper is done with the job, also while unwinding.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut spins = 0;
        while self.0.pending.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.publish();
        for helper in self.helpers.drain(..) {
            // A helper's panic was reported by `broadcast`; there is nothing to add while the team goes away.
            let _ = helper.join();
        }
    }
}

fn help(shared: &Shared, member: usize) {
    let mut seen = 0;
    loop {
        seen = shared.next_generation(seen);
        if shared.quit.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the leader wrote it before it published this generation, and writes no other before this helper is done.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: the leader keeps the closure alive until `pending` reaches zero, which happens below.
            let work = unsafe { &*job };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(member))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
            shared.pending.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A mutable slice that several members write disjoint parts of.
pub(crate) struct Shards<T> {
    data: *mut T,
    len: usize,
}

// SAFETY: `part` is the only access, and its contract demands disjoint parts.
unsafe impl<T: Send> Sync for Shards<T> {}

impl<T> Shards<T> {
    pub fn new(data: &mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// The part `at..at + len`.
    ///
    /// # Safety
    /// Parts that are alive at the same time must not overlap, and the slice given to `new` must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "part {at}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }

    /// Pointer to the first element, for kernels that write strided parts.
    pub fn as_ptr(&self) -> *mut T {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_at_any_team_size() {
        for n_threads in 1..5 {
            let team = Team::new(n_threads).unwrap();
            for n_chunks in [0, 1, 2, 7, 1000] {
                let mut hits = vec![0u32; n_chunks];
                team.for_parts(&mut hits, 1, |_, part| part[0] += 1);
                assert!(hits.iter().all(|&h| h == 1), "{n_threads} threads, {n_chunks} chunks");
            }
        }
    }

    #[test]
    fn panic_in_a_member_reaches_the_caller_and_the_team_survives() {
        let team = Team::new(3).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.broadcast(&|member| assert!(member != 2, "member two gives up"));
        }));
        assert!(result.is_err());
        let mut hits = vec![0; 10];
        team.for_parts(&mut hits, 1, |_, part| part[0] = 1);
        assert_eq!(hits.iter().sum::<i32>(), 10);
    }
}
