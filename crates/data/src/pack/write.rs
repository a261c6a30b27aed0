//! Writing a pack: decoded and resized on all cores, written by one thread in the data set's order.
//!
//! The bytes depend on the images and settings alone, not on the number of threads. Memory holds a few images a thread and
//! the index (32 bytes an image).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::format::{self, Entry, HEADER_LEN, Header, Storage};
use crate::augment::Resizer;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::loader::Skipped;
use crate::ordered::{in_order, n_workers};
use crate::source::RgbImage;

/// How a pack is to be written.
#[derive(Clone, Debug)]
pub struct PackSpec {
    /// Images with a larger shorter side are resized to it, in pixels; smaller ones stay as they are.
    pub shorter_side: Option<u32>,
    /// How pixels are stored.
    pub storage: Storage,
    /// Threads that decode and resize; 0 takes one per processor.
    pub workers: usize,
    /// Share of broken images that is tolerated, in [0, 1].
    pub max_broken_share: f32,
    /// Whether the first broken image is an error.
    pub strict: bool,
}

/// What is to be packed, and who is told.
pub struct PackJob<'a> {
    /// The images.
    pub dataset: &'a Dataset,
    /// The file; one that is there is replaced, once the new one is whole.
    pub out: &'a Path,
    /// How.
    pub spec: PackSpec,
    /// Asked after each image whether to stop.
    pub stop: &'a dyn Fn() -> bool,
    /// Told how many of how many images are done.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Images in the pack.
    pub n_images: usize,
    /// Those that were made smaller.
    pub n_resized: usize,
    /// Bytes of the file.
    pub n_bytes: u64,
    /// Broken images, which were left out.
    pub skipped: Vec<Skipped>,
}

/// Writes a pack: whole or not at all. `None` if `stop` said so; then nothing is left behind.
///
/// # Errors
/// A setting that makes no sense, too many broken images or only such, a file that cannot be written.
pub fn pack(job: PackJob<'_>) -> Result<Option<Packed>, DataError> {
    let PackJob { dataset, out, spec, stop, progress } = job;
    spec.validate()?;
    let temporary = Temporary::beside(out)?;
    let written = |source| DataError::write(out, source);
    let mut writer = Writer::new(&temporary.path, spec.clone()).map_err(written)?;
    let mut failed = None;
    let mut stopped = false;
    in_order(
        dataset.len(),
        n_workers(spec.workers),
        |scratch: &mut Scratch, position| scratch.prepare(dataset, position, &spec),
        |position, result| {
            let result =
                result.unwrap_or_else(|message| Err(DataError::Panicked { name: dataset.name(position), message }));
            stopped = stop();
            let outcome = match result {
                _ if stopped => return ControlFlow::Break(()),
                Ok(image) => writer.append(dataset, position, &image).map_err(written),
                Err(error) => writer.note_broken(dataset, position, error),
            };
            match outcome {
                Ok(()) => progress(position + 1, dataset.len()),
                Err(error) => failed = Some(error),
            }
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    );
    if let Some(error) = failed {
        return Err(error);
    }
    if stopped {
        return Ok(None);
    }
    let packed = writer.finish(dataset)?.map_err(written)?;
    temporary.rename_to(out).map_err(written)?;
    Ok(Some(packed))
}

/// Bytes that a pack will take, by the sizes of a few images; `None` if none of them can be decoded.
///
/// # Errors
/// A setting that makes no sense.
pub fn estimated_bytes(dataset: &Dataset, spec: &PackSpec) -> Result<Option<u64>, DataError> {
    const N_SAMPLED: usize = 16;
    spec.validate()?;
    let mut scratch = Scratch::default();
    let sizes: Vec<u64> = dataset
        .sample(N_SAMPLED)
        .into_iter()
        .filter_map(|image| scratch.stored(image, spec).ok())
        .map(|image| image.bytes.len() as u64)
        .collect();
    let mean = |n_sampled: u64| sizes.iter().sum::<u64>() / n_sampled;
    Ok((!sizes.is_empty()).then(|| mean(sizes.len() as u64).saturating_mul(dataset.len() as u64)))
}

impl PackSpec {
    fn validate(&self) -> Result<(), DataError> {
        let ensure = |condition, problem: String| if condition { Ok(()) } else { Err(DataError::Setting(problem)) };
        ensure(self.shorter_side != Some(0), "shorter side 0: an image needs at least one pixel".to_owned())?;
        if let Storage::Jpeg { quality } = self.storage {
            ensure((1..=100).contains(&quality), format!("JPEG quality {quality}: it must be in 1..=100"))?;
        }
        let share = self.max_broken_share;
        ensure((0.0..=1.0).contains(&share), format!("allowed share of broken images {share}: it must be in 0..=1"))
    }
}

/// An image as it will be stored.
struct Prepared {
    width: u32,
    height: u32,
    resized: bool,
    bytes: Vec<u8>,
    crc32: u32,
}

/// What one thread keeps between images.
#[derive(Default)]
struct Scratch {
    resizer: Resizer,
}

impl Scratch {
    fn prepare(&mut self, dataset: &Dataset, position: usize, spec: &PackSpec) -> Result<Prepared, DataError> {
        let image = dataset.decode(position)?;
        self.stored(image, spec).map_err(|reason| DataError::Image { name: dataset.name(position), reason })
    }

    fn stored(&mut self, image: RgbImage, spec: &PackSpec) -> Result<Prepared, String> {
        let smaller = spec.shorter_side.and_then(|side| self.resizer.shrink(&image, side));
        let resized = smaller.is_some();
        let RgbImage { width, height, pixels } = smaller.unwrap_or(image);
        let bytes = match spec.storage {
            Storage::Raw => pixels,
            Storage::Jpeg { quality } => {
                let mut bytes = Vec::new();
                JpegEncoder::new_with_quality(&mut bytes, quality)
                    .encode(&pixels, width, height, ExtendedColorType::Rgb8)
                    .map_err(|error| format!("cannot be written as JPEG: {error}"))?;
                bytes
            }
        };
        if u32::try_from(bytes.len()).is_err() {
            return Err(format!("{width}x{height} pixels are too many for a pack"));
        }
        Ok(Prepared { width, height, resized, crc32: crc32fast::hash(&bytes), bytes })
    }
}

/// The file in the making.
struct Writer {
    file: BufWriter<File>,
    spec: PackSpec,
    /// Where the next image begins.
    offset: u64,
    /// The entries so far, as they will be written.
    table: Vec<u8>,
    n_images: usize,
    n_resized: usize,
    broken: BTreeMap<usize, Skipped>,
    name: String,
}

impl Writer {
    fn new(path: &Path, spec: PackSpec) -> io::Result<Self> {
        // Fewer and larger writes than by default.
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        // The header is not known yet; a file without one is no pack.
        file.write_all(&[0; HEADER_LEN])?;
        let (table, broken, name) = (Vec::new(), BTreeMap::new(), String::new());
        Ok(Self { file, spec, offset: HEADER_LEN as u64, table, n_images: 0, n_resized: 0, broken, name })
    }

    fn append(&mut self, dataset: &Dataset, position: usize, image: &Prepared) -> io::Result<()> {
        self.file.write_all(&image.bytes)?;
        let Prepared { width, height, crc32, .. } = *image;
        let entry = Entry { offset: self.offset, n_bytes: image.bytes.len() as u32, width, height, crc32 };
        self.name.clear();
        dataset.push_name(position, &mut self.name);
        let name_len = u32::try_from(self.name.len()).map_err(io::Error::other)?;
        let label = dataset.label(position).unwrap_or(0);
        self.table.extend_from_slice(&format::encode_entry(&entry, label, name_len));
        self.offset += u64::from(entry.n_bytes);
        self.n_images += 1;
        self.n_resized += usize::from(image.resized);
        Ok(())
    }

    /// Leaves an image out, or says why the pack is not to be written.
    fn note_broken(&mut self, dataset: &Dataset, position: usize, error: DataError) -> Result<(), DataError> {
        // A defect of this crate, or a decoder's: not the image's alone.
        if self.spec.strict || matches!(error, DataError::Panicked { .. }) {
            return Err(error);
        }
        self.broken.insert(position, Skipped::new(dataset, position, &error));
        let (broken, total, limit) = (self.broken.len(), dataset.len(), self.spec.max_broken_share);
        if broken as f64 <= f64::from(limit) * total as f64 {
            return Ok(());
        }
        Err(self.too_many_broken(broken, total))
    }

    fn too_many_broken(&self, broken: usize, total: usize) -> DataError {
        let first = self.broken.values().next().map(|first| format!("{} ({})", first.name, first.reason));
        DataError::TooManyBroken { broken, total, limit: self.spec.max_broken_share, first: first.unwrap_or_default() }
    }

    /// Writes the index and the header, down to the disk.
    fn finish(mut self, dataset: &Dataset) -> Result<io::Result<Packed>, DataError> {
        if self.n_images == 0 {
            return Err(self.too_many_broken(self.broken.len(), dataset.len()));
        }
        Ok(self.write_index(dataset).and_then(|header| self.write_header(&header)))
    }

    fn write_index(&mut self, dataset: &Dataset) -> io::Result<Header> {
        let mut crc32 = crc32fast::Hasher::new();
        let mut index_len = 0;
        let file = &mut self.file;
        let mut write = |bytes: &[u8]| {
            crc32.update(bytes);
            index_len += bytes.len() as u64;
            file.write_all(bytes)
        };
        write(&self.table)?;
        for position in (0..dataset.len()).filter(|position| !self.broken.contains_key(position)) {
            self.name.clear();
            dataset.push_name(position, &mut self.name);
            write(self.name.as_bytes())?;
        }
        if let Some(names) = dataset.class_names() {
            write(&(names.len() as u32).to_le_bytes())?;
            names.iter().try_for_each(|name| write(&format::encode_text(name)))?;
        }
        write(&format::encode_text(&dataset.source_description()))?;
        Ok(Header {
            storage: self.spec.storage,
            n_images: self.n_images as u64,
            index_offset: self.offset,
            index_len,
            n_resized: self.n_resized as u64,
            shorter_side: self.spec.shorter_side.unwrap_or(0),
            labelled: dataset.label(0).is_some(),
            named: dataset.class_names().is_some(),
            index_crc32: crc32.finalize(),
        })
    }

    fn write_header(mut self, header: &Header) -> io::Result<Packed> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.encode())?;
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        let n_bytes = header.index_offset + header.index_len;
        let skipped = self.broken.into_values().collect();
        Ok(Packed { n_images: self.n_images, n_resized: self.n_resized, n_bytes, skipped })
    }
}

/// A file that is gone when it is not renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// `.NAME.PID.tmp` in the same folder, hence on the same file system.
    fn beside(path: &Path) -> Result<Self, DataError> {
        let Some(name) = path.file_name() else { return Err(DataError::format(path, "names no file to write")) };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        Ok(Self { path: path.with_file_name(hidden) })
    }

    fn rename_to(self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        // So that the rename itself survives a power cut.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed, or never made, or what can be done about it.
        let _ = std::fs::remove_file(&self.path);
    }
}
