//! The naive back end: every operation as its definition, loops in double precision. The tests' oracle, and a full engine.
//!
//! Sources: the papers' and PyTorch's definitions. Nothing here is fast; everything here should be obvious.

use crate::engine::{Engine, Gate, NormApply, NormBackward, NormEval, NormTrain, NtXent, WeightGrad};
use crate::host::{HostStore, memory_from_store};
use crate::types::{
    Act, AdamStep, ByteBuf, ByteSpan, Conv, ConvShape, ConvUse, Dims, Direction, EngineError, F32Buf, LarsStep,
    Normalization, Role, Rows, SgdStep, Span, Write,
};
use crate::{engine::Memory, scalar};

/// The naive back end.
#[derive(Default)]
pub struct Oracle {
    store: HostStore<f32>,
    convs: Vec<OracleConv>,
}

struct OracleConv {
    shape: ConvShape,
    weights: Vec<f32>,
}

memory_from_store!(Oracle, store);

impl Oracle {
    /// An engine without buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` to element `i` of an activation image list.
    fn store_act(&mut self, n: usize, to: Act, write: Write, values: &[f64]) {
        self.store.with_act(to, |_, buf| {
            for (out, &v) in buf.images_mut(n).iter_mut().zip(values) {
                *out = match write {
                    Write::Set => v as f32,
                    Write::Add => *out + v as f32,
                };
            }
        });
    }

    fn add_span(&mut self, to: Span, values: &[f64]) {
        for (out, &v) in self.store.span_mut(to).iter_mut().zip(values) {
            *out += v as f32;
        }
    }

    fn set_span(&mut self, to: Span, values: &[f64]) {
        for (out, &v) in self.store.span_mut(to).iter_mut().zip(values) {
            *out = v as f32;
        }
    }

    /// Σ and Σ² per channel of values `[·, c]`.
    fn channel_sums(values: &[f64], c: usize) -> Vec<f64> {
        let mut sums = vec![0.0; 2 * c];
        for row in values.chunks_exact(c) {
            for (k, &v) in row.iter().enumerate() {
                let v = f64::from(v as f32);
                sums[k] += v;
                sums[c + k] += v * v;
            }
        }
        sums
    }

    /// Gradient behind the ReLU, `[n·h·w, c]`.
    fn gated(&self, n: usize, norm: &NormBackward) -> Vec<f64> {
        let (x, dy) = (self.store.act(norm.x).images(n), self.store.act(norm.dy).images(n));
        let coef = self.store.span(norm.coef);
        let (c, of) = (coef.len() / 4, |i: usize| f64::from(coef[i]));
        let is_open = |i: usize| match norm.gate {
            Gate::Open => true,
            Gate::Output(y) => self.store.act(y).images(n)[i] > 0.0,
            Gate::Input => f64::from(x[i]) * of(2 * c + i % c) + of(3 * c + i % c) > 0.0,
        };
        dy.iter().enumerate().map(|(i, &g)| if is_open(i) { f64::from(g) } else { 0.0 }).collect()
    }
}

/// Calls `f(output index, input index, weight index)` for every multiply-add of a convolution over `n` images.
fn for_each_product(shape: &ConvShape, n: usize, mut f: impl FnMut(usize, usize, usize)) {
    let (i, o, k) = (shape.input, shape.output(), shape.kernel);
    for (image, row, col) in (0..n).flat_map(|b| (0..o.h).flat_map(move |r| (0..o.w).map(move |c| (b, r, c)))) {
        for (kh, kw) in (0..k).flat_map(|a| (0..k).map(move |b| (a, b))) {
            let (y, x) = (row * shape.stride + kh, col * shape.stride + kw);
            if y < shape.pad || x < shape.pad || y - shape.pad >= i.h || x - shape.pad >= i.w {
                continue;
            }
            let at_in = ((image * i.h + y - shape.pad) * i.w + x - shape.pad) * i.c;
            let at_out = ((image * o.h + row) * o.w + col) * o.c;
            for co in 0..o.c {
                for ci in 0..i.c {
                    f(at_out + co, at_in + ci, ((co * k + kh) * k + kw) * i.c + ci);
                }
            }
        }
    }
}

/// Calls `f(output index, input index)` for every element of every 3×3 stride-2 window, row by row.
fn for_each_pooled(i: Dims, o: Dims, n: usize, mut f: impl FnMut(usize, usize)) {
    for (image, row, col) in (0..n).flat_map(|b| (0..o.h).flat_map(move |r| (0..o.w).map(move |c| (b, r, c)))) {
        for (y, x) in (0..3).flat_map(|a| (0..3).map(move |b| (2 * row + a, 2 * col + b))) {
            if y < 1 || x < 1 || y > i.h || x > i.w {
                continue;
            }
            for c in 0..i.c {
                f(((image * o.h + row) * o.w + col) * o.c + c, ((image * i.h + y - 1) * i.w + x - 1) * i.c + c);
            }
        }
    }
}

/// Calls `f(output index, input index)` for every element that shortcut A copies.
fn for_each_shortcut(i: Dims, o: Dims, n: usize, mut f: impl FnMut(usize, usize)) {
    let pad = (o.c - i.c) / 2;
    for (image, row, col) in (0..n).flat_map(|b| (0..o.h).flat_map(move |r| (0..o.w).map(move |c| (b, r, c)))) {
        for c in 0..i.c {
            f(((image * o.h + row) * o.w + col) * o.c + c + pad, ((image * i.h + 2 * row) * i.w + 2 * col) * i.c + c);
        }
    }
}

impl Engine for Oracle {
    fn name(&self) -> String {
        "oracle (naive, host)".into()
    }

    fn fill(&mut self, to: Span, value: f32) {
        self.store.span_mut(to).fill(value);
    }

    fn input_normalize(&mut self, n: usize, images: ByteBuf, rows: Rows, norm: &Normalization, y: Act) {
        self.store.with_act(y, |store, y| {
            let (dims, bytes) = (y.dims(), store.byte_buf(images));
            for (i, image) in y.images_mut(n).chunks_exact_mut(dims.len()).enumerate() {
                let source = &bytes[rows.at(i) * dims.len()..][..dims.len()];
                for (k, (out, &byte)) in image.iter_mut().zip(source).enumerate() {
                    *out = (f32::from(byte) / 255.0 - norm.mean[k % 3]) / norm.std[k % 3];
                }
            }
        });
    }

    fn alloc_conv(
        &mut self,
        shape: ConvShape,
        _max_batch: usize,
        _used: ConvUse,
        _masked: bool,
    ) -> Result<Conv, EngineError> {
        self.convs.push(OracleConv { shape, weights: vec![0.0; shape.n_weights()] });
        Ok(Conv(self.convs.len() - 1))
    }

    fn pack_conv(&mut self, conv: Conv, _direction: Direction, weights: Span, mask: Option<ByteSpan>) {
        let packed = &mut self.convs[conv.0].weights;
        packed.copy_from_slice(self.store.span(weights));
        if let Some(mask) = mask {
            for (w, &keep) in packed.iter_mut().zip(self.store.byte_span(mask)) {
                *w *= f32::from(keep);
            }
        }
    }

    fn conv_forward(&mut self, n: usize, conv: Conv, x: Act, y: Act, sums: Option<Span>) {
        let conv = &self.convs[conv.0];
        let x = self.store.act(x).images(n);
        let mut out = vec![0.0; n * conv.shape.output().len()];
        for_each_product(&conv.shape, n, |o, i, w| out[o] += f64::from(x[i]) * f64::from(conv.weights[w]));
        let c = conv.shape.cout;
        self.store_act(n, y, Write::Set, &out);
        if let Some(sums) = sums {
            self.set_span(sums, &Self::channel_sums(&out, c));
        }
    }

    fn conv_backward_data(&mut self, n: usize, conv: Conv, dy: Act, dx: Act, write: Write) {
        let conv = &self.convs[conv.0];
        let dy = self.store.act(dy).images(n);
        let mut out = vec![0.0; n * conv.shape.input.len()];
        for_each_product(&conv.shape, n, |o, i, w| out[i] += f64::from(dy[o]) * f64::from(conv.weights[w]));
        self.store_act(n, dx, write, &out);
    }

    fn conv_backward_weight(&mut self, n: usize, conv: Conv, grad: WeightGrad) {
        let shape = self.convs[conv.0].shape;
        let (x, dy) = (self.store.act(grad.x).images(n), self.store.act(grad.dy).images(n));
        let mut dw = vec![0.0; shape.n_weights()];
        for_each_product(&shape, n, |o, i, w| dw[w] += f64::from(dy[o]) * f64::from(x[i]));
        if let Some(mask) = grad.mask {
            for (g, &keep) in dw.iter_mut().zip(self.store.byte_span(mask)) {
                *g *= f64::from(keep);
            }
        }
        self.add_span(grad.dw, &dw);
    }

    fn norm_train(&mut self, norm: NormTrain) {
        let gamma = self.store.span(norm.gamma).to_vec();
        let beta = self.store.span(norm.beta).to_vec();
        let sums = self.store.span(norm.sums).to_vec();
        let mut running = self.store.span(norm.running).to_vec();
        let coef = self.store.span_mut(norm.coef);
        scalar::norm_train(&norm, &sums, &gamma, &beta, &mut running, coef);
        self.store.write_f32(norm.running, &running);
    }

    fn norm_eval(&mut self, norm: NormEval) {
        let gamma = self.store.span(norm.gamma).to_vec();
        let beta = self.store.span(norm.beta).to_vec();
        let running = self.store.span(norm.running).to_vec();
        scalar::norm_eval(&norm, &gamma, &beta, &running, self.store.span_mut(norm.coef));
    }

    fn norm_apply(&mut self, n: usize, norm: NormApply) {
        let c = self.store.act(norm.x).dims().c;
        let coef = self.store.span(norm.coef);
        let mut out = Vec::new();
        for (i, &x) in self.store.act(norm.x).images(n).iter().enumerate() {
            let mut v = f64::from(x) * f64::from(coef[2 * c + i % c]) + f64::from(coef[3 * c + i % c]);
            if let Some(r) = norm.residual {
                v += f64::from(self.store.act(r).images(n)[i]);
            }
            out.push(if norm.relu && v < 0.0 { 0.0 } else { v });
        }
        self.store_act(n, norm.y, Write::Set, &out);
    }

    fn norm_backward_sums(&mut self, n: usize, norm: NormBackward) {
        let c = self.store.act(norm.x).dims().c;
        let coef = self.store.span(norm.coef);
        let x = self.store.act(norm.x).images(n);
        let mut sums = vec![0.0; 2 * c];
        for (i, g) in self.gated(n, &norm).into_iter().enumerate() {
            let k = i % c;
            sums[k] += g;
            sums[c + k] += g * (f64::from(x[i]) - f64::from(coef[k])) * f64::from(coef[c + k]);
        }
        self.set_span(norm.sums, &sums);
    }

    fn norm_backward_apply(
        &mut self,
        n: usize,
        norm: NormBackward,
        count: Option<usize>,
        dx: Option<Act>,
        dresidual: Option<(Act, Write)>,
    ) {
        let c = self.store.act(norm.x).dims().c;
        let g = self.gated(n, &norm);
        if let Some(dx) = dx {
            let (coef, sums) = (self.store.span(norm.coef), self.store.span(norm.sums));
            let x = self.store.act(norm.x).images(n);
            let mut out = g.clone();
            for (i, v) in out.iter_mut().enumerate() {
                let k = i % c;
                if let Some(count) = count {
                    let x_hat = (f64::from(x[i]) - f64::from(coef[k])) * f64::from(coef[c + k]);
                    *v -= (f64::from(sums[k]) + x_hat * f64::from(sums[c + k])) / count as f64;
                }
                *v *= f64::from(coef[2 * c + k]);
            }
            self.store_act(n, dx, Write::Set, &out);
        }
        if let Some((to, write)) = dresidual {
            self.store_act(n, to, write, &g);
        }
    }

    fn norm_param_grad(&mut self, sums: Span, dgamma: Span, dbeta: Span) {
        let sums: Vec<f64> = self.store.span(sums).iter().map(|&v| f64::from(v)).collect();
        let c = sums.len() / 2;
        self.add_span(dgamma, &sums[c..]);
        self.add_span(dbeta, &sums[..c]);
    }

    fn max_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let (i, o) = (self.store.act(x).dims(), self.store.act(y).dims());
        let x = self.store.act(x).images(n);
        let mut out = vec![f64::NEG_INFINITY; n * o.len()];
        for_each_pooled(i, o, n, |to, from| {
            let v = f64::from(x[from]);
            // Not-a-number wins, as in PyTorch.
            out[to] = if v > out[to] || v.is_nan() { v } else { out[to] };
        });
        self.store_act(n, y, Write::Set, &out);
    }

    fn max_pool_backward(&mut self, n: usize, x: Act, y: Act, dy: Act, dx: Act, write: Write) {
        let (i, o) = (self.store.act(x).dims(), self.store.act(y).dims());
        let (x, y, dy) = (self.store.act(x).images(n), self.store.act(y).images(n), self.store.act(dy).images(n));
        let mut out = vec![0.0; n * i.len()];
        let mut taken = vec![false; n * o.len()];
        for_each_pooled(i, o, n, |to, from| {
            if !taken[to] && x[from] == y[to] {
                taken[to] = true;
                out[from] += f64::from(dy[to]);
            }
        });
        self.store_act(n, dx, write, &out);
    }

    fn avg_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let i = self.store.act(x).dims();
        let x = self.store.act(x).images(n);
        let mut out = vec![0.0; n * i.c];
        for (k, &v) in x.iter().enumerate() {
            out[k / i.len() * i.c + k % i.c] += f64::from(v) / i.pixels() as f64;
        }
        self.store_act(n, y, Write::Set, &out);
    }

    fn avg_pool_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let i = self.store.act(dx).dims();
        let dy = self.store.act(dy).images(n);
        let out: Vec<f64> =
            (0..n * i.len()).map(|k| f64::from(dy[k / i.len() * i.c + k % i.c]) / i.pixels() as f64).collect();
        self.store_act(n, dx, write, &out);
    }

    fn shortcut_forward(&mut self, n: usize, x: Act, y: Act) {
        let (i, o) = (self.store.act(x).dims(), self.store.act(y).dims());
        let x = self.store.act(x).images(n);
        let mut out = vec![0.0; n * o.len()];
        for_each_shortcut(i, o, n, |to, from| out[to] = f64::from(x[from]));
        self.store_act(n, y, Write::Set, &out);
    }

    fn shortcut_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let (i, o) = (self.store.act(dx).dims(), self.store.act(dy).dims());
        let dy = self.store.act(dy).images(n);
        let mut out = vec![0.0; n * i.len()];
        for_each_shortcut(i, o, n, |to, from| out[from] = f64::from(dy[to]));
        self.store_act(n, dx, write, &out);
    }

    fn concat_forward(&mut self, n: usize, x: Act, y: Act, at: usize) {
        let (cin, cout) = (self.store.act(x).dims().c, self.store.act(y).dims().c);
        let mut out: Vec<f64> = self.store.act(y).images(n).iter().map(|&v| f64::from(v)).collect();
        for (k, &v) in self.store.act(x).images(n).iter().enumerate() {
            out[k / cin * cout + at + k % cin] = f64::from(v);
        }
        self.store_act(n, y, Write::Set, &out);
    }

    fn concat_backward(&mut self, n: usize, dy: Act, at: usize, dx: Act, write: Write) {
        let (cin, cout) = (self.store.act(dx).dims().c, self.store.act(dy).dims().c);
        let dy = self.store.act(dy).images(n);
        let out: Vec<f64> = (0..n * cin).map(|k| f64::from(dy[k / cin * cout + at + k % cin])).collect();
        self.store_act(n, dx, write, &out);
    }

    fn linear_forward(&mut self, n: usize, x: Act, w: Span, bias: Option<Span>, y: Act, sums: Option<Span>) {
        let (cin, cout) = (self.store.act(x).dims().c, self.store.act(y).dims().c);
        let (x, w) = (self.store.act(x).images(n), self.store.span(w));
        let mut out = vec![0.0; n * cout];
        for (k, v) in out.iter_mut().enumerate() {
            let (row, o) = (k / cout, k % cout);
            *v = bias.map_or(0.0, |b| f64::from(self.store.span(b)[o]));
            *v += (0..cin).map(|i| f64::from(x[row * cin + i]) * f64::from(w[o * cin + i])).sum::<f64>();
        }
        self.store_act(n, y, Write::Set, &out);
        if let Some(sums) = sums {
            self.set_span(sums, &Self::channel_sums(&out, cout));
        }
    }

    fn linear_backward_data(&mut self, n: usize, dy: Act, w: Span, dx: Act, write: Write) {
        let (cin, cout) = (self.store.act(dx).dims().c, self.store.act(dy).dims().c);
        let (dy, w) = (self.store.act(dy).images(n), self.store.span(w));
        let out: Vec<f64> = (0..n * cin)
            .map(|k| (0..cout).map(|o| f64::from(dy[k / cin * cout + o]) * f64::from(w[o * cin + k % cin])).sum())
            .collect();
        self.store_act(n, dx, write, &out);
    }

    fn linear_backward_weight(&mut self, n: usize, x: Act, dy: Act, dw: Span, dbias: Option<Span>) {
        let (cin, cout) = (self.store.act(x).dims().c, self.store.act(dy).dims().c);
        let (x, dy) = (self.store.act(x).images(n), self.store.act(dy).images(n));
        let g = |row: usize, o: usize| f64::from(dy[row * cout + o]);
        let weights: Vec<f64> = (0..cout * cin)
            .map(|k| (0..n).map(|row| g(row, k / cin) * f64::from(x[row * cin + k % cin])).sum())
            .collect();
        let biases: Vec<f64> = (0..cout).map(|o| (0..n).map(|row| g(row, o)).sum()).collect();
        self.add_span(dw, &weights);
        if let Some(dbias) = dbias {
            self.add_span(dbias, &biases);
        }
    }

    fn l2_normalize(&mut self, n: usize, x: Act, rows: Rows, z: Span, norms: Span) {
        let d = self.store.act(x).dims().len();
        let x = self.store.act(x).images(n).to_vec();
        for (i, row) in x.chunks_exact(d).enumerate() {
            let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
            let r = rows.at(i);
            let values: Vec<f64> = row.iter().map(|&v| f64::from(v) / norm).collect();
            self.set_span(z.slice(r * d..(r + 1) * d), &values);
            self.set_span(norms.slice(r..r + 1), &[norm]);
        }
    }

    fn l2_normalize_backward(&mut self, n: usize, rows: Rows, z: Span, norms: Span, dz: Span, dx: Act) {
        let d = self.store.act(dx).dims().len();
        let mut out = Vec::new();
        for r in (0..n).map(|i| rows.at(i)) {
            let row = |span: Span| self.store.span(span.slice(r * d..(r + 1) * d));
            let (z, dz) = (row(z), row(dz));
            let norm = f64::from(self.store.span(norms)[r]);
            let dot: f64 = z.iter().zip(dz).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            out.extend(z.iter().zip(dz).map(|(&a, &b)| (f64::from(b) - f64::from(a) * dot) / norm));
        }
        self.store_act(n, dx, Write::Set, &out);
    }

    fn plan_nt_xent(&mut self, _n_anchors: usize, _n_views: usize) -> Result<(), EngineError> {
        Ok(())
    }

    fn nt_xent(&mut self, l: NtXent) {
        let (d, m) = (l.dim, l.z.len / l.dim);
        let z = self.store.span(l.z).to_vec();
        let cosine = |a: usize, b: usize| -> f64 {
            (0..d).map(|k| f64::from(z[a * d + k]) * f64::from(z[b * d + k])).sum::<f64>() / f64::from(l.temperature)
        };
        let (mut losses, mut dz) = (Vec::new(), vec![0.0; m * d]);
        for anchor in l.first_anchor..l.first_anchor + l.n_anchors {
            let positive = anchor ^ 1;
            let logits: Vec<f64> =
                (0..m).map(|j| if j == anchor { f64::NEG_INFINITY } else { cosine(anchor, j) }).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|v| (v - top).exp()).sum();
            let log_p = logits[positive] - top - total.ln();
            let others: f64 =
                (0..m).filter(|&j| j != anchor && j != positive).map(|j| (logits[j] - top).exp() / total).sum();
            let gamma = f64::from(l.focal_gamma);
            losses.push(-others.powf(gamma) * log_p);
            // d(loss)/d(ln p); its limit where p is 1, which is 0 but for γ = 0.
            let slope = match (gamma, others) {
                (0.0, _) => -1.0,
                (_, 0.0) => 0.0,
                _ => gamma * others.powf(gamma - 1.0) * log_p.exp() * log_p - others.powf(gamma),
            };
            for j in (0..m).filter(|&j| j != anchor) {
                let p = (logits[j] - top).exp() / total - f64::from(u8::from(j == positive));
                let p = -slope * p / (m as f64 * f64::from(l.temperature));
                for k in 0..d {
                    dz[anchor * d + k] += p * f64::from(z[j * d + k]);
                    dz[j * d + k] += p * f64::from(z[anchor * d + k]);
                }
            }
        }
        self.set_span(l.loss, &losses);
        self.set_span(l.dz, &dz);
    }

    fn cross_entropy(&mut self, n: usize, logits: Act, labels: &[u32], loss: Span, dlogits: Act) {
        let c = self.store.act(logits).dims().len();
        let x = self.store.act(logits).images(n).to_vec();
        let (mut losses, mut grads) = (Vec::new(), Vec::new());
        for (row, &label) in x.chunks_exact(c).zip(labels) {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|&v| f64::from(v - top).exp()).sum();
            losses.push(f64::from(top) + total.ln() - f64::from(row[label as usize]));
            grads.extend(row.iter().enumerate().map(|(k, &v)| {
                (f64::from(v - top).exp() / total - f64::from(u8::from(k == label as usize))) / n as f64
            }));
        }
        self.set_span(loss, &losses);
        self.store_act(n, dlogits, Write::Set, &grads);
    }

    fn sgd_step(&mut self, params: Span, grads: Span, momentum: Span, step: SgdStep, first: bool) {
        let grads = self.store.span(grads).to_vec();
        self.store.with_span(params, |store, w| {
            scalar::sgd(w, &grads, store.span_mut(momentum), step, first);
        });
    }

    fn lars_step(&mut self, params: Span, grads: Span, momentum: Span, tensors: &[(usize, usize)], step: LarsStep) {
        let grads = self.store.span(grads).to_vec();
        self.store.with_span(params, |store, w| {
            let buf = store.span_mut(momentum);
            for &(at, len) in tensors {
                let range = at..at + len;
                let q = scalar::lars_trust([&w[range.clone()], &grads[range.clone()]].map(scalar::squares), step);
                scalar::lars(&mut w[range.clone()], &grads[range.clone()], &mut buf[range], q, step);
            }
        });
    }

    fn adam_step(&mut self, params: Span, grads: Span, m: Span, v: Span, step: AdamStep) {
        let grads = self.store.span(grads).to_vec();
        self.store.with_span(params, |store, w| {
            store.with_span(m, |store, m| scalar::adam(w, &grads, m, store.span_mut(v), step));
        });
    }
}
