//! Batch norm on feature maps and vectors alike, cut into chunks for the team.

use super::cell::Cell;
use super::norm_kernels::{self, Apply, Backward, Gated};
use super::team::Shards;
use super::{CHUNK, Compute, HostEngine, elementwise};
use crate::engine::{NormApply, NormBackward};
use crate::host::Select;
use crate::types::{Act, Write};

impl<E: Compute> HostEngine<E> {
    pub(super) fn norm_apply_in<S: Select<E, T: Cell>>(&mut self, n: usize, norm: NormApply) {
        let (team, level) = (&self.team, self.level);
        self.store.with::<S, _>(norm.y, |store, y| {
            let c = y.dims().c;
            let (x, coef) = (S::get(store, norm.x).images(n), store.span(norm.coef));
            let residual = norm.residual.map(|r| S::get(store, r).images(n));
            let per_chunk = (CHUNK / c).max(1) * c;
            team.for_parts(y.images_mut(n), per_chunk, |chunk, y| {
                let range = chunk * per_chunk..chunk * per_chunk + y.len();
                let residual = residual.map(|r| &r[range.clone()]);
                // SAFETY: the engine's level is at most what it detected.
                unsafe { norm_kernels::apply(level, &mut Apply { x: &x[range], coef, residual, relu: norm.relu, y }) };
            });
        });
    }

    pub(super) fn norm_backward_sums_in<S: Select<E, T: Cell>>(&mut self, n: usize, norm: NormBackward) {
        let (level, dims) = (self.level, self.store.dims(norm.x));
        self.summed(n * dims.len(), dims.c, norm.sums, |store, at, len, sums| {
            let part = |act: Act| &S::get(store, act).data[at..at + len];
            let job = Gated { dy: part(norm.dy), gate: norm.gate.map(part), x: part(norm.x) };
            // SAFETY: the engine's level is at most what it detected.
            unsafe { norm_kernels::backward_sums(level, &job, store.span(norm.coef), sums) };
        });
    }

    pub(super) fn norm_backward_apply_in<S: Select<E, T: Cell>>(
        &mut self,
        n: usize,
        norm: NormBackward,
        count: Option<usize>,
        dx: Option<Act>,
        dresidual: Option<(Act, Write)>,
    ) {
        let dims = self.store.dims(norm.x);
        self.need_partial(3 * dims.c);
        let Self { store, team, level, partial, .. } = self;
        let constants = &mut partial[..3 * dims.c];
        elementwise::norm_backward_constants(store.span(norm.coef), store.span(norm.sums), count, constants);
        let (constants, level, len) = (&*constants, *level, n * dims.len());
        let mut dx_buf = dx.map(|dx| S::take(store, dx)).unwrap_or_default();
        let mut dr_buf = dresidual.map(|(dr, _)| S::take(store, dr)).unwrap_or_default();
        let (has_dx, has_dr) = (dx.is_some(), dresidual.is_some());
        let (dx_shards, dr_shards) = (Shards::new(&mut dx_buf.data), Shards::new(&mut dr_buf.data));
        let write = dresidual.map_or(Write::Set, |(_, write)| write);
        let per_chunk = (CHUNK / dims.c).max(1) * dims.c;
        team.for_chunks(len.div_ceil(per_chunk), |chunk, _| {
            let at = chunk * per_chunk;
            let size = per_chunk.min(len - at);
            let part = |act: Act| &S::get(store, act).data[at..at + size];
            let wanted = |has: bool| if has { (at, size) } else { (0, 0) };
            let ((dx_at, dx_len), (dr_at, dr_len)) = (wanted(has_dx), wanted(has_dr));
            // SAFETY: chunks are disjoint and each runs once; an empty part stands for an output that is not wanted.
            let (dx, dr) = unsafe { (dx_shards.part(dx_at, dx_len), dr_shards.part(dr_at, dr_len)) };
            let from = Gated { dy: part(norm.dy), gate: norm.gate.map(part), x: part(norm.x) };
            // SAFETY: the engine's level is at most what it detected.
            unsafe { norm_kernels::backward_apply(level, &mut Backward { from, constants, dx, dr, write }) };
        });
        if let Some(dx) = dx {
            S::put(store, dx, dx_buf);
        }
        if let Some((dr, _)) = dresidual {
            S::put(store, dr, dr_buf);
        }
    }
}
