//! The layout of a pack: a header of fixed size, the images one after the other, and an index behind them.
//!
//! All numbers are little-endian. docs/pack-format.md describes the same for other programs.

/// The first bytes of a pack: no text file begins so, and a transfer as text damages them.
pub(crate) const MAGIC: [u8; 8] = *b"\x89SDPACK\n";
/// The version that is written, and the only one that is read.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 64;
/// Bytes of an image's entry in the index.
pub(crate) const ENTRY_LEN: usize = 32;

/// Flag: the images have labels.
const LABELLED: u32 = 1;
/// Flag: the classes have names.
const NAMED: u32 = 2;

/// What to do about a damaged pack.
const AGAIN: &str = "get the file again, or write it again with sdclr pack";

/// How pixels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The bytes themselves, `[height, width, 3]`.
    Raw,
    /// A JPEG file each, of a quality from 1 to 100 (a pack that is read does not know its quality: 0).
    Jpeg {
        /// As libjpeg counts it.
        quality: u8,
    },
}

impl Storage {
    fn number(self) -> u32 {
        match self {
            Self::Raw => 0,
            Self::Jpeg { .. } => 1,
        }
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw RGB",
            Self::Jpeg { .. } => "JPEG",
        }
    }
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub storage: Storage,
    pub n_images: u64,
    /// Where the index begins, which is where the pixels end.
    pub index_offset: u64,
    pub index_len: u64,
    /// Images that were made smaller.
    pub n_resized: u64,
    /// The shorter side that larger images were resized to; 0 if sizes were kept.
    pub shorter_side: u32,
    pub labelled: bool,
    pub named: bool,
    pub index_crc32: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let flags = if self.labelled { LABELLED } else { 0 } | if self.named { NAMED } else { 0 };
        let fields: [&[u8]; 10] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &self.storage.number().to_le_bytes(),
            &self.n_images.to_le_bytes(),
            &self.index_offset.to_le_bytes(),
            &self.index_len.to_le_bytes(),
            &self.n_resized.to_le_bytes(),
            &self.shorter_side.to_le_bytes(),
            &flags.to_le_bytes(),
            &self.index_crc32.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_LEN];
        let (known, crc32) = bytes.split_at_mut(HEADER_LEN - 4);
        known.copy_from_slice(&fields.concat());
        crc32.copy_from_slice(&crc32fast::hash(known).to_le_bytes());
        bytes
    }

    /// Reads the header of a file of `file_len` bytes that begins with `bytes`.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self, String> {
        if !bytes.starts_with(&MAGIC) {
            return Err(format!("not a pack: it does not begin as one does; {AGAIN}"));
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(format!("cut short: {} bytes, the header alone has {HEADER_LEN}; {AGAIN}", bytes.len()));
        };
        let mut fields = Reader(&bytes[MAGIC.len()..]);
        let version = fields.u32()?;
        if version != VERSION {
            return Err(format!(
                "a pack of version {version}; this program reads version {VERSION}. Use the sdclr that wrote it, or \
                 write it again with this one's sdclr pack"
            ));
        }
        let (known, crc32) = bytes.split_at(HEADER_LEN - 4);
        if crc32fast::hash(known).to_le_bytes() != crc32 {
            return Err(format!("damaged: the header does not match its checksum; {AGAIN}"));
        }
        let storage = match fields.u32()? {
            0 => Storage::Raw,
            1 => Storage::Jpeg { quality: 0 },
            other => return Err(format!("pixels are stored in the unknown way {other}; {AGAIN}")),
        };
        let [n_images, index_offset, index_len, n_resized] =
            [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        let (shorter_side, flags, index_crc32) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (labelled, named) = (flags & LABELLED != 0, flags & NAMED != 0);
        let header =
            Self { storage, n_images, index_offset, index_len, n_resized, shorter_side, labelled, named, index_crc32 };
        match index_offset.checked_add(index_len) {
            Some(expected) if expected == file_len && index_offset >= HEADER_LEN as u64 => Ok(header),
            Some(expected) if expected < file_len => {
                Err(format!("{file_len} bytes, {} more than its header says; {AGAIN}", file_len - expected))
            }
            expected => {
                let expected = expected.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
                Err(format!("cut short: {file_len} bytes of {expected}; {AGAIN}"))
            }
        }
    }
}

/// An image's entry in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where its bytes begin in the file.
    pub offset: u64,
    pub n_bytes: u32,
    pub width: u32,
    pub height: u32,
    /// Of its bytes.
    pub crc32: u32,
}

/// An entry as it is written; `label` is nothing in a pack without labels.
pub(crate) fn encode_entry(entry: &Entry, label: u32, name_len: u32) -> [u8; ENTRY_LEN] {
    let Entry { offset, n_bytes, width, height, crc32 } = *entry;
    let mut bytes = [0; ENTRY_LEN];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    let numbers = [n_bytes, width, height, label, crc32, name_len];
    for (place, number) in bytes[8..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// A length and a text, as class names and the description are written.
pub(crate) fn encode_text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// What an index holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub entries: Vec<Entry>,
    pub labels: Option<Vec<u32>>,
    /// All names, one after the other, and where each ends.
    pub names: (String, Vec<usize>),
    pub class_names: Option<Vec<String>>,
    /// What was packed, for people.
    pub description: String,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn parse(bytes: &[u8], header: &Header) -> Result<Self, String> {
        if crc32fast::hash(bytes) != header.index_crc32 {
            return Err(format!("damaged: the index does not match its checksum; {AGAIN}"));
        }
        // A checksum is no proof against a file that was made wrong, so nothing here trusts a number.
        Self::read(bytes, header).map_err(|problem| format!("the index makes no sense: {problem}; {AGAIN}"))
    }

    fn read(bytes: &[u8], header: &Header) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let n_images = usize::try_from(header.n_images).map_err(|_| "too many images")?;
        if n_images == 0 {
            return Err("there are no images".to_owned());
        }
        let table = reader.take(n_images.checked_mul(ENTRY_LEN).ok_or("too many images")?)?;
        let mut index = Self { entries: Vec::with_capacity(n_images), ..Self::default() };
        let (mut labels, mut ends, mut names_len) = (Vec::new(), Vec::with_capacity(n_images), 0usize);
        for (number, bytes) in table.chunks_exact(ENTRY_LEN).enumerate() {
            let mut fields = Reader(bytes);
            let (offset, n_bytes, width, height) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?);
            let (label, crc32, name_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let end = offset.checked_add(n_bytes.into());
            if offset < HEADER_LEN as u64 || end.is_none_or(|end| end > header.index_offset) {
                return Err(format!("image {number} lies outside of the pixels"));
            }
            let n_pixels = u64::from(width) * u64::from(height);
            if n_pixels == 0 || header.storage == Storage::Raw && n_pixels.checked_mul(3) != Some(n_bytes.into()) {
                return Err(format!("image {number} has {n_bytes} bytes for {width}x{height} pixels"));
            }
            names_len = names_len.checked_add(name_len as usize).ok_or("names are too long")?;
            ends.push(names_len);
            if header.labelled {
                labels.push(label);
            }
            index.entries.push(Entry { offset, n_bytes, width, height, crc32 });
        }
        let names = reader.take(names_len)?;
        let names = String::from_utf8(names.to_vec()).map_err(|_| "a name is no UTF-8")?;
        if ends.iter().any(|&end| !names.is_char_boundary(end)) {
            return Err("a name ends within a letter".to_owned());
        }
        index.names = (names, ends);
        if header.named {
            let n_classes = reader.u32()?;
            index.class_names = Some((0..n_classes).map(|_| reader.text()).collect::<Result<_, _>>()?);
        }
        index.description = reader.text()?;
        index.labels = header.labelled.then_some(labels);
        index.check_labels()?;
        if reader.0.is_empty() { Ok(index) } else { Err(format!("{} bytes are left over", reader.0.len())) }
    }

    /// Labels with names are below their number; others are not so large that a count for each class would fill the memory.
    fn check_labels(&self) -> Result<(), String> {
        let n_classes = self.class_names.as_ref().map_or(crate::source::list::LABEL_MAX as usize + 1, Vec::len);
        match self.labels.iter().flatten().position(|&label| label as usize >= n_classes) {
            Some(number) => Err(format!("the label of image {number} is none of the {n_classes} classes")),
            None => Ok(()),
        }
    }
}

/// Takes numbers from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(n_bytes).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let n_bytes = self.u32()? as usize;
        String::from_utf8(self.take(n_bytes)?.to_vec()).map_err(|_| "a text is no UTF-8".to_owned())
    }
}
