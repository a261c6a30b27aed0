//! Instruction sets: detection, and the vector type that the convolution kernels are generic over.
//!
//! A kernel is written once over [`Simd`], marked `#[inline(always)]`, and instantiated inside a function that enables
//! the instruction set (`dispatch!`). Everything else is plain loops that the compiler vectorises inside such a function.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::element::Bf16;
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

/// What a CPU engine's kernels are written for, from what every machine has to the most special.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No intrinsics: arrays of eight floats that the compiler vectorises for the target's baseline.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with products of bf16 pairs; in f32 the same as [`Level::Avx512`].
    Avx512Bf16,
    /// AMX tiles of bf16; in f32 the same as [`Level::Avx512`].
    Amx,
}

impl Level {
    const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Self {
        let best = Self::vectors();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if best >= Self::Avx512Bf16 && super::amx::available() {
            return Self::Amx;
        }
        best
    }

    /// The best level of vector instructions.
    fn vectors() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
            {
                return if is_x86_feature_detected!("avx512bf16") { Self::Avx512Bf16 } else { Self::Avx512 };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Whether bf16 is faster than f32 here: there are instructions for it.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Name in flags and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// The names of all levels, the best first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().rev().map(Self::name)
    }

    /// The level called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// Defines `fn name(level, args)`, whose body is compiled once per instruction set and chosen at run time.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$generic:ident: $bound:path])? ($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name$(<$generic: $bound>)?(level: $crate::cpu::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body$(<$generic: $bound>)?($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512$(<$generic: $bound>)?($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2$(<$generic: $bound>)?($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match level {
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx512
                | $crate::cpu::simd::Level::Avx512Bf16
                // SAFETY: the engine's level, which all callers pass, is at most what it detected.
                | $crate::cpu::simd::Level::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

/// Defines `unsafe fn name::<E>(level, args)`, which calls the kernel `body::<E, S>(args)` with the vector type `S` of the
/// level, inside a function that enables its instructions.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name<E: $crate::cpu::cell::Cell>(level: $crate::cpu::simd::Level, $($arg: $ty),*) {
            use $crate::cpu::simd::{Level, Portable};
            #[cfg(target_arch = "x86_64")]
            use $crate::cpu::simd::{Avx2, Avx512, Avx512Bf16};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512bf16<E: $crate::cpu::cell::Cell>($($arg: $ty),*) {
                // SAFETY: handed through, as in the two below.
                unsafe { $body::<E, Avx512Bf16>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512<E: $crate::cpu::cell::Cell>($($arg: $ty),*) {
                // SAFETY: see above.
                unsafe { $body::<E, Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2<E: $crate::cpu::cell::Cell>($($arg: $ty),*) {
                // SAFETY: see above.
                unsafe { $body::<E, Avx2>($($arg),*) }
            }
            // SAFETY: handed through; the caller vouches for the level.
            unsafe {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512Bf16 | Level::Amx if E::PER_CELL == 2 => avx512bf16::<E>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 | Level::Avx512Bf16 | Level::Amx => avx512::<E>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2::<E>($($arg),*),
                    _ => $body::<E, Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use kernel;

/// Floats of the longest vector.
pub(crate) const MAX_LANES: usize = 16;

/// Asks for a cache line, into the nearest cache or the second; any address may be asked for.
#[inline(always)]
fn ask<const NEAR: bool>(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads nothing that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if NEAR { _mm_prefetch::<_MM_HINT_T0>(line.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A vector of f32 and the register blocking that suits its instruction set.
///
/// A lane can also hold a pair of bf16, the first in its lower half: then it is a *cell* of a bf16 feature map, moved
/// about as the f32 of the same bits.
///
/// # Safety
/// Every method needs the CPU to have the instruction set; pointers need `LANES` (or `n`) readable or writable numbers,
/// at any alignment.
pub trait Simd: Copy {
    /// Floats in a vector.
    const LANES: usize;
    /// Groups of pixels in a register block, each with its own base address.
    const GROUPS: usize;
    /// Neighbouring pixels in a group.
    const GROUP: usize;
    /// Vectors of output channels in a register block.
    const VECTORS: usize;
    /// Whether one instruction multiplies pairs of bf16: [`Simd::dot_pairs`] is as fast as [`Simd::fma`].
    const HAS_PAIRS: bool = false;
    /// Pixels in a register block.
    const PIXELS: usize = Self::GROUPS * Self::GROUP;
    /// Output channels in a register block: the width of a packed weight panel.
    const PANEL: usize = Self::VECTORS * Self::LANES;

    /// Brings a cache line near, where there is an instruction for it.
    #[inline(always)]
    unsafe fn prefetch(line: *const f32) {
        ask::<true>(line);
    }

    /// Brings a cache line into the second cache, where there is an instruction for it.
    #[inline(always)]
    unsafe fn prefetch_far(line: *const f32) {
        ask::<false>(line);
    }

    unsafe fn zero() -> Self;
    unsafe fn splat(from: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `n` floats, zeros behind; `n <= LANES`.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    /// Stores the first `n` floats only.
    unsafe fn store_first(self, to: *mut f32, n: usize);
    /// Stores all floats to an address that a vector's size divides, past the caches where there is an instruction for it; seen by
    /// other threads after [`Simd::fence`].
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: handed through.
        unsafe { self.store_first(to, Self::LANES) };
    }
    /// Ends a run of [`Simd::stream`].
    #[inline(always)]
    unsafe fn fence() {}
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// Zero where negative; not-a-number stays.
    unsafe fn relu(self) -> Self;
    /// Zero where `gate` is not above zero.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// The larger, or not-a-number if either is.
    unsafe fn max_or_nan(self, other: Self) -> Self;
    /// `self` where `a == b` and zero elsewhere, and the other way round.
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self);
    /// `self + a * b`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// `self + a.low * b.low + a.high * b.high` of lanes that hold pairs of bf16.
    unsafe fn dot_pairs(self, a: Self, b: Self) -> Self;
    /// Lanes of pairs: the first `n` numbers of `low` and of `high`, zeros behind.
    unsafe fn pairs(low: *const Bf16, high: *const Bf16, n: usize) -> Self;
    /// Lanes of pairs: the numbers of `low` and of `high`, rounded.
    #[inline(always)]
    unsafe fn round_pairs(low: Self, high: Self) -> Self {
        let mut numbers = [[Bf16(0); MAX_LANES]; 2];
        // SAFETY: the caller's promise; no vector is longer than the numbers.
        unsafe {
            low.narrow_first(numbers[0].as_mut_ptr(), Self::LANES);
            high.narrow_first(numbers[1].as_mut_ptr(), Self::LANES);
            Self::pairs(numbers[0].as_ptr(), numbers[1].as_ptr(), Self::LANES)
        }
    }
    /// The first `n` numbers as f32, zeros behind.
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self;
    /// Rounds as [`Bf16`]'s `Element::of` (subnormal numbers may become zero) and stores the first `n` only.
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize);
}
