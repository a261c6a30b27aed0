//! The few messages of ONNX's schema that a backbone needs, as prost encodes and decodes them.
//!
//! Source of names and field numbers: `onnx/onnx.proto3` of the ONNX project, IR version 8. Fields that are left out here are
//! optional there; where the schema has a `oneof`, the one variant needed is an optional field, which is the same on
//! the wire. Scalars whose presence readers check (an attribute's value) are `Option`s, so that zeros are written too. Lists
//! of integers are not packed: ONNX's own writers follow `onnx.proto`, where they are not, and not every reader takes both.

use prost::Message;

/// Version of the intermediate representation; operator set 17 came with it.
pub const IR_VERSION: i64 = 8;
/// Version of the operators' definitions.
pub const OPSET: i64 = 17;
/// `TensorProto.DataType.FLOAT`.
pub const FLOAT: i32 = 1;
/// `TensorProto.DataType.INT64`.
pub const INT64: i32 = 7;

/// A file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Which version of a domain's operators is meant; the empty domain is ONNX's own.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// One line of metadata.
#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes in execution order, and the constants that they read.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// An operation; values are known by name.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
}

/// A constant of an operation: exactly one of `f`, `i` and `ints` is used, as `type` says.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

impl AttributeProto {
    /// A float.
    pub fn float(name: &str, f: f32) -> Self {
        // AttributeType.FLOAT
        Self { name: name.to_owned(), f: Some(f), r#type: 1, ..Self::default() }
    }

    /// An integer.
    pub fn int(name: &str, i: i64) -> Self {
        // AttributeType.INT
        Self { name: name.to_owned(), i: Some(i), r#type: 2, ..Self::default() }
    }

    /// A list of integers.
    pub fn ints(name: &str, ints: &[i64]) -> Self {
        // AttributeType.INTS
        Self { name: name.to_owned(), ints: ints.to_vec(), r#type: 7, ..Self::default() }
    }
}

/// A tensor: little-endian values in row-major order.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

impl TensorProto {
    /// A tensor of 32-bit floats.
    pub fn floats(name: String, shape: &[usize], values: &[f32]) -> Self {
        let dims = shape.iter().map(|&axis| axis as i64).collect();
        Self { dims, data_type: FLOAT, name, raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    /// A vector of 64-bit integers.
    pub fn ints(name: String, values: &[i64]) -> Self {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dims: vec![values.len() as i64], data_type: INT64, name, raw_data }
    }
}

/// Name and type of an input or output.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    #[prost(string, tag = "3")]
    pub doc_string: String,
}

/// A type; of its variants only tensors.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// The length of each axis.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// `TensorShapeProto.Dimension`: a number, or a name for what is known only when the model runs.
#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

impl ValueInfoProto {
    /// A tensor of 32-bit floats `[batch, axes…]` with any number of images.
    pub fn batch_of_floats(name: &str, axes: &[usize], doc_string: &str) -> Self {
        let batch = DimensionProto { dim_param: Some("batch".to_owned()), dim_value: None };
        let axes = axes.iter().map(|&axis| DimensionProto { dim_value: Some(axis as i64), dim_param: None });
        let shape = TensorShapeProto { dim: std::iter::once(batch).chain(axes).collect() };
        let tensor_type = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
        Self {
            name: name.to_owned(),
            r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
            doc_string: doc_string.to_owned(),
        }
    }
}
