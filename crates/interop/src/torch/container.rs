//! The two containers of `torch.save`: a zip archive, and before PyTorch 1.6 pickles followed by the storages' bytes.
//!
//! Source: PyTorch's `torch/serialization.py`. Sizes that a file claims are held against its own length before anything
//! is allocated.

use super::pickle;
use super::value::{Pickle, Storage, Value};
use crate::error::ImportError;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use zip::ZipArchive;
use zip::result::ZipError;

/// Bytes of the largest pickle of names and shapes.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// How many times larger than its place in the file an entry may become. Trained weights hardly compress, masks some tenfold.
pub(crate) const MAX_EXPANSION: u64 = 64;
/// How a legacy file begins after the opcode of its protocol: the magic number 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Where the bytes of storages are.
#[derive(Debug)]
pub(crate) enum Container {
    Zip {
        archive: Box<ZipArchive<File>>,
        /// The folder that everything is in, with its slash.
        folder: String,
        file_len: u64,
    },
    Legacy {
        file: File,
        /// First byte and number of bytes of each storage.
        places: BTreeMap<String, (u64, usize)>,
    },
}

/// Opens a file of `torch.save`, or `None` if it begins like neither container.
///
/// # Errors
/// A damaged file, or a pickle that is refused.
pub(crate) fn open(mut file: File) -> Result<Option<(Container, Pickle)>, ImportError> {
    let file_len = file.metadata()?.len();
    let mut head = Vec::new();
    file.by_ref().take(16).read_to_end(&mut head)?;
    file.rewind()?;
    if head.starts_with(b"PK\x03\x04") {
        open_zip(file, file_len).map(Some)
    } else if head.len() > 2 && head[0] == 0x80 && head[2..].starts_with(LEGACY_MAGIC) {
        open_legacy(file, file_len).map(Some)
    } else {
        Ok(None)
    }
}

impl Container {
    /// All bytes of a storage.
    ///
    /// # Errors
    /// A storage that is missing or of another length than the pickle says.
    pub fn read(&mut self, storage: &Storage) -> Result<Vec<u8>, ImportError> {
        let n_bytes = storage.n_bytes().ok_or_else(|| damaged(storage, "is too long"))?;
        match self {
            Self::Zip { archive, folder, file_len } => {
                let bytes = read_entry(archive, &format!("{folder}data/{}", storage.key), *file_len, n_bytes as u64)?;
                if bytes.len() == n_bytes {
                    Ok(bytes)
                } else {
                    Err(damaged(storage, "has another length than it says"))
                }
            }
            Self::Legacy { file, places } => {
                let place = places.get(&*storage.key).copied().filter(|(_, len)| *len == n_bytes);
                let (start, _) = place.ok_or_else(|| damaged(storage, "is missing or has another length"))?;
                file.seek(SeekFrom::Start(start))?;
                // The length was held against the file's.
                let mut bytes = vec![0; n_bytes];
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

fn damaged(storage: &Storage, problem: &str) -> ImportError {
    ImportError::Damaged(format!("storage {} {problem}", storage.key))
}

fn open_zip(file: File, file_len: u64) -> Result<(Container, Pickle), ImportError> {
    let mut archive = ZipArchive::new(file).map_err(zip_error)?;
    // A name that is no text is none of ours.
    let names: Vec<String> = archive.file_names().flatten().map(String::from).collect();
    if names.iter().any(|name| name.ends_with("/constants.pkl")) {
        return Err(ImportError::NotACheckpoint(
            "it is a TorchScript program; save model.state_dict() by torch.save and import that".to_owned(),
        ));
    }
    let pickle = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let pickle = pickle.ok_or_else(|| ImportError::NotACheckpoint("a zip archive without data.pkl".to_owned()))?;
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    let order = format!("{folder}byteorder");
    if names.contains(&order) && read_entry(&mut archive, &order, file_len, 16)? != b"little" {
        return Err(big_endian());
    }
    let bytes = read_entry(&mut archive, pickle, file_len, MAX_PICKLE_BYTES)?;
    let (pickle, _) = pickle::read(&bytes).map_err(|problem| refused(problem, pickle))?;
    Ok((Container::Zip { archive: Box::new(archive), folder, file_len }, pickle))
}

/// The bytes of an entry, at most `limit`; longer ones are an error.
fn read_entry(archive: &mut ZipArchive<File>, name: &str, file_len: u64, limit: u64) -> Result<Vec<u8>, ImportError> {
    let entry = archive.by_name(name).map_err(|e| match e {
        ZipError::FileNotFound => ImportError::Damaged(format!("`{name}` is missing in it")),
        e => zip_error(e),
    })?;
    let (size, packed) = (entry.size(), entry.compressed_size());
    if size > limit || packed > file_len || size > packed.saturating_mul(MAX_EXPANSION) {
        return Err(ImportError::Damaged(format!("`{name}` claims {size} bytes, in {packed} bytes of the file")));
    }
    // Grows with what is really there; the library checks the CRC at the end.
    let mut bytes = Vec::new();
    entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| match e.kind() {
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof | ErrorKind::Other => {
            ImportError::Damaged(format!("`{name}`: {e}"))
        }
        _ => ImportError::Read(e),
    })?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(ImportError::Damaged(format!("`{name}` holds not the {size} bytes that it claims")))
    }
}

fn zip_error(error: ZipError) -> ImportError {
    match error {
        ZipError::Io(e) if e.kind() != ErrorKind::UnexpectedEof && e.kind() != ErrorKind::InvalidData => {
            ImportError::Read(e)
        }
        e => ImportError::Damaged(e.to_string()),
    }
}

/// Four pickles (magic number, protocol, system, content), one of the storages' names, then each storage: its length as
/// 64 bits and its bytes.
fn open_legacy(mut file: File, file_len: u64) -> Result<(Container, Pickle), ImportError> {
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_PICKLE_BYTES).read_to_end(&mut bytes)?;
    let mut at = 2 + LEGACY_MAGIC.len();
    let mut next = |part: &str| {
        let rest = bytes.get(at..).unwrap_or_default();
        let (pickle, len) = pickle::read(rest).map_err(|problem| refused(problem, part))?;
        at += len;
        Ok::<_, ImportError>(pickle)
    };
    next("its protocol")?;
    let system = next("its system")?;
    if system.get(system.root, "little_endian").map(|id| system.value(id)) == Some(&Value::Bool(false)) {
        return Err(big_endian());
    }
    let content = next("its content")?;
    let keys = next("its list of storages")?;
    let places = places(&mut file, file_len, at as u64, &content, &keys)?;
    Ok((Container::Legacy { file, places }, content))
}

/// First byte and number of bytes of each storage of a legacy file; they begin at byte `at`.
fn places(
    file: &mut File,
    file_len: u64,
    mut at: u64,
    content: &Pickle,
    keys: &Pickle,
) -> Result<BTreeMap<String, (u64, usize)>, ImportError> {
    let storages = content.values.iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((&*storage.key, storage)),
        _ => None,
    });
    let storages: BTreeMap<&str, &Storage> = storages.collect();
    let mut places = BTreeMap::new();
    let Value::List(keys_in_order) = keys.value(keys.root) else {
        return Err(ImportError::Damaged("it does not list its storages".to_owned()));
    };
    for key in keys_in_order {
        let storage = keys.text(*key).and_then(|key| storages.get(key).copied());
        let storage =
            storage.ok_or_else(|| ImportError::Damaged("it lists a storage that no tensor has".to_owned()))?;
        let mut len = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut len).map_err(|_| damaged(storage, "is missing: the file ends too early"))?;
        let n_bytes = storage.n_bytes().filter(|_| u64::from_le_bytes(len) == storage.len as u64);
        let n_bytes = n_bytes.ok_or_else(|| damaged(storage, "has another length than it says"))?;
        let end = (at + 8).checked_add(n_bytes as u64).filter(|end| *end <= file_len);
        let end = end.ok_or_else(|| damaged(storage, "reaches past the end of the file"))?;
        places.insert(storage.key.to_string(), (at + 8, n_bytes));
        at = end;
    }
    Ok(places)
}

fn refused(problem: pickle::Problem, part: &str) -> ImportError {
    ImportError::Pickle { what: problem.what, part: part.to_owned(), position: problem.position }
}

fn big_endian() -> ImportError {
    ImportError::NotACheckpoint(
        "it was written on a big-endian machine; load and save it again by PyTorch on a little-endian one".to_owned(),
    )
}
