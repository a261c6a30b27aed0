//! Work on many numbered things by several threads, whose results arrive in order and never pile up.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct State<T> {
    next: usize,
    taken: usize,
    /// Finished results, each in the slot of its number modulo the length.
    finished: Vec<Option<Result<T, String>>>,
    stopped: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A number may be begun, or the work stops.
    ready: Condvar,
    /// A result is there.
    done: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that can panic runs under the lock, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the threads to end, however the taking ends.
struct StopAtEnd<'a, T>(&'a Shared<T>);

impl<T> Drop for StopAtEnd<'_, T> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.ready.notify_all();
    }
}

/// The number of threads that 0 stands for: one per processor that this process may use.
pub(crate) fn n_workers(workers: usize) -> usize {
    if workers == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { workers }
}

/// Does `work` for each number below `n` on `n_threads` threads, each with a state of its own, and hands the results to
/// `take` in order until it breaks. A result is the message of the panic where there was one. At most two results a thread
/// wait to be taken.
pub(crate) fn in_order<S: Default, T: Send>(
    n: usize,
    n_threads: usize,
    work: impl Fn(&mut S, usize) -> T + Sync,
    mut take: impl FnMut(usize, Result<T, String>) -> ControlFlow<()>,
) {
    let n_threads = n_threads.clamp(1, n.max(1));
    let finished = (0..2 * n_threads).map(|_| None).collect();
    let state = Mutex::new(State { next: 0, taken: 0, finished, stopped: false });
    let shared = Shared { state, ready: Condvar::new(), done: Condvar::new() };
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&shared);
        for _ in 0..n_threads {
            scope.spawn(|| work_until_done(&shared, n, &work));
        }
        for number in 0..n {
            let mut state = shared.lock();
            let slot = number % state.finished.len();
            let result = loop {
                match state.finished[slot].take() {
                    Some(result) => break result,
                    None => state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.taken += 1;
            drop(state);
            shared.ready.notify_one();
            if take(number, result).is_break() {
                break;
            }
        }
    });
}

fn work_until_done<S: Default, T>(shared: &Shared<T>, n: usize, work: &impl Fn(&mut S, usize) -> T) {
    let mut own = S::default();
    let mut state = shared.lock();
    loop {
        let number = state.next;
        if state.stopped || number >= n {
            return;
        }
        if number >= state.taken + state.finished.len() {
            state = shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.next += 1;
        drop(state);
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut own, number)));
        state = shared.lock();
        let slot = number % state.finished.len();
        state.finished[slot] = Some(result.map_err(|payload| message(&*payload)));
        shared.done.notify_one();
    }
}

/// What a panic said.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_arrive_in_order_at_any_number_of_threads() {
        for n_threads in [1, 2, 7] {
            let mut taken = Vec::new();
            in_order(
                100,
                n_threads,
                |count: &mut usize, number| {
                    *count += 1;
                    number * number
                },
                |number, result| {
                    taken.push((number, result.unwrap()));
                    ControlFlow::Continue(())
                },
            );
            assert_eq!(taken, (0..100).map(|number| (number, number * number)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_break_ends_the_work_and_a_panic_is_a_result() {
        let mut taken = Vec::new();
        in_order(
            1_000_000,
            3,
            |(), number| if number == 5 { panic!("five") } else { number },
            |number, result| {
                taken.push(result);
                if number == 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert_eq!((taken.len(), taken[5].clone()), (10, Err("five".to_owned())));
        in_order(0, 4, |(), number| number, |_, _| unreachable!("there is nothing"));
    }
}
