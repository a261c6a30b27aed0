//! AMX: permission, tile configuration and the one block of instructions that all bf16 convolutions run.
//!
//! Eight tiles of 16 rows × 64 bytes. `tdpbf16ps` multiplies 16 × 32 by 32 × 16 bf16 values into 16 × 16 floats; the 2 × 2
//! block here keeps four accumulators and loads two tiles of each side per 4 multiplications. Where one side comes from L1,
//! that is four fifths of what products alone reach, where both come from L2 nearly three fifths. Written in assembly because the intrinsics are not stable.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use super::super::ahead::Run;
use std::sync::OnceLock;

/// bf16 values in a tile row, and the most depth of one multiplication.
pub(crate) const DEPTH: usize = 32;
/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Columns of an accumulator pair: the width of a weight panel.
pub(crate) const PANEL: usize = 32;
/// Lines that each step asks for.
pub(crate) const ASKED: usize = 4;
/// Floats of the four accumulators.
pub(crate) const BLOCK: usize = 4 * ROWS * ROWS;

/// Whether this process may use AMX with bf16; asks the operating system the first time. Miri has no such instructions.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| !cfg!(miri) && present() && permitted())
}

/// Amx-bf16 and amx-tile (CPUID leaf 7), tile state enabled by the system (XCR0 bits 17 and 18).
fn present() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn tile_state_enabled() -> bool {
        // SAFETY: register 0 exists wherever OSXSAVE is set, which the caller checked.
        unsafe { _xgetbv(0) >> 17 & 3 == 3 }
    }
    let (leaf1, leaf7) = (__cpuid(1), __cpuid_count(7, 0));
    let has_xgetbv = leaf1.ecx >> 27 & 1 == 1;
    // SAFETY: OSXSAVE says that the instruction exists.
    leaf7.edx >> 22 & 1 == 1 && leaf7.edx >> 24 & 1 == 1 && has_xgetbv && unsafe { tile_state_enabled() }
}

/// Linux hands out tile state on request: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: changes nothing but this process's permission, and reports failure by its result.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Tiles configured on this thread, for products of a depth; released when dropped, so that idle threads carry no tile state.
pub(crate) struct Tiles {
    #[cfg_attr(not(test), allow(dead_code))]
    depth: usize,
}

/// Tiles of a product's left side, and of its right side.
const LEFT: std::ops::Range<usize> = 4..6;
const RIGHT: std::ops::Range<usize> = 6..8;

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// All eight tiles at their full size, but for the depth of both sides, of which a step takes `depth` values.
    ///
    /// # Panics
    /// Where [`available`] is false, or the depth is no number of pairs that a tile row holds.
    pub fn configure(depth: usize) -> Self {
        assert!(depth > 0 && depth.is_multiple_of(2) && depth <= DEPTH, "a step of {depth} values");
        #[cfg(test)]
        if !available() {
            return Self { depth };
        }
        assert!(available(), "AMX was asked for where there is none");
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(ROWS as u8);
        config.row_bytes[LEFT].fill(2 * depth as u16);
        config.rows[RIGHT].fill(depth as u8 / 2);
        // SAFETY: AMX is available by the assertion; the operand is a valid 64-byte configuration.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self { depth }
    }

    /// `c = a · b`, or `c += a · b`, for 32 rows and 32 columns; the depth is that of all parts.
    ///
    /// Each step asks for [`ASKED`] of the lines `asked`, into the second cache: of what will be read next, while this is multiplied.
    ///
    /// Runs `meanwhile` behind the last multiplication and ahead of the stores: what it does need not wait for this block, so a
    /// processor that looks ahead does it while tiles are multiplied. It may still read what `c` had.
    ///
    /// # Safety
    /// All addresses must be readable, and those of `c` writable; no part is without runs, no run without steps. Neither `meanwhile` nor what
    /// makes the parts may touch tiles, nor write to any of the three.
    #[inline(always)]
    pub unsafe fn multiply(
        &self,
        parts: impl IntoIterator<Item = (A, B)>,
        c: &C,
        accumulate: bool,
        asked: Run,
        meanwhile: impl FnOnce(),
    ) {
        #[cfg(test)]
        if !available() {
            meanwhile();
            // SAFETY: handed through.
            return unsafe { emulated(self.depth, parts, c, accumulate) };
        }
        // SAFETY: the caller vouches for the addresses; a `Tiles` exists only on a configured thread.
        unsafe {
            let (c0, c1) = (c.start, c.start.add(c.right));
            let (c2, c3) = (c.start.add(c.down), c.start.add(c.down + c.right));
            if accumulate {
                std::arch::asm!(
                    "tileloadd tmm0, [{c0} + {row}*1]",
                    "tileloadd tmm1, [{c1} + {row}*1]",
                    "tileloadd tmm2, [{c2} + {row}*1]",
                    "tileloadd tmm3, [{c3} + {row}*1]",
                    c0 = in(reg) c0, c1 = in(reg) c1, c2 = in(reg) c2, c3 = in(reg) c3, row = in(reg) c.row,
                    options(nostack)
                );
            } else {
                std::arch::asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            let (mut ask, lines) = (asked.0, asked.1 * size_of::<f32>());
            for (a, b) in parts {
                std::arch::asm!(
                    "3:",
                    "mov {step}, {steps}",
                    "2:",
                    "tileloadd tmm4, [{a0} + {row}*1]",
                    "prefetcht1 [{ask}]",
                    "prefetcht1 [{ask} + {lines}]",
                    "lea {ask}, [{ask} + 2*{lines}]",
                    "tileloadd tmm6, [{b} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {line}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {row}*1]",
                    "prefetcht1 [{ask}]",
                    "prefetcht1 [{ask} + {lines}]",
                    "lea {ask}, [{ask} + 2*{lines}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, 64",
                    "add {a1}, 64",
                    "add {b}, 2048",
                    "dec {step}",
                    "jnz 2b",
                    "add {a0}, {skip}",
                    "add {a1}, {skip}",
                    "add {b}, {skip_b}",
                    "dec {runs}",
                    "jnz 3b",
                    a0 = inout(reg) a.starts[0] => _,
                    a1 = inout(reg) a.starts[1] => _,
                    b = inout(reg) b.start => _,
                    runs = inout(reg) a.runs => _,
                    step = out(reg) _,
                    steps = in(reg) a.steps,
                    skip = in(reg) a.skip,
                    skip_b = in(reg) b.skip,
                    row = in(reg) a.row,
                    line = in(reg) 4 * PANEL,
                    ask = inout(reg) ask,
                    lines = in(reg) lines,
                    options(nostack)
                );
            }
            meanwhile();
            std::arch::asm!(
                "tilestored [{c0} + {row}*1], tmm0",
                "tilestored [{c1} + {row}*1], tmm1",
                "tilestored [{c2} + {row}*1], tmm2",
                "tilestored [{c3} + {row}*1], tmm3",
                c0 = in(reg) c0, c1 = in(reg) c1, c2 = in(reg) c2, c3 = in(reg) c3, row = in(reg) c.row,
                options(nostack)
            );
        }
    }
}

/// Rows of a product's left side: 16 from each start on, `row` bytes apart. Along each row the depth runs in `runs` runs of
/// `steps` steps, 64 bytes apart, with `skip` bytes from the end of one to the next.
#[derive(Clone, Copy)]
pub(crate) struct A {
    pub starts: [*const u16; 2],
    pub row: usize,
    pub runs: usize,
    pub steps: usize,
    pub skip: isize,
}

impl A {
    /// Steps of all runs.
    pub fn n_steps(&self) -> usize {
        self.runs * self.steps
    }
}

/// A product's right side: a row of 32 pairs for each pair of depths, pair `k` of column `j` the 32-bit word `32 k + j`, steps 16 rows apart, with
/// `skip` bytes from the end of one of the left side's runs to the next.
#[derive(Clone, Copy)]
pub(crate) struct B {
    pub start: *const u16,
    pub skip: isize,
}

/// Where a product goes: four tiles of 16 × 16 floats, `right` floats to the next columns', `down` floats to the next
/// rows', each with `row` bytes between its rows.
pub(crate) struct C {
    pub start: *mut f32,
    pub row: usize,
    pub right: usize,
    pub down: usize,
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(test)]
        if !available() {
            return;
        }
        // SAFETY: AMX is available, or there were no `Tiles`.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What [`Tiles::multiply`] does, as its definition: for tests of all that surrounds it, where there is no AMX.
#[cfg(test)]
unsafe fn emulated(depth: usize, parts: impl IntoIterator<Item = (A, B)>, c: &C, accumulate: bool) {
    use crate::element::{Bf16, Element};
    let parts: Vec<(A, B)> = parts.into_iter().collect();
    for (row, col) in (0..2 * ROWS).flat_map(|row| (0..PANEL).map(move |col| (row, col))) {
        let to = row / ROWS * c.down + col / ROWS * c.right + row % ROWS * c.row / size_of::<f32>() + col % ROWS;
        // SAFETY: the caller vouches for the same addresses as `multiply`'s.
        unsafe {
            let mut sum = if accumulate { *c.start.add(to) } else { 0.0 };
            for (a, b) in &parts {
                assert!(a.runs > 0 && a.steps > 0, "a part that would never end");
                let start = a.starts[row / ROWS].byte_add(row % ROWS * a.row);
                for step in 0..a.runs * a.steps {
                    let (run, at) = ((step / a.steps) as isize, step * DEPTH);
                    let (left, right) = (
                        start.wrapping_byte_offset(run * a.skip).wrapping_add(at),
                        b.start.wrapping_byte_offset(run * b.skip),
                    );
                    for k in 0..depth {
                        let b = Bf16(*right.wrapping_add(((at + k) / 2 * PANEL + col) * 2 + k % 2));
                        sum += Bf16(*left.add(k)).get() * b.get();
                    }
                }
            }
            *c.start.add(to) = sum;
        }
    }
}
