//! A network's state on an engine: parameters, gradients, running statistics and the pruning mask.

use crate::NnError;
use crate::graph::{Network, Param, ParamId, ParamKind};
use crate::init;
use crate::mask::{self, MaskStats};
use sdclr_engine::{ByteBuf, ByteSpan, Engine, Span};
use std::collections::BTreeMap;

/// A named tensor on the host, in PyTorch's layout (convolutions `[cout, cin, kh, kw]`).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Shape.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub data: Vec<f32>,
}

/// A network with its state. Branches share the parameters; with dual batch norm each has its own norm sets.
#[derive(Debug)]
pub struct Model {
    /// The node list.
    pub network: Network,
    params: Span,
    grads: Span,
    running: Span,
    mask: ByteBuf,
    /// The mask's bytes, one per parameter (1 outside prunable tensors).
    mask_host: Vec<u8>,
}

impl Model {
    /// Allocates the state; parameters are zero until [`Model::init`] or [`Model::import`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, network: Network) -> Result<Self, NnError> {
        let mut floats = |len| -> Result<Span, NnError> {
            let buf = engine.alloc_f32(len)?;
            Ok(engine.whole(buf))
        };
        let (params, grads, running) =
            (floats(network.n_params())?, floats(network.n_params())?, floats(network.n_running)?);
        let mask = engine.alloc_bytes(network.n_params())?;
        let mask_host = vec![1; network.n_params()];
        engine.write_bytes(mask, &mask_host);
        engine.write_f32(running, &init::running(&network));
        Ok(Self { network, params, grads, running, mask, mask_host })
    }

    /// Draws all parameters from `seed` and resets the running statistics.
    pub fn init(&mut self, engine: &mut dyn Engine, seed: u64) {
        engine.write_f32(self.params, &init::parameters(&self.network, seed));
        engine.write_f32(self.running, &init::running(&self.network));
    }

    /// All parameters, flat.
    #[must_use]
    pub fn params(&self) -> Span {
        self.params
    }

    /// All gradients, flat, in the order of the parameters.
    #[must_use]
    pub fn grads(&self) -> Span {
        self.grads
    }

    /// All running statistics, flat.
    #[must_use]
    pub fn running(&self) -> Span {
        self.running
    }

    /// Where tensor `id` lies in a vector that is laid out like the parameters.
    pub(crate) fn part(&self, whole: Span, id: ParamId) -> Span {
        whole.slice(self.network.params[id.0].range())
    }

    /// The mask of tensor `id`.
    pub(crate) fn mask(&self, id: ParamId) -> ByteSpan {
        let Param { offset, len, .. } = self.network.params[id.0];
        ByteSpan { buf: self.mask, offset, len }
    }

    /// Sets all gradients to zero.
    pub fn zero_grads(&self, engine: &mut dyn Engine) {
        engine.fill(self.grads, 0.0);
    }

    /// Recomputes the mask from the parameters' magnitudes; see [`mask::epoch_mask`].
    ///
    /// # Errors
    /// A failure of the device.
    pub fn update_mask(
        &mut self,
        engine: &mut dyn Engine,
        rate: f64,
        random_rate: f64,
        seed: u64,
        epoch: u64,
    ) -> Result<MaskStats, NnError> {
        let mut weights = Vec::with_capacity(self.network.prunable().map(|p| p.len).sum());
        for p in self.network.prunable() {
            let at = weights.len();
            weights.resize(at + p.len, 0.0);
            engine.read_f32(self.params.slice(p.range()), &mut weights[at..])?;
        }
        let mut mask = vec![0; weights.len()];
        let stats = mask::epoch_mask(&weights, rate, random_rate, seed, epoch, &mut mask);
        let mut at = 0;
        for p in self.network.prunable() {
            self.mask_host[p.range()].copy_from_slice(&mask[at..at + p.len]);
            at += p.len;
        }
        engine.write_bytes(self.mask, &self.mask_host);
        Ok(stats)
    }

    /// The masks of all prunable tensors by name, `[cout, cin, kh, kw]`, 1 = kept.
    #[must_use]
    pub fn masks(&self) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let one = |p: &Param| {
            let bytes = &self.mask_host[p.range()];
            (p.name.clone(), (torch_shape(p), to_torch(p, bytes)))
        };
        self.network.prunable().map(one).collect()
    }

    /// Sets the masks from what [`Model::masks`] returned.
    ///
    /// # Errors
    /// [`NnError::Tensors`] where a mask is missing or has another size.
    pub fn set_masks(
        &mut self,
        engine: &mut dyn Engine,
        masks: &BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    ) -> Result<(), NnError> {
        for p in self.network.prunable() {
            let bytes = match masks.get(&p.name) {
                Some((shape, bytes)) if *shape == torch_shape(p) => bytes,
                Some((shape, _)) => return Err(wrong_shape("mask", &p.name, shape, &torch_shape(p))),
                None => return Err(NnError::Tensors(format!("the mask of {} is missing", p.name))),
            };
            self.mask_host[p.range()].copy_from_slice(&from_torch(p, bytes));
        }
        engine.write_bytes(self.mask, &self.mask_host);
        Ok(())
    }

    /// A vector laid out like the parameters (parameters, gradients, momentum) as named tensors.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn export(&self, engine: &mut dyn Engine, flat: Span) -> Result<BTreeMap<String, Tensor>, NnError> {
        let one = |p: &Param| {
            let mut values = vec![0.0; p.len];
            engine.read_f32(flat.slice(p.range()), &mut values)?;
            Ok((p.name.clone(), Tensor { shape: torch_shape(p), data: to_torch(p, &values) }))
        };
        self.network.params.iter().map(one).collect()
    }

    /// The inverse of [`Model::export`]: every tensor of the network must be there, or nothing changes; others are ignored.
    ///
    /// # Errors
    /// [`NnError::Tensors`] where one is missing or has another shape.
    pub fn import(
        &self,
        engine: &mut dyn Engine,
        flat: Span,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<(), NnError> {
        let found = self.network.params.iter().map(|p| Ok((p, find(tensors, &p.name, &torch_shape(p))?)));
        for (p, tensor) in found.collect::<Result<Vec<_>, NnError>>()? {
            engine.write_f32(flat.slice(p.range()), &from_torch(p, &tensor.data));
        }
        Ok(())
    }

    /// Running means and variances as `NAME.running_mean`, `NAME.running_var`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn export_running(&self, engine: &mut dyn Engine) -> Result<BTreeMap<String, Tensor>, NnError> {
        let mut values = vec![0.0; self.running.len];
        engine.read_f32(self.running, &mut values)?;
        let mut tensors = BTreeMap::new();
        for (name, at, len) in self.running_parts() {
            tensors.insert(name, Tensor { shape: vec![len], data: values[at..at + len].to_vec() });
        }
        Ok(tensors)
    }

    /// The inverse of [`Model::export_running`].
    ///
    /// # Errors
    /// [`NnError::Tensors`] where one is missing or has another shape.
    pub fn import_running(&self, engine: &mut dyn Engine, tensors: &BTreeMap<String, Tensor>) -> Result<(), NnError> {
        let mut values = vec![0.0; self.running.len];
        for (name, at, len) in self.running_parts() {
            values[at..at + len].copy_from_slice(&find(tensors, &name, &[len])?.data);
        }
        engine.write_f32(self.running, &values);
        Ok(())
    }

    /// Name, first float and length of every running mean and variance.
    fn running_parts(&self) -> Vec<(String, usize, usize)> {
        let mut parts = Vec::new();
        for norm in &self.network.norms {
            for set in &norm.sets {
                parts.push((format!("{}.running_mean", set.name), set.running, norm.channels));
                parts.push((format!("{}.running_var", set.name), set.running + norm.channels, norm.channels));
            }
        }
        parts
    }
}

fn find<'a>(tensors: &'a BTreeMap<String, Tensor>, name: &str, shape: &[usize]) -> Result<&'a Tensor, NnError> {
    let tensor = tensors.get(name).ok_or_else(|| NnError::Tensors(format!("tensor {name} is missing")))?;
    if tensor.shape != shape {
        return Err(wrong_shape("tensor", name, &tensor.shape, shape));
    }
    Ok(tensor)
}

fn wrong_shape(what: &str, name: &str, got: &[usize], expected: &[usize]) -> NnError {
    NnError::Tensors(format!("{what} {name} has shape {got:?} where the network has {expected:?}"))
}

/// The shape that PyTorch gives a parameter.
#[must_use]
pub fn torch_shape(p: &Param) -> Vec<usize> {
    match (p.kind, &p.shape[..]) {
        (ParamKind::Conv, &[cout, kh, kw, cin]) => vec![cout, cin, kh, kw],
        _ => p.shape.clone(),
    }
}

/// `[cout, kh, kw, cin]` to `[cout, cin, kh, kw]`; other tensors unchanged.
fn to_torch<T: Copy>(p: &Param, values: &[T]) -> Vec<T> {
    permuted(p, values, |taps, cin, tap, ci| (tap * cin + ci, ci * taps + tap))
}

/// `[cout, cin, kh, kw]` to `[cout, kh, kw, cin]`; other tensors unchanged.
fn from_torch<T: Copy>(p: &Param, values: &[T]) -> Vec<T> {
    permuted(p, values, |taps, cin, tap, ci| (ci * taps + tap, tap * cin + ci))
}

fn permuted<T: Copy>(p: &Param, values: &[T], at: impl Fn(usize, usize, usize, usize) -> (usize, usize)) -> Vec<T> {
    let mut out = values.to_vec();
    if let (ParamKind::Conv, &[_, kh, kw, cin]) = (p.kind, &p.shape[..]) {
        let taps = kh * kw;
        for (out, values) in out.chunks_exact_mut(taps * cin).zip(values.chunks_exact(taps * cin)) {
            for (tap, ci) in (0..taps).flat_map(|tap| (0..cin).map(move |ci| (tap, ci))) {
                let (from, to) = at(taps, cin, tap, ci);
                out[to] = values[from];
            }
        }
    }
    out
}
