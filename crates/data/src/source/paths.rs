//! Many relative paths in one piece of text: a million of them take two allocations, not a million.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Paths by number. Their names have `/` between components, and no `//` or `/./` that a list may write.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    text: String,
    /// Where each name ends in the text.
    ends: Vec<usize>,
    /// Paths that are no UTF-8, which their names do not lead to.
    odd: BTreeMap<usize, PathBuf>,
}

impl Paths {
    /// Names that stand one after the other in a text, and where each ends.
    ///
    /// # Panics
    /// If the ends do not ascend to the text's length, or one is within a letter.
    pub(crate) fn from_text(text: String, ends: Vec<usize>) -> Self {
        let whole = ends.is_sorted() && ends.iter().all(|&end| text.is_char_boundary(end));
        assert!(whole && ends.last().copied().unwrap_or(0) == text.len(), "{} names in a text", ends.len());
        Self { text, ends, odd: BTreeMap::new() }
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Appends a path.
    pub fn push(&mut self, path: &Path) {
        let start = self.text.len();
        for component in path.components() {
            if component == Component::RootDir {
                self.text.push('/');
                continue;
            }
            if self.text.len() > start && !self.text.ends_with('/') {
                self.text.push('/');
            }
            self.text.push_str(&component.as_os_str().to_string_lossy());
        }
        if path.to_str().is_none() {
            self.odd.insert(self.len(), path.to_owned());
        }
        self.ends.push(self.text.len());
    }

    /// Appends the name that `write` adds to the text, as it is.
    pub fn push_with(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    /// The name of a path, as people read it.
    ///
    /// # Panics
    /// If `index` is not below `len()`.
    pub fn name(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }

    /// A path, to open the file.
    ///
    /// # Panics
    /// If `index` is not below `len()`.
    pub fn path(&self, index: usize) -> &Path {
        self.odd.get(&index).map_or_else(|| Path::new(self.name(index)), PathBuf::as_path)
    }

    /// All names, by number.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.name(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_one_way_however_a_list_writes_them() {
        let mut paths = Paths::default();
        let cases = [("a/b.png", "a/b.png"), ("./a//b.png", "./a/b.png"), ("a/./b.png", "a/b.png"), ("/a/b", "/a/b")];
        cases.iter().for_each(|(path, _)| paths.push(Path::new(path)));
        paths.push_with(|text| text.push_str("idx:7"));
        assert_eq!(paths.names().collect::<Vec<_>>(), ["a/b.png", "./a/b.png", "a/b.png", "/a/b", "idx:7"]);
        assert_eq!((paths.len(), paths.path(3)), (5, Path::new("/a/b")));
    }

    #[test]
    #[cfg(unix)]
    fn a_path_that_is_no_text_is_kept_beside_its_name() {
        use std::os::unix::ffi::OsStrExt as _;
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"a/\xff.png"));
        let mut paths = Paths::default();
        paths.push(odd);
        paths.push(Path::new("b"));
        assert_eq!((paths.name(0), paths.path(0)), ("a/\u{fffd}.png", odd));
        assert_eq!((paths.name(1), paths.path(1)), ("b", Path::new("b")));
    }
}
