//! Checkpoints of PyTorch programs as this project's tensors: models, masks and linear classifiers.
//!
//! The network is inferred from names and shapes. What a file does not tell, the size of the images, is the caller's to say.

mod file;
mod fit;
mod keys;

use crate::error::ImportError;
use file::{Entry, ForeignFile, quoted};
use fit::{Layout, fit, layout};
use keys::{Key, key, masked_parameter};
use sdclr_nn::{Head, Network, NetworkSpec, init, model::torch_shape};
use sdclr_records::checkpoint::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// How far a normalising layer's numbers may be from ImageNet's.
const SAME_NORMALIZATION: f32 = 1e-3;
/// ImageNet's mean and standard deviation, by which the models here normalise.
const NORMALIZATION: [(&str, [f32; 3]); 2] = [("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])];

/// A model of another program.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedModel {
    /// The network, with its projection head if it came with one; the image size is the file's or the usual one of its stem.
    pub spec: NetworkSpec,
    /// Whether the file says the image size, as our own exports to safetensors do.
    pub tells_image_size: bool,
    /// Parameters and running statistics by this project's names, in PyTorch's layout.
    pub tensors: BTreeMap<String, Tensor>,
    /// A linear classifier on the features.
    pub classifier: Option<LinearClassifier>,
    /// Whether the file is a probe of the published code: its classifier is what was trained.
    pub is_probe: bool,
    /// Whether shortcuts are named as the published SDCLR network names them, and not numbered.
    pub has_named_shortcuts: bool,
    /// The epoch that the file says it is of.
    pub epoch: Option<usize>,
    /// Tensors of the file that are no part of the network, by their names there.
    pub left_out: Vec<String>,
    /// What whoever uses the model should know.
    pub warnings: Vec<String>,
}

/// A linear classifier on features.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearClassifier {
    /// `[n_classes, width]`.
    pub weight: Tensor,
    /// `[n_classes]`.
    pub bias: Tensor,
}

/// Masks of another program.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedMasks {
    /// `mask.NAME` for every prunable weight `NAME`: bytes, 1 = kept.
    pub tensors: BTreeMap<String, Tensor>,
    /// The epoch that the file says they are of.
    pub epoch: Option<usize>,
    /// What whoever uses them should know.
    pub warnings: Vec<String>,
}

/// Reads a model from a file of `torch.save` or of safetensors.
///
/// # Errors
/// A file that cannot be read, asks for code, or fits no supported network.
pub fn import_model(path: &Path) -> Result<ImportedModel, ImportError> {
    let mut file = ForeignFile::open(path)?;
    if file.is_masks {
        return Err(ImportError::Unfit(
            "it holds masks; give it by --mask, beside the model that they are of".to_owned(),
        ));
    }
    let sorted = sort(&file)?;
    let mut spec = fit(&sorted.layout()).map_err(|e| match e {
        ImportError::Unfit(text) if !sorted.network.contains_key("conv1.weight") => {
            ImportError::Unfit(format!("{text}; {}", file.contents()))
        }
        e => e,
    })?;
    let told = file.image_size.map(|image_size| NetworkSpec { image_size, ..spec.clone() });
    // A size that the network cannot have is no help.
    let told = told.filter(|told| told.build().is_ok());
    let tells_image_size = told.is_some();
    spec = told.unwrap_or(spec);
    let tensors = read_network(&mut file, &sorted)?;
    let width = feature_width(&spec)?;
    let (classifier, mut left_out) = (read_classifier(&mut file, &sorted, width)?, sorted.unknown.clone());
    if classifier.is_none() {
        left_out.extend(sorted.classifier.values().map(|entry| entry.name.clone()));
    }
    let mut warnings = check_normalization(&mut file, &sorted)?;
    if sorted.normalization.is_empty() && spec.model == "resnet32s-ride" {
        // The published plain variant's forward pass has no such layer; its own files cannot say so.
        warnings.push("the published RIDE normalises no pixels; here models do, so features will differ".to_owned());
    }
    let is_probe = classifier.is_some() && file.has_key("best_prec1");
    let has_named_shortcuts = file.entries.iter().any(|entry| entry.name.contains(".downsample.conv."));
    Ok(ImportedModel {
        spec,
        tells_image_size,
        tensors,
        classifier,
        is_probe,
        has_named_shortcuts,
        epoch: file.epoch,
        left_out,
        warnings,
    })
}

/// Reads the masks of the published SDCLR code for a model: `{epoch, pruneMask: {module: mask}}`, true is kept.
///
/// # Errors
/// A file that cannot be read or holds other masks than those of all the model's convolutions.
pub fn import_masks(path: &Path, model: &ImportedModel) -> Result<ImportedMasks, ImportError> {
    let mut file = ForeignFile::open(path)?;
    if !file.is_masks {
        return Err(ImportError::Unfit(format!("no masks (`pruneMask`) inside; {}", file.contents())));
    }
    let entries: BTreeMap<String, Entry> =
        file.entries.iter().map(|entry| (masked_parameter(&entry.name), entry.clone())).collect();
    let network = build(&model.spec)?;
    let expected: Layout = network.prunable().map(|p| (p.name.clone(), torch_shape(p))).collect();
    let wrong: Vec<String> = expected
        .iter()
        .filter(|(name, shape)| entries.get(*name).is_none_or(|entry| entry.shape != **shape))
        .map(|(name, _)| name.clone())
        .chain(entries.keys().filter(|name| !expected.contains_key(*name)).cloned())
        .collect();
    if !wrong.is_empty() {
        return Err(ImportError::Unfit(format!(
            "the masks are of another network than {}: missing, of another shape or unexpected are those of {}",
            model.spec.describe(),
            quoted(&wrong)
        )));
    }
    let mut tensors = BTreeMap::new();
    let mut magnitudes = [(0.0f64, 0usize); 2];
    for (name, entry) in &entries {
        let mask: Vec<u8> = file.values(entry)?.iter().map(|value| u8::from(*value != 0.0)).collect();
        for (weight, kept) in model.tensors[name].as_f32().unwrap_or_default().iter().zip(&mask) {
            let (sum, n) = &mut magnitudes[usize::from(*kept)];
            *sum += f64::from(weight.abs());
            *n += 1;
        }
        tensors.insert(format!("mask.{name}"), Tensor::u8(&entry.shape, mask));
    }
    Ok(ImportedMasks { tensors, epoch: file.epoch, warnings: check_magnitudes(magnitudes) })
}

impl ImportedModel {
    /// Layers and embedding size of the projection head.
    #[must_use]
    pub fn head(&self) -> Option<(usize, usize)> {
        if let Head::Projection { layers, dim } = self.spec.head { Some((layers, dim)) } else { None }
    }

    /// Whether there is a projection head.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.head().is_some()
    }

    /// Whether its batch norms or names are those of a network with a pruned branch.
    #[must_use]
    pub fn is_sdclr(&self) -> bool {
        self.spec.dual_bn || self.has_named_shortcuts
    }

    /// Adds a projection head drawn from `seed`, where the model came without one.
    ///
    /// # Errors
    /// A head that does not exist.
    pub fn draw_head(&mut self, layers: usize, dim: usize, seed: u64) -> Result<(), ImportError> {
        self.spec.head = Head::Projection { layers, dim };
        let network = build(&self.spec)?;
        let values = init::parameters(&network, seed);
        for p in &network.params {
            let drawn = || Tensor::f32(&torch_shape(p), values[p.offset..p.offset + p.len].to_vec());
            self.tensors.entry(p.name.clone()).or_insert_with(drawn);
        }
        for (name, shape) in layout(&network) {
            let start = if name.ends_with("running_var") { 1.0 } else { 0.0 };
            let fresh = || Tensor::f32(&shape, vec![start; shape.iter().product()]);
            self.tensors.entry(name).or_insert_with(fresh);
        }
        Ok(())
    }

    /// The tensors of the backbone in which another model differs from this one's dense branch, by name. A classifier fits
    /// only the features that it was trained on.
    #[must_use]
    pub fn backbone_differences(&self, other: &Self) -> Vec<String> {
        let dense = |tensors: &BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
            let backbone = tensors.iter().filter(|(name, _)| !name.starts_with("fc.") && !name.contains(".pruned."));
            backbone.map(|(name, tensor)| (name.replace(".dense.", "."), tensor.clone())).collect()
        };
        let (mine, theirs) = (dense(&self.tensors), dense(&other.tensors));
        let mut names: Vec<&String> = mine.keys().chain(theirs.keys()).collect();
        names.sort();
        names.dedup();
        names.into_iter().filter(|name| !are_close(mine.get(*name), theirs.get(*name))).cloned().collect()
    }
}

impl LinearClassifier {
    /// Number of classes.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.bias.shape.first().copied().unwrap_or(0)
    }
}

fn build(spec: &NetworkSpec) -> Result<Network, ImportError> {
    spec.build().map_err(|e| ImportError::Unfit(e.to_string()))
}

/// Length of a feature.
fn feature_width(spec: &NetworkSpec) -> Result<usize, ImportError> {
    let network = build(spec)?;
    Ok(network.dims(network.feature).len())
}

/// The tensors of a file by what they are.
struct Sorted {
    network: BTreeMap<String, Entry>,
    classifier: BTreeMap<&'static str, Entry>,
    normalization: BTreeMap<&'static str, Entry>,
    unknown: Vec<String>,
}

impl Sorted {
    fn layout(&self) -> Layout {
        self.network.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }
}

fn sort(file: &ForeignFile) -> Result<Sorted, ImportError> {
    let (mut network, mut unknown) = (BTreeMap::<String, Entry>::new(), Vec::new());
    let (mut classifier, mut normalization) = (BTreeMap::new(), BTreeMap::new());
    for entry in &file.entries {
        match key(&entry.name) {
            Key::Network(name) => {
                let before = network.insert(name, entry.clone());
                if let Some(before) = before.filter(|before| before.name != entry.name) {
                    let (a, b) = (&before.name, &entry.name);
                    return Err(ImportError::Unfit(format!("`{a}` and `{b}` are the same tensor of a network")));
                }
            }
            Key::Classifier(part) => drop(classifier.insert(part, entry.clone())),
            Key::Normalization(part) => drop(normalization.insert(part, entry.clone())),
            Key::Count => {}
            Key::Unknown => unknown.push(entry.name.clone()),
        }
    }
    Ok(Sorted { network, classifier, normalization, unknown })
}

fn read_network(file: &mut ForeignFile, sorted: &Sorted) -> Result<BTreeMap<String, Tensor>, ImportError> {
    // In the file's order, in which tensors that share a storage are neighbours.
    let mut entries: Vec<(&String, &Entry)> = sorted.network.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.at);
    entries.into_iter().map(|(name, entry)| Ok((name.clone(), read_floats(file, entry)?))).collect()
}

fn read_floats(file: &mut ForeignFile, entry: &Entry) -> Result<Tensor, ImportError> {
    if !entry.dtype.is_float() {
        let problem = format!("holds {} where a network has floating-point numbers", entry.dtype);
        return Err(ImportError::Tensor { name: entry.name.clone(), problem });
    }
    Ok(Tensor::f32(&entry.shape, file.values(entry)?))
}

/// The classifier, if its two tensors fit each other and the features.
fn read_classifier(
    file: &mut ForeignFile,
    sorted: &Sorted,
    width: usize,
) -> Result<Option<LinearClassifier>, ImportError> {
    let (Some(weight), Some(bias)) = (sorted.classifier.get("weight"), sorted.classifier.get("bias")) else {
        return Ok(None);
    };
    match (&weight.shape[..], &bias.shape[..]) {
        (&[classes, features], &[others]) if classes == others && features == width => {
            Ok(Some(LinearClassifier { weight: read_floats(file, weight)?, bias: read_floats(file, bias)? }))
        }
        _ => Ok(None),
    }
}

fn check_normalization(file: &mut ForeignFile, sorted: &Sorted) -> Result<Vec<String>, ImportError> {
    let mut warnings = Vec::new();
    for (part, expected) in NORMALIZATION {
        let Some(entry) = sorted.normalization.get(part) else { continue };
        let found = file.values(entry)?;
        let is_same = found.len() == 3 && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= SAME_NORMALIZATION);
        if !is_same {
            warnings.push(format!(
                "`{}` is {found:?}; here models normalise by ImageNet's {expected:?}, so features will differ",
                entry.name
            ));
        }
    }
    Ok(warnings)
}

/// Sums and numbers of the magnitudes of masked and kept weights: masks keep large ones.
fn check_magnitudes([masked, kept]: [(f64, usize); 2]) -> Vec<String> {
    let mean = |(sum, n): (f64, usize)| sum / n.max(1) as f64;
    if masked.1 > 0 && mean(kept) < mean(masked) {
        let text = "the weights that the masks keep are smaller than those that they remove; are these masks of another model?";
        vec![text.to_owned()]
    } else {
        Vec::new()
    }
}

/// Whether two tensors are the same but for the last digits, as after a conversion.
fn are_close(a: Option<&Tensor>, b: Option<&Tensor>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let (Some(x), Some(y)) = (a.as_f32(), b.as_f32()) else { return false };
    a.shape == b.shape && x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 1e-6 * x.abs().max(1.0))
}
