//! A checkpoint's backbone as an ONNX model, from the network's own node list.
//!
//! Source: the operators' definitions in ONNX's `Operators.md`, operator set 17. The input is pixels in [0, 1]; mean and
//! standard deviation are subtracted and divided by inside. Batch norms stay nodes of their own rather than being folded into the
//! convolutions: so the weights are those of the checkpoint to the bit, pruned zeros included, under the names that the
//! other exports use, and runtimes fold them on loading. The bytes depend on the content alone.

mod proto;

use crate::export::{
    CLASSIFIER, ExportError, ExportHead, ExportOptions, ExportSummary, IMAGENET_MEAN, IMAGENET_STD, described,
    floats_of, metadata,
};
use crate::names::{Branch, torchvision_name};
use prost::Message as _;
use proto::{
    AttributeProto, FLOAT, GraphProto, IR_VERSION, ModelProto, NodeProto, OPSET, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use sdclr_nn::Network;
use sdclr_nn::graph::{Node, NormId, Op, ParamId, ValueId};
use sdclr_nn::model::torch_shape;
use sdclr_nn::pass::BN_EPS;
use sdclr_records::checkpoint::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// The model's input.
const IMAGES: &str = "images";
/// The output with the backbone's features.
const FEATURES: &str = "features";
/// The output with the projection head's embedding.
const EMBEDDING: &str = "embedding";
/// The output with the classifier's logits.
const LOGITS: &str = "logits";
/// Readers of protocol buffers take 2 GiB at most.
const LARGEST_FILE: usize = i32::MAX as usize;

/// The bytes of an ONNX model of one branch in evaluation mode.
///
/// Input `images`: f32 `[batch, 3, H, W]`, RGB, pixels in [0, 1], H and W as `network` was built. Output `features`: f32
/// `[batch, C]`; with the projection head also `embedding` `[batch, D]`, not divided by its length, or with a classifier, which
/// `network` then has, `logits` `[batch, classes]`. Initialisers have the names of [`crate::export_safetensors`]; the metadata hold
/// what its metadata hold.
///
/// # Errors
/// [`ExportError`]: tensors that are not those of `network`, no mask for the pruned branch, no head, more than 2 GiB.
pub fn export_onnx(
    tensors: &BTreeMap<String, Tensor>,
    network: &Network,
    options: &ExportOptions,
) -> Result<Vec<u8>, ExportError> {
    let has_head = options.head != ExportHead::None;
    if has_head && network.output == network.feature {
        return Err(ExportError::NoHead);
    }
    let last = if has_head { network.output } else { network.feature };
    let mut writer = Writer::new(tensors, network, options);
    writer.normalize();
    for node in &network.nodes[..network.nodes_until(last)] {
        writer.node(node)?;
    }
    let line = |(key, value): (&str, String)| StringStringEntryProto { key: key.to_owned(), value };
    let metadata_props = metadata(options).into_iter().map(line).collect();
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "sdclr".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(writer.finish(last)),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props,
    };
    check_size(model.encoded_len())?;
    Ok(model.encode_to_vec())
}

/// Tells a model of [`export_onnx`] from other ONNX files; `None` for those.
pub fn onnx_summary(bytes: &[u8]) -> Option<ExportSummary> {
    let model = ModelProto::decode(bytes).ok()?;
    let graph = model.graph.as_ref()?;
    let value = |key: &str| Some(model.metadata_props.iter().find(|line| line.key == key)?.value.clone());
    let floats = || graph.initializer.iter().filter(|tensor| tensor.data_type == FLOAT);
    let summary = described(value)?;
    Some(ExportSummary {
        n_tensors: floats().count(),
        n_values: floats().map(|tensor| tensor.raw_data.len() / 4).sum(),
        with_head: graph.output.iter().any(|output| output.name == EMBEDDING),
        n_classes: graph.output.iter().any(|output| output.name == LOGITS).then(|| {
            let bias = graph.initializer.iter().find(|tensor| tensor.name == CLASSIFIER[1]);
            bias.map_or(0, |bias| bias.raw_data.len() / 4)
        }),
        ..summary
    })
}

fn check_size(bytes: usize) -> Result<(), ExportError> {
    if bytes > LARGEST_FILE { Err(ExportError::TooLarge { bytes }) } else { Ok(()) }
}

/// A graph in the making.
struct Writer<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    network: &'a Network,
    options: &'a ExportOptions,
    /// The name of each value that has one by now.
    values: Vec<Option<String>>,
    /// The nodes' names.
    taken: BTreeSet<String>,
    graph: GraphProto,
}

impl<'a> Writer<'a> {
    fn new(tensors: &'a BTreeMap<String, Tensor>, network: &'a Network, options: &'a ExportOptions) -> Self {
        let graph = GraphProto { name: options.model.clone(), ..GraphProto::default() };
        let taken = BTreeSet::new();
        Self { tensors, network, options, values: vec![None; network.values.len()], taken, graph }
    }

    /// `(images − mean) / std` becomes the network's input.
    fn normalize(&mut self) {
        let mut constant = |name: &str, values: [f64; 3]| {
            let values = values.map(|value| value as f32);
            self.graph.initializer.push(TensorProto::floats(name.to_owned(), &[1, 3, 1, 1], &values));
            name.to_owned()
        };
        let (mean, std) = (constant("normalize.mean", IMAGENET_MEAN), constant("normalize.std", IMAGENET_STD));
        let centred = self.push("Sub", "normalize.sub", vec![IMAGES.to_owned(), mean], vec![]);
        let scaled = self.push("Div", "normalize.div", vec![centred, std], vec![]);
        self.values[self.network.input.0] = Some(scaled);
    }

    /// Appends what one node of the network computes.
    fn node(&mut self, node: &Node) -> Result<(), ExportError> {
        let y = match node.op {
            Op::Conv { x, weight, shape } => {
                let side = |length: usize, n| vec![length as i64; n];
                let attributes = vec![
                    AttributeProto::ints("kernel_shape", &side(shape.kernel, 2)),
                    AttributeProto::ints("pads", &side(shape.pad, 4)),
                    AttributeProto::ints("strides", &side(shape.stride, 2)),
                ];
                let weight = self.param(weight)?;
                self.push("Conv", owner(&weight), vec![self.value(x), weight.clone()], attributes)
            }
            Op::Norm { x, norm, residual, relu } => self.norm(x, norm, residual, relu)?,
            Op::MaxPool { x } => {
                let attributes = vec![
                    AttributeProto::ints("kernel_shape", &[3, 3]),
                    AttributeProto::ints("pads", &[1; 4]),
                    AttributeProto::ints("strides", &[2, 2]),
                ];
                self.push("MaxPool", "maxpool", vec![self.value(x)], attributes)
            }
            Op::AvgPool { x } => {
                let pooled = self.push("GlobalAveragePool", "avgpool", vec![self.value(x)], vec![]);
                self.push("Flatten", "flatten", vec![pooled], vec![AttributeProto::int("axis", 1)])
            }
            Op::Shortcut { x } => self.shortcut(x, node.y),
            Op::Concat { parts } => {
                let inputs = parts.into_iter().flatten().map(|x| self.value(x)).collect();
                self.push("Concat", "concat", inputs, vec![AttributeProto::int("axis", 1)])
            }
            Op::Linear { x, weight, bias } => {
                let weight = self.param(weight)?;
                let mut inputs = vec![self.value(x), weight.clone()];
                if let Some(bias) = bias {
                    inputs.push(self.param(bias)?);
                }
                self.push("Gemm", owner(&weight), inputs, vec![AttributeProto::int("transB", 1)])
            }
        };
        let is_output = node.y == self.network.feature || node.y == self.network.output;
        let y = if is_output { self.rename_last(node.y) } else { y };
        self.values[node.y.0] = Some(y);
        Ok(())
    }

    fn norm(&mut self, x: ValueId, norm: NormId, residual: Option<ValueId>, relu: bool) -> Result<String, ExportError> {
        let norm = &self.network.norms[norm.0];
        let set = norm.set(usize::from(self.options.branch == Branch::Pruned));
        let gamma = self.param(set.gamma)?;
        let mut inputs = vec![self.value(x), gamma.clone(), self.param(set.beta)?];
        for kind in ["running_mean", "running_var"] {
            inputs.push(self.initializer(&format!("{}.{kind}", set.name), &[norm.channels])?);
        }
        let name = owner(&gamma);
        let mut y = self.push("BatchNormalization", name, inputs, vec![AttributeProto::float("epsilon", BN_EPS)]);
        if let Some(residual) = residual {
            y = self.push("Add", &format!("{name}.add"), vec![y, self.value(residual)], vec![]);
        }
        if relu {
            y = self.push("Relu", &format!("{name}.relu"), vec![y], vec![]);
        }
        Ok(y)
    }

    /// Shortcut A: every second pixel, and as many zero channels before as after.
    fn shortcut(&mut self, x: ValueId, y: ValueId) -> String {
        // It has no tensor to be named after; the batch norm that adds it has.
        let adds = |node: &&Node| matches!(node.op, Op::Norm { residual: Some(added), .. } if added == y);
        let name = match self.network.nodes.iter().find(adds).map(|node| node.op) {
            Some(Op::Norm { norm, .. }) => format!("{}.shortcut", owner(&self.network.norms[norm.0].name)),
            _ => "shortcut".to_owned(),
        };
        let mut constant = |part: &str, values: &[i64]| {
            let name = format!("{name}.{part}");
            self.graph.initializer.push(TensorProto::ints(name.clone(), values));
            name
        };
        let bounds = [
            constant("starts", &[0, 0]),
            // To the end; some runtimes keep 32 bits of an index.
            constant("ends", &[i64::from(i32::MAX); 2]),
            constant("axes", &[2, 3]),
            constant("steps", &[2, 2]),
        ];
        let (cin, cout) = (self.network.dims(x).c as i64, self.network.dims(y).c as i64);
        let before = (cout - cin) / 2;
        let pads = constant("pads", &[0, before, 0, 0, 0, cout - cin - before, 0, 0]);
        let inputs = std::iter::once(self.value(x)).chain(bounds).collect();
        let halved = self.push("Slice", &format!("{name}.slice"), inputs, vec![]);
        self.push("Pad", &format!("{name}.pad"), vec![halved, pads], vec![])
    }

    /// Appends a node and returns its output's name: the node's, with an ending, for some runtimes keep one list of the names
    /// of nodes and values.
    fn push(&mut self, op_type: &str, name: &str, input: Vec<String>, attribute: Vec<AttributeProto>) -> String {
        let mut unique = name.to_owned();
        let mut number = 1;
        while !self.taken.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}.{number}");
        }
        let output = format!("{unique}.output");
        let (name, op_type) = (unique, op_type.to_owned());
        self.graph.node.push(NodeProto { input, output: vec![output.clone()], name, op_type, attribute });
        output
    }

    /// Gives the last node's output the name of the model's output that `y` is.
    fn rename_last(&mut self, y: ValueId) -> String {
        let name = match self.options.head {
            _ if y == self.network.feature => FEATURES,
            ExportHead::Classifier { .. } => LOGITS,
            ExportHead::None | ExportHead::Projection => EMBEDDING,
        };
        if let Some(node) = self.graph.node.last_mut() {
            node.output = vec![name.to_owned()];
        }
        name.to_owned()
    }

    fn value(&self, value: ValueId) -> String {
        // Nodes are in execution order, so that what a node reads has its name by then.
        self.values[value.0].clone().unwrap_or_default()
    }

    fn param(&mut self, param: ParamId) -> Result<String, ExportError> {
        let param = &self.network.params[param.0];
        self.initializer(&param.name, &torch_shape(param))
    }

    /// Adds a tensor of the checkpoint, unless it is there, and returns its name for others.
    fn initializer(&mut self, name: &str, shape: &[usize]) -> Result<String, ExportError> {
        let branch = self.options.branch;
        let exported = torchvision_name(name, branch, true).unwrap_or_else(|| name.to_owned());
        if self.graph.initializer.iter().all(|tensor| tensor.name != exported) {
            let tensor = self.tensors.get(name).ok_or_else(|| ExportError::Missing(name.to_owned()))?;
            if tensor.shape != shape {
                let (name, found, expected) = (name.to_owned(), tensor.shape.clone(), shape.to_vec());
                return Err(ExportError::OtherShape { name, found, expected });
            }
            let values = floats_of(self.tensors, name, tensor, branch)?;
            self.graph.initializer.push(TensorProto::floats(exported.clone(), shape, &values));
        }
        Ok(exported)
    }

    /// Declares input and outputs.
    fn finish(mut self, last: ValueId) -> GraphProto {
        let network = self.network;
        let input = network.dims(network.input);
        let about = "RGB, pixels in [0, 1]; normalised inside";
        self.graph.input.push(ValueInfoProto::batch_of_floats(IMAGES, &[input.c, input.h, input.w], about));
        let mut output = |name: &str, value: ValueId, about: &str| {
            self.graph.output.push(ValueInfoProto::batch_of_floats(name, &[network.dims(value).c], about));
        };
        output(FEATURES, network.feature, "the backbone's pooled features");
        match self.options.head {
            ExportHead::None => {}
            ExportHead::Projection => {
                output(EMBEDDING, last, "the projection head's embedding, not divided by its length");
            }
            ExportHead::Classifier { .. } => output(LOGITS, last, "the classifier's logits, one a class"),
        }
        self.graph
    }
}

/// `layer1.0.conv1` of `layer1.0.conv1.weight`, `layer1.0` of `layer1.0.bn2`.
fn owner(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(owner, _)| owner)
}

#[cfg(test)]
#[path = "onnx_tests.rs"]
mod tests;
