//! Index arrays in numpy's `.npy` format.
//!
//! Source: `numpy.lib.format`: magic, version, header length, a Python dictionary as text, the values.

/// The first bytes of every `.npy` file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Parses a one-dimensional array of integers.
///
/// # Errors
/// A sentence on what the array is instead.
pub fn parse(bytes: &[u8]) -> Result<Vec<i128>, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a .npy file (it does not start with \\x93NUMPY)")?;
    let cut_short = "cut short inside the header";
    let (major, rest) = (rest.first().ok_or(cut_short)?, rest.get(2..).ok_or(cut_short)?);
    let length_bytes = match major {
        1 => 2,
        2 | 3 => 4,
        _ => return Err(format!(".npy version {major} is not known")),
    };
    let length = rest.get(..length_bytes).ok_or(cut_short)?;
    let length = length.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte));
    let header = rest.get(length_bytes..).and_then(|rest| rest.get(..length)).ok_or(cut_short)?;
    let values = &rest[length_bytes + length..];
    let header = String::from_utf8_lossy(header);

    let dtype = field(&header, "descr").ok_or("the header has no dtype")?.trim_matches(['\'', '"']);
    let n_values = one_dimension(field(&header, "shape").ok_or("the header has no shape")?)?;
    let (big_endian, signed, size) = integer_type(dtype)?;
    if n_values.checked_mul(size) != Some(values.len()) {
        let n_bytes = values.len();
        return Err(format!("{n_bytes} bytes of values for {n_values} indices of {size} bytes; the file is damaged"));
    }
    Ok(values.chunks_exact(size).map(|bytes| integer(bytes, big_endian, signed)).collect())
}

/// Writes int64 values, byte for byte as `numpy.save` does.
pub fn encode(values: &[i64]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}", values.len());
    // Magic, version and length are 10 bytes; the values start at a multiple of 64 after a newline.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// The text after a key of the header's dictionary, to the end of its value.
fn field<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = header.split_once(&format!("'{key}'"))?.1.trim_start().strip_prefix(':')?.trim_start();
    let end = if after.starts_with('(') { after.find(')')? + 1 } else { after.find([',', '}'])? };
    Some(after[..end].trim())
}

fn one_dimension(shape: &str) -> Result<usize, String> {
    let sizes: Vec<&str> = shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    match sizes[..] {
        [size] => size.parse().map_err(|_| format!("shape {shape} is not understood")),
        _ => Err(format!("shape {shape} has {} dimensions; an index array has one", sizes.len())),
    }
}

/// (big-endian, signed, bytes per value) of a dtype.
fn integer_type(dtype: &str) -> Result<(bool, bool, usize), String> {
    let wrong = || format!("dtype {dtype}; an index array holds int64 (or another integer type)");
    let mut chars = dtype.chars();
    let (order, kind) = (chars.next().ok_or_else(wrong)?, chars.next().ok_or_else(wrong)?);
    let size = match chars.as_str() {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        _ => return Err(wrong()),
    };
    match kind {
        'i' | 'u' if "<>|=".contains(order) => Ok((order == '>', kind == 'i', size)),
        _ => Err(wrong()),
    }
}

fn integer(bytes: &[u8], big_endian: bool, signed: bool) -> i128 {
    let push = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    let value = if big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) };
    if signed {
        let unused_bits = 64 - 8 * bytes.len() as u32;
        i128::from((value << unused_bits).cast_signed() >> unused_bits)
    } else {
        i128::from(value)
    }
}
