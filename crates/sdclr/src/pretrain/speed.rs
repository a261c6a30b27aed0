//! Images a second, and how much of the time went into waiting for them.

use std::time::Instant;

/// Images and waiting since a moment.
#[derive(Clone, Copy)]
pub(super) struct Speed {
    since: Instant,
    waited_before_s: f64,
    pub n_images: usize,
}

impl Speed {
    pub fn new(waited_s: f64) -> Self {
        Self { since: Instant::now(), waited_before_s: waited_s, n_images: 0 }
    }

    /// (images a second, share of the time spent waiting).
    pub fn read(&self, waited_s: f64) -> (f64, f64) {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        (self.n_images as f64 / seconds, ((waited_s - self.waited_before_s) / seconds).clamp(0.0, 1.0))
    }
}
