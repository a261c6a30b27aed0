//! The pruned branch's convolutions by their kept weights alone.
//!
//! Global magnitude pruning leaves the wide layers almost nothing: of a ResNet-18 pruned by 90 % the last stage keeps a twentieth. [`Pruned`] keeps
//! such a convolution in two forms, and takes the one that suits the mask: every product, as an unpruned one does, or a [`list`] of what is kept.
//! [`pass`] is the geometry, [`lanes`] brings images side by side, [`sweep`] is the kernel of forward and backward-data, [`gradient`] that of the
//! weight gradient, and [`listed`] runs their tasks.

mod gradient;
mod lanes;
mod list;
mod listed;
mod pass;
mod sweep;

use super::cell::Cell;
use super::conv::{Context, Convolution, Packing};
use super::layout::Layout;
use super::simd::Level;
use super::team::Team;
use crate::buffer::Buffer;
use crate::types::{ConvShape, ConvUse, Direction, EngineError, Write};
use lanes::abreast;
use list::Shape;
use listed::Listed;
use pass::Pass;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a mask that a thread compares at a time.
const COMPARED: usize = 1 << 16;

/// What products with a kept weight cost, in f32 and in pairs, where one takes 1 at the peak; and what a channel costs whose maps are brought to lanes
/// and back. Measured on AVX2.
const KEPT: [f64; 2] = [4.3, 2.7];
const BROUGHT: f64 = 50.0;

/// The share of a convolution's weights whose products, over `n` images, cost as much as the dense way's `dense`, where all direct products take 1 at
/// the peak; none of a convolution that has no such passes.
pub(super) fn share<E: Cell>(shape: &ConvShape, n: usize, level: Level, dense: f64) -> f64 {
    if !Pass::can(shape, n_lanes(level)) {
        return 0.0;
    }
    let channels = 1.0 / shape.input.c as f64 + 1.0 / shape.cout as f64;
    let brought = BROUGHT * channels / (shape.kernel * shape.kernel) as f64;
    // Lanes without an image cost as much as others.
    let images = n.next_multiple_of(abreast::<E>(n_lanes(level)));
    let filled = n as f64 / images.max(1) as f64;
    ((dense * filled - brought) / KEPT[E::PER_CELL - 1]).clamp(0.0, 1.0)
}

/// Lanes of a level's vectors.
fn n_lanes(level: Level) -> usize {
    Layout::of::<f32>(level).narrow
}

/// A convolution whose weights are packed with masks.
pub(crate) struct Pruned<E> {
    dense: Box<dyn Convolution<E>>,
    lanes: usize,
    forward: Listed,
    /// None where backward-data is not asked for.
    backward: Option<Listed>,
    /// The mask of the lists, or of weights that were too many for them.
    mask: Buffer<u8>,
    state: State,
}

/// How the weights were packed last.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Not at all, or without a mask.
    Unmasked,
    Dense,
    Listed,
}

impl<E: Cell> Pruned<E> {
    /// Plans both forms of a convolution, of which `dense` is one; lists hold `share` of its weights at the most.
    pub fn new(
        dense: Box<dyn Convolution<E>>,
        shape: &ConvShape,
        used: ConvUse,
        level: Level,
        share: f64,
        held: &mut usize,
    ) -> Result<Self, EngineError> {
        let lanes = n_lanes(level);
        let most = (share * shape.n_weights() as f64) as usize;
        let forward = Listed::new::<E>(Pass::forward(shape), true, lanes, most, held)?;
        let backward = match used {
            ConvUse::Train => Some(Listed::new::<E>(Pass::backward_data(shape), false, lanes, most, held)?),
            _ => None,
        };
        let mask = Buffer::zeroed(shape.n_weights(), "mask", held)?;
        Ok(Self { dense, lanes, forward, backward, mask, state: State::Unmasked })
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Listed> {
        std::iter::once(&mut self.forward).chain(&mut self.backward)
    }

    /// Whether `mask` is the one of the last time.
    fn is_mask(&self, team: &Team, mask: &[u8]) -> bool {
        let (last, differs) = (&self.mask, AtomicBool::new(false));
        team.for_chunks(mask.len().div_ceil(COMPARED), |chunk, _| {
            let here = chunk * COMPARED..((chunk + 1) * COMPARED).min(mask.len());
            if last[here.clone()] != mask[here] {
                differs.store(true, Ordering::Relaxed);
            }
        });
        !differs.into_inner()
    }

    /// Lists what a new mask keeps, if that is little enough.
    fn list(&mut self, team: &Team, mask: &[u8]) {
        self.mask.copy_from_slice(mask);
        let (n_taps, cin, lanes) = (self.forward.pass.taps.len(), self.forward.pass.source.c, self.lanes);
        let shape = Shape { n_taps, cin };
        let fits = self.lists().all(|Listed { pass, list, .. }| list.fill(team, pass, &shape, mask, lanes));
        self.state = if fits { State::Listed } else { State::Dense };
    }
}

impl<E: Cell> Convolution<E> for Pruned<E> {
    fn scratch_len(&self, used: ConvUse) -> usize {
        let Listed { pass, rows, .. } = &self.forward;
        let sweeps = std::iter::once(&self.forward).chain(&self.backward);
        let sweep = sweeps.map(|s| sweep::scratch_len::<E>(&s.pass, s.rows, self.lanes)).max().unwrap_or(0);
        let gradient = if used == ConvUse::Forward { 0 } else { gradient::scratch_len(pass, *rows, self.lanes) };
        self.dense.scratch_len(used).max(sweep).max(gradient)
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let Listed { pass, list, .. } = &self.forward;
        let sums = self.forward.n_tasks(max_batch) * 2 * pass.dest.c;
        let n_slices = if used == ConvUse::Forward { 0 } else { self.forward.n_slices(max_batch, n_members) };
        let slices = n_slices * list.masters.len();
        self.dense.partial_len(max_batch, n_members, used).max(sums).max(slices)
    }

    fn packed_len(&self, direction: Direction) -> usize {
        self.dense.packed_len(direction)
    }

    fn pack(&mut self, from: &Packing, packed: &mut [f32]) {
        let &Packing { team, direction, weights, mask, .. } = from;
        // A mask changes before a forward pass: one comparison a step.
        let is_known = |mask: &[u8]| {
            self.state != State::Unmasked && (direction == Direction::BackwardData || self.is_mask(team, mask))
        };
        match mask {
            None => self.state = State::Unmasked,
            Some(mask) if !is_known(mask) => self.list(team, mask),
            Some(mask) => debug_assert!(self.mask[..] == *mask, "the mask is not the forward pass's"),
        }
        match (self.state, direction) {
            (State::Listed, Direction::Forward) => self.forward.list.refresh(team, weights),
            (State::Listed, Direction::BackwardData) => {
                self.backward.iter_mut().for_each(|Listed { list, .. }| list.refresh(team, weights));
            }
            _ => self.dense.pack(from, packed),
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        if self.state == State::Listed {
            self.forward.sweep(ctx, n, x, y, Write::Set, sums);
        } else {
            self.dense.forward(ctx, n, x, y, sums);
        }
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        match &self.backward {
            Some(backward) if self.state == State::Listed => backward.sweep(ctx, n, dy, dx, write, None),
            _ => self.dense.backward_data(ctx, n, dy, dx, write),
        }
    }

    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        if let (State::Listed, Some(mask)) = (self.state, mask) {
            debug_assert!(self.mask[..] == *mask, "the mask is not the one that the weights were packed with");
            self.forward.weight_gradient(ctx, n, x, dy, dw);
        } else {
            self.dense.backward_weight(ctx, n, x, dy, dw, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::conv::testing::passes;
    use crate::cpu::direct::DirectConv;
    use crate::element::{Bf16, Element};
    use crate::host::slack;
    use crate::types::Dims;

    fn shape((h, w, c, cout, kernel, stride): (usize, usize, usize, usize, usize, usize)) -> ConvShape {
        ConvShape { input: Dims { h, w, c }, cout, kernel, stride, pad: kernel / 2 }
    }

    fn direct(shape: ConvShape, level: Level) -> DirectConv {
        DirectConv::new::<Bf16>(shape, ConvUse::Train, level)
    }

    fn pruned(shape: ConvShape, level: Level, share: f64) -> Pruned<Bf16> {
        Pruned::new(Box::new(direct(shape, level)), &shape, ConvUse::Train, level, share, &mut 0).unwrap()
    }

    /// The mask of [`passes`] keeps three of seven: a list of half the weights holds them, one of a third does not.
    #[test]
    fn lists_give_what_all_products_give() {
        let small = (3, 2, 3, 2, 3, 2);
        let larger =
            [(4, 4, 40, 36, 3, 1), (9, 5, 3, 33, 3, 2), (7, 7, 20, 8, 1, 1), (5, 6, 9, 10, 1, 2), (3, 19, 5, 2, 7, 2)];
        // Which Miri takes hours for, and for many threads.
        let shapes = || [small].into_iter().chain(larger).take(if cfg!(miri) { 1 } else { 6 });
        for level in Level::available() {
            for shape in shapes().map(shape) {
                let expected = passes::<2>(&mut direct(shape, level), shape, ConvUse::Train, 5, level);
                for (share, state) in [(0.5, State::Listed), (0.33, State::Dense)] {
                    let conv = &mut pruned(shape, level, share);
                    let got = passes::<2>(conv, shape, ConvUse::Train, 5, level);
                    assert!(conv.state == state, "{shape:?}, {share}");
                    assert!(got == expected, "{shape:?}, {share}, {}", level.name());
                    if !cfg!(miri) {
                        let many = passes::<16>(conv, shape, ConvUse::Train, 5, level);
                        assert!(many == expected, "{shape:?}, many threads");
                    }
                }
            }
        }
    }

    #[test]
    fn few_weights_are_listed_and_only_where_offsets_fit() {
        let share = |shape, n| share::<f32>(&shape, n, Level::Portable, 1.0);
        let usual = shape((8, 8, 64, 64, 3, 1));
        assert!((0.1..0.3).contains(&share(usual, 8)));
        // Half of the lanes would be empty; narrow layers cost more to bring than to multiply.
        assert!(share(usual, 4) < share(usual, 8) / 2.0);
        assert!(share(shape((8, 8, 8, 8, 3, 1)), 8) == 0.0);
        assert!(share(shape((2, 1 << 22, 64, 64, 3, 1)), 8) == 0.0, "rows are too long");
        assert!(share(ConvShape { pad: 3, ..usual }, 8) == 0.0, "some windows lie in the padding alone");
    }

    /// Lists outlive a step, and end with the mask that they were made from.
    #[test]
    fn weights_and_masks_may_change_between_steps() {
        let shape = shape(if cfg!(miri) { (2, 2, 5, 3, 3, 1) } else { (4, 5, 12, 20, 3, 1) });
        let level = Level::detect();
        let (team, n, len) = (Team::new(2).unwrap(), 3, shape.n_weights());
        let every = |k: usize| -> Vec<u8> { (0..len).map(|i| u8::from(i % k == 0)).collect() };
        let weights = |seed: usize| -> Vec<f32> { (0..len).map(|i| ((i * seed) % 5) as f32 - 2.0).collect() };
        let x: Vec<Bf16> =
            (0..n * shape.input.len() + slack(shape.input)).map(|i| Bf16::of((i % 7) as f32 - 3.0)).collect();
        let (mut lists, mut all) = (pruned(shape, level, 0.3), direct(shape, level));
        let forward = |conv: &mut dyn Convolution<Bf16>, weights: &[f32], mask: Option<&[u8]>| {
            let mut packed = vec![0.0; conv.packed_len(Direction::Forward)];
            conv.pack(&Packing { team: &team, level, direction: Direction::Forward, weights, mask }, &mut packed);
            let scratch =
                &mut [(); 2].map(|()| Buffer::zeroed(conv.scratch_len(ConvUse::Train), "scratch", &mut 0).unwrap());
            let partial = &mut vec![0.0; conv.partial_len(n, 2, ConvUse::Train)];
            let mut y = vec![Bf16::of(9.0); n * shape.output().len()];
            conv.forward(&mut Context { team: &team, level, packed: &packed, scratch, partial }, n, &x, &mut y, None);
            y.into_iter().map(Element::get).collect::<Vec<f32>>()
        };
        let (few, many, others) = (every(9), every(2), every(7));
        let steps = [
            (1, Some(&few), State::Listed),
            (2, Some(&few), State::Listed),
            (3, Some(&others), State::Listed),
            (4, Some(&many), State::Dense),
            (6, Some(&many), State::Dense),
            (7, None, State::Unmasked),
            (8, Some(&many), State::Dense),
            (9, Some(&few), State::Listed),
        ];
        for (seed, mask, state) in steps {
            let mask = mask.map(Vec::as_slice);
            let expected = forward(&mut all, &weights(seed), mask);
            assert!(forward(&mut lists, &weights(seed), mask) == expected, "step {seed}");
            assert!(lists.state == state, "step {seed}");
        }
    }
}
