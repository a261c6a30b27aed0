//! What a pickle of `torch.save` is made of.

use super::dtype::Dtype;
use super::globals::Global;

/// The place of a value in its pickle.
pub(crate) type Id = usize;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// In order; a key that comes twice keeps its last value.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// numpy's dtype of a scalar, such as `f8`.
    NumpyDtype(Box<str>),
    Storage(Storage),
    Tensor(Tensor),
    /// Something without a use here: a device.
    Other,
}

/// Where values lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Its name in the file.
    pub key: Box<str>,
    /// The type of its values; `None` for plain bytes.
    pub dtype: Option<Dtype>,
    /// Number of values, or bytes.
    pub len: usize,
}

impl Storage {
    /// Bytes of the whole; `None` if that is no number.
    pub fn n_bytes(&self) -> Option<usize> {
        self.len.checked_mul(self.dtype.map_or(1, Dtype::size))
    }
}

/// A view on a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub storage: Id,
    pub dtype: Dtype,
    /// First value, counted in values.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Values from one entry of an axis to the next.
    pub stride: Vec<usize>,
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub values: Vec<Value>,
    pub root: Id,
}

impl Pickle {
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The entries of a dictionary; none of anything else.
    pub fn entries(&self, id: Id) -> &[(Id, Id)] {
        if let Value::Dict(entries) = &self.values[id] { entries } else { &[] }
    }

    /// The value of a text key of a dictionary.
    pub fn get(&self, dict: Id, key: &str) -> Option<Id> {
        self.entries(dict).iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = &self.values[id] { Some(text) } else { None }
    }
}
