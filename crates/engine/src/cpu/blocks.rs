//! Rows of channels in blocks of vectors, as the loops over pixels take them.

use super::cell::Cell;
use super::simd::Simd;

/// Vectors of a whole block.
pub(super) const BLOCK: usize = 4;

/// Channels `k..k + n` of a row: `V` vectors, or the `n` first lanes of one.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub k: usize,
    pub n: usize,
}

/// Calls `$f::<$($generic),*, V>(block, ...)` for blocks of all `c` channels.
macro_rules! for_blocks {
    ($S:ident, $c:expr, |$block:ident, $V:ident| $call:expr) => {
        let c = $c;
        let mut k = 0;
        while k < c {
            let left = c - k;
            let n = if left >= $crate::cpu::blocks::BLOCK * $S::LANES {
                const $V: usize = $crate::cpu::blocks::BLOCK;
                let $block = $crate::cpu::blocks::Block { k, n: $S::LANES };
                $call;
                $crate::cpu::blocks::BLOCK * $S::LANES
            } else {
                const $V: usize = 1;
                // A whole vector is known to be one, and needs no mask.
                if left >= $S::LANES {
                    let $block = $crate::cpu::blocks::Block { k, n: $S::LANES };
                    $call;
                } else {
                    let $block = $crate::cpu::blocks::Block { k, n: left };
                    $call;
                }
                left.min($S::LANES)
            };
            k += n;
        }
    };
}
pub(super) use for_blocks;

/// The block's channels of a row that begins at `row`.
///
/// # Safety
/// As [`Simd`]; the row has the block's channels. The same holds for `store`.
#[inline(always)]
pub(super) unsafe fn load<E: Cell, S: Simd, const V: usize>(row: *const E, block: Block) -> [S; V] {
    // SAFETY: handed through.
    unsafe {
        let mut values = [S::zero(); V];
        for (v, value) in values.iter_mut().enumerate() {
            *value = E::load_first::<S>(row.add(block.k + v * S::LANES), block.n);
        }
        values
    }
}

/// Writes the block's channels of a row.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(super) unsafe fn store<E: Cell, S: Simd, const V: usize>(values: [S; V], row: *mut E, block: Block) {
    for (v, value) in values.into_iter().enumerate() {
        // SAFETY: handed through.
        unsafe { E::store_first(value, row.add(block.k + v * S::LANES), block.n) };
    }
}
