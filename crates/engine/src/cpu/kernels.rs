//! Which kernel runs a convolution's tasks: those on vectors, or those on AMX tiles.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::cell::Cell;
use super::elementwise::{self, Piece, Reduce};
use super::layout::{Blocks, Layout};
use super::simd::Level;
use super::sweep::{Sweep, TaskShape};
use super::{correlate, gradient};

/// Evaluates the first expression where a layout is that of tiles, else the second.
macro_rules! tiles_or {
    ($layout:expr, $tiles:expr, $vectors:expr) => {{
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if $layout.on_tiles {
            $tiles
        } else {
            $vectors
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        {
            let _ = $layout;
            $vectors
        }
    }};
}

/// The tasks of a sweep of `n` images.
pub(crate) fn tasks(layout: Layout, sweep: &Sweep, n: usize) -> TaskShape {
    tiles_or!(layout, amx::sweep::tasks(sweep, n), {
        let _ = n;
        correlate::tasks(sweep)
    })
}

/// Most tasks of a sweep of up to `n` images.
pub(crate) fn most_tasks(layout: Layout, sweep: &Sweep, n: usize) -> usize {
    tiles_or!(layout, amx::sweep::most_tasks(sweep, n), sweep.n_tasks(correlate::tasks(sweep), n))
}

/// Floats of scratch that a sweep's task needs.
pub(crate) fn scratch_len(layout: Layout, sweep: &Sweep) -> usize {
    tiles_or!(layout, amx::sweep::scratch_len(sweep), sweep.scratch_len(correlate::tasks(sweep)))
}

/// Runs a share of a sweep; `sums`, if given, receive Σ and Σ² of its pixels.
///
/// # Safety
/// As [`correlate::correlate`].
pub(crate) unsafe fn correlate<E: Cell>(
    level: Level,
    layout: Layout,
    job: &correlate::Job<E>,
    share: &correlate::Share,
    scratch: &mut [f32],
    sums: Option<correlate::Sums>,
) {
    // SAFETY: handed through.
    unsafe {
        tiles_or!(
            layout,
            amx::sweep::correlate(job, share, scratch, sums),
            correlate::correlate(level, job, share, scratch, sums)
        );
    }
}

/// The tasks of the weight gradient of a forward sweep of `n` images.
pub(crate) fn gradient_tasks(layout: Layout, sweep: &Sweep, n: usize) -> TaskShape {
    tiles_or!(layout, amx::gradient::tasks(sweep, n), {
        let _ = n;
        gradient::tasks(sweep)
    })
}

/// Floats of scratch that a task of a weight gradient needs.
pub(crate) fn gradient_scratch_len(layout: Layout, sweep: &Sweep) -> usize {
    tiles_or!(layout, amx::gradient::scratch_len(sweep), gradient::scratch_len(layout, sweep))
}

/// How a weight gradient of so many blocks and panels of channels is cut, to have about `wanted` shares.
pub(crate) fn gradient_cut(
    layout: Layout,
    sweep: &Sweep,
    n: usize,
    wanted: usize,
    (blocks, panels): (usize, usize),
) -> gradient::Cut {
    tiles_or!(layout, amx::gradient::cut(sweep, n, wanted, (blocks, panels)), {
        let _ = (sweep, n, panels);
        gradient::cut(blocks, wanted)
    })
}

/// Computes a task's part of some blocks of the weight gradient.
///
/// # Safety
/// As [`gradient::weight_gradient`].
pub(crate) unsafe fn weight_gradient<E: Cell>(
    level: Level,
    job: &gradient::Job<E>,
    blocks: &Blocks,
    task: usize,
    scratch: &mut [f32],
    to: gradient::Target,
) {
    // SAFETY: handed through.
    unsafe {
        tiles_or!(
            blocks.layout,
            amx::gradient::weight_gradient(job, blocks, task, scratch, to),
            gradient::weight_gradient(level, job, blocks, task, scratch, to)
        );
    }
}

/// The sums of all slices of a weight gradient, of a piece: `[channels, n]`.
pub(crate) fn reduce_weights(level: Level, from: &Reduce, piece: Piece, sums: &mut [f32]) {
    tiles_or!(
        from.blocks.layout,
        // SAFETY: gradients lie as on tiles where the CPU has AVX-512.
        unsafe { amx::gradient::reduce_weights(from, piece, sums) },
        elementwise::reduce_weights(level, from, piece, sums)
    );
}
