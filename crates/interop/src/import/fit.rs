//! Which network some tensors are of: each supported one is built and its tensors compared, so that there is no second list
//! of them.

use crate::error::ImportError;
use sdclr_nn::resnet::MODELS;
use sdclr_nn::{Head, Network, NetworkSpec};
use std::collections::BTreeMap;

/// Names and shapes of tensors.
pub(crate) type Layout = BTreeMap<String, Vec<usize>>;

/// Most channels that are believed of a first stage, and of an embedding.
const MAX_WIDTH: usize = 1024;
const MAX_DIM: usize = 65536;
/// Differences that a message lists.
const SHOWN: usize = 8;

/// Names and shapes of a network's parameters and running statistics, in PyTorch's layout.
pub(crate) fn layout(network: &Network) -> Layout {
    network.tensor_layout().into_iter().collect()
}

/// The network whose tensors these are, all and no others; its image size is its stem's usual one.
///
/// # Errors
/// [`ImportError::Unfit`] with the nearest network and what differs.
pub(crate) fn fit(found: &Layout) -> Result<NetworkSpec, ImportError> {
    let stem = found.get("conv1.weight").map(Vec::as_slice);
    let (base_width, small_stem) = match stem {
        Some(&[width @ 1..=MAX_WIDTH, 3, 3, 3]) => (width, true),
        Some(&[width @ 1..=MAX_WIDTH, 3, 7, 7]) => (width, false),
        Some(shape) => {
            return Err(ImportError::Unfit(format!(
                "`conv1.weight` has shape {shape:?}; a ResNet's is [width, 3, 3, 3] for small images or [width, 3, 7, 7]"
            )));
        }
        None => {
            return Err(ImportError::Unfit(format!(
                "no `conv1.weight`, which every network here begins with; {}",
                supported()
            )));
        }
    };
    let head = head(found)?;
    let dual_bn = found.contains_key("bn1.dense.weight");
    let image_size = if small_stem { 32 } else { 224 };
    let mut nearest: Option<(Vec<String>, NetworkSpec)> = None;
    for model in MODELS {
        let spec = NetworkSpec { model: model.to_owned(), image_size, small_stem, base_width, dual_bn, head };
        // Shapes that the builder refuses fit nothing.
        let Ok(network) = spec.build() else { continue };
        let differences = differences(found, &layout(&network));
        if nearest.as_ref().is_none_or(|(fewest, _)| differences.len() < fewest.len()) {
            nearest = Some((differences, spec));
        }
    }
    match nearest {
        Some((differences, spec)) if differences.is_empty() => Ok(spec),
        Some((differences, spec)) => Err(misfit(&spec, &differences)),
        None => Err(ImportError::Unfit(supported())),
    }
}

fn head(found: &Layout) -> Result<Head, ImportError> {
    let last = (1..=3).rev().find_map(|layer| Some((layer, found.get(&format!("fc.fc{layer}.weight"))?)));
    match last {
        None => Ok(Head::None),
        Some((layers @ 2..=3, shape)) if shape.first().is_some_and(|dim| (1..=MAX_DIM).contains(dim)) => {
            Ok(Head::Projection { layers, dim: shape[0] })
        }
        Some((layer, shape)) => Err(ImportError::Unfit(format!(
            "its projection head ends with `fc.fc{layer}.weight` of shape {shape:?}; heads here have two or three layers"
        ))),
    }
}

fn differences(found: &Layout, expected: &Layout) -> Vec<String> {
    let missing = expected.iter().filter_map(|(name, shape)| match found.get(name) {
        None => Some(format!("`{name}` is missing")),
        Some(other) if other != shape => Some(format!("`{name}` has shape {other:?} instead of {shape:?}")),
        Some(_) => None,
    });
    let extra = found.keys().filter(|name| !expected.contains_key(*name));
    missing.chain(extra.map(|name| format!("`{name}` has no place in it"))).collect()
}

fn misfit(spec: &NetworkSpec, differences: &[String]) -> ImportError {
    let mut listed = differences[..differences.len().min(SHOWN)].join(", ");
    if differences.len() > SHOWN {
        listed.push_str(&format!(", and {} more", differences.len() - SHOWN));
    }
    ImportError::Unfit(format!(
        "its tensors fit no supported network; the nearest is {}, with {} differences: {listed}; {}",
        spec.describe(),
        differences.len(),
        supported()
    ))
}

fn supported() -> String {
    format!("supported are torchvision-shaped {}", MODELS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(model: &str, small_stem: bool, dual_bn: bool, head: Head) -> NetworkSpec {
        let image_size = if small_stem { 32 } else { 224 };
        NetworkSpec { model: model.to_owned(), image_size, small_stem, base_width: 8, dual_bn, head }
    }

    fn layout_of(spec: &NetworkSpec) -> Layout {
        layout(&spec.build().expect("builds"))
    }

    #[test]
    fn every_network_is_told_by_its_tensors() {
        let heads = [Head::None, Head::Projection { layers: 2, dim: 16 }, Head::Projection { layers: 3, dim: 8 }];
        for model in MODELS {
            for (small_stem, dual_bn) in [(true, true), (true, false), (false, true), (false, false)] {
                for head in heads {
                    // The ResNet-32s family has only the small stem.
                    let spec = spec(model, small_stem || model.starts_with("resnet32s"), dual_bn, head);
                    assert_eq!(fit(&layout_of(&spec)).expect("fits"), spec);
                }
            }
        }
    }

    #[test]
    fn the_nearest_network_is_named_with_every_kind_of_difference() {
        let mut found = layout_of(&spec("resnet34", true, false, Head::None));
        found.remove("layer3.5.bn2.running_var");
        found.insert("layer1.0.se.weight".to_owned(), vec![8]);
        found.insert("layer4.2.conv1.weight".to_owned(), vec![64, 2, 3, 3]);
        let error = fit(&found).expect_err("no network").to_string();
        for part in [
            "resnet34, width 8",
            "3 differences",
            "`layer3.5.bn2.running_var` is missing",
            "`layer4.2.conv1.weight` has shape [64, 2, 3, 3] instead of [64, 64, 3, 3]",
            "`layer1.0.se.weight` has no place",
            "wide-resnet50-2",
        ] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }

    #[test]
    fn files_without_a_resnet_s_first_convolution_are_refused() {
        let error = fit(&Layout::new()).expect_err("nothing").to_string();
        assert!(error.contains("no `conv1.weight`") && error.contains("resnet18"), "{error}");
        let error = fit(&Layout::from([("conv1.weight".to_owned(), vec![32, 1, 5, 5])])).expect_err("odd").to_string();
        assert!(error.contains("[32, 1, 5, 5]"), "{error}");
    }
}
