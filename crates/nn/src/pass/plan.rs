//! Which buffers a pass needs and when: activations, gradients, and the order in which gradients are first written.

use super::{Fixed, GradPool, Mode, Pass, PassSpec};
use crate::NnError;
use crate::graph::{MAX_PARTS, Network, Node, NormId, Op, Value, ValueId};
use sdclr_engine::{Act, Engine, Write};

impl Pass {
    /// One buffer per value, but for those computed twice, which [`Pass::plan_gradients`] places. Values that nothing reads any more, not even
    /// backward, lend theirs to later ones, and to the batch norm that reads them last.
    pub(super) fn plan_activations(&mut self, engine: &mut dyn Engine, net: &Network) -> Result<(), NnError> {
        let last_read = |value: ValueId| {
            let reads = self.nodes.iter().rposition(|node| node.op.inputs().any(|v| v == value));
            if [net.input, net.feature, self.spec.until].contains(&value) {
                usize::MAX
            } else {
                reads.unwrap_or(usize::MAX)
            }
        };
        let in_backward = |value: ValueId| {
            let reads = |node: &Node| self.wanted[node.y.0] && backward_reads(node, value);
            self.spec.mode == Mode::Train && self.nodes.iter().any(reads)
        };
        let max_batch = self.spec.max_batch;
        let alloc = |engine: &mut dyn Engine, value: Value| engine.alloc_act(max_batch, value.dims, value.role);
        let mut free: Vec<(Value, Act)> = Vec::new();
        let mut acts = vec![None; net.values.len()];
        acts[net.input.0] = Some(alloc(engine, net.values[net.input.0])?);
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, node)| !self.twice[node.y.0]) {
            let value = net.values[node.y.0];
            let ends = |v: ValueId| last_read(v) == i && !in_backward(v);
            let replaced = match node.op {
                Op::Norm { x, residual, .. } if ends(x) && residual != Some(x) => Some(x),
                _ => None,
            };
            let reusable = free.iter().position(|(v, _)| *v == value);
            acts[node.y.0] = match (replaced, reusable) {
                (Some(x), _) => acts[x.0],
                (None, Some(at)) => Some(free.swap_remove(at).1),
                (None, None) => Some(alloc(engine, value)?),
            };
            for value in node.op.inputs().filter(|&v| ends(v) && Some(v) != replaced) {
                if let Some(act) = acts[value.0] {
                    free.push((net.values[value.0], act));
                }
            }
        }
        self.acts = acts;
        Ok(())
    }

    /// Places for the gradients that backward wants: those of batch norms are where their inputs are, or the gradient of their output; all
    /// others in slots of the pool, each held from its last consumer to its producer. What is computed twice, and its gradient, is where a later
    /// activation will be, if there is one like it.
    pub(super) fn plan_gradients(
        &mut self,
        engine: &mut dyn Engine,
        net: &Network,
        pool: &mut GradPool,
    ) -> Result<(), NnError> {
        let mut in_use: Vec<(ValueId, usize)> = Vec::new();
        let mut take = |engine: &mut dyn Engine, value: ValueId, in_use: &mut Vec<(ValueId, usize)>| {
            let like = net.values[value.0];
            let taken: Vec<usize> =
                in_use.iter().filter(|(v, _)| net.values[v.0] == like).map(|&(_, slot)| slot).collect();
            let slot = (0..).find(|slot| !taken.contains(slot)).expect("a free slot");
            in_use.push((value, slot));
            pool.slot(engine, like, self.spec.max_batch, slot)
        };
        let last = net.values[self.spec.until.0];
        // The loss fills every branch's last gradient before any branch runs backward, so this one is not shared.
        self.grads[self.spec.until.0] = Some(engine.alloc_act(self.spec.max_batch, last.dims, last.role)?);
        for (i, node) in self.nodes.iter().enumerate().rev().filter(|(_, node)| self.wanted[node.y.0]) {
            if let Op::Norm { x, residual, .. } = node.op {
                if self.is_read_by_norm_alone(net, x) {
                    self.grads[x.0] = self.acts[x.0];
                }
                let is_first = |r: &ValueId| self.wanted[r.0] && self.grads[r.0].is_none();
                if let Some(r) = residual.filter(is_first)
                    && let Some((holder, _)) = in_use.iter_mut().find(|(value, _)| *value == node.y)
                {
                    *holder = r;
                    self.grads[r.0] = self.grads[node.y.0];
                }
            }
            for value in node.op.inputs().filter(|v| self.wanted[v.0]) {
                let twice = self.twice[value.0];
                if self.grads[value.0].is_none() {
                    let spare = if twice { self.later_act(net, i, value) } else { None };
                    self.grads[value.0] = Some(spare.map_or_else(|| take(engine, value, &mut in_use), Ok)?);
                }
                if twice {
                    self.acts[value.0] = self.grads[value.0];
                }
            }
            in_use.retain(|(value, _)| *value != node.y);
        }
        Ok(())
    }
}

impl Pass {
    /// The place of an activation like `value` that only comes after node `i`: forward has not written it when it runs that node, and backward is
    /// done with it.
    fn later_act(&self, net: &Network, i: usize, value: ValueId) -> Option<Act> {
        let (before, after) = self.nodes.split_at(i + 1);
        let kept = [net.input, net.feature, self.spec.until].into_iter().chain(before.iter().map(|node| node.y));
        let held: Vec<Act> = kept.filter_map(|v| self.acts[v.0]).collect();
        let is_like = |v: &ValueId| net.values[v.0] == net.values[value.0] && !self.twice[v.0];
        let mut places = after.iter().map(|node| node.y).filter(is_like).filter_map(|v| self.acts[v.0]);
        places.find(|act| !held.contains(act))
    }

    /// Whether a batch norm is all that reads its input `value` from its own backward on, so that the gradient may take its place.
    fn is_read_by_norm_alone(&self, net: &Network, value: ValueId) -> bool {
        // Forward is over: what a batch norm reads nothing else does. The producer may read its own output in backward.
        let is_reader = |node: &Node| matches!(node.op, Op::Norm { x, .. } if x == value);
        value != net.feature && !self.nodes.iter().any(|node| backward_reads(node, value) && !is_reader(node))
    }
}

/// Whether the backward pass of a node reads an activation.
fn backward_reads(node: &Node, value: ValueId) -> bool {
    match node.op {
        Op::Conv { x, .. } | Op::Linear { x, .. } => x == value,
        Op::Norm { x, residual, relu, .. } => x == value || relu && residual.is_some() && node.y == value,
        Op::MaxPool { x } => x == value || node.y == value,
        Op::AvgPool { .. } | Op::Shortcut { .. } | Op::Concat { .. } => false,
    }
}

/// The vectors of a concatenation and the column at which each begins.
pub(super) fn columns(
    net: &Network,
    parts: [Option<ValueId>; MAX_PARTS],
) -> impl Iterator<Item = (ValueId, usize)> + use<'_> {
    parts.into_iter().flatten().scan(0, |at, x| {
        *at += net.dims(x).len();
        Some((x, *at - net.dims(x).len()))
    })
}

/// The batch norm that reads `value`.
pub(super) fn reader_norm(nodes: &[Node], value: ValueId) -> Option<NormId> {
    nodes.iter().find_map(|node| match node.op {
        Op::Norm { x, norm, .. } if x == value => Some(norm),
        _ => None,
    })
}

/// Set for the first contribution to a value's gradient, Add for later ones, in the order in which backward writes them.
pub(super) fn gradient_writes(nodes: &[Node], wanted: &[bool]) -> Vec<Write> {
    let mut written = vec![false; wanted.len()];
    let mut writes = Vec::new();
    for node in nodes.iter().rev().filter(|node| wanted[node.y.0]) {
        for value in node.op.inputs().filter(|v| wanted[v.0]) {
            let again = std::mem::replace(&mut written[value.0], true);
            writes.push(if again { Write::Add } else { Write::Set });
        }
    }
    writes
}

/// Which values backward computes again instead of keeping them: normalised maps that the next node, a convolution, alone reads. It takes a pass
/// over the map, and saves its memory.
pub(super) fn computed_twice(net: &Network, nodes: &[Node], wanted: &[bool], spec: PassSpec) -> Vec<bool> {
    let mut twice = vec![false; net.values.len()];
    for (node, next) in nodes.iter().zip(nodes.iter().skip(1)) {
        let n_reads = nodes.iter().flat_map(|node| node.op.inputs()).filter(|&v| v == node.y).count();
        let is_pair =
            matches!((node.op, next.op), (Op::Norm { residual: None, .. }, Op::Conv { x, .. }) if x == node.y);
        let is_asked_for = node.y == net.feature || node.y == spec.until;
        twice[node.y.0] = spec.mode == Mode::Train && is_pair && n_reads == 1 && wanted[node.y.0] && !is_asked_for;
    }
    twice
}

/// Values whose gradient leads to a trainable parameter: backward stops at the first trainable node.
pub(super) fn wanted_gradients(net: &Network, nodes: &[Node], fixed: Fixed) -> Vec<bool> {
    let mut wanted = vec![false; net.values.len()];
    for node in nodes {
        wanted[node.y.0] = fixed.trains(net, &node.op) || node.op.inputs().any(|v| wanted[v.0]);
    }
    wanted
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
