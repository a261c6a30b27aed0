//! From this project's tensor names to torchvision's.
//!
//! Ours name the branch of a batch norm (`bn1.dense.weight`, or `bn1.weight` where branches share it) and the parts of
//! a shortcut (`downsample.conv`, `downsample.bn`); torchvision and timm number the latter (`downsample.0`, `.1`).

/// The branch whose batch norms are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// The model.
    Dense,
    /// Its damaged copy.
    Pruned,
}

impl Branch {
    /// The branch's part in tensor names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Pruned => "pruned",
        }
    }
}

/// The torchvision name of one of our tensors, or `None` for what a backbone file does not hold: the other branch's
/// batch norms, masks, optimizer buffers, and the projection head unless `with_head`, where `fc.` becomes
/// `projection_head.`: torchvision's `fc` is a classifier, and so are our `fc.weight` and `fc.bias`.
pub fn torchvision_name(name: &str, branch: Branch, with_head: bool) -> Option<String> {
    let mut parts: Vec<&str> = name.split('.').collect();
    let last = *parts.last()?;
    if !["weight", "bias", "running_mean", "running_var"].contains(&last) {
        return None;
    }
    if let Some(position) = parts.iter().position(|part| matches!(*part, "dense" | "pruned")) {
        if parts[position] != branch.as_str() {
            return None;
        }
        parts.remove(position);
    }
    let first = *parts.first()?;
    if first == "fc" && parts.len() == 2 {
        return Some(name.to_owned());
    }
    if first == "fc" {
        parts[0] = "projection_head";
        return with_head.then(|| parts.join("."));
    }
    let is_stem_or_stage = ["conv", "bn", "layer"].iter().any(|stem| is_numbered(first, stem));
    // BBN's two last blocks, and RIDE's experts (`layer2s.3.0.conv1`): no torchvision model has them, and they keep their names.
    let is_variant = ["cb_block", "rb_block"].contains(&first)
        || first.strip_suffix('s').is_some_and(|stage| is_numbered(stage, "layer"));
    if !is_stem_or_stage && !is_variant {
        return None;
    }
    if let Some(position) = parts.iter().position(|part| *part == "downsample") {
        let number = match *parts.get(position + 1)? {
            "conv" => "0",
            "bn" => "1",
            _ => return None,
        };
        parts[position + 1] = number;
    }
    Some(parts.join("."))
}

/// Whether `part` is `stem` and a number, as in `layer4`.
fn is_numbered(part: &str, stem: &str) -> bool {
    part.strip_prefix(stem).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        assert_eq!(torchvision_name(name, Branch::Dense, false).as_deref(), expected, "{name}");
    }

    #[test]
    fn backbone_tensors_get_torchvision_names() {
        check("conv1.weight", Some("conv1.weight"));
        check("bn1.weight", Some("bn1.weight"));
        check("bn1.dense.running_var", Some("bn1.running_var"));
        check("layer1.0.conv2.weight", Some("layer1.0.conv2.weight"));
        check("layer4.2.bn3.dense.bias", Some("layer4.2.bn3.bias"));
        check("layer2.0.downsample.conv.weight", Some("layer2.0.downsample.0.weight"));
        check("layer2.0.downsample.bn.dense.running_mean", Some("layer2.0.downsample.1.running_mean"));
        check("layer2.0.downsample.bn.weight", Some("layer2.0.downsample.1.weight"));
        check("fc.weight", Some("fc.weight"));
        check("fc.bias", Some("fc.bias"));
        check("cb_block.conv1.weight", Some("cb_block.conv1.weight"));
        check("rb_block.bn2.dense.running_mean", Some("rb_block.bn2.running_mean"));
        check("layer3s.2.4.bn1.dense.weight", Some("layer3s.2.4.bn1.weight"));
    }

    #[test]
    fn what_is_no_part_of_the_branch_s_backbone_is_left_out() {
        for name in [
            "bn1.pruned.weight",
            "fc.fc1.weight",
            "fc.bn1.dense.weight",
            "mask.conv1.weight",
            "momentum.layer1.0.conv1.weight",
            "optimizer.conv1.weight",
            "conv1.mask",
            "layer1.0.steps",
            "layers.0.conv1.weight",
            "rb_block.bn1.pruned.weight",
            "",
        ] {
            check(name, None);
        }
    }

    #[test]
    fn the_pruned_branch_and_the_head_are_there_when_asked_for() {
        let pruned = |name: &str| torchvision_name(name, Branch::Pruned, true);
        assert_eq!(pruned("bn1.pruned.weight").as_deref(), Some("bn1.weight"));
        assert_eq!(pruned("bn1.dense.weight"), None);
        assert_eq!(pruned("fc.bn2.pruned.bias").as_deref(), Some("projection_head.bn2.bias"));
        assert_eq!(pruned("fc.fc1.weight").as_deref(), Some("projection_head.fc1.weight"));
    }
}
