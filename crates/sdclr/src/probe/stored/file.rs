//! The file of a stored probe, and its checksum.

use super::{BIAS, ProbeRecord, StoredProbe, WEIGHT};
use crate::checkpoint::metadata_entry;
use crate::error::Error;
use crate::run_dir::write_atomic;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use sdclr_nn::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The key of the metadata that holds the record.
const METADATA_KEY: &str = "sdclr_probe";

/// What the metadata holds, as JSON.
#[derive(Serialize, Deserialize)]
struct Envelope {
    /// CRC-32 of the tensors; absent in files of other programs.
    #[serde(default)]
    crc32: Option<String>,
    #[serde(flatten)]
    record: ProbeRecord,
}

impl ProbeRecord {
    /// Reads what a stored probe says of itself; its tensors and the checksum are not looked at.
    ///
    /// # Errors
    /// [`Error::StoredProbe`] for a file that is none.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::StoredProbe { path: path.to_owned(), reason };
        let text = metadata_entry(path, METADATA_KEY).map_err(|e| wrong(format!("cannot read: {e}")))?;
        let text = text.ok_or_else(|| wrong("not a stored probe".to_owned()))?;
        let envelope: Envelope = serde_json::from_str(&text).map_err(|e| wrong(format!("not a stored probe ({e})")))?;
        Ok(envelope.record)
    }
}

impl StoredProbe {
    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::StoredProbe`] for values that are no numbers.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let other = |e: String| failed(std::io::Error::other(e));
        let parts = self.parts();
        if let Some((name, ..)) = parts.iter().find(|(.., data)| !data.iter().all(|value| value.is_finite())) {
            let reason = format!("not kept: {name} holds values that are not numbers; try a lower --lr");
            return Err(Error::StoredProbe { path: path.to_owned(), reason });
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let parts: Vec<_> = parts.into_iter().map(|(name, shape, data)| (name, shape, little_endian(data))).collect();
        let envelope = Envelope { crc32: Some(self.checksum()), record: self.record.clone() };
        let envelope = serde_json::to_string(&envelope).map_err(|e| other(e.to_string()))?;
        let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        let views: Result<Vec<_>, _> =
            parts.iter().map(|(name, shape, bytes)| Ok((name, view(shape, bytes.as_slice())?))).collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(HashMap::from([(METADATA_KEY.to_owned(), envelope)]))))
            .map_err(|e: SafeTensorError| other(e.to_string()))?;
        write_atomic(path, |file| file.write_all(&bytes)).map_err(failed)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::StoredProbe`] for one that cannot be read, is damaged or of another kind.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::StoredProbe { path: path.to_owned(), reason };
        let other = |what: &str| wrong(format!("not a stored probe ({what})"));
        let damaged = |what: &str| wrong(format!("the stored probe is damaged ({what}): sdclr eval trains it anew"));
        let bytes = std::fs::read(path).map_err(|e| wrong(format!("cannot read: {e}")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
                damaged("its length is not what its header says")
            }
            e => other(&e.to_string()),
        })?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| other(&e.to_string()))?;
        let envelope = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY));
        let envelope = envelope.ok_or_else(|| other("its metadata have no entry `sdclr_probe`"))?;
        let Envelope { crc32, record } = serde_json::from_str(envelope).map_err(|e| other(&e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(other(&format!("{name} is {:?} {:?}", view.dtype(), view.shape())));
            }
            let data: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if data.is_empty() || !data.iter().all(|v| v.is_finite()) {
                return Err(other(&format!("{name} is empty or holds values that are not numbers")));
            }
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data });
        }
        for (name, n_axes) in [(WEIGHT, 2), (BIAS, 1)] {
            let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice()).unwrap_or_default();
            if shape.len() != n_axes || shape[0] != record.n_classes {
                return Err(other(&format!("{name} is {shape:?}, with {} classes", record.n_classes)));
            }
        }
        let stored = Self::of_network(record, tensors);
        if crc32.is_some_and(|crc32| crc32 != stored.checksum()) {
            return Err(damaged("its checksum does not match"));
        }
        Ok(stored)
    }

    /// CRC-32 (the polynomial of zip and PNG) over every tensor's name, shape and bytes.
    fn checksum(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for (name, shape, data) in self.parts() {
            hasher.update(format!("\n{name} {shape:?}\n").as_bytes());
            hasher.update(&little_endian(data));
        }
        format!("{:08x}", hasher.finalize())
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
