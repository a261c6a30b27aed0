//! The fast engine for CPUs, in f32 and bf16.
//!
//! [`HostEngine`] holds the buffers, a `team::Team` of threads and planned convolutions, and cuts every operation into
//! chunks. `conv` plans convolutions: `direct` ones over the geometry in `sweep`, whose kernels are `correlate` and `gradient` on
//! vectors, which ask for memory `ahead`, and `amx` on tiles; `winograd`; and `sparse` for pruned ones. `elementwise` is all that moves memory,
//! `linear` and `dense` the matrix products.

mod ahead;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
mod blocks;
mod cell;
mod conv;
mod correlate;
mod dense;
mod direct;
mod elementwise;
mod gradient;
mod kernels;
mod layout;
mod linear;
mod norm;
mod norm_kernels;
mod optimizer;
mod pack;
mod packed;
mod pool;
pub(crate) mod simd;
mod sparse;
mod sweep;
pub(crate) mod team;
mod winograd;

use crate::buffer::Buffer;
use crate::element::Bf16;
use crate::engine::{Engine, NormApply, NormBackward, NormEval, NormTrain, NtXent, WeightGrad};
use crate::host::{HostStore, MapElement, Maps, Select, Vectors, memory_from_store};
use crate::scalar;
use crate::types::{
    Act, AdamStep, ByteBuf, ByteSpan, Conv, ConvShape, ConvUse, Dims, Direction, EngineError, F32Buf, LarsStep,
    Normalization, Role, Rows, SgdStep, Span, Write,
};
pub use conv::Algorithm;
use conv::{Context, Convolution, Packing};
use dense::Mat;
use linear::Layer;
use packed::PackedWeights;
pub use simd::Level;
use team::{Shards, Team};

/// What a CPU engine is made with.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads, the caller's included.
    pub n_threads: usize,
    /// What they run.
    pub kernels: Kernels,
}

/// Which kernels a CPU engine runs: the fastest, unless said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernels {
    /// Instruction set to use at most; `None` takes the best there is.
    pub level: Option<Level>,
    /// How convolutions are computed.
    pub algorithm: Algorithm,
}

impl CpuOptions {
    /// As many threads, and the best that the machine has.
    #[must_use]
    pub fn threads(n_threads: usize) -> Self {
        Self { n_threads, kernels: Kernels::default() }
    }
}

/// The fast f32 engine, without buffers. A level that the CPU does not have is lowered to the best that it has.
///
/// It is made here, behind the trait, so that its kernels are compiled in this crate and not in each that makes one.
///
/// # Errors
/// [`EngineError::Device`] if the operating system does not start the threads.
pub fn f32_engine(options: CpuOptions) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(HostEngine::<f32>::new(options)?))
}

/// The bf16 engine: feature maps in bfloat16; sums of products, statistics, vectors and master weights in f32. Fast where
/// [`Level::has_bf16`].
///
/// # Errors
/// As [`f32_engine`].
pub fn bf16_engine(options: CpuOptions) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(HostEngine::<Bf16>::new(options)?))
}

/// A CPU engine whose feature maps hold `E`.
struct HostEngine<E: Compute> {
    store: HostStore<E>,
    team: Team,
    level: Level,
    algorithm: Algorithm,
    convs: Vec<Box<dyn Convolution<E>>>,
    packed: PackedWeights,
    /// One padded-source buffer per member.
    scratch: Vec<Buffer<f32>>,
    /// Partial sums and gradients, and NT-Xent's logits.
    partial: Buffer<f32>,
    /// Sums of squares of chunks of weights and of gradients, for LARS.
    squares: Vec<[f64; 2]>,
}

memory_from_store!(HostEngine<E>, store, E: Compute);

/// A number that this crate has convolutions for.
trait Compute: MapElement + cell::Cell {
    /// Name in logs.
    const NAME: &'static str;
    /// The best level that differs from the ones below it in this precision.
    const BEST: Level;
}

impl Compute for f32 {
    const NAME: &'static str = "f32";
    const BEST: Level = Level::Avx512;
}

impl Compute for Bf16 {
    const NAME: &'static str = "bf16";
    const BEST: Level = Level::Amx;
}

/// Floats per chunk of a memory-bound loop: large enough to outweigh a wake-up, small enough to balance.
const CHUNK: usize = 1 << 15;

/// Rows of `c` channels per chunk when a chunk yields partial sums: at most 256 chunks whatever the size.
fn rows_per_chunk(rows: usize, c: usize) -> usize {
    rows.div_ceil(256).max((CHUNK / c / 4).max(1))
}

impl<E: Compute> HostEngine<E> {
    fn new(options: CpuOptions) -> Result<Self, EngineError> {
        let n_threads = options.n_threads.max(1);
        let team = Team::new(n_threads).map_err(|e| EngineError::Device {
            device: "CPU".into(),
            message: format!("cannot start {n_threads} threads ({e}); give fewer with --threads"),
        })?;
        Ok(Self {
            store: HostStore::default(),
            team,
            level: Level::within(options.kernels.level).min(E::BEST),
            algorithm: options.kernels.algorithm,
            convs: Vec::new(),
            packed: PackedWeights::default(),
            scratch: (0..n_threads).map(|_| Buffer::default()).collect(),
            partial: Buffer::default(),
            squares: Vec::new(),
        })
    }

    fn grow_partial(&mut self, len: usize) -> Result<(), EngineError> {
        if self.partial.len() < len {
            *self.store.held_mut() -= self.partial.len() * size_of::<f32>();
            self.partial = Buffer::default();
            self.partial = Buffer::zeroed(len, "partial results", self.store.held_mut())?;
        }
        Ok(())
    }

    /// Makes room for `len` floats of partial results, where no plan did: in the first step only.
    fn need_partial(&mut self, len: usize) {
        if let Err(error) = self.grow_partial(len) {
            panic!("{error}");
        }
    }

    /// Runs `f(image, out)` for the first `n` images of `to`, in parallel.
    fn per_image<S: Select<E>>(&mut self, n: usize, to: Act, f: impl Fn(&HostStore<E>, usize, &mut [S::T]) + Sync) {
        let team = &self.team;
        self.store.with::<S, _>(to, |store, out| {
            let len = out.dims().len();
            let per_chunk = (CHUNK / 4 / len).max(1);
            team.for_parts(out.images_mut(n), per_chunk * len, |chunk, part| {
                for (i, image) in part.chunks_exact_mut(len).enumerate() {
                    f(store, chunk * per_chunk + i, image);
                }
            });
        });
    }

    /// Σ over chunks of rows: `f(first float, floats, partial sums)` in parallel, then added in order into `sums` `[2, c]`.
    fn summed(&mut self, len: usize, c: usize, sums: Span, f: impl Fn(&HostStore<E>, usize, usize, &mut [f32]) + Sync) {
        let per_chunk = rows_per_chunk(len / c, c) * c;
        let n_chunks = len.div_ceil(per_chunk);
        self.need_partial(n_chunks * 2 * c);
        let (team, store, partial) = (&self.team, &self.store, &mut self.partial[..n_chunks * 2 * c]);
        team.for_parts(partial, 2 * c, |chunk, part| {
            let at = chunk * per_chunk;
            f(store, at, per_chunk.min(len - at), part);
        });
        elementwise::add_partials(team, self.level, partial, self.store.span_mut(sums));
    }
}

impl<E: Compute> Engine for HostEngine<E> {
    fn name(&self) -> String {
        let convolutions = match self.algorithm {
            Algorithm::Auto => String::new(),
            forced => format!(" {}", forced.name()),
        };
        format!("CPU, {}, {}{convolutions}, {} threads", E::NAME, self.level.name(), self.team.n_members())
    }

    fn fill(&mut self, to: Span, value: f32) {
        self.team.for_parts(self.store.span_mut(to), CHUNK, |_, part| part.fill(value));
    }

    fn input_normalize(&mut self, n: usize, images: ByteBuf, rows: Rows, norm: &Normalization, y: Act) {
        let table: [[f32; 256]; 3] =
            std::array::from_fn(|c| std::array::from_fn(|byte| (byte as f32 / 255.0 - norm.mean[c]) / norm.std[c]));
        self.per_image::<Maps>(n, y, |store, i, out| {
            let source = &store.byte_buf(images)[rows.at(i) * out.len()..][..out.len()];
            for (out, byte) in out.chunks_exact_mut(3).zip(source.chunks_exact(3)) {
                for c in 0..3 {
                    out[c] = E::of(table[c][usize::from(byte[c])]);
                }
            }
        });
    }

    fn alloc_conv(
        &mut self,
        shape: ConvShape,
        max_batch: usize,
        used: ConvUse,
        masked: bool,
    ) -> Result<Conv, EngineError> {
        let conv = conv::plan::<E>(shape, max_batch, used, masked, self.level, self.algorithm, self.store.held_mut())?;
        self.grow_partial(conv.partial_len(max_batch, self.team.n_members(), used))?;
        let scratch_len = conv.scratch_len(used);
        for scratch in self.scratch.iter_mut().filter(|s| s.len() < scratch_len) {
            *self.store.held_mut() -= scratch.len() * size_of::<f32>();
            *scratch = Buffer::zeroed(scratch_len, "scratch space", self.store.held_mut())?;
        }
        let lens = [Direction::Forward, Direction::BackwardData].map(|direction| conv.packed_len(direction));
        self.packed.plan(lens, used, self.store.held_mut())?;
        self.convs.push(conv);
        Ok(Conv(self.convs.len() - 1))
    }

    fn pack_conv(&mut self, conv: Conv, direction: Direction, weights: Span, mask: Option<ByteSpan>) {
        let mask = mask.map(|mask| self.store.byte_span(mask));
        let (planned, weights) = (&mut self.convs[conv.0], self.store.span(weights));
        let packed = self.packed.replace(conv, direction, planned.packed_len(direction));
        planned.pack(&Packing { team: &self.team, level: self.level, direction, weights, mask }, packed);
    }

    fn conv_forward(&mut self, n: usize, conv: Conv, x: Act, y: Act, sums: Option<Span>) {
        let Self { store, team, level, convs, packed, scratch, partial, .. } = self;
        let planned = &convs[conv.0];
        let packed = packed.of(conv, Direction::Forward, planned.packed_len(Direction::Forward));
        let mut ctx = Context { team, level: *level, packed, scratch, partial };
        store.with_map(y, |store, y| {
            let y = y.images_mut(n);
            match sums {
                None => planned.forward(&mut ctx, n, &store.map(x).data, y, None),
                Some(span) => store.with_span(span, |store, sums| {
                    planned.forward(&mut ctx, n, &store.map(x).data, y, Some(sums));
                }),
            }
        });
    }

    fn conv_backward_data(&mut self, n: usize, conv: Conv, dy: Act, dx: Act, write: Write) {
        let Self { store, team, level, convs, packed, scratch, partial, .. } = self;
        let planned = &convs[conv.0];
        let packed = packed.of(conv, Direction::BackwardData, planned.packed_len(Direction::BackwardData));
        let mut ctx = Context { team, level: *level, packed, scratch, partial };
        store.with_map(dx, |store, dx| {
            planned.backward_data(&mut ctx, n, &store.map(dy).data, dx.images_mut(n), write);
        });
    }

    fn conv_backward_weight(&mut self, n: usize, conv: Conv, grad: WeightGrad) {
        let Self { store, team, level, convs, scratch, partial, .. } = self;
        let mut ctx = Context { team, level: *level, packed: &[], scratch, partial };
        store.with_span(grad.dw, |store, dw| {
            let mask = grad.mask.map(|mask| store.byte_span(mask));
            let (x, dy) = (&store.map(grad.x).data, store.map(grad.dy).images(n));
            convs[conv.0].backward_weight(&mut ctx, n, x, dy, dw, mask);
        });
    }

    fn norm_train(&mut self, norm: NormTrain) {
        self.store.with_span(norm.running, |store, running| {
            store.with_span(norm.coef, |store, coef| {
                let (sums, gamma, beta) = (store.span(norm.sums), store.span(norm.gamma), store.span(norm.beta));
                scalar::norm_train(&norm, sums, gamma, beta, running, coef);
            });
        });
    }

    fn norm_eval(&mut self, norm: NormEval) {
        self.store.with_span(norm.coef, |store, coef| {
            let (gamma, beta, running) = (store.span(norm.gamma), store.span(norm.beta), store.span(norm.running));
            scalar::norm_eval(&norm, gamma, beta, running, coef);
        });
    }

    fn norm_apply(&mut self, n: usize, norm: NormApply) {
        match self.store.role(norm.x) {
            Role::Map => self.norm_apply_in::<Maps>(n, norm),
            Role::Vector => self.norm_apply_in::<Vectors>(n, norm),
        }
    }

    fn norm_backward_sums(&mut self, n: usize, norm: NormBackward) {
        match self.store.role(norm.x) {
            Role::Map => self.norm_backward_sums_in::<Maps>(n, norm),
            Role::Vector => self.norm_backward_sums_in::<Vectors>(n, norm),
        }
    }

    fn norm_backward_apply(
        &mut self,
        n: usize,
        norm: NormBackward,
        count: Option<usize>,
        dx: Option<Act>,
        dresidual: Option<(Act, Write)>,
    ) {
        match self.store.role(norm.x) {
            Role::Map => self.norm_backward_apply_in::<Maps>(n, norm, count, dx, dresidual),
            Role::Vector => self.norm_backward_apply_in::<Vectors>(n, norm, count, dx, dresidual),
        }
    }

    fn norm_param_grad(&mut self, sums: Span, dgamma: Span, dbeta: Span) {
        let c = sums.len / 2;
        for (to, from) in [(dgamma, sums.slice(c..2 * c)), (dbeta, sums.slice(0..c))] {
            self.store.with_span(to, |store, to| {
                to.iter_mut().zip(store.span(from)).for_each(|(to, &from)| *to += from);
            });
        }
    }

    fn max_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let (level, i, o) = (self.level, self.store.dims(x), self.store.dims(y));
        self.per_image::<Maps>(n, y, |store, image, y| {
            // SAFETY: the engine's level is at most what it detected.
            unsafe { pool::max_pool(level, store.map(x).image(image), i, y, o) }
        });
    }

    fn max_pool_backward(&mut self, n: usize, x: Act, y: Act, dy: Act, dx: Act, write: Write) {
        let (level, i, o) = (self.level, self.store.dims(x), self.store.dims(y));
        self.per_image::<Maps>(n, dx, |store, image, dx| {
            if write == Write::Set {
                dx.fill(E::default());
            }
            let [x, y, dy] = [x, y, dy].map(|act| store.map(act).image(image));
            // SAFETY: see above.
            unsafe { pool::max_pool_backward(level, x, i, y, dy, o, dx) };
        });
    }

    fn avg_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let level = self.level;
        self.per_image::<Vectors>(n, y, |store, image, y| elementwise::avg_pool(level, store.map(x).image(image), y));
    }

    fn avg_pool_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let level = self.level;
        self.per_image::<Maps>(n, dx, |store, image, dx| {
            elementwise::avg_pool_backward(level, store.vector(dy).image(image), dx, write);
        });
    }

    fn shortcut_forward(&mut self, n: usize, x: Act, y: Act) {
        let (i, o) = (self.store.dims(x), self.store.dims(y));
        self.per_image::<Maps>(n, y, |store, image, y| elementwise::shortcut(store.map(x).image(image), i, y, o));
    }

    fn shortcut_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let (i, o) = (self.store.dims(dx), self.store.dims(dy));
        self.per_image::<Maps>(n, dx, |store, image, dx| {
            if write == Write::Set {
                dx.fill(E::default());
            }
            elementwise::shortcut_backward(store.map(dy).image(image), o, dx, i);
        });
    }

    fn concat_forward(&mut self, n: usize, x: Act, y: Act, at: usize) {
        self.store.with_vector(y, |store, y| {
            let (x, width) = (store.vector(x), y.dims().len());
            let c = x.dims().len();
            for (y, x) in y.images_mut(n).chunks_exact_mut(width).zip(x.images(n).chunks_exact(c)) {
                y[at..at + c].copy_from_slice(x);
            }
        });
    }

    fn concat_backward(&mut self, n: usize, dy: Act, at: usize, dx: Act, write: Write) {
        self.store.with_vector(dx, |store, dx| {
            let (dy, c) = (store.vector(dy), dx.dims().len());
            let width = dy.dims().len();
            for (dx, dy) in dx.images_mut(n).chunks_exact_mut(c).zip(dy.images(n).chunks_exact(width)) {
                for (dx, &g) in dx.iter_mut().zip(&dy[at..at + c]) {
                    *dx = if write == Write::Add { *dx + g } else { g };
                }
            }
        });
    }

    fn linear_forward(&mut self, n: usize, x: Act, w: Span, bias: Option<Span>, y: Act, sums: Option<Span>) {
        let (cin, cout) = (self.store.dims(x).len(), self.store.dims(y).len());
        let (team, level) = (&self.team, self.level);
        self.store.with_vector(y, |store, y| {
            let y = y.images_mut(n);
            if let Some(bias) = bias {
                y.chunks_exact_mut(cout).for_each(|y| y.copy_from_slice(store.span(bias)));
            }
            let (layer, x) = (Layer { w: store.span(w), cin, cout, n }, store.vector(x).images(n));
            linear::forward_all(team, level, layer, x, y, if bias.is_some() { Write::Add } else { Write::Set });
        });
        if let Some(sums) = sums {
            self.summed(n * cout, cout, sums, |store, at, len, sums| {
                elementwise::channel_sums(level, &store.vector(y).data[at..at + len], sums);
            });
        }
    }

    fn linear_backward_data(&mut self, n: usize, dy: Act, w: Span, dx: Act, write: Write) {
        let (team, level) = (&self.team, self.level);
        self.store.with_vector(dx, |store, dx| {
            let (cin, dy) = (dx.dims().len(), store.vector(dy));
            let (cout, w, dx) = (dy.dims().len(), store.span(w), dx.images_mut(n));
            linear::backward_all(team, level, Layer { w, cin, cout, n }, dy.images(n), dx, write);
        });
    }

    fn linear_backward_weight(&mut self, n: usize, x: Act, dy: Act, dw: Span, dbias: Option<Span>) {
        let team = &self.team;
        self.store.with_span(dw, |store, dw| {
            let (x, dy) = (store.vector(x), store.vector(dy));
            let (cin, cout) = (x.dims().len(), dy.dims().len());
            let (x, dy) = (Mat::new(x.images(n), n, cin), Mat::new(dy.images(n), n, cout));
            dense::multiply(team, dw, dy.t(), x, 1.0, true);
        });
        if let Some(dbias) = dbias {
            self.store.with_span(dbias, |store, dbias| {
                for row in store.vector(dy).images(n).chunks_exact(dbias.len()) {
                    dbias.iter_mut().zip(row).for_each(|(b, &g)| *b += g);
                }
            });
        }
    }

    fn l2_normalize(&mut self, n: usize, x: Act, rows: Rows, z: Span, norms: Span) {
        let d = self.store.dims(x).len();
        self.store.with_span(z, |store, z| {
            store.with_span(norms, |store, norms| {
                for (i, x) in store.vector(x).images(n).chunks_exact(d).enumerate() {
                    let norm = scalar::squares(x).sqrt().max(1e-12) as f32;
                    let row = &mut z[rows.at(i) * d..][..d];
                    row.iter_mut().zip(x).for_each(|(z, &x)| *z = x / norm);
                    norms[rows.at(i)] = norm;
                }
            });
        });
    }

    fn l2_normalize_backward(&mut self, n: usize, rows: Rows, z: Span, norms: Span, dz: Span, dx: Act) {
        self.store.with_vector(dx, |store, dx| {
            let d = dx.dims().len();
            for (i, dx) in dx.images_mut(n).chunks_exact_mut(d).enumerate() {
                let r = rows.at(i);
                let (z, dz) = (&store.span(z)[r * d..][..d], &store.span(dz)[r * d..][..d]);
                let dot = z.iter().zip(dz).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32;
                let norm = store.span(norms)[r];
                for (dx, (&z, &dz)) in dx.iter_mut().zip(z.iter().zip(dz)) {
                    *dx = (dz - z * dot) / norm;
                }
            }
        });
    }

    fn plan_nt_xent(&mut self, n_anchors: usize, n_views: usize) -> Result<(), EngineError> {
        self.grow_partial(n_anchors * n_views)
    }

    fn nt_xent(&mut self, l: NtXent) {
        let (d, m) = (l.dim, l.z.len / l.dim);
        self.need_partial(l.n_anchors * m);
        let Self { store, team, partial, .. } = self;
        let logits = &mut partial[..l.n_anchors * m];
        {
            let z = store.span(l.z);
            let anchors = Mat::new(&z[l.first_anchor * d..], l.n_anchors, d);
            dense::multiply(team, logits, anchors, Mat::new(z, m, d).t(), 1.0 / l.temperature, false);
        }
        let factor = 1.0 / m as f32;
        let rows = Shards::new(logits);
        team.for_parts(store.span_mut(l.loss), 1, |i, loss| {
            // SAFETY: one row per anchor, and each anchor runs once.
            let row = unsafe { rows.part(i * m, m) };
            loss[0] = dense::nt_xent_row(row, l.first_anchor + i, factor, l.focal_gamma);
        });
        let p = Mat::new(logits, l.n_anchors, m);
        store.with_span(l.dz, |store, dz| {
            let z = store.span(l.z);
            let anchors = Mat::new(&z[l.first_anchor * d..], l.n_anchors, d);
            dense::multiply(team, dz, p.t(), anchors, 1.0 / l.temperature, false);
            let own = &mut dz[l.first_anchor * d..(l.first_anchor + l.n_anchors) * d];
            dense::multiply(team, own, p, Mat::new(z, m, d), 1.0 / l.temperature, true);
        });
    }

    fn cross_entropy(&mut self, n: usize, logits: Act, labels: &[u32], loss: Span, dlogits: Act) {
        self.store.with_vector(dlogits, |store, dlogits| {
            store.with_span(loss, |store, loss| {
                let c = dlogits.dims().len();
                let rows =
                    store.vector(logits).images(n).chunks_exact(c).zip(dlogits.images_mut(n).chunks_exact_mut(c));
                for (i, (x, grad)) in rows.enumerate() {
                    loss[i] = dense::cross_entropy_row(x, labels[i] as usize, 1.0 / n as f32, grad);
                }
            });
        });
    }

    fn sgd_step(&mut self, params: Span, grads: Span, momentum: Span, step: SgdStep, first: bool) {
        self.sgd_step_of(params, grads, momentum, step, first);
    }

    fn lars_step(&mut self, params: Span, grads: Span, momentum: Span, tensors: &[(usize, usize)], step: LarsStep) {
        self.lars_step_of(params, grads, momentum, tensors, step);
    }

    fn adam_step(&mut self, params: Span, grads: Span, m: Span, v: Span, step: AdamStep) {
        self.adam_step_of(params, grads, m, v, step);
    }
}
