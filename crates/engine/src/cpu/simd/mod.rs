//! Instruction sets: detection, and the vector type that the convolution kernels are generic over.
//!
//! A kernel is written once over [`Simd`], marked `#[inline(always)]`, and instantiated inside a function that enables
//! the instruction set (`dispatch!`). Everything else is plain loops that the compiler vectorises inside such a function.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use crate::element::Bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;
pub(crate) use portable::Portable;
use std::sync::atomic::{Ordering, compiler_fence};
#[cfg(target_arch = "x86_64")]
pub(crate) use {
    avx2::Avx2,
    avx512::{Avx512, Avx512Bf16},
};

/// What a CPU engine's kernels are written for, from what every machine has to the most special of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No intrinsics: arrays of eight floats that the compiler vectorises for the target's baseline.
    Portable,
    /// NEON, on 64-bit ARM.
    Neon,
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
    /// Those of this architecture.
    const ALL: &[Self] = if cfg!(target_arch = "x86_64") {
        &[Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Portable, Self::Neon]
    } else {
        &[Self::Portable]
    };

    /// Those of this machine, the best first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        Self::ALL.iter().rev().copied().filter(move |&level| level <= best)
    }

    /// The best level of this machine that is at most `limit`.
    #[must_use]
    pub fn within(limit: Option<Self>) -> Self {
        Self::available().find(|&level| limit.is_none_or(|limit| level <= limit)).unwrap_or(Self::Portable)
    }

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
        if cfg!(target_arch = "aarch64") { Self::Neon } else { Self::Portable }
    }

    /// Whether there are instructions for products of bf16.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Name in flags and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// The names of this architecture's levels, the best first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().rev().map(|level| level.name())
    }

    /// The level of this architecture called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|level| level.name() == name)
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
            #[allow(unused_imports)] // where there is one level only
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
                    // Its instructions are in every function.
                    #[cfg(target_arch = "aarch64")]
                    Level::Neon => $body::<E, $crate::cpu::simd::Neon>($($arg),*),
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
pub(crate) fn ask<const NEAR: bool>(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads nothing that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if NEAR { _mm_prefetch::<_MM_HINT_T0>(line.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        use std::arch::asm;
        if NEAR {
            asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
        } else {
            asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", not(miri)))))]
    let _ = line;
}

/// The first `n` of eight numbers, zeros behind.
///
/// # Safety
/// They must be readable; `n <= 8`.
#[inline(always)]
unsafe fn some<T: Copy + Default>(from: *const T, n: usize) -> [T; 8] {
    let mut numbers = [T::default(); 8];
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, numbers.as_mut_ptr(), n) };
    numbers
}

const NO_PAIRS: &str = "cells hold f32 where no instruction multiplies pairs";

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
    /// Whether one instruction multiplies pairs of bf16: [`Simd::dot_pairs`] is as fast as [`Simd::fma`]. Elsewhere cells hold f32.
    const HAS_PAIRS: bool = false;
    /// Pixels in a register block.
    const PIXELS: usize = Self::GROUPS * Self::GROUP;
    /// Output channels in a register block: the width of a packed weight panel.
    const PANEL: usize = Self::VECTORS * Self::LANES;
    /// Steps of a hot loop that are laid out one after the other. Where vectors are short, a step's products take so few instructions that the
    /// loop's own count, and the more so while another thread runs on the same core.
    const STEPS: usize = if Self::LANES < MAX_LANES { 4 } else { 1 };

    /// Ends one of those steps: the compiler may not load a later step's numbers earlier, for which there are no registers.
    #[inline(always)]
    fn end_of_step() {
        if Self::STEPS > 1 {
            compiler_fence(Ordering::SeqCst);
        }
    }

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
    /// `self + a.low * b.low + a.high * b.high` of lanes that hold pairs of bf16. This and the two below are only there with
    /// [`Simd::HAS_PAIRS`].
    #[inline(always)]
    unsafe fn dot_pairs(self, _a: Self, _b: Self) -> Self {
        unreachable!("{NO_PAIRS}")
    }
    /// Lanes of pairs: the first `n` numbers of `low` and of `high`, zeros behind.
    #[inline(always)]
    unsafe fn pairs(_low: *const Bf16, _high: *const Bf16, _n: usize) -> Self {
        unreachable!("{NO_PAIRS}")
    }
    /// Lanes of pairs: the numbers of `low` and of `high`, rounded.
    #[inline(always)]
    unsafe fn round_pairs(_low: Self, _high: Self) -> Self {
        unreachable!("{NO_PAIRS}")
    }
    /// Writes the first `n` columns of the square of vectors at `from`, `stride` floats apart, as vectors at `to`, `to_stride` apart.
    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize, n: usize) {
        for j in 0..n {
            for i in 0..Self::LANES {
                // SAFETY: the trait's contract.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * stride + j) };
            }
        }
    }
    /// Lanes of pairs: the numbers of `self` and of `second`, all of which bf16 holds.
    unsafe fn paired(self, second: Self) -> Self;
    /// The first and the second numbers of lanes that hold pairs.
    unsafe fn split(self) -> [Self; 2];
    /// The first `n` numbers as f32, zeros behind.
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self;
    /// Rounds as [`Bf16`]'s `Element::of` (subnormal numbers may become zero) and stores the first `n` only.
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize);
}
