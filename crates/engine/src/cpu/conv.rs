//! Planned convolutions: what an engine asks of one, and which algorithm each shape gets.

use super::cell::Cell;
use super::direct::DirectConv;
use super::simd::Level;
use super::sparse::{self, Pruned};
use super::team::Team;
use super::winograd::{self, WinogradConv};
use crate::buffer::Buffer;
use crate::types::{ConvShape, ConvUse, Direction, EngineError, Write};

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// What is fastest for each shape.
    #[default]
    Auto,
    /// Every product.
    Direct,
    /// 3 × 3 convolutions with a quarter of the products, or nine sixteenths with stride 2; all others directly.
    Winograd,
    /// Pruned convolutions by their kept weights alone, however many those are; all others as is fastest.
    Sparse,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Auto, Self::Direct, Self::Winograd, Self::Sparse];

    /// Name in the environment and in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Winograd => "winograd",
            Self::Sparse => "sparse",
        }
    }

    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(Self::name)
    }

    /// The algorithm called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Whether the forward pass of a convolution over maps of `E`, and its gradients, are computed by products at points.
    fn at_points<E: Cell>(self, shape: &ConvShape, level: Level) -> (bool, bool) {
        let (direct, pairs) = costs::<E>(level);
        let saves = |product: f64, narrowest: usize| {
            shape.input.c.min(shape.cout) >= narrowest && winograd::cost(shape) * product < 0.8 * direct
        };
        match self {
            _ if !winograd::can(shape) => (false, false),
            // Stride 2 saves less than stride 1, but its gradients are also slower the direct way.
            Self::Auto | Self::Sparse => (saves(1.0, NARROWEST * shape.stride), saves(pairs, NARROWEST)),
            Self::Direct => (false, false),
            Self::Winograd => (true, true),
        }
    }

    /// The share of a pruned convolution's weights up to which products of these alone are taken.
    fn most_kept<E: Cell>(self, shape: &ConvShape, max_batch: usize, used: ConvUse, level: Level) -> f64 {
        match self {
            Self::Auto if used == ConvUse::Train => {
                let (direct, pairs) = costs::<E>(level);
                let dense = |at_points: bool, product: f64| {
                    if at_points { AT_POINTS * product * winograd::cost(shape) } else { DIRECT * direct }
                };
                let (forward, backward) = self.at_points::<E>(shape, level);
                let dense = (dense(forward, 1.0) + 2.0 * dense(backward, pairs)) / 3.0;
                WORTH_WHILE * sparse::share::<E>(shape, max_batch, level, dense)
            }
            // As if nothing cost more.
            Self::Sparse => sparse::share::<E>(shape, max_batch, level, f64::INFINITY),
            _ => 0.0,
        }
    }
}

/// What direct products cost at a level, and those of gradients at points, f32's being 1: tiles multiply sixteen times as many, pairs twice.
fn costs<E: Cell>(level: Level) -> (f64, f64) {
    match level {
        Level::Amx if E::PER_CELL == 2 => (1.0 / 16.0, 0.5),
        Level::Avx512Bf16 if E::PER_CELL == 2 => (0.5, 0.5),
        _ => (1.0, 1.0),
    }
}

/// The time of a convolution with all that is around its products, in that which the peak needs for the products alone: at points, and the direct
/// way. Measured on AVX2.
const AT_POINTS: f64 = 1.78;
const DIRECT: f64 = 1.45;
/// A list must save a tenth at the least.
const WORTH_WHILE: f64 = 0.9;

/// Channels from which on bringing maps to points and back costs less than it saves; twice as many in the forward pass of stride 2.
const NARROWEST: usize = 16;

/// A planned convolution over feature maps of `E`: what an engine asks of it.
pub trait Convolution<E>: Send {
    /// Floats of member scratch that any pass needs.
    fn scratch_len(&self, used: ConvUse) -> usize;

    /// Floats of partial results: channel sums of every task, or every slice's weight gradient.
    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize;

    /// Floats of the weights that the passes of a direction read; none where it was not planned.
    fn packed_len(&self, direction: Direction) -> usize;

    /// Packs weights for the passes of a direction, whose [`Context::packed`] `packed` then is.
    fn pack(&mut self, from: &Packing, packed: &mut [f32]);

    /// Forward pass over `n` images; `x` with slack.
    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>);

    /// Gradient of the data over `n` images; `dy` with slack.
    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write);

    /// Adds the gradient of the weights to `dw` `[cout, kh, kw, cin]`, where the mask keeps it.
    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>);
}

/// Plans a convolution by the algorithm that suits it.
pub(crate) fn plan<E: Cell>(
    shape: ConvShape,
    max_batch: usize,
    used: ConvUse,
    masked: bool,
    level: Level,
    algorithm: Algorithm,
    held: &mut usize,
) -> Result<Box<dyn Convolution<E>>, EngineError> {
    let dense: Box<dyn Convolution<E>> = match algorithm.at_points::<E>(&shape, level) {
        (true, true) => Box::new(WinogradConv::new::<E>(shape, used, true, level)),
        (false, true) if used != ConvUse::Forward => Box::new(Mixed {
            forward: DirectConv::new::<E>(shape, ConvUse::Forward, level),
            backward: WinogradConv::new::<E>(shape, used, false, level),
        }),
        _ => Box::new(DirectConv::new::<E>(shape, used, level)),
    };
    let share = if masked { algorithm.most_kept::<E>(&shape, max_batch, used, level) } else { 0.0 };
    Ok(if share > 0.0 { Box::new(Pruned::new(dense, &shape, used, level, share, held)?) } else { dense })
}

/// A convolution whose forward pass is direct, and whose gradients are products at points.
struct Mixed {
    forward: DirectConv,
    backward: WinogradConv,
}

impl<E: Cell> Convolution<E> for Mixed {
    fn scratch_len(&self, used: ConvUse) -> usize {
        let forward = Convolution::<E>::scratch_len(&self.forward, ConvUse::Forward);
        forward.max(Convolution::<E>::scratch_len(&self.backward, used))
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let forward = Convolution::<E>::partial_len(&self.forward, max_batch, n_members, ConvUse::Forward);
        forward.max(Convolution::<E>::partial_len(&self.backward, max_batch, n_members, used))
    }

    fn packed_len(&self, direction: Direction) -> usize {
        let conv: &dyn Convolution<E> = match direction {
            Direction::Forward => &self.forward,
            Direction::BackwardData => &self.backward,
        };
        conv.packed_len(direction)
    }

    fn pack(&mut self, from: &Packing, packed: &mut [f32]) {
        let conv: &mut dyn Convolution<E> = match from.direction {
            Direction::Forward => &mut self.forward,
            Direction::BackwardData => &mut self.backward,
        };
        conv.pack(from, packed);
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        self.forward.forward(ctx, n, x, y, sums);
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        self.backward.backward_data(ctx, n, dy, dx, write);
    }

    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        self.backward.backward_weight(ctx, n, x, dy, dw, mask);
    }
}

/// Weights to pack, and what for.
pub struct Packing<'a> {
    pub team: &'a Team,
    pub level: Level,
    pub direction: Direction,
    /// Master weights `[cout, kh, kw, cin]`.
    pub weights: &'a [f32],
    /// 0 for each that counts as zero.
    pub mask: Option<&'a [u8]>,
}

/// What a pass borrows from the engine.
pub struct Context<'a> {
    pub team: &'a Team,
    pub level: Level,
    /// The weights of its direction.
    pub packed: &'a [f32],
    pub scratch: &'a mut [Buffer<f32>],
    pub partial: &'a mut [f32],
}

#[cfg(test)]
pub(super) mod testing {
    use super::{Context, Convolution, Packing};
    use crate::buffer::Buffer;
    use crate::cpu::simd::Level;
    use crate::cpu::team::Team;
    use crate::element::{Bf16, Element};
    use crate::host::slack;
    use crate::types::{ConvShape, ConvUse, Dims, Direction, Write};

    /// Small whole numbers, exact in every sum.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 2_654_435_761 + seed * 40_503) % 1009 % 7) as f32 - 3.0).collect()
    }

    /// Forward with its sums, backward-data set and added if it is used, and the masked weight gradient of a convolution, by a team of
    /// `N` members.
    pub fn passes<const N: usize>(
        conv: &mut dyn Convolution<Bf16>,
        shape: ConvShape,
        used: ConvUse,
        n: usize,
        level: Level,
    ) -> [Vec<f32>; 4] {
        let (team, mut held) = (Team::new(N).unwrap(), 0);
        let scratch = &mut [(); N].map(|()| Buffer::zeroed(conv.scratch_len(used), "scratch", &mut held).unwrap());
        let partial = &mut vec![0.0; conv.partial_len(n, N, used)];
        // Aligned as an engine's maps are: whole cache lines may be written otherwise than parts.
        let map = |dims: Dims, seed: usize| {
            let numbers = numbers(n * dims.len() + slack(dims), seed);
            let mut map = Buffer::zeroed(numbers.len(), "a map", &mut 0).unwrap();
            map.iter_mut().zip(numbers).for_each(|(to, number)| *to = Bf16::of(number));
            map
        };
        let mask: Vec<u8> = numbers(shape.n_weights(), 9).iter().map(|&v| u8::from(v > 0.0)).collect();
        let weights = numbers(shape.n_weights(), 1);
        let mut pack = |conv: &mut dyn Convolution<Bf16>, direction: Direction| {
            let mut packed = Buffer::zeroed(conv.packed_len(direction), "packed weights", &mut held).unwrap();
            // What another convolution left there.
            packed.fill(f32::NAN);
            conv.pack(&Packing { team: &team, level, direction, weights: &weights, mask: Some(&mask) }, &mut packed);
            packed
        };
        let packed = [Direction::Forward, Direction::BackwardData].map(|direction| pack(&mut *conv, direction));
        let (x, dy) = (map(shape.input, 2), map(shape.output(), 3));
        let (mut y, mut dx) = (map(shape.output(), 4), map(shape.input, 5));
        let (mut sums, mut dw) = (vec![0.0; 2 * shape.cout], numbers(shape.n_weights(), 6));
        let mut ctx = Context { team: &team, level, packed: &packed[0], scratch, partial };
        conv.forward(&mut ctx, n, &x, &mut y, Some(&mut sums));
        ctx.packed = &packed[1];
        if used == ConvUse::Train {
            conv.backward_data(&mut ctx, n, &dy, &mut dx, Write::Set);
            conv.backward_data(&mut ctx, n, &dy, &mut dx, Write::Add);
        }
        conv.backward_weight(&mut ctx, n, &x, &dy, &mut dw, Some(&mask));
        let floats = |map: &[Bf16], dims: Dims| map[..n * dims.len()].iter().map(|v| v.get()).collect();
        [floats(&y, shape.output()), floats(&dx, shape.input), sums, dw]
    }
}

#[cfg(test)]
mod tests {
    use super::testing::passes;
    use super::*;
    use crate::element::Bf16;
    use crate::types::Dims;

    #[test]
    fn a_mixed_convolution_is_direct_forward_and_at_points_backward() {
        let level = Level::detect();
        let shapes = [
            (9, 12, 34, 70, 2, ConvUse::Train),
            (5, 5, 16, 48, 1, ConvUse::Train),
            (8, 8, 24, 32, 2, ConvUse::ForwardWeight),
        ];
        for (mut h, mut w, mut c, mut cout, stride, used) in shapes {
            if cfg!(miri) {
                // Which takes hours for these.
                (h, w, c, cout) = (h / 2, w / 2, c / 4, cout / 4);
            }
            let shape = ConvShape { input: Dims { h, w, c }, cout, kernel: 3, stride, pad: 1 };
            let mut direct = DirectConv::new::<Bf16>(shape, used, level);
            let mut points = WinogradConv::new::<Bf16>(shape, used, true, level);
            let forward = DirectConv::new::<Bf16>(shape, ConvUse::Forward, level);
            let backward = WinogradConv::new::<Bf16>(shape, used, false, level);
            let [y, _, sums, _] = passes::<2>(&mut direct, shape, used, 3, level);
            let [_, dx, _, dw] = passes::<2>(&mut points, shape, used, 3, level);
            assert!(
                passes::<2>(&mut Mixed { forward, backward }, shape, used, 3, level) == [y, dx, sums, dw],
                "{shape:?}"
            );
        }
    }
}
