//! The numbers that feature maps are kept in: f32, or bfloat16.

use crate::buffer::Zero;

/// A number that feature maps can be kept in; arithmetic is always f32.
pub trait Element: Zero + Default + Send + Sync + 'static {
    /// Widens, exactly.
    fn get(self) -> f32;
    /// Rounds to nearest, ties to even; not-a-number stays that.
    fn of(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
}

/// bfloat16: the upper half of an f32. Eight bits of exponent, seven of fraction.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: 0 is +0.0.
unsafe impl Zero for Bf16 {}

impl Element for Bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // Rounding would carry some not-a-numbers into infinity or zero.
        let quiet = bits >> 16 | 0x40;
        Self(if value.is_nan() { quiet } else { rounded } as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_what_is_special() {
        let cases = [
            (1.0, 0x3F80),
            (1.0 + 1.0 / 256.0, 0x3F80),  // half-way between 0x3F80 and 0x3F81: even
            (1.0 + 3.0 / 256.0, 0x3F82),  // half-way between 0x3F81 and 0x3F82: even
            (1.0 + 1.01 / 256.0, 0x3F81), // just above half-way
            (-0.0, 0x8000),
            (f32::INFINITY, 0x7F80),
            (f32::MAX, 0x7F80),
            (1e-40, 0x0001),
        ];
        for (value, expected) in cases {
            assert_eq!(Bf16::of(value).0, expected, "{value}");
        }
        assert!(Bf16::of(f32::NAN).get().is_nan());
        assert!(Bf16::of(f32::from_bits(0x7FFF_FFFF)).get().is_nan());
        for bits in 0..=u16::MAX {
            let value = Bf16(bits).get();
            assert!(value.is_nan() || Bf16::of(value) == Bf16(bits), "{bits:#x}");
        }
    }
}
