//! Tests of what an ONNX file holds; that other programs compute the same from it is `tests/onnx_runtime.rs`'s matter.

use super::*;
use crate::export_safetensors;
use safetensors::tensor::SafeTensors;
use sdclr_nn::{Head, NetworkSpec};

fn network(model: &str, small_stem: bool, dual_bn: bool, head: Head) -> Network {
    let spec = NetworkSpec { model: model.into(), image_size: 16, small_stem, base_width: 4, dual_bn, head };
    spec.build().expect("a network")
}

/// A tensor for every parameter, statistic and mask of a network; each float is another.
fn tensors(network: &Network) -> BTreeMap<String, Tensor> {
    let mut n_floats = 0;
    let mut floats = |shape: &[usize]| {
        let len: usize = shape.iter().product();
        n_floats += len;
        Tensor::f32(shape, (n_floats - len..n_floats).map(|i| i as f32).collect())
    };
    let mut tensors = BTreeMap::new();
    for param in &network.params {
        tensors.insert(param.name.clone(), floats(&torch_shape(param)));
    }
    for norm in &network.norms {
        for name in norm.sets.iter().flat_map(|set| ["mean", "var"].map(|kind| format!("{}.running_{kind}", set.name)))
        {
            tensors.insert(name, floats(&[norm.channels]));
        }
    }
    for param in network.prunable() {
        let mask = (0..param.len).map(|i| u8::from(i % 3 == 0)).collect();
        tensors.insert(format!("mask.{}", param.name), Tensor::u8(&torch_shape(param), mask));
    }
    tensors
}

fn options(branch: Branch, with_head: bool) -> ExportOptions {
    let head = if with_head { ExportHead::Projection } else { ExportHead::None };
    ExportOptions { branch, head, model: "resnet10".to_owned(), stem: "small".to_owned(), image_size: 16, epoch: 7 }
}

fn export(network: &Network, branch: Branch, with_head: bool) -> ModelProto {
    let bytes = export_onnx(&tensors(network), network, &options(branch, with_head)).expect("exports");
    ModelProto::decode(&bytes[..]).expect("a message")
}

fn graph(model: &ModelProto) -> &GraphProto {
    model.graph.as_ref().expect("a graph")
}

fn axes(value: &ValueInfoProto) -> Vec<String> {
    let tensor = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).expect("a tensor");
    assert_eq!(tensor.elem_type, 1);
    let axis = |dim: &proto::DimensionProto| match (&dim.dim_param, dim.dim_value) {
        (Some(name), None) => name.clone(),
        (None, Some(length)) => length.to_string(),
        _ => panic!("a name or a length: {dim:?}"),
    };
    tensor.shape.as_ref().expect("a shape").dim.iter().map(axis).collect()
}

const PROJECTION: Head = Head::Projection { layers: 2, dim: 6 };

#[test]
fn input_and_outputs_are_declared() {
    let network = network("resnet10", true, true, PROJECTION);
    let model = export(&network, Branch::Dense, true);
    let declared = |values: &[ValueInfoProto]| {
        values.iter().map(|value| format!("{} {}", value.name, axes(value).join(" "))).collect::<Vec<_>>()
    };
    assert_eq!(declared(&graph(&model).input), ["images batch 3 16 16"]);
    assert_eq!(declared(&graph(&model).output), ["features batch 32", "embedding batch 6"]);
    let without = export(&network, Branch::Dense, false);
    assert_eq!(declared(&graph(&without).output), ["features batch 32"]);
    assert!(graph(&without).initializer.iter().all(|tensor| !tensor.name.contains("projection_head")));
    let network = self::network("resnet10", true, true, Head::Classifier { n_classes: 9 });
    let head = ExportHead::Classifier { class_names: vec!["owl".to_owned()] };
    let options = ExportOptions { head, ..options(Branch::Dense, false) };
    let bytes = export_onnx(&tensors(&network), &network, &options).expect("exports");
    let classifier = ModelProto::decode(&bytes[..]).expect("valid");
    assert_eq!(declared(&graph(&classifier).output), ["features batch 32", "logits batch 9"]);
    assert_eq!(classifier.metadata_props.last().map(|line| line.value.as_str()), Some("[\"owl\"]"));
    assert_eq!(onnx_summary(&bytes).and_then(|summary| summary.n_classes), Some(9));
    assert_eq!((model.ir_version, model.opset_import[0].version), (8, 17));
}

#[test]
fn the_file_says_what_it_is() {
    let model = export(&network("resnet10", true, true, PROJECTION), Branch::Pruned, false);
    let lines: Vec<String> = model.metadata_props.iter().map(|p| format!("{}={}", p.key, p.value)).collect();
    let expected = [
        "model=resnet10",
        "stem=small",
        "branch=pruned",
        "epoch=7",
        "image_size=16",
        "mean=[0.485,0.456,0.406]",
        "std=[0.229,0.224,0.225]",
    ];
    assert_eq!(lines, expected);
    assert_eq!((model.producer_name.as_str(), model.producer_version.as_str()), ("sdclr", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_model_of_ours_is_told_from_others() {
    let network = network("resnet10", true, true, PROJECTION);
    let bytes = export_onnx(&tensors(&network), &network, &options(Branch::Pruned, true)).expect("exports");
    let summary = onnx_summary(&bytes).expect("ours");
    let words = (summary.model.as_str(), summary.stem.as_str(), summary.branch.as_str());
    assert_eq!((words, summary.with_head), (("resnet10", "small", "pruned"), true));
    // One branch's norms, two values each that are no parameters, and mean and standard deviation of the pixels.
    let norms: usize = network.norms.iter().map(|norm| norm.channels).sum();
    assert_eq!(summary.n_values, network.n_params() - 2 * norms + 2 * norms + 6);
    let mut other = ModelProto::decode(&bytes[..]).expect("a message");
    other.metadata_props.clear();
    assert_eq!(onnx_summary(&other.encode_to_vec()), None);
    assert_eq!(onnx_summary(b"other"), None);
}

#[test]
fn values_and_nodes_have_one_name_each_and_are_made_before_they_are_read() {
    for (name, small) in [("resnet10", true), ("resnet50", false), ("resnet32s", true), ("resnet32s-ride", true)] {
        let model = export(&network(name, small, true, PROJECTION), Branch::Dense, true);
        let mut known: BTreeSet<&str> = BTreeSet::from(["images"]);
        for tensor in &graph(&model).initializer {
            assert!(known.insert(&tensor.name), "{} twice", tensor.name);
        }
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for node in &graph(&model).node {
            assert!(node.input.iter().all(|input| known.contains(input.as_str())), "{node:?}");
            assert!(node.output.iter().all(|output| known.insert(output)), "{node:?}");
            assert!(names.insert(node.name.as_str()), "{node:?}");
        }
        assert!(names.is_disjoint(&known), "some runtimes keep one list of the names of nodes and values");
        assert!(["features", "embedding"].iter().all(|output| known.contains(output)), "{name}");
    }
}

#[test]
fn nodes_are_named_after_the_layers_they_come_from() {
    let model = export(&network("resnet10", false, true, PROJECTION), Branch::Dense, true);
    let nodes: Vec<String> = graph(&model).node.iter().map(|node| format!("{} {}", node.op_type, node.name)).collect();
    let block = "Conv layer2.0.conv1|BatchNormalization layer2.0.bn1|Relu layer2.0.bn1.relu|Conv layer2.0.conv2|\
                 Conv layer2.0.downsample.0|BatchNormalization layer2.0.downsample.1|BatchNormalization layer2.0.bn2|\
                 Add layer2.0.bn2.add|Relu layer2.0.bn2.relu";
    let text = nodes.join("|");
    assert!(text.starts_with("Sub normalize.sub|Div normalize.div|Conv conv1|"), "{text}");
    assert!(text.contains("Relu bn1.relu|MaxPool maxpool|"), "{text}");
    assert!(text.contains(block), "{text}");
    let head = "GlobalAveragePool avgpool|Flatten flatten|Gemm projection_head.fc1|BatchNormalization projection_head.bn1|\
                Relu projection_head.bn1.relu|Gemm projection_head.fc2|BatchNormalization projection_head.bn2";
    assert!(text.ends_with(head), "{text}");
}

#[test]
fn shortcut_a_halves_the_map_and_pads_channels_on_both_sides() {
    let model = export(&network("resnet32s", true, false, Head::None), Branch::Dense, false);
    let constant = |name: &str| {
        let tensor = graph(&model).initializer.iter().find(|tensor| tensor.name == name).expect(name);
        assert_eq!((tensor.data_type, tensor.dims[0] as usize * 8), (7, tensor.raw_data.len()), "{name}");
        let numbers = tensor.raw_data.chunks_exact(8);
        numbers.map(|b| i64::from_le_bytes(*b.first_chunk().expect("8 bytes"))).collect::<Vec<_>>()
    };
    assert_eq!(constant("layer2.0.shortcut.steps"), [2, 2]);
    assert_eq!(constant("layer2.0.shortcut.axes"), [2, 3]);
    assert_eq!(constant("layer2.0.shortcut.pads"), [0, 2, 0, 0, 0, 2, 0, 0]);
    assert_eq!(constant("layer3.0.shortcut.pads"), [0, 4, 0, 0, 0, 4, 0, 0]);
    let adds = |node: &&NodeProto| node.name == "layer2.0.bn2.add";
    let add = graph(&model).node.iter().find(adds).expect("there");
    assert_eq!(add.input, ["layer2.0.bn2.output", "layer2.0.shortcut.pad.output"]);
}

#[test]
fn initialisers_are_the_tensors_of_the_safetensors_export() {
    for (branch, dual_bn) in [(Branch::Dense, true), (Branch::Pruned, true), (Branch::Pruned, false)] {
        let network = network("resnet10", true, dual_bn, PROJECTION);
        let bytes = export_safetensors(&tensors(&network), &options(branch, true)).expect("exports");
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        let model = export(&network, branch, true);
        let own = ["normalize.mean", "normalize.std"];
        let initializers = &graph(&model).initializer;
        let shared: Vec<_> = initializers.iter().filter(|tensor| !own.contains(&tensor.name.as_str())).collect();
        assert_eq!(shared.len(), file.len());
        for tensor in shared {
            let expected = file.tensor(&tensor.name).expect(&tensor.name);
            assert_eq!(tensor.raw_data, expected.data(), "{}", tensor.name);
            assert_eq!(tensor.dims, expected.shape().iter().map(|&axis| axis as i64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn equal_models_are_equal_bytes() {
    let network = network("resnet32s", true, true, PROJECTION);
    let bytes = || export_onnx(&tensors(&network), &network, &options(Branch::Pruned, true)).expect("exports");
    assert_eq!(bytes(), bytes());
}

#[test]
fn zeros_are_written_where_readers_check_that_a_value_is_there() {
    let model = NodeProto { attribute: vec![AttributeProto::int("axis", 0)], ..NodeProto::default() };
    // Field 3, a varint, of value 0; field 20 (two bytes of key), 2 for INT.
    assert!(model.encode_to_vec().ends_with(&[0x18, 0, 0xa0, 0x01, 2]), "{:?}", model.encode_to_vec());
}

#[test]
fn what_cannot_be_exported_is_named() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut BTreeMap<String, Tensor>), branch: Branch, expected: &str) {
        let network = network("resnet10", true, true, PROJECTION);
        let mut tensors = tensors(&network);
        change(&mut tensors);
        let error = export_onnx(&tensors, &network, &options(branch, false)).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    check(|t| drop(t.remove("bn1.dense.running_var")), Branch::Dense, "no tensor `bn1.dense.running_var`");
    check(|t| drop(t.remove("mask.conv1.weight")), Branch::Pruned, "`mask.conv1.weight`");
    let wide = || Tensor::f32(&[8, 3, 3, 3], vec![0.0; 216]);
    let expected = "`conv1.weight` has shape [8, 3, 3, 3], the run's network [4, 3, 3, 3]";
    check(|t| drop(t.insert("conv1.weight".to_owned(), wide())), Branch::Dense, expected);
    let bytes = || Tensor::u8(&[4], vec![0; 4]);
    check(|t| drop(t.insert("bn1.dense.bias".to_owned(), bytes())), Branch::Dense, "does not hold 32-bit floats");
    let headless = network("resnet10", true, true, Head::None);
    let error = export_onnx(&tensors(&headless), &headless, &options(Branch::Dense, true)).expect_err("no head");
    assert!(error.to_string().contains("leave out --with-head"), "{error}");
}

#[test]
fn more_than_protocol_buffers_carry_is_refused() {
    check_size(LARGEST_FILE).expect("fits");
    let error = check_size(LARGEST_FILE + 1).expect_err("too large").to_string();
    assert!(error.contains("2147483648 bytes") && error.contains("safetensors"), "{error}");
}
