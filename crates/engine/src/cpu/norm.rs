//! Batch norm on feature maps and vectors alike, cut into chunks for the team.

use super::cell::Cell;
use super::norm_kernels::{self, Apply, Backward, GateData, Gated};
use super::team::Shards;
use super::{CHUNK, Compute, HostEngine, elementwise};
use crate::engine::{Gate, NormApply, NormBackward};
use crate::host::Select;
use crate::types::{Act, Write};

impl<E: Compute> HostEngine<E> {
    pub(super) fn norm_apply_in<S: Select<E, T: Cell>>(&mut self, n: usize, norm: NormApply) {
        let (team, level) = (&self.team, self.level);
        self.store.with::<S, _>(norm.y, |store, y| {
            let (c, coef) = (y.dims().c, store.span(norm.coef));
            let per_chunk = (CHUNK / c).max(1) * c;
            team.for_parts(y.images_mut(n), per_chunk, |chunk, y| {
                let (at, len, y) = (chunk * per_chunk, y.len(), y.as_mut_ptr());
                let part = |act: Act| S::get(store, act).data[at..at + len].as_ptr();
                let x = if norm.x == norm.y { y.cast_const() } else { part(norm.x) };
                let residual = norm.residual.map(part);
                // SAFETY: all parts are of so many numbers; the engine's level is at most what it detected.
                unsafe { norm_kernels::apply(level, &Apply { x, coef, residual, relu: norm.relu, y, len }) };
            });
        });
    }

    pub(super) fn norm_backward_sums_in<S: Select<E, T: Cell>>(&mut self, n: usize, norm: NormBackward) {
        let (level, dims) = (self.level, self.store.dims(norm.x));
        self.summed(n * dims.len(), dims.c, norm.sums, |store, at, len, sums| {
            let part = |act: Act| S::get(store, act).data[at..at + len].as_ptr();
            let gate = gate_data::<S::T>(&norm, store.span(norm.coef), part);
            let job = Gated { dy: part(norm.dy), gate, x: part(norm.x), len };
            // SAFETY: all parts are of so many numbers; the engine's level is at most what it detected.
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
        let (constants, level, total) = (&*constants, *level, n * dims.len());
        assert!(dresidual != Some((norm.dy, Write::Add)), "a gradient cannot be added to itself");
        let (dr, write) = dresidual.map_or((None, Write::Set), |(dr, write)| (Some(dr), write));
        let mut dx_buf = dx.map(|dx| S::take(store, dx)).unwrap_or_default();
        let mut dr_buf = dr.map(|dr| S::take(store, dr)).unwrap_or_default();
        let (dx_shards, dr_shards) = (Shards::new(&mut dx_buf.data), Shards::new(&mut dr_buf.data));
        let per_chunk = (CHUNK / dims.c).max(1) * dims.c;
        team.for_chunks(total.div_ceil(per_chunk), |chunk, _| {
            let at = chunk * per_chunk;
            let len = per_chunk.min(total - at);
            // SAFETY: chunks are disjoint and each runs once.
            let out = |shards: &Shards<S::T>| unsafe { shards.part(at, len) }.as_mut_ptr();
            let outputs = [dx.map(|act| (act, out(&dx_shards))), dr.map(|act| (act, out(&dr_shards)))];
            let part = |act: Act| match outputs.iter().flatten().find(|(output, _)| *output == act) {
                Some((_, here)) => here.cast_const(),
                None => S::get(store, act).data[at..at + len].as_ptr(),
            };
            let gate = gate_data::<S::T>(&norm, store.span(norm.coef), part);
            let from = Gated { dy: part(norm.dy), gate, x: part(norm.x), len };
            let [dx, dr] = outputs.map(|output| output.map(|(_, here)| here));
            // SAFETY: all parts are of so many numbers; the engine's level is at most what it detected.
            unsafe { norm_kernels::backward_apply(level, &Backward { from, constants, dx, dr, write }) };
        });
        if let Some(dx) = dx {
            S::put(store, dx, dx_buf);
        }
        if let Some(dr) = dr {
            S::put(store, dr, dr_buf);
        }
    }
}

/// Where a ReLU's gate is read.
fn gate_data<'a, E: Cell>(
    norm: &NormBackward,
    coef: &'a [f32],
    part: impl Fn(Act) -> *const E,
) -> Option<GateData<'a, E>> {
    match norm.gate {
        Gate::Open => None,
        Gate::Output(y) => Some(GateData::Output(part(y))),
        Gate::Input => Some(GateData::Input(coef)),
    }
}
