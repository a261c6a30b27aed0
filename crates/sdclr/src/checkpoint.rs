//! Checkpoints: one `.safetensors` file with every tensor of a run and, in its metadata, where training stood.
//!
//! Any safetensors reader can open one. The metadata key `sdclr` holds the state and a CRC-32 over state and tensors, so
//! that a damaged file is noticed before training goes on from it. Bytes depend on the content alone.

use crate::run_dir::{kept_checkpoints, write_atomic};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};
use sdclr_records::checkpoint::{CHECKPOINT_VERSION, CheckpointState};
pub use sdclr_records::checkpoint::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read as _, Write};
use std::path::{Path, PathBuf};

/// The key of the file's metadata that holds the state.
const METADATA_KEY: &str = "sdclr";
/// Headers of safetensors files end at a multiple of this many bytes.
const HEADER_ALIGNMENT: usize = 8;

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file could not be read.
    #[error("{path}: cannot read the checkpoint: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file could not be written; the one before it, if any, is untouched.
    #[error("{path}: cannot write the checkpoint: {}", crate::run_dir::describe_io(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of another kind.
    #[error("{path}: not an sdclr checkpoint ({reason}); name a run directory or a .safetensors file inside one")]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// A checkpoint that was damaged after it was written.
    #[error("{path}: the checkpoint is damaged ({reason}); {}", instead_of(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Weights that are infinite or not numbers, which nobody can go on from.
    #[error("{path}: not written: `{tensor}` holds values that are infinite or not numbers")]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        tensor: String,
    },
    /// A checkpoint of a program with another layout.
    #[error(
        "{path}: the checkpoint has layout {found}, this program reads layout {CHECKPOINT_VERSION}; use the sdclr version that wrote it"
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The layout's number.
        found: u32,
    },
    /// A checkpoint of another network.
    #[error("{path}: the checkpoint is of another network ({model}): {}", list(.differences))]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The network that it is of.
        model: String,
        /// Each tensor that is missing, unexpected or of another shape.
        differences: Vec<String>,
    },
}

/// Named tensors and the state of training.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where training stood.
    pub state: CheckpointState,
    /// Every tensor, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The file it was read from; empty for one made here. Only messages use it.
    pub path: PathBuf,
}

impl Checkpoint {
    /// A checkpoint without tensors.
    pub fn new(state: CheckpointState) -> Self {
        Self { state, tensors: BTreeMap::new(), path: PathBuf::new() }
    }

    /// Adds a tensor; a name given twice keeps the later one.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Writes the file so that at any moment, a kill or a full disk included, either the old or the new one is there.
    ///
    /// # Errors
    /// [`CheckpointError::Write`], and [`CheckpointError::NonFinite`] before anything is written.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let is_bad = |tensor: &Tensor| tensor.as_f32().is_some_and(|values| !values.iter().all(|v| v.is_finite()));
        if let Some((name, _)) = self.tensors.iter().find(|(_, tensor)| is_bad(tensor)) {
            return Err(CheckpointError::NonFinite { path: path.to_owned(), tensor: name.clone() });
        }
        write_atomic(path, |file| self.write(file))
            .map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`CheckpointError`], each kind but `Write` and `OtherModel`.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads only where training stood, which takes no time; the tensors and the checksum are not looked at.
    ///
    /// # Errors
    /// [`CheckpointError`] for a file that is no checkpoint.
    pub fn load_state(path: &Path) -> Result<CheckpointState, CheckpointError> {
        let corrupt = |reason: String| CheckpointError::Corrupt { path: path.to_owned(), reason };
        let text = metadata_entry(path, METADATA_KEY).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => corrupt("it is cut short".to_owned()),
            ErrorKind::InvalidData => corrupt(e.to_string()),
            _ => CheckpointError::Read { path: path.to_owned(), source: e },
        })?;
        let text = text.ok_or_else(|| CheckpointError::NotACheckpoint {
            path: path.to_owned(),
            reason: "a safetensors file, but no checkpoint of this program".to_owned(),
        })?;
        let envelope: Envelope = serde_json::from_str(&text).map_err(|e| corrupt(e.to_string()))?;
        serde_json::from_str(envelope.state.get()).map_err(|e| corrupt(e.to_string()))
    }

    /// Checks that exactly these tensors are inside, with these shapes.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] listing what differs.
    pub fn expect_layout<'a>(
        &self,
        expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), CheckpointError> {
        let expected: BTreeMap<&str, &[usize]> = expected.into_iter().collect();
        let mut differences: Vec<String> =
            expected.iter().filter_map(|(name, shape)| self.difference(name, shape)).collect();
        let unexpected = self.tensors.keys().filter(|name| !expected.contains_key(name.as_str()));
        differences.extend(unexpected.map(|name| format!("`{name}` has no place in this network")));
        if differences.is_empty() { Ok(()) } else { Err(self.other_model(differences)) }
    }

    /// The 32-bit floats of one tensor of the given shape.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] if it is missing, of another shape or another type.
    pub fn expect_f32(&self, name: &str, shape: &[usize]) -> Result<&[f32], CheckpointError> {
        let wrong_type = || self.other_model(vec![format!("`{name}` does not hold 32-bit floats")]);
        self.expect(name, shape)?.as_f32().ok_or_else(wrong_type)
    }

    /// The tensor of the given name and shape.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] if it is missing or of another shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&Tensor, CheckpointError> {
        match (self.tensors.get(name), self.difference(name, shape)) {
            (Some(tensor), None) => Ok(tensor),
            (_, difference) => Err(self.other_model(difference.into_iter().collect())),
        }
    }

    fn difference(&self, name: &str, shape: &[usize]) -> Option<String> {
        match self.tensors.get(name) {
            None => Some(format!("`{name}` is missing")),
            Some(tensor) if tensor.shape != shape => {
                Some(format!("`{name}` has shape {:?} instead of {shape:?}", tensor.shape))
            }
            Some(_) => None,
        }
    }

    fn other_model(&self, differences: Vec<String>) -> CheckpointError {
        CheckpointError::OtherModel { path: self.path.clone(), model: self.state.model.clone(), differences }
    }

    /// Writes what [`safetensors::serialize`] gives, tensor by tensor: a copy of all of them would be the most memory that a run takes.
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let state = serde_json::to_string(&self.state)?;
        let envelope = Envelope {
            version: CHECKPOINT_VERSION,
            crc32: self.checksum(&state),
            state: RawValue::from_string(state)?,
        };
        // One key only: the order of several would change from run to run.
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), serde_json::to_string(&envelope)?)]);
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        // Those of wider elements come first, so that all are aligned.
        tensors.sort_by_key(|(_, tensor)| Reverse(dtype_of(&tensor.data)));
        let mut end = 0;
        let infos = tensors.iter().map(|(name, Tensor { shape, data })| {
            let start = end;
            end += bytes_of(data).len();
            let info = TensorInfo { dtype: dtype_of(data), shape: shape.clone(), data_offsets: (start, end) };
            ((*name).clone(), info)
        });
        let header = Metadata::new(Some(metadata), infos.collect()).map_err(std::io::Error::other)?;
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.into_iter().try_for_each(|(_, tensor)| out.write_all(bytes_of(&tensor.data)))
    }

    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let foreign = |reason: String| CheckpointError::NotACheckpoint { path: path.to_owned(), reason };
        let corrupt = |reason: String| CheckpointError::Corrupt { path: path.to_owned(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
                corrupt("its length is not what its header says".to_owned())
            }
            SafeTensorError::HeaderTooSmall => corrupt(format!("it is only {} bytes long", bytes.len())),
            e => foreign(format!("no safetensors header: {e}")),
        })?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| corrupt(e.to_string()))?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let text =
            metadata.ok_or_else(|| foreign("a safetensors file, but no checkpoint of this program".to_owned()))?;
        let envelope: Envelope = serde_json::from_str(text).map_err(|e| corrupt(e.to_string()))?;
        if envelope.version != CHECKPOINT_VERSION {
            return Err(CheckpointError::OtherVersion { path: path.to_owned(), found: envelope.version });
        }
        let state = serde_json::from_str(envelope.state.get()).map_err(|e| corrupt(e.to_string()))?;
        let mut checkpoint = Self::new(state);
        checkpoint.path = path.to_owned();
        for (name, view) in file.iter() {
            let tensor = read_tensor(view.dtype(), view.shape(), view.data());
            let tensor = tensor.ok_or_else(|| foreign(format!("tensor `{name}` is {:?}", view.dtype())))?;
            checkpoint.insert(name, tensor);
        }
        if checkpoint.checksum(envelope.state.get()) != envelope.crc32 {
            return Err(corrupt("its checksum does not match".to_owned()));
        }
        Ok(checkpoint)
    }

    /// CRC-32 (the polynomial of zip and PNG) over the state's text and every tensor's name, shape and bytes.
    fn checksum(&self, state: &str) -> String {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(state.as_bytes());
        for (name, tensor) in &self.tensors {
            hasher.update(format!("\n{name} {:?}\n", tensor.shape).as_bytes());
            hasher.update(bytes_of(&tensor.data));
        }
        format!("{:08x}", hasher.finalize())
    }
}

/// An entry of a safetensors file's metadata; its tensors are not read.
///
/// # Errors
/// `UnexpectedEof` for a file that is cut short, `InvalidData` for a header that is none.
pub(crate) fn metadata_entry(path: &Path, key: &str) -> std::io::Result<Option<String>> {
    /// No header of ours is nearly as long; a longer one is not read into memory.
    const LONGEST_HEADER: u64 = 100 << 20;
    let mut file = std::fs::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "its header is longer than any of ours"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let header: serde_json::Value = serde_json::from_slice(&header)?;
    let entry = header.get("__metadata__").and_then(|metadata| metadata.get(key));
    Ok(entry.and_then(serde_json::Value::as_str).map(str::to_owned))
}

/// What the metadata holds, as JSON.
#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    crc32: String,
    state: Box<RawValue>,
}

fn dtype_of(data: &TensorData) -> Dtype {
    match data {
        TensorData::F32(_) => Dtype::F32,
        TensorData::U8(_) => Dtype::U8,
    }
}

// The format is little-endian; a machine that is not would need its bytes swapped here and in `read_tensor`.
#[cfg(target_endian = "big")]
compile_error!("checkpoints are read and written as little-endian memory");

fn bytes_of(data: &TensorData) -> &[u8] {
    match data {
        TensorData::F32(values) => bytemuck::cast_slice(values),
        TensorData::U8(values) => values,
    }
}

/// `None` for a type that checkpoints do not hold.
fn read_tensor(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
    // `pod_collect_to_vec` copies, so the alignment of the file's bytes does not matter.
    let data = match dtype {
        Dtype::F32 => TensorData::F32(bytemuck::pod_collect_to_vec(bytes)),
        Dtype::U8 => TensorData::U8(bytes.to_vec()),
        _ => return None,
    };
    Some(Tensor { shape: shape.to_vec(), data })
}

/// What to do about a damaged checkpoint: the newest kept one beside it, if there is one, can take its place.
fn instead_of(path: &Path) -> String {
    let kept = path.parent().map(kept_checkpoints).unwrap_or_default().into_iter().rfind(|kept| kept != path);
    let is_last = path.file_name().is_some_and(|name| name == "last.safetensors");
    match kept {
        Some(kept) if is_last => format!("copy {} over it and resume from there", kept.display()),
        Some(kept) => format!("{} is another", kept.display()),
        None if is_last => "no other is beside it: start over with pretrain --overwrite".to_owned(),
        None => "no other is beside it".to_owned(),
    }
}

/// The first few of a list, and how many more there are.
pub(crate) fn list(differences: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if differences.len() > SHOWN {
        text.push_str(&format!(", and {} more", differences.len() - SHOWN));
    }
    text
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
