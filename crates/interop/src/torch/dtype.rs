//! The types of values that a storage can hold, and how their little-endian bytes become numbers.

use half::{bf16, f16};
use std::fmt;

/// A type of values. Complex, quantised and 8-bit floating types are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

/// PyTorch's name of a type, and the class of the storages that hold it (new types have none).
const NAMES: &[(Dtype, &str, &str)] = &[
    (Dtype::F64, "float64", "DoubleStorage"),
    (Dtype::F32, "float32", "FloatStorage"),
    (Dtype::F16, "float16", "HalfStorage"),
    (Dtype::Bf16, "bfloat16", "BFloat16Storage"),
    (Dtype::I64, "int64", "LongStorage"),
    (Dtype::I32, "int32", "IntStorage"),
    (Dtype::I16, "int16", "ShortStorage"),
    (Dtype::I8, "int8", "CharStorage"),
    (Dtype::U64, "uint64", ""),
    (Dtype::U32, "uint32", ""),
    (Dtype::U16, "uint16", ""),
    (Dtype::U8, "uint8", "ByteStorage"),
    (Dtype::Bool, "bool", "BoolStorage"),
];

impl Dtype {
    /// From PyTorch's name, as in `torch.float32`.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known, _)| *known == name).map(|(dtype, ..)| *dtype)
    }

    /// From the name of a storage class, as in `torch.FloatStorage`.
    pub fn of_storage(class: &str) -> Option<Self> {
        NAMES.iter().find(|(_, _, known)| !known.is_empty() && *known == class).map(|(dtype, ..)| *dtype)
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether values are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// One value from exactly [`Self::size`] bytes; 64-bit numbers are rounded.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn read(self, bytes: &[u8]) -> f32 {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            std::array::from_fn(|i| bytes[i])
        }
        match self {
            Self::F64 => f64::from_le_bytes(array(bytes)) as f32,
            Self::F32 => f32::from_le_bytes(array(bytes)),
            Self::F16 => f16::from_le_bytes(array(bytes)).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(array(bytes)).to_f32(),
            Self::I64 => i64::from_le_bytes(array(bytes)) as f32,
            Self::I32 => i32::from_le_bytes(array(bytes)) as f32,
            Self::I16 => f32::from(i16::from_le_bytes(array(bytes))),
            Self::I8 => f32::from(i8::from_le_bytes(array(bytes))),
            Self::U64 => u64::from_le_bytes(array(bytes)) as f32,
            Self::U32 => u32::from_le_bytes(array(bytes)) as f32,
            Self::U16 => f32::from(u16::from_le_bytes(array(bytes))),
            Self::U8 | Self::Bool => f32::from(bytes[0]),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = NAMES.iter().find(|(dtype, ..)| dtype == self);
        f.write_str(found.map_or("?", |(_, name, _)| name))
    }
}
