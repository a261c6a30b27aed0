//! Small data sets as files, for the tests.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb};

/// Writes a file, with its folders.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
    path.to_owned()
}

/// An encoded image of one colour.
pub fn encoded(format: ImageFormat, width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, Rgb(colour)).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// An IDX file of unsigned bytes.
pub fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|n| n.to_be_bytes()));
    bytes.extend_from_slice(values);
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// A `.npy` file of any dtype.
pub fn npy(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(values);
    bytes
}

pub fn npy_i64(indices: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
    npy("<i8", &format!("({},)", indices.len()), &values)
}

/// The five training files and the test file of the binary CIFAR-10, two images each: the label of image i of file f is
/// f, its red channel 10 f + i.
pub fn cifar10_binary(folder: &Path) {
    for file in 0..6u8 {
        let name = if file == 5 { "test_batch.bin".to_owned() } else { format!("data_batch_{}.bin", file + 1) };
        let record = |i: u8| [vec![file], vec![10 * file + i; 1024], vec![1; 1024], vec![2; 1024]].concat();
        write(&folder.join(name), [record(0), record(1)].concat());
    }
}
