//! A fixed team of threads that runs one closure at a time on all its members, without allocating.
//!
//! A training step calls a few hundred short parallel loops; each costs one wake-up here. Work is cut into numbered
//! chunks that members take from a shared counter, so a slow or borrowed core does not hold the others up. Which member
//! runs a chunk never shows in a result: chunks write disjoint outputs, or fill numbered partial sums added in order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a member looks for work before it sleeps: some tens of microseconds.
const SPINS: usize = 4_000;

/// Most runs of chunks that members begin with.
const MAX_RUNS: usize = 64;

/// Chunks of a run that were taken, in a cache line of its own.
#[repr(align(64))]
struct Taken(AtomicUsize);

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// The running job; written by the leader between jobs only.
    job: Mutex<Option<JobPtr>>,
    generation: AtomicUsize,
    pending: AtomicUsize,
    quit: AtomicBool,
    panicked: AtomicBool,
    /// Whether a job is running: a second one beside it, or inside it, would be a mistake.
    busy: AtomicBool,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct JobPtr(Job);

// SAFETY: the pointee is `Sync`, and the leader keeps it alive until every member is done with it.
unsafe impl Send for JobPtr {}

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
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            generation: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            wake: Condvar::new(),
        });
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
        {
            let mut slot = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            *slot = Some(JobPtr(job));
            shared.generation.fetch_add(1, Ordering::Release);
            shared.wake.notify_all();
        }
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
        let taken = [const { Taken(AtomicUsize::new(0)) }; MAX_RUNS];
        self.broadcast(&|member| {
            for run in (0..n_runs).map(|i| (member + i) % n_runs) {
                let (first, end) = (n_chunks * run / n_runs, n_chunks * (run + 1) / n_runs);
                loop {
                    let chunk = first + taken[run].0.fetch_add(1, Ordering::Relaxed);
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
        {
            let _slot = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.generation.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // A helper's panic was reported by `broadcast`; there is nothing to add while the team goes away.
            let _ = helper.join();
        }
    }
}

fn help(shared: &Shared, member: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.generation.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let job = {
            let mut slot = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            while shared.generation.load(Ordering::Acquire) == seen {
                slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            *slot
        };
        seen = shared.generation.load(Ordering::Acquire);
        if shared.quit.load(Ordering::Acquire) {
            return;
        }
        if let Some(JobPtr(job)) = job {
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
