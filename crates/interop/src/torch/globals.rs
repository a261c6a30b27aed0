//! The only names that a pickle of `torch.save` may mention, and what calling them builds.
//!
//! Source: PyTorch's `torch/_utils.py` and `torch/serialization.py`, numpy's `multiarray.scalar`.

use super::dtype::Dtype;
use super::value::{Id, Storage, Tensor, Value};

/// Axes of the largest tensor.
const MAX_AXES: usize = 8;
/// Bytes of the longest name of a storage or numpy type.
const MAX_NAME: usize = 64;

/// One of the allowed names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: (storage, offset, shape, stride, …)
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: the same with a dtype for storages of plain bytes
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its kind; `None` for `torch.storage.UntypedStorage`
    Storage(Option<Dtype>),
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
    /// `torch.float32` and its kind
    Dtype(Dtype),
    /// `numpy.core.multiarray.scalar`
    NumpyScalar,
    /// `numpy.dtype`
    NumpyDtype,
    /// `_codecs.encode(text, 'latin1')`: bytes of Python 3 in protocol 2
    Encode,
}

impl Global {
    /// Looks a name up.
    ///
    /// # Errors
    /// A name that is not allowed, and what to do instead.
    pub fn named(module: &str, name: &str) -> Result<Self, String> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::Storage(None)),
            ("torch", "Size") => Some(Self::Size),
            ("torch", "device") => Some(Self::Device),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Self::NumpyScalar),
            ("numpy", "dtype") => Some(Self::NumpyDtype),
            ("_codecs", "encode") => Some(Self::Encode),
            ("torch" | "torch.cuda", name) => {
                let storage = Dtype::of_storage(name).map(|dtype| Self::Storage(Some(dtype)));
                storage.or_else(|| Dtype::named(name).map(Self::Dtype))
            }
            _ => None,
        };
        found.ok_or_else(|| {
            format!(
                "`{}.{}` is asked for, which is not among the few names that tensors need, and nothing else is run or \
                 built; save model.state_dict() alone and import that",
                shown(module),
                shown(name)
            )
        })
    }
}

/// A name as messages show it: no control characters, not too long.
fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).take(80).collect()
}

/// What calling a global builds. Nothing that can be long is copied, for a pickle can name the same argument again and
/// again; what is an argument itself is [`same`]'s.
///
/// # Errors
/// Arguments that it does not take.
pub(crate) fn call(values: &mut [Value], global: Global, arguments: &[Id]) -> Result<Value, String> {
    // `OrderedDict([[key, value], …])`, as Python 2 writes it.
    if let (Global::OrderedDict, [list]) = (global, arguments)
        && let Value::List(pairs) = &mut values[*list]
    {
        let pairs = std::mem::take(pairs);
        let pair = |id: Id| match &values[id] {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
            _ => None,
        };
        let entries: Option<Vec<_>> = pairs.into_iter().map(pair).collect();
        return entries.map(Value::Dict).ok_or_else(|| "a dictionary of something that is no pair".to_owned());
    }
    let values = &*values;
    let argument = |n: usize| arguments.get(n).map(|id| &values[*id]);
    match (global, argument(0)) {
        (Global::OrderedDict, None) => Ok(Value::Dict(Vec::new())),
        (Global::RebuildTensor, Some(Value::Storage(Storage { dtype: Some(dtype), .. }))) => {
            tensor(values, *dtype, arguments)
        }
        (Global::RebuildTensorV3, Some(Value::Storage(_))) => match argument(6) {
            Some(Value::Global(Global::Dtype(dtype))) => tensor(values, *dtype, arguments),
            _ => Err("a tensor without a type".to_owned()),
        },
        (Global::Device, _) => Ok(Value::Other),
        (Global::NumpyDtype, Some(Value::Text(name))) if name.len() <= MAX_NAME => Ok(Value::NumpyDtype(name.clone())),
        (Global::NumpyScalar, Some(Value::NumpyDtype(name))) => match argument(1) {
            Some(Value::Bytes(bytes)) => numpy_scalar(name, bytes),
            _ => Err("a numpy scalar without bytes".to_owned()),
        },
        (Global::Encode, Some(Value::Text(text))) => {
            // numpy's scalars take 16 bytes at most; longer texts have no use here.
            let bytes: Option<Vec<u8>> = text.chars().take(64).map(|c| u8::try_from(u32::from(c)).ok()).collect();
            bytes.map(|bytes| Value::Bytes(bytes.into())).ok_or_else(|| "a string is not latin-1".to_owned())
        }
        _ => Err(format!("{global:?} is called with arguments that it does not take")),
    }
}

/// The argument that a call gives back as it is: a parameter is its tensor, a size its tuple.
pub(crate) fn same(values: &[Value], global: Global, arguments: &[Id]) -> Option<Id> {
    let first = *arguments.first()?;
    match (global, &values[first]) {
        (Global::RebuildParameter, Value::Tensor(_)) | (Global::Size, Value::Tuple(_)) => Some(first),
        _ => None,
    }
}

/// Checks the state of an object: nothing is kept of it.
///
/// # Errors
/// An object that has none, numbers of another byte order.
pub(crate) fn build(values: &[Value], object: Id, state: Id) -> Result<(), String> {
    match (&values[object], &values[state]) {
        // The versions of modules.
        (Value::Dict(_), Value::Dict(_)) => Ok(()),
        (Value::NumpyDtype(_), Value::Tuple(state)) => match state.get(1).map(|id| &values[*id]) {
            Some(Value::Text(order)) if matches!(&**order, "<" | "|") => Ok(()),
            _ => Err("a numpy scalar is big-endian".to_owned()),
        },
        _ => Err("a state for something that has none".to_owned()),
    }
}

/// The storage that a persistent id names: `('storage', class, key, location, length)`.
///
/// # Errors
/// Anything else.
pub(crate) fn storage(values: &[Value], id: Id) -> Result<Storage, String> {
    let Value::Tuple(parts) = &values[id] else { return Err("a persistent id that is no tuple".to_owned()) };
    let parts: Vec<&Value> = parts.iter().map(|id| &values[*id]).collect();
    let (kind, class, key, len) = match parts[..] {
        // A legacy file says of each storage whether it is a part of another, which no version has written since 0.4.
        [kind, class, key, _, len] | [kind, class, key, _, len, Value::None] => (kind, class, key, len),
        _ => return Err("a storage that is described in an unknown way".to_owned()),
    };
    match (kind, class, key, len) {
        (Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key), Value::Int(len))
            if **kind == *"storage" && key.len() <= MAX_NAME =>
        {
            let len = usize::try_from(*len).map_err(|_| "a storage of negative length")?;
            Ok(Storage { key: key.clone(), dtype: *dtype, len })
        }
        _ => Err("a storage that is described in an unknown way".to_owned()),
    }
}

fn tensor(values: &[Value], dtype: Dtype, arguments: &[Id]) -> Result<Value, String> {
    let [storage, offset, shape, stride, ..] = arguments[..] else { return Err("a tensor without a shape".to_owned()) };
    let (shape, stride) = (axes(values, shape)?, axes(values, stride)?);
    let offset = match &values[offset] {
        Value::Int(offset) => usize::try_from(*offset).ok(),
        _ => None,
    };
    let offset = offset.ok_or("a tensor without an offset")?;
    if shape.len() != stride.len() || shape.len() > MAX_AXES {
        return Err(format!("a tensor of shape {shape:?} with strides {stride:?}"));
    }
    Ok(Value::Tensor(Tensor { storage, dtype, offset, shape, stride }))
}

fn axes(values: &[Value], id: Id) -> Result<Vec<usize>, String> {
    let (Value::Tuple(ids) | Value::List(ids)) = &values[id] else { return Err("a shape that is no tuple".to_owned()) };
    let axis = |id: &Id| match &values[*id] {
        Value::Int(n) => usize::try_from(*n).map_err(|_| format!("a shape or stride of {n}")),
        _ => Err("a shape that holds no numbers".to_owned()),
    };
    ids.iter().take(MAX_AXES + 1).map(axis).collect()
}

fn numpy_scalar(dtype: &str, bytes: &[u8]) -> Result<Value, String> {
    match (dtype, bytes) {
        ("f8", &[a, b, c, d, e, f, g, h]) => Ok(Value::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h]))),
        ("f4", &[a, b, c, d]) => Ok(Value::Float(f64::from(f32::from_le_bytes([a, b, c, d])))),
        ("i8", &[a, b, c, d, e, f, g, h]) => Ok(Value::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h]))),
        ("i4", &[a, b, c, d]) => Ok(Value::Int(i64::from(i32::from_le_bytes([a, b, c, d])))),
        ("b1", &[byte]) => Ok(Value::Bool(byte != 0)),
        _ => Err(format!("a numpy scalar of type {} in {} bytes", shown(dtype), bytes.len())),
    }
}
