use super::*;
use proptest::prelude::*;
use std::io::Write;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The pickle of `{"x": tensor}` over storage `"0"` of `len` floats.
fn pickle(class: &str, len: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let tuple = |axes: &[u8]| {
        let numbers: Vec<u8> = axes.iter().flat_map(|axis| [b'K', *axis]).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    let mut bytes = b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n".to_vec();
    bytes.extend(format!("{class}\n").bytes());
    bytes.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK");
    bytes.extend([len, b't', b'Q', b'K', offset]);
    bytes.extend([tuple(shape), tuple(stride)].concat());
    bytes.extend(b"\x89NtRs.");
    bytes
}

fn zipped(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).expect("starts");
        writer.write_all(bytes).expect("writes");
    }
    writer.finish().expect("finishes").into_inner()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn open(bytes: &[u8]) -> Result<Option<TorchFile>, ImportError> {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(bytes).expect("writes");
    std::io::Seek::rewind(&mut file).expect("rewinds");
    TorchFile::open(file)
}

fn x(bytes: &[u8]) -> Result<Vec<f32>, ImportError> {
    let mut file = open(bytes)?.expect("a file of torch.save");
    let id = file.pickle.get(file.pickle.root, "x").expect("inside");
    let tensor = file.tensor(id).expect("a tensor").clone();
    file.values(&tensor)
}

fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zipped(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", storage)], CompressionMethod::Stored)
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    let error = x(bytes).expect_err("refused").to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}

#[test]
fn strides_and_offsets_are_followed() {
    let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let read = |offset, shape: &[u8], stride: &[u8]| {
        x(&archive(&pickle("FloatStorage", 7, offset, shape, stride), &storage)).expect("reads")
    };
    assert_eq!(read(1, &[2, 3], &[3, 1]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(read(1, &[3, 2], &[1, 3]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0], "a transposed view");
    assert_eq!(read(0, &[2, 1, 2], &[4, 9, 2]), [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(read(6, &[], &[]), [6.0], "a scalar");
    assert_eq!(read(0, &[2, 0], &[0, 1]), [0.0; 0]);
}

#[test]
fn views_past_the_end_of_their_storage_are_refused() {
    let storage = floats(&[0.0; 7]);
    for (offset, shape, stride) in [(0, [2, 4], [4, 1]), (2, [2, 3], [3, 1]), (0, [8, 1], [0, 1]), (0, [2, 2], [6, 1])]
    {
        check_refused(
            &archive(&pickle("FloatStorage", 7, offset, &shape, &stride), &storage),
            "does not fit its storage",
        );
    }
}

#[test]
fn every_type_of_values_is_read() {
    let read = |class: &str, bytes: &[u8]| x(&archive(&pickle(class, 2, 0, &[2], &[1]), bytes)).expect(class);
    assert_eq!(read("DoubleStorage", &[1.5f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat()), [1.5, -2.0]);
    assert_eq!(read("HalfStorage", &[0x00, 0x3e, 0x01, 0x00]), [1.5, 5.960_464_5e-8], "a subnormal too");
    assert_eq!(read("BFloat16Storage", &[0xc0, 0x3f, 0x00, 0xc0]), [1.5, -2.0]);
    assert_eq!(read("LongStorage", &[7i64.to_le_bytes(), (-1i64).to_le_bytes()].concat()), [7.0, -1.0]);
    assert_eq!(read("IntStorage", &[7i32.to_le_bytes(), (-1i32).to_le_bytes()].concat()), [7.0, -1.0]);
    assert_eq!(read("ShortStorage", &[7, 0, 0xff, 0xff]), [7.0, -1.0]);
    assert_eq!(read("CharStorage", &[7, 0xff]), [7.0, -1.0]);
    assert_eq!(read("ByteStorage", &[7, 0xff]), [7.0, 255.0]);
    assert_eq!(read("BoolStorage", &[1, 0]), [1.0, 0.0]);
}

#[test]
fn a_deflated_archive_is_read() {
    let storage = floats(&[1.0, 2.0]);
    let pickle = pickle("FloatStorage", 2, 0, &[2], &[1]);
    let bytes = zipped(&[("data.pkl", &pickle), ("data/0", &storage)], CompressionMethod::Deflated);
    assert_eq!(x(&bytes).expect("reads"), [1.0, 2.0]);
}

#[test]
fn an_entry_that_expands_without_measure_is_refused() {
    let pickle = pickle("FloatStorage", 2, 0, &[2], &[1]);
    let bytes = zipped(&[("data.pkl", &pickle), ("data/0", &vec![0; 1 << 20])], CompressionMethod::Deflated);
    check_refused(&bytes, "`data/0` claims 1048576 bytes");
}

#[test]
fn a_storage_of_another_length_is_refused() {
    let pickle = pickle("FloatStorage", 2, 0, &[2], &[1]);
    check_refused(&archive(&pickle, &floats(&[1.0])), "storage 0 has another length");
    check_refused(&archive(&pickle, &floats(&[1.0, 2.0, 3.0])), "`a/data/0` claims 12 bytes");
    check_refused(&zipped(&[("a/data.pkl", &pickle)], CompressionMethod::Stored), "`a/data/0` is missing");
}

#[test]
fn what_is_not_of_torch_save_is_told_apart() {
    assert!(open(b"").expect("no error").is_none());
    assert!(open(b"\x80\x02}.").expect("no error").is_none());
    let other = zipped(&[("readme.txt", b"x")], CompressionMethod::Stored);
    assert!(open(&other).expect_err("refused").to_string().contains("without data.pkl"));
    let script = zipped(&[("a/data.pkl", b"N."), ("a/constants.pkl", b"N.")], CompressionMethod::Stored);
    assert!(open(&script).expect_err("refused").to_string().contains("TorchScript"));
    let big = zipped(&[("a/data.pkl", b"N."), ("a/byteorder", b"big")], CompressionMethod::Stored);
    assert!(open(&big).expect_err("refused").to_string().contains("big-endian"));
}

#[test]
fn the_same_storage_cannot_be_handed_out_without_end() {
    let bytes = archive(&pickle("FloatStorage", 7, 0, &[7], &[1]), &floats(&[0.0; 7]));
    let mut file = open(&bytes).expect("opens").expect("a file of torch.save");
    let id = file.pickle.get(file.pickle.root, "x").expect("inside");
    let tensor = file.tensor(id).expect("a tensor").clone();
    let n_reads = (0..1 << 20).take_while(|_| file.values(&tensor).is_ok()).count();
    assert_eq!(n_reads, bytes.len() * 64 / 28);
}

fn legacy(storage: &[f32]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    bytes.extend(pickle("FloatStorage", 2, 0, &[2], &[1]));
    bytes.extend(b"\x80\x02]X\x01\0\0\x000a.");
    bytes.extend((storage.len() as u64).to_le_bytes());
    bytes.extend(floats(storage));
    bytes
}

#[test]
fn the_legacy_container_is_read() {
    assert_eq!(x(&legacy(&[1.0, 2.0])).expect("reads"), [1.0, 2.0]);
    check_refused(&legacy(&[1.0]), "another length");
    let whole = legacy(&[1.0, 2.0]);
    check_refused(&whole[..whole.len() - 1], "past the end of the file");
}

proptest! {
    #[test]
    fn cut_and_bit_flipped_files_are_read_or_refused(is_legacy: bool, at in 0usize..1000, bit in 0..8, cut: bool) {
        let mut bytes = if is_legacy {
            legacy(&[1.0, 2.0])
        } else {
            archive(&pickle("FloatStorage", 2, 0, &[2], &[1]), &floats(&[1.0, 2.0]))
        };
        let at = at % bytes.len();
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1u8 << bit;
        }
        if let Ok(Some(mut file)) = open(&bytes) {
            let tensors: Vec<Tensor> = (0..file.pickle.values.len()).filter_map(|id| file.tensor(id).cloned()).collect();
            for tensor in tensors {
                let _ = file.values(&tensor);
            }
        }
    }
}
