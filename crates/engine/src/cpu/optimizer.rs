//! Optimizer steps over all parameters, in chunks for the team whatever the tensors' sizes.

use super::team::Shards;
use super::{CHUNK, Compute, HostEngine, elementwise};
use crate::scalar;
use crate::types::{AdamStep, LarsStep, SgdStep, Span};
use std::ops::Range;

impl<E: Compute> HostEngine<E> {
    pub(super) fn sgd_step_of(&mut self, params: Span, grads: Span, momentum: Span, step: SgdStep, first: bool) {
        let (team, level) = (&self.team, self.level);
        self.store.with_span(params, |store, w| {
            store.with_span(momentum, |store, buf| {
                let (g, buf) = (store.span(grads), Shards::new(buf));
                team.for_parts(w, CHUNK, |chunk, w| {
                    let at = chunk * CHUNK;
                    // SAFETY: the same disjoint ranges as those of `w`.
                    let buf = unsafe { buf.part(at, w.len()) };
                    elementwise::sgd(level, w, &g[at..at + w.len()], buf, step, first);
                });
            });
        });
    }

    pub(super) fn lars_step_of(
        &mut self,
        params: Span,
        grads: Span,
        momentum: Span,
        tensors: &[(usize, usize)],
        step: LarsStep,
    ) {
        let (team, level, squares) = (&self.team, self.level, &mut self.squares);
        self.store.with_span(params, |store, w| {
            store.with_span(momentum, |store, buf| {
                let apart = tensors.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
                assert!(apart, "tensors must ascend and not overlap");
                let g = store.span(grads);
                squares.resize(tensors.iter().map(n_chunks).sum(), [0.0; 2]);
                team.for_parts(squares, 1, |i, squares| {
                    let (_, here) = chunk_of(tensors, i);
                    squares[0] = [&w[here.clone()], &g[here]].map(|v| elementwise::squares(level, v));
                });
                let (w, buf, squares) = (Shards::new(w), Shards::new(buf), &squares[..]);
                team.for_chunks(squares.len(), |i, _| {
                    let (all, here) = chunk_of(tensors, i);
                    let total = squares[all].iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]);
                    let trust = scalar::lars_trust(total, step);
                    // SAFETY: tensors do not overlap by the assertion, nor do their chunks, and each runs once.
                    let (w, buf) = unsafe { (w.part(here.start, here.len()), buf.part(here.start, here.len())) };
                    elementwise::lars(level, w, &g[here], buf, trust, step);
                });
            });
        });
    }

    pub(super) fn adam_step_of(&mut self, params: Span, grads: Span, m: Span, v: Span, step: AdamStep) {
        let (team, level) = (&self.team, self.level);
        self.store.with_span(params, |store, w| {
            store.with_span(m, |store, m| {
                store.with_span(v, |store, v| {
                    let (g, m, v) = (store.span(grads), Shards::new(m), Shards::new(v));
                    team.for_parts(w, CHUNK, |chunk, w| {
                        let at = chunk * CHUNK;
                        // SAFETY: the same disjoint ranges as those of `w`.
                        let (m, v) = unsafe { (m.part(at, w.len()), v.part(at, w.len())) };
                        elementwise::adam(level, w, &g[at..at + w.len()], m, v, step);
                    });
                });
            });
        });
    }
}

/// Chunks of a tensor `(first float, floats)`.
fn n_chunks((_, len): &(usize, usize)) -> usize {
    len.div_ceil(CHUNK)
}

/// Chunk `i` of all tensors': those of its tensor, and its floats.
fn chunk_of(tensors: &[(usize, usize)], i: usize) -> (Range<usize>, Range<usize>) {
    let mut first = 0;
    for tensor in tensors {
        let (&(at, len), n) = (tensor, n_chunks(tensor));
        if i < first + n {
            let here = (i - first) * CHUNK;
            return (first..first + n, at + here..at + (here + CHUNK).min(len));
        }
        first += n;
    }
    panic!("there are {first} chunks")
}
