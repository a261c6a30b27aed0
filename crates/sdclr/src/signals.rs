//! The wish to stop, passed from whoever notices it (a signal, a user interface) to the training loop.
//!
//! The library never installs a signal handler: it looks at the flag between steps, writes a checkpoint and returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What asked for the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// A polite kill: shutdown, a batch system's time limit.
    Terminate,
    /// The terminal went away.
    HangUp,
}

impl StopSignal {
    /// The number of the signal on POSIX systems.
    pub fn number(self) -> usize {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
            Self::HangUp => 1,
        }
    }

    /// The exit code by which shells report the signal: 128 + its number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::HangUp => 129,
        }
    }
}

/// A flag that can be raised once from anywhere, signal handlers included, and is read between steps.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicUsize>);

impl StopFlag {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag.
    pub fn raise(&self, signal: StopSignal) {
        self.0.store(signal.number(), Ordering::Relaxed);
    }

    /// What raised the flag, if anything did.
    pub fn raised(&self) -> Option<StopSignal> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(StopSignal::HangUp),
            2 => Some(StopSignal::Interrupt),
            _ => Some(StopSignal::Terminate),
        }
    }

    /// The cell behind the flag, for a signal handler that stores the signal's number.
    pub fn cell(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_sees_the_raised_flag() {
        let flag = StopFlag::new();
        let seen = flag.clone();
        assert_eq!(seen.raised(), None);
        flag.raise(StopSignal::Terminate);
        assert_eq!(seen.raised(), Some(StopSignal::Terminate));
        assert_eq!(seen.raised().map(StopSignal::exit_code), Some(143));
        for signal in [StopSignal::Interrupt, StopSignal::Terminate, StopSignal::HangUp] {
            flag.raise(signal);
            assert_eq!((seen.raised(), signal.exit_code().into()), (Some(signal), 128 + signal.number()));
        }
    }
}
