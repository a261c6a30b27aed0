//! One view on the files that checkpoints come in: named tensors, read when their values are asked for.

use crate::error::ImportError;
use crate::torch::{Dtype, Id, TorchFile, Value};
use safetensors::tensor::{Dtype as SafeDtype, SafeTensors};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

/// Keys under which programs store the tensors, the published SDCLR code's first.
const STATE_KEYS: [&str; 2] = ["state_dict", "model"];
/// The key of the published SDCLR code's masks.
const MASK_KEY: &str = "pruneMask";
/// The key of this program's own checkpoints in their metadata.
const OWN_KEY: &str = "sdclr";

/// A file of named tensors.
pub(crate) struct ForeignFile {
    backing: Backing,
    /// Its tensors in the file's order; of a file of masks, the masks.
    pub entries: Vec<Entry>,
    /// Whether these are masks.
    pub is_masks: bool,
    /// The epoch that it says it is of.
    pub epoch: Option<usize>,
    /// Side in pixels of the images, where it says one.
    pub image_size: Option<usize>,
    /// What it holds beside tensors, for messages.
    keys: Vec<String>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// Where its values are: a value of the pickle, or a byte of the file. Grows in the file's order.
    pub at: usize,
}

enum Backing {
    Torch(TorchFile),
    Safetensors(Vec<u8>),
}

impl ForeignFile {
    /// Opens a file of `torch.save` or of safetensors.
    ///
    /// # Errors
    /// A file of another kind, damaged, or asking for what is not allowed.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let mut file = File::open(path)?;
        match TorchFile::open(file.try_clone()?)? {
            Some(torch) => Self::from_torch(torch),
            None => {
                let mut bytes = Vec::new();
                file.rewind()?;
                file.read_to_end(&mut bytes)?;
                Self::from_safetensors(bytes)
            }
        }
    }

    /// The values of a tensor as 32-bit floats, row-major.
    ///
    /// # Errors
    /// A damaged file.
    pub fn values(&mut self, entry: &Entry) -> Result<Vec<f32>, ImportError> {
        match &mut self.backing {
            Backing::Torch(torch) => {
                let tensor = torch.tensor(entry.at).cloned();
                let tensor = tensor.ok_or_else(|| ImportError::Damaged("a tensor is gone".to_owned()))?;
                torch.values(&tensor).map_err(|e| match e {
                    ImportError::Damaged(problem) => {
                        let problem = format!("the file is damaged: {problem}");
                        ImportError::Tensor { name: entry.name.clone(), problem }
                    }
                    e => e,
                })
            }
            Backing::Safetensors(bytes) => {
                let size = entry.dtype.size();
                // Held against the file's length when it was opened.
                let bytes = &bytes[entry.at..entry.at + size * entry.shape.iter().product::<usize>()];
                Ok(bytes.chunks_exact(size).map(|value| entry.dtype.read(value)).collect())
            }
        }
    }

    /// Whether there is an entry of this name beside the tensors.
    pub fn has_key(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key)
    }

    /// What is inside, for messages about what is not: the first names.
    pub fn contents(&self) -> String {
        let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
        match (names.len(), self.keys.len()) {
            (0, 0) => "it holds no named tensors".to_owned(),
            (0, _) => format!("it holds no named tensors, but {}", quoted(&self.keys)),
            (n, _) => format!("it holds {n} tensors: {}", quoted(&names)),
        }
    }

    fn from_torch(torch: TorchFile) -> Result<Self, ImportError> {
        let pickle = &torch.pickle;
        let tensors = |dict: Id| {
            let entry = |(name, value): &(Id, Id)| {
                let tensor = torch.tensor(*value)?;
                let name = pickle.text(*name)?.to_owned();
                Some(Entry { name, shape: tensor.shape.clone(), dtype: tensor.dtype, at: *value })
            };
            pickle.entries(dict).iter().filter_map(entry).collect::<Vec<_>>()
        };
        let root = pickle.root;
        let masks = pickle.get(root, MASK_KEY);
        let state = STATE_KEYS.iter().find_map(|key| pickle.get(root, key)).filter(|id| !tensors(*id).is_empty());
        let epoch = pickle.get(root, "epoch").and_then(|id| match pickle.value(id) {
            Value::Int(epoch) => usize::try_from(*epoch).ok(),
            _ => None,
        });
        let keys = pickle.entries(root).iter().filter_map(|(name, _)| pickle.text(*name).map(str::to_owned)).collect();
        let entries = tensors(masks.or(state).unwrap_or(root));
        let backing = Backing::Torch(torch);
        Ok(Self { entries, is_masks: masks.is_some(), epoch, image_size: None, keys, backing })
    }

    fn from_safetensors(bytes: Vec<u8>) -> Result<Self, ImportError> {
        let foreign =
            || ImportError::NotACheckpoint("it begins like neither; name a .pt, .pth or .safetensors file".to_owned());
        // Checks the header against the length; reading it again gives the places.
        SafeTensors::deserialize(&bytes).map_err(|_| match bytes.get(8) {
            // The header's length, and the header.
            Some(b'{') => {
                ImportError::Damaged("a safetensors file whose header does not fit it; is it cut short?".to_owned())
            }
            _ => foreign(),
        })?;
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(|_| foreign())?;
        let told = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
        if told(OWN_KEY).is_some() {
            return Err(ImportError::Unfit(
                "this is a checkpoint of sdclr itself; use it where it lies, in its run directory".to_owned(),
            ));
        }
        let mut entries = Vec::new();
        for (name, info) in header.tensors() {
            let dtype = dtype_of(info.dtype).ok_or_else(|| ImportError::Tensor {
                name: name.clone(),
                problem: format!("values of type {:?} cannot be read", info.dtype),
            })?;
            // Eight bytes of the header's length come first.
            let at = 8 + header_len + info.data_offsets.0;
            entries.push(Entry { name, shape: info.shape.clone(), dtype, at });
        }
        entries.sort_by_key(|entry| entry.at);
        // As our own exports say them.
        let number = |key| told(key).and_then(|text| text.parse().ok());
        let (epoch, image_size) = (number("epoch"), number("image_size"));
        Ok(Self { entries, is_masks: false, epoch, image_size, keys: Vec::new(), backing: Backing::Safetensors(bytes) })
    }
}

fn dtype_of(dtype: SafeDtype) -> Option<Dtype> {
    Some(match dtype {
        SafeDtype::F64 => Dtype::F64,
        SafeDtype::F32 => Dtype::F32,
        SafeDtype::F16 => Dtype::F16,
        SafeDtype::BF16 => Dtype::Bf16,
        SafeDtype::I64 => Dtype::I64,
        SafeDtype::I32 => Dtype::I32,
        SafeDtype::I16 => Dtype::I16,
        SafeDtype::I8 => Dtype::I8,
        SafeDtype::U64 => Dtype::U64,
        SafeDtype::U32 => Dtype::U32,
        SafeDtype::U16 => Dtype::U16,
        SafeDtype::U8 => Dtype::U8,
        SafeDtype::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// The first few names, in quotes, and how many more there are.
pub(crate) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{}`", name.as_ref())).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    shown.join(", ") + &more
}
