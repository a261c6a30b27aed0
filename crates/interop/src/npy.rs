//! NumPy's `.npy` format, version 1.0, for arrays of 32-bit floats.
//!
//! Source: NumPy's format specification (numpy.lib.format).

/// The bytes of a `.npy` file of row-major 32-bit floats.
///
/// # Panics
/// If the number of values is not the product of `shape`.
pub fn npy_f32(shape: &[usize], values: &[f32]) -> Vec<u8> {
    assert_eq!(values.len(), shape.iter().product::<usize>(), "values for shape {shape:?}");
    let axes: String = shape.iter().map(|axis| format!("{axis},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({axes}), }}");
    // Magic, version and length take 10 bytes; the data must begin at a multiple of 64, after a line break.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_padded_to_a_multiple_of_64_bytes() {
        let bytes = npy_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(bytes[0], 0x93);
        assert_eq!(&bytes[1..6], b"NUMPY");
        assert_eq!((bytes[6], bytes[7]), (1, 0));
        assert_eq!(bytes.len(), 128 + 24, "the header fills two lines of 64 bytes");
        let header = String::from_utf8_lossy(&bytes[10..128]);
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2,3,), }"), "{header}");
        assert!(header.ends_with(" \n"));
        assert_eq!(bytes[128..132], 1.0_f32.to_le_bytes());
    }
}
