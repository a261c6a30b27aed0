//! Buffers in host memory: what the oracle and the CPU engine share.
//!
//! Operations take an output buffer *out* of the store (a pointer move, no allocation), read the others through `&self`
//! and put it back; so no operation needs `unsafe` to write one buffer while it reads another.

use crate::engine::Memory;
use crate::types::{Act, ByteBuf, ByteSpan, Dims, EngineError, F32Buf, Role, Span};

/// One activation buffer, f32 NHWC.
#[derive(Default)]
pub(crate) struct ActBuf {
    pub dims: Option<Dims>,
    pub data: Vec<f32>,
}

impl ActBuf {
    pub fn dims(&self) -> Dims {
        self.dims.expect("an activation that is in use by this very operation was named twice")
    }

    /// The first `n` images.
    pub fn images(&self, n: usize) -> &[f32] {
        &self.data[..n * self.dims().len()]
    }

    pub fn images_mut(&mut self, n: usize) -> &mut [f32] {
        let len = n * self.dims().len();
        &mut self.data[..len]
    }
}

/// All buffers of a host engine.
#[derive(Default)]
pub struct HostStore {
    acts: Vec<ActBuf>,
    floats: Vec<Vec<f32>>,
    bytes: Vec<Vec<u8>>,
    held: usize,
}

/// Numbers whose zero is all bits zero.
///
/// # Safety
/// All bits zero must be a valid value.
pub(crate) unsafe trait Zero: Copy {}
// SAFETY: 0.0 and 0 are all bits zero.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for u8 {}

/// A zeroed vector, or an error instead of an abort when memory runs out.
///
/// The pages come from the operating system when they are first written: planning is fast, and what a plan will need is
/// known ([`Memory::bytes_held`]) before any of it is taken.
pub(crate) fn try_zeroed<T: Zero>(len: usize, what: &str, held: &mut usize) -> Result<Vec<T>, EngineError> {
    let bytes = len.saturating_mul(size_of::<T>());
    let out_of_memory = |held: usize| EngineError::OutOfMemory { what: what.into(), bytes, held };
    let layout = std::alloc::Layout::array::<T>(len).map_err(|_| out_of_memory(*held))?;
    if bytes == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let data = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    if data.is_null() {
        return Err(out_of_memory(*held));
    }
    *held += bytes;
    // SAFETY: allocated by the global allocator with `T`'s layout for exactly `len` elements, all of them valid zeros.
    Ok(unsafe { Vec::from_raw_parts(data, len, len) })
}

/// Floats behind an activation's last image that kernels may read (never write) when they handle pixels in groups: up to
/// three surplus pixels at stride 2, and up to eleven surplus inputs.
pub(crate) fn slack(dims: Dims) -> usize {
    8 * dims.c + 64
}

impl HostStore {
    pub(crate) fn act(&self, act: Act) -> &ActBuf {
        &self.acts[act.0]
    }

    pub(crate) fn take_act(&mut self, act: Act) -> ActBuf {
        std::mem::take(&mut self.acts[act.0])
    }

    pub(crate) fn put_act(&mut self, act: Act, buf: ActBuf) {
        self.acts[act.0] = buf;
    }

    pub(crate) fn span(&self, span: Span) -> &[f32] {
        &self.floats[span.buf.0][span.range()]
    }

    pub(crate) fn span_mut(&mut self, span: Span) -> &mut [f32] {
        &mut self.floats[span.buf.0][span.range()]
    }

    pub(crate) fn take_floats(&mut self, buf: F32Buf) -> Vec<f32> {
        std::mem::take(&mut self.floats[buf.0])
    }

    pub(crate) fn put_floats(&mut self, buf: F32Buf, data: Vec<f32>) {
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

    /// Runs `f` on an activation taken out of the store.
    pub(crate) fn with_act<R>(&mut self, act: Act, f: impl FnOnce(&mut Self, &mut ActBuf) -> R) -> R {
        let mut data = self.take_act(act);
        let result = f(self, &mut data);
        self.put_act(act, data);
        result
    }
}

impl Memory for HostStore {
    fn alloc_act(&mut self, max_batch: usize, dims: Dims, _role: Role) -> Result<Act, EngineError> {
        let data = try_zeroed(max_batch * dims.len() + slack(dims), "an activation", &mut self.held)?;
        self.acts.push(ActBuf { dims: Some(dims), data });
        Ok(Act(self.acts.len() - 1))
    }

    fn alloc_f32(&mut self, len: usize) -> Result<F32Buf, EngineError> {
        let data = try_zeroed(len, "a float buffer", &mut self.held)?;
        self.floats.push(data);
        Ok(F32Buf(self.floats.len() - 1))
    }

    fn alloc_bytes(&mut self, len: usize) -> Result<ByteBuf, EngineError> {
        let data = try_zeroed(len, "a byte buffer", &mut self.held)?;
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

    fn fill(&mut self, to: Span, value: f32) {
        self.span_mut(to).fill(value);
    }

    fn write_bytes(&mut self, to: ByteBuf, values: &[u8]) {
        self.bytes[to.0][..values.len()].copy_from_slice(values);
    }

    fn read_bytes(&mut self, from: ByteBuf, values: &mut [u8]) -> Result<(), EngineError> {
        values.copy_from_slice(&self.bytes[from.0][..values.len()]);
        Ok(())
    }

    fn read_act(&mut self, n: usize, from: Act, values: &mut [f32]) -> Result<(), EngineError> {
        values.copy_from_slice(self.act(from).images(n));
        Ok(())
    }

    fn write_act(&mut self, n: usize, to: Act, values: &[f32]) {
        self.acts[to.0].images_mut(n).copy_from_slice(values);
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Implements [`Memory`] by handing every call to the field that holds a [`HostStore`].
macro_rules! memory_from_store {
    ($engine:ty, $store:ident) => {
        impl $crate::engine::Memory for $engine {
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
            fn fill(&mut self, to: Span, value: f32) {
                self.$store.fill(to, value);
            }
            fn write_bytes(&mut self, to: ByteBuf, values: &[u8]) {
                self.$store.write_bytes(to, values);
            }
            fn read_bytes(&mut self, from: ByteBuf, values: &mut [u8]) -> Result<(), EngineError> {
                self.$store.read_bytes(from, values)
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
