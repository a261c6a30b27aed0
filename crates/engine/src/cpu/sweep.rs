//! Where a convolution's pixels come from and go to: the geometry that forward and backward-data share.

use super::cell::Cell;
use super::simd::Simd;
use crate::element::Element;
use crate::types::Dims;
use std::marker::PhantomData;

/// One sweep: every pixel of a grid is a sum over a small window of the source.
///
/// Grid pixel (r, c) reads source rows `r·stride + a − pad.0` for taps `a < kernel.0` (columns alike), and is pixel
/// `(first.0 + r·step, first.1 + c·step)` of the destination.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    pub src: Dims,
    pub dst: Dims,
    pub grid: (usize, usize),
    pub first: (usize, usize),
    pub step: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    pub pad: (isize, isize),
    /// Source channels come in multiples of this, zeros behind the last: the numbers in a cell of the kernel.
    pub per_cell: usize,
    /// Whether the kernel's cells hold f32 where the source is bf16.
    pub widens: bool,
}

/// Images and grid rows of a task (all rows where a task holds several images).
pub(crate) type TaskShape = (usize, usize);

impl Sweep {
    /// Taps times source channels: the length of a dot product.
    pub fn depth(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.src.c
    }

    /// Source channels as a view has them.
    pub fn channels(&self) -> usize {
        self.src.c.next_multiple_of(self.per_cell)
    }

    /// Cells of a window.
    pub fn cells(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.channels() / self.per_cell
    }

    /// Whether a task's source is copied: some window reaches over the source's edge, or channels do not fill cells.
    pub fn needs_copy(&self) -> bool {
        let reach = |n: usize, k: usize| (n - 1) * self.stride + k;
        self.pad != (0, 0)
            || self.channels() != self.src.c
            || reach(self.grid.0, self.kernel.0) > self.src.h
            || reach(self.grid.1, self.kernel.1) > self.src.w
    }

    /// The largest task of at most `pixels` pixels and `cells` cells of source, at least one row.
    pub fn task_shape(&self, pixels: usize, cells: usize) -> TaskShape {
        let (rows, cols) = self.grid;
        let fits = |images: usize, rows: usize| {
            images * rows * cols <= pixels && images * self.padded(rows).len() <= cells * self.per_cell
        };
        match (1..=pixels).rev().find(|&images| fits(images, rows)) {
            Some(images) => (images, rows),
            None => (1, (1..rows).rev().find(|&rows| fits(1, rows)).unwrap_or(1)),
        }
    }

    /// Number of tasks for `n` images: fixed by the shape, whatever the number of threads.
    pub fn n_tasks(&self, (images, rows): TaskShape, n: usize) -> usize {
        n.div_ceil(images) * self.grid.0.div_ceil(rows)
    }

    /// Floats of scratch that the copied source of a task needs, as f32 where the sweep widens it.
    pub fn scratch_len(&self, tasks: TaskShape) -> usize {
        if self.needs_copy() || self.widens { self.copied_len(tasks).div_ceil(self.per_cell) } else { 0 }
    }

    /// The same for a source that keeps its numbers.
    pub fn scratch_len_as_is(&self, tasks: TaskShape) -> usize {
        let per_float = if self.widens { 2 } else { self.per_cell };
        if self.needs_copy() { self.copied_len(tasks).div_ceil(per_float) } else { 0 }
    }

    /// Numbers of the copied source of a task, and what is read behind it.
    fn copied_len(&self, (images, rows): TaskShape) -> usize {
        images * self.padded(rows).len() + 16 * self.channels() * self.stride + 64
    }

    /// Pixels from window to window of what a task reads: a widened source is without those that no window of a 1×1 convolution reads.
    fn view_stride(&self) -> usize {
        if self.widens && self.kernel == (1, 1) && !self.needs_copy() { 1 } else { self.stride }
    }

    /// Dimensions of the padded source behind `rows` rows of the grid.
    fn padded(&self, rows: usize) -> Dims {
        let stride = self.view_stride();
        Dims {
            h: (rows - 1) * stride + self.kernel.0,
            w: (self.grid.1 - 1) * stride + self.kernel.1,
            c: self.channels(),
        }
    }

    /// The images and grid rows of task `index` of `n` images.
    pub fn task(&self, (images, rows): TaskShape, n: usize, index: usize) -> Task {
        let bands = self.grid.0.div_ceil(rows);
        let (image, row) = (index / bands * images, index % bands * rows);
        Task { image, n_images: images.min(n - image), row, n_rows: rows.min(self.grid.0 - row) }
    }

    /// The task behind task `index`, if there is one.
    pub fn task_after(&self, tasks: TaskShape, n: usize, index: usize) -> Option<Task> {
        (index + 1 < self.n_tasks(tasks, n)).then(|| self.task(tasks, n, index + 1))
    }

    /// Brings the task's source within reach: a pointer to where window (0, 0) of its first pixel begins.
    ///
    /// `x` must have slack behind its last image (see `HostStore::alloc_act`): the last pixels of a row are read in
    /// whole groups and the surplus is dropped.
    pub fn source<'a, T: Element>(&self, task: &Task, x: &'a [T], scratch: &'a mut [T]) -> View<'a, T> {
        if !self.needs_copy() {
            let at = (task.image * self.src.h + task.row * self.stride) * self.src.w * self.src.c;
            let (row, image) = (self.src.w * self.src.c, self.src.len());
            return View { data: &x[at..], stride: self.stride, row, image };
        }
        self.copied(task, self.stride, x, scratch, PadChannels { from: self.src.c, to: self.channels() })
    }

    /// The same as f32, always copied.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn widened<'a, E: Cell, S: Simd>(&self, task: &Task, x: &[E], scratch: &'a mut [f32]) -> View<'a, f32> {
        self.copied(task, self.view_stride(), x, scratch, Widen::<S>(PhantomData))
    }

    /// Copies the task's source, its windows `stride` pixels apart.
    #[inline(always)]
    fn copied<'a, T, U: Element>(
        &self,
        task: &Task,
        stride: usize,
        x: &[T],
        scratch: &'a mut [U],
        copy: impl CopyPixels<T, U>,
    ) -> View<'a, U> {
        let padded = self.padded(task.n_rows);
        let top = (task.row * self.stride) as isize - self.pad.0;
        for image in 0..task.n_images {
            let source = &x[(task.image + image) * self.src.len()..][..self.src.len()];
            let target = &mut scratch[image * padded.len()..][..padded.len()];
            copy_window(source, self.src, target, padded, (top, -self.pad.1), self.stride / stride, copy);
        }
        View { data: scratch, stride, row: padded.w * padded.c, image: padded.len() }
    }
}

/// How neighbouring pixels are copied. Not a closure, which the compiler need not inline where the level's instructions are.
trait CopyPixels<T, U>: Copy {
    fn copy(self, from: &[T], to: &mut [U]);
}

/// Copies every `step`th pixel, both ways, of the window of `source` that begins at `origin` (which may lie outside) into `target`, zeros around.
/// Pixels of `target` may have more channels.
#[inline(always)]
fn copy_window<T, U: Element>(
    source: &[T],
    src: Dims,
    target: &mut [U],
    dst: Dims,
    origin: (isize, isize),
    step: usize,
    copy: impl CopyPixels<T, U>,
) {
    let from = origin.1.max(0) as usize;
    let lead = (from as isize - origin.1) as usize;
    let copied = dst.w.saturating_sub(lead).min(src.w.saturating_sub(from).div_ceil(step));
    for (r, row) in target.chunks_exact_mut(dst.w * dst.c).enumerate() {
        let y = origin.0 + (r * step) as isize;
        if y < 0 || y >= src.h as isize || copied == 0 {
            row.fill(U::default());
            continue;
        }
        let source = &source[(y as usize * src.w + from) * src.c..];
        let (left, rest) = row.split_at_mut(lead * dst.c);
        let (middle, right) = rest.split_at_mut(copied * dst.c);
        left.fill(U::default());
        right.fill(U::default());
        if step == 1 {
            copy.copy(&source[..copied * src.c], middle);
        } else {
            for (to, from) in middle.chunks_exact_mut(dst.c).zip(source.chunks(step * src.c)) {
                copy.copy(&from[..src.c], to);
            }
        }
    }
}

/// To pixels that have at least as many channels, zeros in the surplus ones.
#[derive(Clone, Copy)]
struct PadChannels {
    from: usize,
    to: usize,
}

impl<T: Element> CopyPixels<T, T> for PadChannels {
    fn copy(self, source: &[T], target: &mut [T]) {
        if self.from == self.to {
            target.copy_from_slice(source);
        } else if (self.from, self.to) == (3, 4) {
            // Images for bf16, where a call for each pixel would take longer than its products.
            for (to, &[r, g, b]) in target.as_chunks_mut::<4>().0.iter_mut().zip(source.as_chunks::<3>().0) {
                *to = [r, g, b, T::default()];
            }
        } else {
            for (to, from) in target.chunks_exact_mut(self.to).zip(source.chunks_exact(self.from)) {
                to[..self.from].copy_from_slice(from);
                to[self.from..].fill(T::default());
            }
        }
    }
}

/// As f32, by vectors that the CPU has.
#[derive(Clone, Copy)]
struct Widen<S>(PhantomData<S>);

impl<E: Cell, S: Simd> CopyPixels<E, f32> for Widen<S> {
    #[inline(always)]
    fn copy(self, from: &[E], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        let (mut at, rest) = (0, to.len() % S::LANES);
        // SAFETY: who made it vouches for the CPU; both hold as many numbers by the assertion.
        unsafe {
            while at < to.len() - rest {
                E::load_first::<S>(from.as_ptr().add(at), S::LANES).store_first(to.as_mut_ptr().add(at), S::LANES);
                at += S::LANES;
            }
            E::load_first::<S>(from.as_ptr().add(at), rest).store_first(to.as_mut_ptr().add(at), rest);
        }
    }
}

/// Images and grid rows that are computed together.
pub(crate) struct Task {
    pub image: usize,
    pub n_images: usize,
    pub row: usize,
    pub n_rows: usize,
}

/// A task's source: `data` begins at its first window; pixels from window to window, numbers from row to row and image to image.
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
    pub row: usize,
    pub image: usize,
}
