//! From the names in other programs' checkpoints to this project's.
//!
//! Published SDCLR: `bn1.bn_list.0.weight` is the dense branch's, `.1.` the pruned one's; a shortcut is `downsample.conv`
//! and `downsample.bn`, or numbered as torchvision and timm do. Wrappers put `module.` (data-parallel), `_orig_mod.`
//! (compiled) or `backbone.` in front.

/// What wrappers put in front of every name.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "backbone."];

/// What a tensor of a checkpoint is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A parameter or running statistic of the network, by our name.
    Network(String),
    /// `weight` or `bias` of a linear classifier on the features.
    Classifier(&'static str),
    /// `mean` or `std` of the layer that normalises pixels.
    Normalization(&'static str),
    /// A batch norm's count of batches, which nothing uses.
    Count,
    /// Something that no supported network has.
    Unknown,
}

/// What the tensor of a name is.
pub(crate) fn key(name: &str) -> Key {
    let name = without_wrappers(name);
    match name {
        "fc.weight" | "linear.weight" => return Key::Classifier("weight"),
        "fc.bias" | "linear.bias" => return Key::Classifier("bias"),
        "normalize.mean" => return Key::Normalization("mean"),
        "normalize.std" => return Key::Normalization("std"),
        _ if name.ends_with("num_batches_tracked") => return Key::Count,
        _ => {}
    }
    // `export --with-head` writes `projection_head.`, for torchvision's `fc` is a classifier.
    let name = name.strip_prefix("projection_head.").map_or_else(|| name.to_owned(), |rest| format!("fc.{rest}"));
    let first = name.split('.').next().unwrap_or_default();
    let is_ours = matches!(first, "conv1" | "bn1" | "fc" | "cb_block" | "rb_block") || is_stage(first);
    if is_ours { Key::Network(our_name(&name)) } else { Key::Unknown }
}

/// The parameter that a module's mask is of: `layer1.0.conv1.weight` for `module.layer1.0.conv1`.
pub(crate) fn masked_parameter(module: &str) -> String {
    let name = without_wrappers(module);
    format!("{}.weight", our_name(name.strip_suffix(".weight").unwrap_or(name)))
}

fn without_wrappers(mut name: &str) -> &str {
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    name
}

fn our_name(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('.') {
        match (parts.last(), part) {
            (Some(&"downsample"), "0") => parts.push("conv"),
            (Some(&"downsample"), "1") => parts.push("bn"),
            (Some(&"bn_list"), "0") => *parts.last_mut().unwrap_or(&mut "") = "dense",
            (Some(&"bn_list"), "1") => *parts.last_mut().unwrap_or(&mut "") = "pruned",
            _ => parts.push(part),
        }
    }
    parts.join(".")
}

/// Whether a part of a name is `layer` and a number, or RIDE's `layer2s`.
fn is_stage(part: &str) -> bool {
    let number = part.strip_prefix("layer").map(|rest| rest.strip_suffix('s').unwrap_or(rest));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_names_become_ours() {
        for (theirs, ours) in [
            ("module.conv1.weight", "conv1.weight"),
            ("module.bn1.bn_list.0.running_mean", "bn1.dense.running_mean"),
            ("module.layer2.0.bn1.bn_list.1.weight", "layer2.0.bn1.pruned.weight"),
            ("layer2.0.downsample.bn.bn_list.0.bias", "layer2.0.downsample.bn.dense.bias"),
            ("layer2.0.downsample.conv.weight", "layer2.0.downsample.conv.weight"),
            ("module.layer3s.2.4.bn1.bn_list.1.bias", "layer3s.2.4.bn1.pruned.bias"),
            ("rb_block.conv2.weight", "rb_block.conv2.weight"),
            ("layer2.0.downsample.0.weight", "layer2.0.downsample.conv.weight"),
            ("layer2.0.downsample.1.running_var", "layer2.0.downsample.bn.running_var"),
            ("module.fc.fc1.bias", "fc.fc1.bias"),
            ("fc.bn3.bn_list.1.weight", "fc.bn3.pruned.weight"),
            ("projection_head.fc1.weight", "fc.fc1.weight"),
            ("_orig_mod.module.backbone.layer1.0.conv2.weight", "layer1.0.conv2.weight"),
        ] {
            assert_eq!(key(theirs), Key::Network(ours.to_owned()), "{theirs}");
        }
    }

    #[test]
    fn what_is_no_part_of_the_network_is_told_apart() {
        assert_eq!(key("module.fc.weight"), Key::Classifier("weight"));
        assert_eq!(key("linear.bias"), Key::Classifier("bias"));
        assert_eq!(key("module.normalize.std"), Key::Normalization("std"));
        assert_eq!(key("bn1.bn_list.0.num_batches_tracked"), Key::Count);
        for name in ["queue", "encoder_k.conv1.weight", "layers.0.weight", "bn2.weight", ""] {
            assert_eq!(key(name), Key::Unknown, "{name}");
        }
    }

    #[test]
    fn a_mask_is_of_the_weight_of_its_module() {
        for module in ["layer2.0.downsample.0", "module.layer2.0.downsample.conv", "layer2.0.downsample.conv.weight"] {
            assert_eq!(masked_parameter(module), "layer2.0.downsample.conv.weight", "{module}");
        }
    }
}
