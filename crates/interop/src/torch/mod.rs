//! A reader of the files of `torch.save`: the zip container, the legacy one, and the tensors in either.
//!
//! Nothing in a file is ever run: [`pickle`] knows a short list of opcodes and [`globals`] a short list of names, and
//! whatever else a file asks for is refused. Tensors are read when their values are asked for.

mod container;
mod dtype;
mod globals;
mod pickle;
mod value;

pub(crate) use container::MAX_EXPANSION;
pub(crate) use dtype::Dtype;
pub(crate) use value::{Id, Pickle, Tensor, Value};

use crate::error::ImportError;
use container::Container;
use std::fs::File;
use value::Storage;

/// An open file of `torch.save`.
#[derive(Debug)]
pub(crate) struct TorchFile {
    /// Its content but for the values of tensors.
    pub pickle: Pickle,
    container: Container,
    /// The storage that was read last: tensors that share one are often neighbours.
    last: Option<(Storage, Vec<u8>)>,
    /// Bytes of values that may still be handed out, so that a small file cannot fill the memory by naming the same
    /// storage again and again.
    budget: u64,
}

impl TorchFile {
    /// Reads everything but the tensors' values; `None` if the file begins like neither container.
    ///
    /// # Errors
    /// A file that is damaged, or asks for what is not allowed.
    pub fn open(file: File) -> Result<Option<Self>, ImportError> {
        // The values of a bfloat16 take twice their place in the file; deflated masks more.
        let budget = file.metadata()?.len().saturating_mul(MAX_EXPANSION);
        let opened = container::open(file)?;
        Ok(opened.map(|(container, pickle)| Self { pickle, container, last: None, budget }))
    }

    /// A tensor by its value's place.
    pub fn tensor(&self, id: Id) -> Option<&Tensor> {
        if let Value::Tensor(tensor) = self.pickle.value(id) { Some(tensor) } else { None }
    }

    /// The values of a tensor in row-major order, as 32-bit floats.
    ///
    /// # Errors
    /// A storage that is damaged or too short for the tensor.
    pub fn values(&mut self, tensor: &Tensor) -> Result<Vec<f32>, ImportError> {
        let Value::Storage(storage) = self.pickle.value(tensor.storage) else {
            return Err(ImportError::Damaged("a tensor without a storage".to_owned()));
        };
        let storage = storage.clone();
        let n_bytes = storage.n_bytes().unwrap_or(0);
        let n = checked_len(tensor, n_bytes / tensor.dtype.size()).map_err(ImportError::Damaged)?;
        self.budget = self.budget.checked_sub(n as u64 * size_of::<f32>() as u64).ok_or_else(|| {
            ImportError::Damaged(format!("its tensors take more than {MAX_EXPANSION} times the file's length"))
        })?;
        if self.last.as_ref().is_none_or(|(last, _)| *last != storage) {
            self.last = None;
            self.last = Some((storage.clone(), self.container.read(&storage)?));
        }
        let bytes = self.last.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        Ok(gather(tensor, n, bytes))
    }
}

/// The number of values of a tensor whose storage has `storage_len`, every one of which lies inside.
///
/// A tensor with more values than its storage (an expanded one) is refused: no network's weights are such.
fn checked_len(tensor: &Tensor, storage_len: usize) -> Result<usize, String> {
    let misfit = || {
        format!(
            "a tensor of shape {:?}, strides {:?} and offset {} does not fit its storage of {storage_len} values",
            tensor.shape, tensor.stride, tensor.offset
        )
    };
    if tensor.shape.contains(&0) {
        return Ok(0);
    }
    let (mut n, mut last) = (1usize, tensor.offset);
    for (axis, stride) in tensor.shape.iter().zip(&tensor.stride) {
        n = n.checked_mul(*axis).ok_or_else(misfit)?;
        let reach = (axis - 1).checked_mul(*stride).ok_or_else(misfit)?;
        last = last.checked_add(reach).ok_or_else(misfit)?;
    }
    if n <= storage_len && last < storage_len { Ok(n) } else { Err(misfit()) }
}

/// The `n` values of a tensor that [`checked_len`] found to lie inside `bytes`.
fn gather(tensor: &Tensor, n: usize, bytes: &[u8]) -> Vec<f32> {
    let Tensor { dtype, shape, stride, .. } = tensor;
    let size = dtype.size();
    let mut values = Vec::with_capacity(n);
    let mut index = vec![0; shape.len()];
    let mut at = tensor.offset;
    for _ in 0..n {
        values.push(dtype.read(&bytes[at * size..]));
        // The next index in row-major order, and where it lies.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += stride[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= stride[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    values
}

#[cfg(test)]
mod tests;
