//! A file mapped into memory: the one room of this crate with `unsafe` (docs/decisions/0008-packs.md).

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;

use memmap2::Mmap;

/// A mapped file that is only read.
#[derive(Debug)]
pub(super) struct Map {
    file: File,
    map: Mmap,
}

impl Map {
    /// Maps a whole file.
    pub fn new(file: File) -> Result<Self> {
        #[expect(unsafe_code, reason = "a map is only as constant as its file")]
        // SAFETY: the map is private to this type and handed out as bytes, of which any value is valid; what is read from
        // them is checked against a checksum before it is used. Nothing here writes to the file, and `sdclr pack` replaces
        // files by renaming, which leaves a mapped one as it is. Should another program change the bytes, the checksum
        // finds it; should it cut the file short, `bytes` notices before it touches what is gone.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { file, map })
    }

    /// Bytes of the file as it was when it was mapped.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// A range of the file's bytes.
    ///
    /// # Errors
    /// If the range is past the end, be it that the file was cut short since: touching a page that is gone would end the
    /// process. (Between this look and the reading of the bytes remains an instant in which it still would.)
    pub fn bytes(&self, range: Range<u64>) -> Result<&[u8]> {
        if range.end > self.len().min(self.file.metadata()?.len()) {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the file was cut short while it was in use"));
        }
        // What lies within the map fits in memory's numbers.
        Ok(&self.map[range.start as usize..range.end as usize])
    }
}
