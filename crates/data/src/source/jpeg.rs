//! What is particular about JPEG files: whether one is whole, and decoding at a fraction of the size.
//!
//! Each 8×8 block of a JPEG is stored as frequencies, so that the lowest 4×4, 2×2 or 1×1 of them give the block at 1/2, 1/4
//! or 1/8 of its size.

use jpeg_decoder::{Decoder, PixelFormat};

use super::RgbImage;

/// What a decoded image may take, the `image` crate's limit for the others.
const DECODED_BYTES_MAX: usize = 512 << 20;

/// Whether a file begins as a JPEG does.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8])
}

/// Width and height in pixels; `None` of what is no JPEG, or has no readable header.
pub(super) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    if !is_jpeg(bytes) {
        return None;
    }
    let mut decoder = Decoder::new(bytes);
    decoder.read_info().ok()?;
    decoder.info().map(|info| (u32::from(info.width), u32::from(info.height)))
}

/// Decodes at 1/`divisor` (2, 4 or 8) of the size, rounded up. `None` if that does not work: an error in the file, colours
/// for print, more than 8 bits.
pub(super) fn decode_scaled(bytes: &[u8], divisor: u32) -> Option<RgbImage> {
    let mut decoder = Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(DECODED_BYTES_MAX);
    decoder.read_info().ok()?;
    let info = decoder.info()?;
    let wanted = [info.width, info.height].map(|side| side.div_ceil(divisor as u16));
    // The decoder takes the smallest size of which either side is as large as wanted.
    let (width, height) = decoder.scale(wanted[0], wanted[1]).ok()?;
    if [width, height] != wanted {
        return None;
    }
    let decoded = decoder.decode().ok()?;
    let pixels = match info.pixel_format {
        PixelFormat::RGB24 => decoded,
        PixelFormat::L8 => decoded.iter().flat_map(|&grey| [grey; 3]).collect(),
        PixelFormat::L16 | PixelFormat::CMYK32 => return None,
    };
    let (width, height) = (u32::from(width), u32::from(height));
    (pixels.len() == width as usize * height as usize * 3).then_some(RgbImage { width, height, pixels })
}

/// Whether an end-of-image marker follows the first start-of-scan marker of the main image. Lenient decoders fill a
/// cut-short file with grey; training on that silently would be worse than skipping it.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let mut position = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(position..).and_then(|rest| rest.first_chunk::<4>()) {
        match marker {
            0xff => position += 1,
            0xda => return bytes[position..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => position += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    // Not a marker where one must be: let the decoder say what is wrong.
    position < bytes.len()
}
