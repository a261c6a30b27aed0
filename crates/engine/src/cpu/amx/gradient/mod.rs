//! The weight gradient on tiles: pixels along the tiles' depth.
//!
//! The left side's tiles have a row for each output channel and pixels along it, so a task first turns its gradients to
//! `[channel, position]`: once, for all filter taps. The right side's tiles have pairs of pixels along their rows, which takes
//! no turning: two pixels' inputs are woven into one another, 32 inputs of a filter row at a time. Neighbouring positions are
//! neighbours on a line (`lines.rs`) or, where maps are small, the same pixel of other images (`images.rs`).

mod images;
mod lines;
mod squares;

use super::super::cell::Cell;
use super::super::elementwise::{Piece, Reduce};
use super::super::gradient::{Cut, Job, Target};
use super::super::layout::Blocks;
use super::super::sweep::{Sweep, TaskShape};
use super::tiles::{PANEL, ROWS};
use std::arch::x86_64::{
    _mm512_add_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_permutex2var_ps, _mm512_setr_epi32, _mm512_setzero_ps,
};

/// The tasks of the weight gradient of a forward sweep of `n` images.
pub(crate) fn tasks(sweep: &Sweep, n: usize) -> TaskShape {
    match images::task_images(sweep, n) {
        Some(images) => (images, sweep.grid.0),
        None => lines::tasks(sweep),
    }
}

/// How a gradient of `n_blocks` blocks and so many panels of channels is cut, to have about `wanted` shares. Each share weaves its inputs and
/// turns its channels' gradients. Across images turning takes longer, so panels are cut first; along lines inputs and panels are cut so that
/// both together take least.
pub(crate) fn cut(sweep: &Sweep, n: usize, wanted: usize, (n_blocks, panels): (usize, usize)) -> Cut {
    if images::task_images(sweep, n).is_some() {
        let unit = images::n_taps(sweep);
        let splits = panels.min(wanted);
        return Cut { unit, shares: wanted.div_ceil(splits).min(n_blocks / unit), splits };
    }
    let unit = sweep.kernel.0;
    let inputs = n_blocks / unit;
    let splits = |shares: usize| wanted.div_ceil(shares).min(panels);
    // Panels that all shares together turn, and inputs that they weave, which takes half as long again; but first there should be enough shares.
    let cost = |&shares: &usize| {
        let splits = splits(shares);
        (wanted.saturating_sub(shares * splits), 2 * shares * panels + 3 * splits * inputs)
    };
    let shares = (1..=inputs.min(wanted)).min_by_key(cost).unwrap_or(1);
    Cut { unit, shares, splits: splits(shares) }
}

/// Floats of scratch that a task needs, however many images there are.
pub(crate) fn scratch_len(sweep: &Sweep) -> usize {
    lines::scratch_len(sweep).max(images::scratch_len(sweep))
}

/// Computes a task's part of some blocks of the weight gradient: all filter rows of some inputs, towards some panels of channels.
///
/// # Safety
/// The CPU must have AMX, and `E` be bf16; the target's panels must be writable, and nobody else's.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn weight_gradient<E: Cell>(
    job: &Job<E>,
    blocks: &Blocks,
    index: usize,
    scratch: &mut [f32],
    to: Target,
) {
    assert_eq!(size_of::<E>(), 2);
    let (sweep, end) = (job.sweep, to.blocks.end);
    assert!(end <= blocks.n && to.panels.end * PANEL * PANEL <= blocks.len, "blocks and panels exist");
    let scratch = E::of_scratch(scratch);
    // SAFETY: the caller's promises.
    unsafe {
        match images::task_images(sweep, job.n) {
            Some(_) => images::weight_gradient(job, blocks, index, scratch, to),
            None => lines::weight_gradient(job, blocks, index, scratch, to),
        }
    }
}

/// The sums of all slices of a weight gradient on tiles, of a piece: `[channels, n]`.
///
/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn reduce_weights(from: &Reduce, piece: Piece, sums: &mut [f32]) {
    let (Piece { at, first, n, .. }, blocks) = (piece, &from.blocks);
    let block = blocks.block(first / blocks.row, first % blocks.row) * blocks.len;
    // The first half of a row are its even inputs, the second the odd ones.
    let (low, high) = (
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
    );
    let kept = u32::MAX >> (PANEL - n);
    for (channel, sums) in sums.chunks_exact_mut(n).enumerate() {
        let row = block + (at + channel) * PANEL;
        let (mut evens, mut odds) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for slice in from.slices.chunks(blocks.n * blocks.len) {
            let row = &slice[row..row + PANEL];
            // SAFETY: both halves are in the row.
            unsafe {
                evens = _mm512_add_ps(evens, _mm512_loadu_ps(row.as_ptr()));
                odds = _mm512_add_ps(odds, _mm512_loadu_ps(row[ROWS..].as_ptr()));
            }
        }
        let to = sums.as_mut_ptr();
        // SAFETY: of the sums' `n` values none is left out, and nothing behind them is written.
        unsafe {
            _mm512_mask_storeu_ps(to, kept as u16, _mm512_permutex2var_ps(evens, low, odds));
            _mm512_mask_storeu_ps(
                to.wrapping_add(ROWS),
                (kept >> ROWS) as u16,
                _mm512_permutex2var_ps(evens, high, odds),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::direct::DirectConv;
    use crate::cpu::simd::Level;
    use crate::element::Bf16;
    use crate::types::{ConvShape, ConvUse, Dims};

    #[test]
    fn cuts_have_shares_enough_and_none_of_nothing() {
        let shape = ConvShape { input: Dims { h: 32, w: 32, c: 64 }, cout: 64, kernel: 3, stride: 1, pad: 1 };
        let conv = DirectConv::new::<Bf16>(shape, ConvUse::Train, Level::Amx);
        let of = |wanted, inputs: usize, panels| cut(conv.forward_sweep(), 1, wanted, (3 * inputs, panels));
        for (wanted, inputs, panels) in (1..40)
            .flat_map(|wanted| (1..40).flat_map(move |inputs| (1..20).map(move |panels| (wanted, inputs, panels))))
        {
            let Cut { unit, shares, splits } = of(wanted, inputs, panels);
            assert_eq!(unit, 3);
            assert!((1..=inputs).contains(&shares) && (1..=panels).contains(&splits));
            assert!(shares * splits >= wanted.min(inputs * panels), "{wanted} of {inputs} and {panels}");
        }
        // Turning all panels four times takes longer than weaving few inputs four times, and the other way round.
        let cut = [of(4, 16, 64), of(4, 64, 16)].map(|cut| (cut.shares, cut.splits));
        assert_eq!(cut, [(1, 4), (4, 1)]);
    }
}
