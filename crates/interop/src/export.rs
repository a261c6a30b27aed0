//! A checkpoint's backbone as a safetensors file that torchvision, timm and other readers load, and what all exports share.

use crate::names::{Branch, torchvision_name};
use safetensors::tensor::{Dtype, SafeTensors, View};
use sdclr_records::checkpoint::Tensor;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Mean and standard deviation of ImageNet's channels, by which the models normalise pixels in [0, 1].
pub(crate) const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
pub(crate) const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// How the projection head's tensors begin in exports.
const HEAD_PREFIX: &str = "projection_head.";

/// What to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Whose batch norms; the pruned branch's weights are masked.
    pub branch: Branch,
    /// What goes along behind the features.
    pub head: ExportHead,
    /// The model's name, for example `resnet18`.
    pub model: String,
    /// Its stem: `small` or `imagenet`.
    pub stem: String,
    /// Side in pixels of its square input.
    pub image_size: usize,
    /// Epochs that it was trained for.
    pub epoch: usize,
}

/// What an export has behind the backbone's features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportHead {
    /// Nothing.
    None,
    /// The projection head, as `projection_head.*`.
    Projection,
    /// A classifier, as `fc.weight` and `fc.bias`, which are among the tensors.
    Classifier {
        /// What its classes are called, in order; empty where they have no names.
        class_names: Vec<String>,
    },
}

/// The tensors of a classifier.
pub(crate) const CLASSIFIER: [&str; 2] = ["fc.weight", "fc.bias"];

/// Why a checkpoint cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The pruned branch was asked for and there is no mask for one of its weights.
    #[error("no tensor `{0}`: only a checkpoint of an SDCLR run with its masks has a pruned branch")]
    NoMask(String),
    /// Nothing in the checkpoint belongs to a backbone.
    #[error("no backbone tensor (conv1.weight, …) inside; is this a checkpoint of masks only?")]
    Empty,
    /// A tensor that should hold 32-bit floats does not.
    #[error("tensor `{0}` does not hold 32-bit floats")]
    NotFloats(String),
    /// The projection head was asked for and there is none.
    #[error("no projection head (fc.fc1.weight, …) inside; leave out --with-head")]
    NoHead,
    /// A tensor of the network is not in the checkpoint.
    #[error("no tensor `{0}`, which the run's network has; does the checkpoint lie in its own run directory?")]
    Missing(String),
    /// A tensor is not as large as the network's.
    #[error(
        "tensor `{name}` has shape {found:?}, the run's network {expected:?}; does the checkpoint lie in its own run directory?"
    )]
    OtherShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The network's.
        expected: Vec<usize>,
    },
    /// More bytes than an ONNX file can have.
    #[error("the model takes {bytes} bytes, an ONNX file 2 GiB at most; export it as safetensors or pt")]
    TooLarge {
        /// What it would take.
        bytes: usize,
    },
    /// The file cannot be put together.
    #[error("cannot make the safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// The archive cannot be put together.
    #[error("cannot make the pt file: {0}")]
    Archive(#[from] zip::result::ZipError),
}

/// The bytes of a safetensors file with the backbone under torchvision's names, convolutions as `[out, in, h, w]`.
///
/// The mask of weight `NAME` is the tensor `mask.NAME` (bytes, 0 or 1, same shape). The metadata hold `format = "pt"`,
/// the model, its stem, the branch, the epochs, and the mean and standard deviation by which pixels in [0, 1] are normalised.
///
/// # Errors
/// [`ExportError`].
pub fn export_safetensors(tensors: &BTreeMap<String, Tensor>, options: &ExportOptions) -> Result<Vec<u8>, ExportError> {
    let exported = exported_tensors(tensors, options)?;
    // What PyTorch's loaders look for.
    let format = ("format", "pt".to_owned());
    let metadata: BTreeMap<String, String> =
        std::iter::once(format).chain(metadata(options)).map(|(key, value)| (key.to_owned(), value)).collect();
    let mut bytes = safetensors::serialize(exported, Some(metadata.clone().into_iter().collect()))?;
    sort_metadata(&mut bytes, &metadata);
    Ok(bytes)
}

/// Brings the metadata into the order of their keys. The library writes them in an order that changes from call to call,
/// and equal exports are to be equal bytes.
fn sort_metadata(bytes: &mut [u8], metadata: &BTreeMap<String, String>) {
    // After the eight bytes of the header's length.
    const BEFORE: &[u8] = b"{\"__metadata__\":";
    let sorted = serde_json::json!(metadata).to_string();
    let start = 8 + BEFORE.len();
    if bytes.get(8..start) == Some(BEFORE)
        && let Some(place) = bytes.get_mut(start..start + sorted.len())
    {
        place.copy_from_slice(sorted.as_bytes());
    }
}

/// The tensors of an export under their new names, in the order of the old ones.
pub(crate) fn exported_tensors<'a>(
    tensors: &'a BTreeMap<String, Tensor>,
    options: &ExportOptions,
) -> Result<Vec<(String, FloatView<'a>)>, ExportError> {
    let mut exported: Vec<(String, FloatView<'_>)> = Vec::new();
    for (name, tensor) in tensors {
        let Some(exported_name) = torchvision_name(name, options.branch, options.head == ExportHead::Projection) else {
            continue;
        };
        let values = floats_of(tensors, name, tensor, options.branch)?;
        exported.push((exported_name, FloatView { shape: &tensor.shape, values }));
    }
    let is_head = |name: &str| name.starts_with(HEAD_PREFIX) || CLASSIFIER.contains(&name);
    if exported.iter().all(|(name, _)| is_head(name)) {
        return Err(ExportError::Empty);
    }
    if options.head != ExportHead::None && !exported.iter().any(|(name, _)| is_head(name)) {
        return Err(ExportError::NoHead);
    }
    Ok(exported)
}

/// The values of one tensor of a branch: convolutions of the pruned one are masked.
pub(crate) fn floats_of<'a>(
    tensors: &BTreeMap<String, Tensor>,
    name: &str,
    tensor: &'a Tensor,
    branch: Branch,
) -> Result<Cow<'a, [f32]>, ExportError> {
    let values = tensor.as_f32().ok_or_else(|| ExportError::NotFloats(name.to_owned()))?;
    let is_convolution = tensor.shape.len() == 4;
    if branch == Branch::Pruned && is_convolution {
        return Ok(Cow::Owned(masked(values, name, tensors)?));
    }
    Ok(Cow::Borrowed(values))
}

/// What a file of [`export_safetensors`] or [`crate::export_onnx`] says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// The model's name.
    pub model: String,
    /// Its stem.
    pub stem: String,
    /// `dense` or `pruned`.
    pub branch: String,
    /// Epochs of pre-training.
    pub epoch: Option<usize>,
    /// Side in pixels of its square input; older exports do not say it.
    pub image_size: Option<usize>,
    /// What its classes are called; empty without a classifier or names.
    pub class_names: Vec<String>,
    /// Number of tensors.
    pub n_tensors: usize,
    /// Number of values in all of them.
    pub n_values: usize,
    /// Whether the projection head came along.
    pub with_head: bool,
    /// Classes of the classifier, if one came along.
    pub n_classes: Option<usize>,
}

/// Tells an export from other safetensors files; `None` for those.
pub fn export_summary(bytes: &[u8]) -> Option<ExportSummary> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    let summary = described(|key| metadata.get(key).cloned())?;
    Some(ExportSummary {
        n_tensors: file.len(),
        n_values: file.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum(),
        with_head: file.names().iter().any(|name| name.starts_with(HEAD_PREFIX)),
        n_classes: file.tensor(CLASSIFIER[1]).ok().and_then(|bias| bias.shape().first().copied()),
        ..summary
    })
}

/// What the metadata alone say; `None` if they are not those of an export.
pub(crate) fn described(value: impl Fn(&str) -> Option<String>) -> Option<ExportSummary> {
    let number = |key: &str| value(key)?.parse().ok();
    Some(ExportSummary {
        model: value("model")?,
        stem: value("stem")?,
        branch: value("branch")?,
        epoch: number("epoch"),
        image_size: number("image_size"),
        class_names: value("classes").and_then(|names| serde_json::from_str(&names).ok()).unwrap_or_default(),
        n_tensors: 0,
        n_values: 0,
        with_head: false,
        n_classes: None,
    })
}

fn masked(values: &[f32], name: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<f32>, ExportError> {
    let mask_name = format!("mask.{name}");
    let mask = tensors.get(&mask_name).and_then(Tensor::as_u8).filter(|mask| mask.len() == values.len());
    let mask = mask.ok_or(ExportError::NoMask(mask_name))?;
    Ok(values.iter().zip(mask).map(|(value, kept)| if *kept == 0 { 0.0 } else { *value }).collect())
}

/// What a file says of itself: keys and values in a fixed order.
pub(crate) fn metadata(options: &ExportOptions) -> Vec<(&'static str, String)> {
    let list = |values: [f64; 3]| serde_json::json!(values).to_string();
    let mut lines = vec![
        ("model", options.model.clone()),
        ("stem", options.stem.clone()),
        ("branch", options.branch.as_str().to_owned()),
        ("epoch", options.epoch.to_string()),
        ("image_size", options.image_size.to_string()),
        ("mean", list(IMAGENET_MEAN)),
        ("std", list(IMAGENET_STD)),
    ];
    if let ExportHead::Classifier { class_names } = &options.head
        && !class_names.is_empty()
    {
        lines.push(("classes", serde_json::json!(class_names).to_string()));
    }
    lines
}

/// A tensor as the safetensors library takes it.
pub(crate) struct FloatView<'a> {
    /// Length of each axis.
    pub shape: &'a [usize],
    /// Row-major values.
    pub values: Cow<'a, [f32]>,
}

impl View for FloatView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Little-endian machines only, as everywhere in this project.
        bytemuck::cast_slice(&self.values).into()
    }

    fn data_len(&self) -> usize {
        size_of_val::<[f32]>(&self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> BTreeMap<String, Tensor> {
        [
            ("conv1.weight", Tensor::f32(&[2, 1, 1, 1], vec![1.0, -2.0])),
            ("mask.conv1.weight", Tensor::u8(&[2, 1, 1, 1], vec![0, 1])),
            ("bn1.dense.weight", Tensor::f32(&[2], vec![3.0, 4.0])),
            ("bn1.pruned.weight", Tensor::f32(&[2], vec![5.0, 6.0])),
            ("fc.fc1.weight", Tensor::f32(&[1, 2], vec![7.0, 8.0])),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    fn options(branch: Branch) -> ExportOptions {
        ExportOptions {
            branch,
            head: ExportHead::None,
            model: "resnet18".to_owned(),
            stem: "small".to_owned(),
            image_size: 32,
            epoch: 3,
        }
    }

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        let bytes = file.tensor(name).expect("inside").data().to_vec();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn the_dense_branch_is_the_plain_weights() {
        let bytes = export_safetensors(&tensors(), &options(Branch::Dense)).expect("exports");
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        let mut names = file.names();
        names.sort();
        assert_eq!(names, ["bn1.weight", "conv1.weight"]);
        assert_eq!(floats(&file, "conv1.weight"), [1.0, -2.0]);
        assert_eq!(floats(&file, "bn1.weight"), [3.0, 4.0]);
        let summary = export_summary(&bytes).expect("an export");
        assert_eq!((summary.model.as_str(), summary.branch.as_str()), ("resnet18", "dense"));
        assert_eq!((summary.n_tensors, summary.n_values, summary.with_head), (2, 4, false));
        assert_eq!(export_summary(b"other"), None);
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("valid");
        let metadata = header.metadata().clone().expect("there");
        assert_eq!((metadata["format"].as_str(), metadata["mean"].as_str()), ("pt", "[0.485,0.456,0.406]"));
        assert_eq!((metadata.len(), metadata["epoch"].as_str()), (8, "3"));
    }

    #[test]
    fn a_classifier_keeps_its_names_and_its_classes() {
        let mut tensors = tensors();
        tensors.insert("fc.weight".to_owned(), Tensor::f32(&[3, 2], vec![0.5; 6]));
        tensors.insert("fc.bias".to_owned(), Tensor::f32(&[3], vec![9.0; 3]));
        let class_names = ["owl", "wren", "\"kite\""].map(str::to_owned).to_vec();
        let head = ExportHead::Classifier { class_names: class_names.clone() };
        let bytes = export_safetensors(&tensors, &ExportOptions { head, ..options(Branch::Dense) }).expect("exports");
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        assert_eq!((floats(&file, "fc.bias"), file.len()), (vec![9.0; 3], 4), "and no projection head");
        let summary = export_summary(&bytes).expect("an export");
        assert_eq!((summary.n_classes, summary.with_head), (Some(3), false));
        assert_eq!((&summary.class_names, summary.epoch, summary.image_size), (&class_names, Some(3), Some(32)));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("valid");
        let classes = &header.metadata().as_ref().expect("there")["classes"];
        assert_eq!(serde_json::from_str::<Vec<String>>(classes).expect("a list"), class_names);
    }

    #[test]
    fn equal_exports_are_equal_bytes() {
        let bytes = || export_safetensors(&tensors(), &options(Branch::Dense)).expect("exports");
        // Eight keys have 40320 orders.
        (0..9).for_each(|_| assert_eq!(bytes(), bytes()));
    }

    #[test]
    fn the_pruned_branch_is_masked() {
        let bytes = export_safetensors(&tensors(), &options(Branch::Pruned)).expect("exports");
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        assert_eq!(floats(&file, "conv1.weight"), [0.0, -2.0]);
        assert_eq!(floats(&file, "bn1.weight"), [5.0, 6.0]);
    }

    #[test]
    fn what_cannot_be_exported_is_named() {
        let mut without_mask = tensors();
        without_mask.remove("mask.conv1.weight");
        let error = export_safetensors(&without_mask, &options(Branch::Pruned)).expect_err("no mask");
        assert!(error.to_string().contains("`mask.conv1.weight`"), "{error}");
        without_mask.remove("fc.fc1.weight");
        let with_head = ExportOptions { head: ExportHead::Projection, ..options(Branch::Dense) };
        let error = export_safetensors(&without_mask, &with_head).expect_err("no head");
        assert!(error.to_string().contains("leave out --with-head"), "{error}");
        let error = export_safetensors(&BTreeMap::new(), &options(Branch::Dense)).expect_err("nothing");
        assert!(error.to_string().contains("no backbone tensor"), "{error}");
    }
}
