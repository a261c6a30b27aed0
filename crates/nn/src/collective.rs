//! What ranks say to each other: sums, gathers and broadcasts on an engine's buffers.
//!
//! [`Single`] is one process. [`ThreadRank`] joins several threads of one process, each with its own engine; it adds in
//! rank order, so its results do not depend on timing. Other transports (MPI, NCCL) implement the same trait.

use sdclr_engine::{Engine, Span};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Ranks could not exchange data.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// Another rank stopped, or the transport failed.
    #[error("rank {rank} of {n_ranks}: {message}")]
    Lost {
        /// This rank.
        rank: usize,
        /// Number of ranks.
        n_ranks: usize,
        /// What happened.
        message: String,
    },
}

/// Communication between the ranks of one training run. All ranks make the same calls in the same order.
pub trait Collective: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn n_ranks(&self) -> usize;

    /// Replaces `data` by its sum over the ranks.
    ///
    /// # Errors
    /// When a rank is lost.
    fn all_reduce_sum(&self, engine: &mut dyn Engine, data: Span) -> Result<(), CollectiveError>;

    /// Fills `all` on every rank from each rank's own part: `parts[r]` is rank r's range of `all`.
    ///
    /// # Errors
    /// When a rank is lost.
    fn all_gather(&self, engine: &mut dyn Engine, all: Span, parts: &[Range<usize>]) -> Result<(), CollectiveError>;

    /// The gradient of [`Collective::all_gather`]: each rank's own part of `all` becomes the sum of that part over the
    /// ranks; other parts are left undefined.
    ///
    /// # Errors
    /// When a rank is lost.
    fn all_gather_backward(
        &self,
        engine: &mut dyn Engine,
        all: Span,
        parts: &[Range<usize>],
    ) -> Result<(), CollectiveError>;

    /// Copies rank 0's `data` to every rank.
    ///
    /// # Errors
    /// When a rank is lost.
    fn broadcast(&self, engine: &mut dyn Engine, data: Span) -> Result<(), CollectiveError>;
}

/// One process alone: every exchange is the identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn n_ranks(&self) -> usize {
        1
    }

    fn all_reduce_sum(&self, _: &mut dyn Engine, _: Span) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather(&self, _: &mut dyn Engine, _: Span, _: &[Range<usize>]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather_backward(&self, _: &mut dyn Engine, _: Span, _: &[Range<usize>]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _: &mut dyn Engine, _: Span) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// What the ranks of a thread group share: a slot each, and a meeting point.
struct Meeting {
    slots: Vec<Mutex<Vec<f32>>>,
    state: Mutex<Gathering>,
    changed: Condvar,
}

/// A barrier that also ends when a rank is lost, so that the others do not wait for ever.
#[derive(Default)]
struct Gathering {
    n_arrived: usize,
    n_meetings: u64,
    is_lost: bool,
}

/// One rank of a group of threads. Dropping it before the others are done makes their next exchange fail.
pub struct ThreadRank {
    rank: usize,
    meeting: Arc<Meeting>,
}

impl ThreadRank {
    /// A group of `n_ranks` ranks; give one to each thread.
    ///
    /// # Panics
    /// If `n_ranks` is 0.
    #[must_use]
    pub fn group(n_ranks: usize) -> Vec<Self> {
        assert!(n_ranks > 0, "a group has at least one rank");
        let slots = (0..n_ranks).map(|_| Mutex::new(Vec::new())).collect();
        let meeting = Arc::new(Meeting { slots, state: Mutex::default(), changed: Condvar::new() });
        (0..n_ranks).map(|rank| Self { rank, meeting: Arc::clone(&meeting) }).collect()
    }

    fn lost(&self, message: impl Into<String>) -> CollectiveError {
        CollectiveError::Lost { rank: self.rank, n_ranks: self.n_ranks(), message: message.into() }
    }

    /// Waits until all ranks are here.
    fn meet(&self) -> Result<(), CollectiveError> {
        let Meeting { state, changed, slots } = &*self.meeting;
        let mut at = state.lock().unwrap_or_else(PoisonError::into_inner);
        at.n_arrived += 1;
        if at.n_arrived == slots.len() {
            at.n_arrived = 0;
            at.n_meetings += 1;
            changed.notify_all();
            return Ok(());
        }
        let meeting = at.n_meetings;
        while at.n_meetings == meeting && !at.is_lost {
            at = changed.wait(at).unwrap_or_else(PoisonError::into_inner);
        }
        // A rank that leaves after this meeting took place does not undo it.
        if at.n_meetings == meeting { Err(self.lost("another rank stopped")) } else { Ok(()) }
    }

    /// Publishes `data`, waits for all ranks, lets `merge` read their slots in rank order, and waits again.
    fn exchange(
        &self,
        engine: &mut dyn Engine,
        data: Span,
        merge: impl Fn(&mut [f32], usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let mut own = vec![0.0; data.len];
        engine.read_f32(data, &mut own).map_err(|e| self.lost(e.to_string()))?;
        own.clone_into(&mut self.meeting.slots[self.rank].lock().unwrap_or_else(PoisonError::into_inner));
        self.meet()?;
        for (rank, slot) in self.meeting.slots.iter().enumerate() {
            merge(&mut own, rank, &slot.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.meet()?;
        engine.write_f32(data, &own);
        Ok(())
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner).is_lost = true;
        self.meeting.changed.notify_all();
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.meeting.slots.len()
    }

    fn all_reduce_sum(&self, engine: &mut dyn Engine, data: Span) -> Result<(), CollectiveError> {
        self.exchange(engine, data, |own, rank, other| {
            if rank == 0 {
                own.copy_from_slice(other);
            } else {
                own.iter_mut().zip(other).for_each(|(a, &b)| *a += b);
            }
        })
    }

    fn all_gather(&self, engine: &mut dyn Engine, all: Span, parts: &[Range<usize>]) -> Result<(), CollectiveError> {
        self.exchange(engine, all, |own, rank, other| {
            own[parts[rank].clone()].copy_from_slice(&other[parts[rank].clone()]);
        })
    }

    fn all_gather_backward(
        &self,
        engine: &mut dyn Engine,
        all: Span,
        _parts: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        self.all_reduce_sum(engine, all)
    }

    fn broadcast(&self, engine: &mut dyn Engine, data: Span) -> Result<(), CollectiveError> {
        self.exchange(engine, data, |own, rank, other| {
            if rank == 0 {
                own.copy_from_slice(other);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdclr_engine::Oracle;

    /// What each of three ranks holds after `exchange`, starting from [rank + 1; 6].
    fn after(exchange: impl Fn(&ThreadRank, &mut dyn Engine, Span) + Sync) -> Vec<Vec<f32>> {
        std::thread::scope(|scope| {
            let ranks: Vec<_> = ThreadRank::group(3)
                .into_iter()
                .map(|rank| {
                    let exchange = &exchange;
                    scope.spawn(move || {
                        let mut engine: Box<dyn Engine> = Box::new(Oracle::new());
                        let buf = engine.alloc_f32(6).unwrap();
                        let span = engine.whole(buf);
                        engine.fill(span, rank.rank() as f32 + 1.0);
                        exchange(&rank, &mut *engine, span);
                        let mut values = vec![0.0; 6];
                        engine.read_f32(span, &mut values).unwrap();
                        values
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn thread_ranks_exchange_what_the_trait_says() {
        // Parts of unequal size, as the last batch of an epoch has them.
        let parts = [0..1, 1..4, 4..6];
        for values in after(|r, e, s| r.all_reduce_sum(e, s).unwrap()) {
            assert_eq!(values, [6.0; 6]);
        }
        for values in after(|r, e, s| r.all_gather(e, s, &parts).unwrap()) {
            assert_eq!(values, [1.0, 2.0, 2.0, 2.0, 3.0, 3.0]);
        }
        for values in after(|r, e, s| r.broadcast(e, s).unwrap()) {
            assert_eq!(values, [1.0; 6]);
        }
        for (rank, values) in after(|r, e, s| r.all_gather_backward(e, s, &parts).unwrap()).iter().enumerate() {
            assert!(values[parts[rank].clone()].iter().all(|&v| v == 6.0));
        }
    }

    #[test]
    fn a_lost_rank_is_an_error_for_the_others_and_not_a_wait() {
        let mut group = ThreadRank::group(3);
        drop(group.pop());
        let results: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = group
                .into_iter()
                .map(|rank| {
                    scope.spawn(move || {
                        let mut engine: Box<dyn Engine> = Box::new(Oracle::new());
                        let buf = engine.alloc_f32(1).unwrap();
                        let span = engine.whole(buf);
                        rank.all_reduce_sum(&mut *engine, span).map_err(|e| e.to_string())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (rank, result) in results.into_iter().enumerate() {
            assert_eq!(result, Err(format!("rank {rank} of 3: another rank stopped")));
        }
    }
}
