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

/// The dtype (`<f4`) and shape that the first bytes of a `.npy` file tell of, and where its numbers begin, or `None` if they are no such header.
pub fn npy_header(bytes: &[u8]) -> Option<(String, Vec<usize>, usize)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (length, start) = match rest.first()? {
        1 => (usize::from(u16::from_le_bytes(*rest.get(2..)?.first_chunk()?)), 4),
        2 | 3 => (u32::from_le_bytes(*rest.get(2..)?.first_chunk()?) as usize, 6),
        _ => return None,
    };
    let header = std::str::from_utf8(rest.get(start..)?.get(..length)?).ok()?;
    let value = |key: &str| Some(header.split_once(&format!("'{key}':"))?.1.trim_start());
    let dtype = value("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
    let axes = value("shape")?.strip_prefix('(')?.split_once(')')?.0.split(',');
    let shape: Option<Vec<usize>> =
        axes.map(str::trim).filter(|axis| !axis.is_empty()).map(|a| a.parse().ok()).collect();
    // Magic, version and length stand before the header.
    Some((dtype.to_owned(), shape?, 6 + start + length))
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

    #[test]
    fn a_header_is_read_back() {
        let bytes = npy_f32(&[2, 3], &[0.0; 6]);
        assert_eq!(npy_header(&bytes), Some(("<f4".to_owned(), vec![2, 3], bytes.len() - 24)));
        for n in [0, 5, 6, 8, 9, 10, 127] {
            assert_eq!(npy_header(&bytes[..n]), None, "cut short to {n} bytes");
        }
    }
}
