//! Buffers in host memory: what the oracle and the CPU engine share.
//!
//! Operations take an output buffer *out* of the store (a pointer move, no allocation), read the others through `&self`
//! and put it back; so no operation needs `unsafe` to write one buffer while it reads another.

use crate::buffer::Buffer;
use crate::element::{Bf16, Element};
use crate::engine::Memory;
use crate::types::{Act, ByteBuf, ByteSpan, Dims, EngineError, F32Buf, Role, Span};

/// One activation buffer, NHWC.
pub struct ActBuf<T> {
    dims: Option<Dims>,
    pub data: Buffer<T>,
}

impl<T> Default for ActBuf<T> {
    fn default() -> Self {
        Self { dims: None, data: Buffer::default() }
    }
}

impl<T> ActBuf<T> {
    pub fn dims(&self) -> Dims {
        self.dims.expect("an activation that is in use by this very operation was named twice")
    }

    /// The first `n` images.
    pub fn images(&self, n: usize) -> &[T] {
        &self.data[..n * self.dims().len()]
    }

    pub fn images_mut(&mut self, n: usize) -> &mut [T] {
        let len = n * self.dims().len();
        &mut self.data[..len]
    }

    /// One image.
    pub fn image(&self, image: usize) -> &[T] {
        let len = self.dims().len();
        &self.data[image * len..][..len]
    }
}

/// The element of a store's feature maps, and where such a store keeps its vectors.
pub trait MapElement: Element {
    /// The f32 buffers that hold vectors; where maps are f32 too, one list holds both.
    fn vectors(store: &HostStore<Self>) -> &Vec<ActBuf<f32>>;
    fn vectors_mut(store: &mut HostStore<Self>) -> &mut Vec<ActBuf<f32>>;
}

impl MapElement for f32 {
    fn vectors(store: &HostStore<Self>) -> &Vec<ActBuf<f32>> {
        &store.maps
    }
    fn vectors_mut(store: &mut HostStore<Self>) -> &mut Vec<ActBuf<f32>> {
        &mut store.maps
    }
}

impl MapElement for Bf16 {
    fn vectors(store: &HostStore<Self>) -> &Vec<ActBuf<f32>> {
        &store.vectors
    }
    fn vectors_mut(store: &mut HostStore<Self>) -> &mut Vec<ActBuf<f32>> {
        &mut store.vectors
    }
}

/// All buffers of a host engine whose feature maps hold `E`.
pub struct HostStore<E> {
    /// Role, dimensions and place of every activation.
    acts: Vec<(Role, Dims, usize)>,
    maps: Vec<ActBuf<E>>,
    vectors: Vec<ActBuf<f32>>,
    floats: Vec<Buffer<f32>>,
    bytes: Vec<Buffer<u8>>,
    held: usize,
}

impl<E> Default for HostStore<E> {
    fn default() -> Self {
        let (acts, maps, vectors, floats, bytes) = Default::default();
        Self { acts, maps, vectors, floats, bytes, held: 0 }
    }
}

/// Floats behind an activation's last image that kernels may read (never write) when they handle pixels in groups: up to
/// three surplus pixels at stride 2, and up to fifteen surplus inputs.
pub(crate) fn slack(dims: Dims) -> usize {
    8 * dims.c + 64
}

/// Feature maps or vectors of a store: for operations that work on both.
pub(crate) trait Select<E> {
    type T: Element;
    fn get(store: &HostStore<E>, act: Act) -> &ActBuf<Self::T>;
    fn take(store: &mut HostStore<E>, act: Act) -> ActBuf<Self::T>;
    fn put(store: &mut HostStore<E>, act: Act, buf: ActBuf<Self::T>);
}

/// Selects feature maps.
pub(crate) struct Maps;

impl<E: MapElement> Select<E> for Maps {
    type T = E;
    fn get(store: &HostStore<E>, act: Act) -> &ActBuf<E> {
        &store.maps[store.acts[act.0].2]
    }
    fn take(store: &mut HostStore<E>, act: Act) -> ActBuf<E> {
        std::mem::take(&mut store.maps[store.acts[act.0].2])
    }
    fn put(store: &mut HostStore<E>, act: Act, buf: ActBuf<E>) {
        store.maps[store.acts[act.0].2] = buf;
    }
}

/// Selects vectors.
pub(crate) struct Vectors;

impl<E: MapElement> Select<E> for Vectors {
    type T = f32;
    fn get(store: &HostStore<E>, act: Act) -> &ActBuf<f32> {
        &E::vectors(store)[store.acts[act.0].2]
    }
    fn take(store: &mut HostStore<E>, act: Act) -> ActBuf<f32> {
        let at = store.acts[act.0].2;
        std::mem::take(&mut E::vectors_mut(store)[at])
    }
    fn put(store: &mut HostStore<E>, act: Act, buf: ActBuf<f32>) {
        let at = store.acts[act.0].2;
        E::vectors_mut(store)[at] = buf;
    }
}

/// Where everything is f32, an activation is an activation.
impl HostStore<f32> {
    pub(crate) fn act(&self, act: Act) -> &ActBuf<f32> {
        self.map(act)
    }

    pub(crate) fn with_act<R>(&mut self, act: Act, f: impl FnOnce(&mut Self, &mut ActBuf<f32>) -> R) -> R {
        self.with_map(act, f)
    }
}

impl<E: MapElement> HostStore<E> {
    pub(crate) fn role(&self, act: Act) -> Role {
        self.acts[act.0].0
    }

    /// Dimensions of an activation, also while it is taken out.
    pub(crate) fn dims(&self, act: Act) -> Dims {
        self.acts[act.0].1
    }

    pub(crate) fn map(&self, act: Act) -> &ActBuf<E> {
        Maps::get(self, act)
    }

    pub(crate) fn vector(&self, act: Act) -> &ActBuf<f32> {
        Vectors::get(self, act)
    }

    /// Runs `f` on an activation taken out of the store, so that `f` can read everything else.
    pub(crate) fn with<S: Select<E>, R>(&mut self, act: Act, f: impl FnOnce(&mut Self, &mut ActBuf<S::T>) -> R) -> R {
        let mut buf = S::take(self, act);
        let result = f(self, &mut buf);
        S::put(self, act, buf);
        result
    }

    /// [`HostStore::with`] a feature map.
    pub(crate) fn with_map<R>(&mut self, act: Act, f: impl FnOnce(&mut Self, &mut ActBuf<E>) -> R) -> R {
        self.with::<Maps, R>(act, f)
    }

    /// [`HostStore::with`] a vector.
    pub(crate) fn with_vector<R>(&mut self, act: Act, f: impl FnOnce(&mut Self, &mut ActBuf<f32>) -> R) -> R {
        self.with::<Vectors, R>(act, f)
    }

    pub(crate) fn span(&self, span: Span) -> &[f32] {
        &self.floats[span.buf.0][span.range()]
    }

    pub(crate) fn span_mut(&mut self, span: Span) -> &mut [f32] {
        &mut self.floats[span.buf.0][span.range()]
    }

    pub(crate) fn take_floats(&mut self, buf: F32Buf) -> Buffer<f32> {
        std::mem::take(&mut self.floats[buf.0])
    }

    pub(crate) fn put_floats(&mut self, buf: F32Buf, data: Buffer<f32>) {
        self.floats[buf.0] = data;
    }

    pub(crate) fn byte_span(&self, span: ByteSpan) -> &[u8] {
        &self.bytes[span.buf.0][span.range()]
    }

    pub(crate) fn byte_buf(&self, buf: ByteBuf) -> &[u8] {
        &self.bytes[buf.0]
    }

    pub(crate) fn held_mut(&mut self) -> &mut usize {
        &mut self.held
    }

    /// Runs `f` on a span taken out of the store, so that `f` can read everything else.
    pub(crate) fn with_span<R>(&mut self, span: Span, f: impl FnOnce(&mut Self, &mut [f32]) -> R) -> R {
        let mut data = self.take_floats(span.buf);
        let result = f(self, &mut data[span.range()]);
        self.put_floats(span.buf, data);
        result
    }
}

impl<E: MapElement> Memory for HostStore<E> {
    fn alloc_act(&mut self, max_batch: usize, dims: Dims, role: Role) -> Result<Act, EngineError> {
        let len = max_batch * dims.len() + slack(dims);
        let at = match role {
            Role::Map => {
                let data = Buffer::zeroed(len, "an activation", &mut self.held)?;
                self.maps.push(ActBuf { dims: Some(dims), data });
                self.maps.len() - 1
            }
            Role::Vector => {
                let data = Buffer::zeroed(len, "an activation", &mut self.held)?;
                let vectors = E::vectors_mut(self);
                vectors.push(ActBuf { dims: Some(dims), data });
                vectors.len() - 1
            }
        };
        self.acts.push((role, dims, at));
        Ok(Act(self.acts.len() - 1))
    }

    fn alloc_f32(&mut self, len: usize) -> Result<F32Buf, EngineError> {
        let data = Buffer::zeroed(len, "a float buffer", &mut self.held)?;
        self.floats.push(data);
        Ok(F32Buf(self.floats.len() - 1))
    }

    fn alloc_bytes(&mut self, len: usize) -> Result<ByteBuf, EngineError> {
        let data = Buffer::zeroed(len, "a byte buffer", &mut self.held)?;
        self.bytes.push(data);
        Ok(ByteBuf(self.bytes.len() - 1))
    }

    fn whole(&self, buf: F32Buf) -> Span {
        Span { buf, offset: 0, len: self.floats[buf.0].len() }
    }

    fn bytes_held(&self) -> usize {
        self.held
    }

    fn write_f32(&mut self, to: Span, values: &[f32]) {
        self.span_mut(to).copy_from_slice(values);
    }

    fn read_f32(&mut self, from: Span, values: &mut [f32]) -> Result<(), EngineError> {
        values.copy_from_slice(self.span(from));
        Ok(())
    }

    fn write_bytes(&mut self, to: ByteBuf, values: &[u8]) {
        self.bytes[to.0][..values.len()].copy_from_slice(values);
    }

    fn read_act(&mut self, n: usize, from: Act, values: &mut [f32]) -> Result<(), EngineError> {
        match self.role(from) {
            Role::Map => copy(self.map(from).images(n), values),
            Role::Vector => copy(self.vector(from).images(n), values),
        }
        Ok(())
    }

    fn write_act(&mut self, n: usize, to: Act, values: &[f32]) {
        match self.role(to) {
            Role::Map => self.with_map(to, |_, buf| copy(values, buf.images_mut(n))),
            Role::Vector => self.with_vector(to, |_, buf| copy(values, buf.images_mut(n))),
        }
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

fn copy<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    assert_eq!(from.len(), to.len());
    from.iter().zip(to).for_each(|(from, to)| *to = B::of(from.get()));
}

/// Implements [`Memory`] by handing every call to the field that holds a [`HostStore`].
macro_rules! memory_from_store {
    ($engine:ty, $store:ident $(, $generic:ident: $bound:path)?) => {
        impl$(<$generic: $bound>)? $crate::engine::Memory for $engine {
            fn alloc_act(&mut self, max_batch: usize, dims: Dims, role: Role) -> Result<Act, EngineError> {
                self.$store.alloc_act(max_batch, dims, role)
            }
            fn alloc_f32(&mut self, len: usize) -> Result<F32Buf, EngineError> {
                self.$store.alloc_f32(len)
            }
            fn alloc_bytes(&mut self, len: usize) -> Result<ByteBuf, EngineError> {
                self.$store.alloc_bytes(len)
            }
            fn whole(&self, buf: F32Buf) -> Span {
                self.$store.whole(buf)
            }
            fn bytes_held(&self) -> usize {
                self.$store.bytes_held()
            }
            fn write_f32(&mut self, to: Span, values: &[f32]) {
                self.$store.write_f32(to, values);
            }
            fn read_f32(&mut self, from: Span, values: &mut [f32]) -> Result<(), EngineError> {
                self.$store.read_f32(from, values)
            }
            fn write_bytes(&mut self, to: ByteBuf, values: &[u8]) {
                self.$store.write_bytes(to, values);
            }
            fn read_act(&mut self, n: usize, from: Act, values: &mut [f32]) -> Result<(), EngineError> {
                self.$store.read_act(n, from, values)
            }
            fn write_act(&mut self, n: usize, to: Act, values: &[f32]) {
                self.$store.write_act(n, to, values);
            }
            fn sync(&mut self) -> Result<(), EngineError> {
                Ok(())
            }
        }
    };
}
pub(crate) use memory_from_store;
