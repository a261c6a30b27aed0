//! A checkpoint's backbone as a `.pt` file: the state dict that `torch.save` would write, for `torch.load`.
//!
//! The format, as PyTorch's `torch/serialization.py` and `caffe2/serialize/inline_container.cc` read it: an uncompressed zip
//! archive with `archive/data.pkl`, a pickle of an ordered dict whose tensors point at numbered storages;
//! `archive/data/N`, the bytes of each; `archive/byteorder`; and `archive/version`. The pickle uses only what
//! `torch.load(…, weights_only=True)` allows. The bytes depend on the content alone.

use crate::export::{ExportError, ExportOptions, FloatView, exported_tensors};
use safetensors::tensor::View as _;
use sdclr_records::checkpoint::Tensor;
use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, DateTime};

/// The version that PyTorch writes since zip archives replaced its older format.
const FORMAT_VERSION: &[u8] = b"3\n";
/// PyTorch aligns storages to this many bytes, so that files can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// The bytes of a `.pt` file with the tensors of [`crate::export_safetensors`], as a plain state dict.
///
/// # Errors
/// [`ExportError`].
pub fn export_pt(tensors: &BTreeMap<String, Tensor>, options: &ExportOptions) -> Result<Vec<u8>, ExportError> {
    let exported = exported_tensors(tensors, options)?;
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // A fixed time and no system's permissions: the same bytes everywhere.
    let entry = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .with_alignment(ALIGNMENT);
    let mut put = |name: String, bytes: &[u8]| -> Result<(), ExportError> {
        archive.start_file(format!("archive/{name}"), entry)?;
        archive.write_all(bytes).map_err(zip::result::ZipError::from)?;
        Ok(())
    };
    put("data.pkl".to_owned(), &state_dict(&exported))?;
    put("byteorder".to_owned(), b"little")?;
    for (number, (_, tensor)) in exported.iter().enumerate() {
        put(format!("data/{number}"), &tensor.data())?;
    }
    put("version".to_owned(), FORMAT_VERSION)?;
    Ok(archive.finish()?.into_inner())
}

/// The pickle (protocol 2) of an ordered dict of tensors; the storage of tensor `i` is called `i`.
fn state_dict(exported: &[(String, FloatView<'_>)]) -> Vec<u8> {
    let mut pickle = Pickle { bytes: b"\x80\x02".to_vec() };
    pickle.empty_ordered_dict();
    pickle.mark();
    for (number, (name, tensor)) in exported.iter().enumerate() {
        pickle.text(name);
        pickle.tensor(&number.to_string(), tensor.shape);
    }
    pickle.bytes.extend(b"u."); // SETITEMS, STOP
    pickle.bytes
}

/// A pickle in the making; the opcodes are those of Python's `pickletools`.
struct Pickle {
    bytes: Vec<u8>,
}

impl Pickle {
    fn mark(&mut self) {
        self.bytes.push(b'(');
    }

    /// Everything since the last mark becomes a tuple.
    fn tuple(&mut self) {
        self.bytes.push(b't');
    }

    /// A class or function by module and name.
    fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    /// Calls the function below the tuple on top.
    fn reduce(&mut self) {
        self.bytes.push(b'R');
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.bytes.push(b')'); // EMPTY_TUPLE
        self.reduce();
    }

    /// BINUNICODE.
    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// BININT1, BININT2, BININT or LONG1, the first that holds the number, as Python chooses.
    fn integer(&mut self, n: usize) {
        if let Ok(n) = u8::try_from(n) {
            self.bytes.extend([b'K', n]);
        } else if let Ok(n) = u16::try_from(n) {
            self.bytes.push(b'M');
            self.bytes.extend(n.to_le_bytes());
        } else if let Ok(n) = i32::try_from(n) {
            self.bytes.push(b'J');
            self.bytes.extend(n.to_le_bytes());
        } else {
            // Nine bytes, so that the sign bit is never set.
            self.bytes.extend([0x8a, 9]);
            self.bytes.extend((n as u64).to_le_bytes());
            self.bytes.push(0);
        }
    }

    fn integers(&mut self, numbers: &[usize]) {
        self.mark();
        numbers.iter().for_each(|&n| self.integer(n));
        self.tuple();
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, requires_grad=False, hooks)` of the whole of a storage of floats.
    fn tensor(&mut self, storage: &str, shape: &[usize]) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.mark();
        self.mark();
        self.text("storage");
        self.global("torch", "FloatStorage");
        self.text(storage);
        self.text("cpu");
        self.integer(shape.iter().product());
        self.tuple();
        self.bytes.push(b'Q'); // BINPERSID
        self.integer(0);
        self.integers(shape);
        self.integers(&strides(shape));
        self.bytes.push(0x89); // NEWFALSE
        self.empty_ordered_dict();
        self.tuple();
        self.reduce();
    }
}

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Branch;
    use std::io::Read as _;

    fn options(branch: Branch) -> ExportOptions {
        let (model, stem) = ("resnet18".to_owned(), "small".to_owned());
        ExportOptions { branch, head: crate::ExportHead::None, model, stem, image_size: 32, epoch: 3 }
    }

    fn tensors() -> BTreeMap<String, Tensor> {
        let weight: Vec<f32> = (0..300).map(|i| i as f32 / 8.0).collect();
        let mask = (0..300).map(|i| u8::from(i % 2 == 0)).collect();
        [
            ("conv1.weight", Tensor::f32(&[300, 1, 1, 1], weight)),
            ("mask.conv1.weight", Tensor::u8(&[300, 1, 1, 1], mask)),
            ("bn1.dense.weight", Tensor::f32(&[2], vec![3.0, -4.0])),
            ("bn1.pruned.weight", Tensor::f32(&[2], vec![5.0, 6.0])),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    fn entries(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).expect("a zip archive");
        let mut entry = |i| {
            let mut file = archive.by_index(i).expect("inside");
            let name = file.name().expect("text").into_owned();
            assert_eq!(file.compression(), CompressionMethod::Stored);
            assert_eq!(file.data_start().expect("known") % u64::from(ALIGNMENT), 0, "{name}");
            let mut content = Vec::new();
            // Reading to the end also checks the CRC.
            file.read_to_end(&mut content).expect("undamaged");
            (name, content)
        };
        (0..5).map(&mut entry).collect()
    }

    #[test]
    fn the_archive_holds_what_torch_load_looks_for() {
        let bytes = export_pt(&tensors(), &options(Branch::Dense)).expect("exports");
        let entries = entries(&bytes);
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["archive/byteorder", "archive/data.pkl", "archive/data/0", "archive/data/1", "archive/version"]
        );
        assert_eq!(entries["archive/version"], b"3\n");
        assert_eq!(entries["archive/byteorder"], b"little");
        assert_eq!(entries["archive/data/0"], [0, 0, 0x40, 0x40, 0, 0, 0x80, 0xc0], "3 and -4, little-endian");
        assert_eq!(entries["archive/data/1"].len(), 1200);
        assert_eq!(bytes, export_pt(&tensors(), &options(Branch::Dense)).expect("exports"), "the same bytes again");
    }

    /// What `torch.save` writes, but without its memo (a name that comes again is spelled out again) and with one opcode for
    /// tuples of every length.
    #[test]
    fn the_pickle_is_a_dict_of_rebuilt_tensors() {
        let bytes = export_pt(&tensors(), &options(Branch::Pruned)).expect("exports");
        let expected = [
            &b"\x80\x02ccollections\nOrderedDict\n)R("[..],
            b"X\x0a\0\0\0bn1.weightctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQ",
            b"K\0(K\x02t(K\x01t\x89ccollections\nOrderedDict\n)RtR",
            b"X\x0c\0\0\0conv1.weightctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x001X\x03\0\0\0cpuM\x2c\x01tQ",
            b"K\0(M\x2c\x01K\x01K\x01K\x01t(K\x01K\x01K\x01K\x01t\x89ccollections\nOrderedDict\n)RtR",
            b"u.",
        ]
        .concat();
        let entries = entries(&bytes);
        assert_eq!(entries["archive/data.pkl"], expected);
        let second = f32::from_le_bytes(*entries["archive/data/1"][4..].first_chunk().expect("there"));
        assert_eq!(second, 0.0, "weights of the pruned branch are masked");
    }

    #[test]
    fn numbers_take_the_shortest_opcode() {
        #[track_caller]
        fn check(n: usize, expected: &[u8]) {
            let mut pickle = Pickle { bytes: Vec::new() };
            pickle.integer(n);
            assert_eq!(pickle.bytes, expected, "{n}");
        }
        check(255, b"K\xff");
        check(256, b"M\x00\x01");
        check(65_536, b"J\x00\x00\x01\x00");
        check(1 << 31, b"\x8a\x09\x00\x00\x00\x80\x00\x00\x00\x00\x00");
    }

    #[test]
    fn strides_are_row_major() {
        assert_eq!(strides(&[4, 3, 2]), [6, 2, 1]);
        assert_eq!(strides(&[5]), [1]);
    }
}
