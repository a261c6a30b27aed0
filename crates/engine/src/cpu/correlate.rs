//! The f32 convolution kernels: forward and backward-data as one routine, and backward-weight.
//!
//! Both are register-blocked matrix products that read the image directly (no im2col). In `correlate`, a block of
//! pixels × output channels stays in registers while the loop runs along one filter row: for NHWC the `kw · cin` inputs of
//! a filter row are contiguous, so the inner loop loads one row of packed weights and broadcasts one input per pixel.
//! Backward-data is the same sweep over the output's gradient with transposed, flipped weights; with stride s it falls
//! into s² sweeps, one per phase of the input grid, each over its own subset of taps (so no multiplication by zero).
//!
//! A task is a band of rows, or several small images, large enough that a weight panel is reused from cache. Its input
//! is first copied into the member's scratch with the zero padding around it, unless no padding is needed.

use super::simd::Simd;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Level, Portable};
use crate::types::{Dims, Write};

const MAX_GROUPS: usize = 3;
const MAX_PIXELS: usize = 12;

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
}

/// Most pixels of a task, and most floats of its source: with a weight panel beside it, half of a 2 MB L2 cache. A panel is
/// streamed once per task, so tasks should not be much smaller either.
const TASK_PIXELS: usize = 384;
const TASK_SOURCE: usize = 1 << 17;

impl Sweep {
    /// Taps times source channels: the length of a dot product.
    pub fn depth(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.src.c
    }

    /// Whether some window reaches over the source's edge.
    fn needs_padding(&self) -> bool {
        let reach = |n: usize, k: usize| (n - 1) * self.stride + k;
        self.pad != (0, 0)
            || reach(self.grid.0, self.kernel.0) > self.src.h
            || reach(self.grid.1, self.kernel.1) > self.src.w
    }

    /// Images per task and rows per task (all rows when a task holds several images).
    fn task_shape(&self) -> (usize, usize) {
        let (rows, cols) = self.grid;
        let fits = |images: usize, rows: usize| {
            images * rows * cols <= TASK_PIXELS && images * self.padded(rows).len() <= TASK_SOURCE
        };
        match (1..=TASK_PIXELS).rev().find(|&images| fits(images, rows)) {
            Some(images) => (images, rows),
            None => (1, (1..rows).rev().find(|&rows| fits(1, rows)).unwrap_or(1)),
        }
    }

    /// Most pixels of a task.
    fn task_pixels(&self) -> usize {
        let (images, rows) = self.task_shape();
        images * rows * self.grid.1
    }

    /// Images and rows of tasks of at most `limit` pixels, at least a row.
    pub fn task_shape_within(&self, limit: usize) -> (usize, usize) {
        let (rows, cols) = self.grid;
        if rows * cols <= limit { (limit / (rows * cols), rows) } else { (1, (limit / cols).clamp(1, rows)) }
    }

    /// Number of tasks for `n` images: fixed by the shape, whatever the number of threads.
    pub fn n_tasks(&self, n: usize) -> usize {
        self.n_tasks_of(self.task_shape(), n)
    }

    /// Number of tasks of `(images, rows)` for `n` images.
    pub fn n_tasks_of(&self, (images, rows): (usize, usize), n: usize) -> usize {
        n.div_ceil(images) * self.grid.0.div_ceil(rows)
    }

    /// Floats of scratch a task needs.
    pub fn scratch_len(&self) -> usize {
        if !self.needs_padding() {
            return 0;
        }
        let (images, rows) = self.task_shape();
        images * self.padded(rows).len() + 16 * self.src.c * self.stride + 64
    }

    /// Dimensions of the padded source behind `rows` rows of the grid.
    fn padded(&self, rows: usize) -> Dims {
        Dims {
            h: (rows - 1) * self.stride + self.kernel.0,
            w: (self.grid.1 - 1) * self.stride + self.kernel.1,
            c: self.src.c,
        }
    }

    /// The images and grid rows of task `index`.
    fn task(&self, n: usize, index: usize) -> Task {
        self.task_of(self.task_shape(), n, index)
    }

    /// The images and grid rows of task `index` of `(images, rows)` each.
    pub fn task_of(&self, (images, rows): (usize, usize), n: usize, index: usize) -> Task {
        let bands = self.grid.0.div_ceil(rows);
        let (image, row) = (index / bands * images, index % bands * rows);
        Task { image, n_images: images.min(n - image), row, n_rows: rows.min(self.grid.0 - row) }
    }

    /// Brings the task's source within reach: a pointer to where window (0, 0) of its first pixel begins.
    ///
    /// `x` must have slack behind its last image (see `HostStore::alloc_act`): the last pixels of a row are read in
    /// whole groups and the surplus is dropped.
    fn source<'a>(&self, task: &Task, x: &'a [f32], scratch: &'a mut [f32]) -> View<'a> {
        if !self.needs_padding() {
            let at = (task.image * self.src.h + task.row * self.stride) * self.src.w * self.src.c;
            return View { data: &x[at..], row: self.src.w * self.src.c, image: self.src.len() };
        }
        let padded = self.padded(task.n_rows);
        let top = (task.row * self.stride) as isize - self.pad.0;
        for image in 0..task.n_images {
            let source = &x[(task.image + image) * self.src.len()..][..self.src.len()];
            let target = &mut scratch[image * padded.len()..][..padded.len()];
            pad_image(source, self.src, target, padded, (top, -self.pad.1));
        }
        View { data: scratch, row: padded.w * padded.c, image: padded.len() }
    }
}

/// Copies the window of `source` that begins at `origin` (which may lie outside) into `target`, zeros around.
fn pad_image(source: &[f32], src: Dims, target: &mut [f32], dst: Dims, origin: (isize, isize)) {
    let from = origin.1.max(0) as usize;
    let lead = (from as isize - origin.1) as usize;
    let copied = dst.w.saturating_sub(lead).min(src.w.saturating_sub(from));
    for (r, row) in target.chunks_exact_mut(dst.w * dst.c).enumerate() {
        let y = origin.0 + r as isize;
        if y < 0 || y >= src.h as isize || copied == 0 {
            row.fill(0.0);
            continue;
        }
        let at = (y as usize * src.w + from) * src.c;
        row[..lead * dst.c].fill(0.0);
        row[lead * dst.c..(lead + copied) * dst.c].copy_from_slice(&source[at..at + copied * src.c]);
        row[(lead + copied) * dst.c..].fill(0.0);
    }
}

/// Images and grid rows that are computed together.
pub(crate) struct Task {
    pub image: usize,
    pub n_images: usize,
    pub row: usize,
    pub n_rows: usize,
}

/// A task's source: `data` begins at its first window; strides in floats.
struct View<'a> {
    data: &'a [f32],
    row: usize,
    image: usize,
}

/// Width of weight panel `index` of `c` channels: a full panel, or one vector where one suffices.
fn panel_width<S: Simd>(c: usize, index: usize) -> usize {
    if c - index * S::PANEL <= S::LANES { S::LANES } else { S::PANEL }
}

/// The shape of a level's panels: (full panel, single vector), in channels.
pub(crate) fn panel_sizes(level: Level) -> (usize, usize) {
    match level {
        Level::Portable => (Portable::PANEL, Portable::LANES),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (Avx2::PANEL, Avx2::LANES),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (Avx512::PANEL, Avx512::LANES),
        #[cfg(not(target_arch = "x86_64"))]
        _ => (Portable::PANEL, Portable::LANES),
    }
}

/// Floats of a packed weight matrix of `depth` rows and `c` channels.
pub(crate) fn packed_len(level: Level, depth: usize, c: usize) -> usize {
    let (panel, lanes) = panel_sizes(level);
    let rest = c % panel;
    depth
        * (c / panel * panel
            + if rest == 0 {
                0
            } else if rest <= lanes {
                lanes
            } else {
                panel
            })
}

/// Everything a sweep's task reads and writes.
pub(crate) struct Job<'a> {
    pub sweep: &'a Sweep,
    /// Packed weights: per panel `[kh, kw·cin, panel]`.
    pub packed: &'a [f32],
    /// Source images with slack.
    pub x: &'a [f32],
    /// First element of the destination.
    pub y: *mut f32,
    pub n: usize,
    pub write: Write,
}

// SAFETY: tasks of one job write disjoint pixels of `y`; everything else is read only.
unsafe impl Sync for Job<'_> {}

/// Runs one task. `sums` `[2, dst.c]`, if given, receives Σ and Σ² of the task's pixels.
///
/// # Safety
/// `job.y` must point to `job.n` writable destination images; no other thread may run the same task; `level` must be
/// supported by the CPU.
pub(crate) unsafe fn correlate(level: Level, job: &Job, task: usize, scratch: &mut [f32], sums: Option<&mut [f32]>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn avx512(job: &Job, task: usize, scratch: &mut [f32], sums: Option<&mut [f32]>) {
        // SAFETY: handed through.
        unsafe { correlate_task::<Avx512>(job, task, scratch, sums) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(job: &Job, task: usize, scratch: &mut [f32], sums: Option<&mut [f32]>) {
        // SAFETY: handed through.
        unsafe { correlate_task::<Avx2>(job, task, scratch, sums) }
    }
    // SAFETY: handed through; the caller vouches for the level.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(job, task, scratch, sums),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(job, task, scratch, sums),
            _ => correlate_task::<Portable>(job, task, scratch, sums),
        }
    }
}

#[inline(always)]
unsafe fn correlate_task<S: Simd>(job: &Job, task: usize, scratch: &mut [f32], mut sums: Option<&mut [f32]>) {
    let sweep = job.sweep;
    let task = sweep.task(job.n, task);
    let view = sweep.source(&task, job.x, scratch);
    if let Some(sums) = sums.as_deref_mut() {
        sums.fill(0.0);
    }
    let c = sweep.dst.c;
    for panel in 0..c.div_ceil(S::PANEL) {
        let at = panel * S::PANEL;
        let weights = &job.packed[at * sweep.depth()..];
        let width = (c - at).min(S::PANEL);
        // SAFETY: the caller's promises; `width` channels of panel `panel` exist.
        unsafe {
            if panel_width::<S>(c, panel) == S::LANES {
                correlate_panel::<S, 1>(job, &task, &view, weights, at, width, sums.as_deref_mut());
            } else {
                correlate_panel::<S, 2>(job, &task, &view, weights, at, width, sums.as_deref_mut());
            }
        }
    }
}

/// All pixels of a task for `width` channels from `at` on, `V` vectors wide.
#[inline(always)]
unsafe fn correlate_panel<S: Simd, const V: usize>(
    job: &Job,
    task: &Task,
    view: &View,
    weights: &[f32],
    at: usize,
    width: usize,
    mut sums: Option<&mut [f32]>,
) {
    let sweep = job.sweep;
    let pixel = sweep.stride * sweep.src.c;
    let groups_per_row = sweep.grid.1.div_ceil(S::GROUP);
    let n_groups = task.n_images * task.n_rows * groups_per_row;
    let mut first = 0;
    while first < n_groups {
        let mut base = [view.data.as_ptr(); MAX_GROUPS];
        let mut out = [std::ptr::null_mut::<f32>(); MAX_PIXELS];
        for g in 0..S::GROUPS.min(n_groups - first) {
            let (line, col) = ((first + g) / groups_per_row, (first + g) % groups_per_row * S::GROUP);
            let (image, row) = (line / task.n_rows, line % task.n_rows);
            // SAFETY: the group's first window lies in the view (and its surplus pixels in the slack behind it); the
            // destination pixels exist because row and column lie in the grid.
            unsafe {
                base[g] = base[g].add(image * view.image + row * sweep.stride * view.row + col * pixel);
                let y = sweep.first.0 + (task.row + row) * sweep.step;
                let line = ((task.image + image) * sweep.dst.h + y) * sweep.dst.w;
                for q in 0..S::GROUP.min(sweep.grid.1 - col) {
                    let x = sweep.first.1 + (col + q) * sweep.step;
                    out[g * S::GROUP + q] = job.y.add((line + x) * sweep.dst.c + at);
                }
            }
        }
        // SAFETY: pointers as above; the panel holds `depth` rows of `V` vectors.
        unsafe {
            let (kh, run) = (sweep.kernel.0, sweep.kernel.1 * sweep.src.c);
            let acc = multiply::<S, V>(base, pixel, view.row, kh, run, weights.as_ptr());
            finish::<S, V>(acc, &out, width, job.write, sums.as_deref_mut(), at, sweep.dst.c);
        }
        first += S::GROUPS;
    }
}

/// The hot loop: one register block over all taps and source channels.
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize>(
    base: [*const f32; MAX_GROUPS],
    pixel: usize,
    row: usize,
    kh: usize,
    run: usize,
    mut weights: *const f32,
) -> [[S; V]; MAX_PIXELS] {
    // SAFETY: the caller vouches for all pointers within the window and the panel.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        for a in 0..kh {
            for i in a * row..a * row + run {
                let mut w = [S::zero(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = S::load(weights.add(v * S::LANES));
                }
                weights = weights.add(V * S::LANES);
                for g in 0..S::GROUPS {
                    let from = base[g].add(i);
                    for q in 0..S::GROUP {
                        let x = S::splat(from.add(q * pixel));
                        for v in 0..V {
                            acc[g * S::GROUP + q][v] = acc[g * S::GROUP + q][v].fma(x, w[v]);
                        }
                    }
                }
            }
        }
        acc
    }
}

/// Writes a register block and adds its pixels to the channel sums.
#[inline(always)]
unsafe fn finish<S: Simd, const V: usize>(
    mut acc: [[S; V]; MAX_PIXELS],
    out: &[*mut f32; MAX_PIXELS],
    width: usize,
    write: Write,
    sums: Option<&mut [f32]>,
    at: usize,
    c: usize,
) {
    // SAFETY: the caller vouches for `out`; `one` is read by `splat` alone; sums are `[2, c]` and `at + width <= c`.
    unsafe {
        let one = S::splat(&1.0);
        let (mut sum, mut square) = ([S::zero(); V], [S::zero(); V]);
        for p in 0..S::PIXELS {
            let to = out[p];
            if to.is_null() {
                continue;
            }
            for v in 0..V {
                let n = (width - v * S::LANES).min(S::LANES);
                let to = to.add(v * S::LANES);
                sum[v] = sum[v].fma(acc[p][v], one);
                square[v] = square[v].fma(acc[p][v], acc[p][v]);
                if write == Write::Add {
                    acc[p][v] = acc[p][v].fma(S::load_first(to, n), one);
                }
                acc[p][v].store_first(to, n);
            }
        }
        if let Some(sums) = sums {
            for v in 0..V {
                let n = (width - v * S::LANES).min(S::LANES);
                let to = sums.as_mut_ptr().add(at + v * S::LANES);
                sum[v].fma(S::load_first(to, n), one).store_first(to, n);
                let to = to.add(c);
                square[v].fma(S::load_first(to, n), one).store_first(to, n);
            }
        }
    }
}

/// A weight gradient to be summed over tasks.
pub(crate) struct WeightJob<'a> {
    /// The forward sweep.
    pub sweep: &'a Sweep,
    /// Input images with slack.
    pub x: &'a [f32],
    /// Gradients of the output images.
    pub dy: &'a [f32],
    pub n: usize,
}

/// Floats of scratch that a task of a weight gradient needs beside its source.
pub(crate) fn weight_scratch_len(level: Level, sweep: &Sweep) -> usize {
    sweep.task_pixels() * (packed_len(level, 1, sweep.dst.c) + MAX_PIXELS) + 64
}

/// Adds a task's weight gradient to `dw`, laid out as packed weights are: per panel `[kh, kw·cin, panel]`.
///
/// # Safety
/// `level` must be supported by the CPU.
pub(crate) unsafe fn weight_gradient(level: Level, job: &WeightJob, task: usize, scratch: &mut [f32], dw: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn avx512(job: &WeightJob, task: usize, scratch: &mut [f32], dw: &mut [f32]) {
        // SAFETY: handed through.
        unsafe { weight_task::<Avx512>(job, task, scratch, dw) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(job: &WeightJob, task: usize, scratch: &mut [f32], dw: &mut [f32]) {
        // SAFETY: handed through.
        unsafe { weight_task::<Avx2>(job, task, scratch, dw) }
    }
    // SAFETY: handed through; the caller vouches for the level.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(job, task, scratch, dw),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(job, task, scratch, dw),
            _ => weight_task::<Portable>(job, task, scratch, dw),
        }
    }
}

/// Gathers the task's gradients by panel and, for each block of inputs, the inputs of all pixels, so that the hot loop reads
/// two contiguous streams: in place they lie `cin` and `cout` floats apart, which for wide layers is the same few cache sets.
#[inline(always)]
unsafe fn weight_task<S: Simd>(job: &WeightJob, task: usize, scratch: &mut [f32], dw: &mut [f32]) {
    let sweep = job.sweep;
    let task = sweep.task(job.n, task);
    let (padded, scratch) = scratch.split_at_mut(sweep.scratch_len());
    let view = sweep.source(&task, job.x, padded);
    let (c, depth, run) = (sweep.dst.c, sweep.depth(), sweep.kernel.1 * sweep.src.c);
    let n_pixels = task.n_images * task.n_rows * sweep.grid.1;
    let (xs, dys) = scratch.split_at_mut(n_pixels * MAX_PIXELS + 64);
    let n_panels = c.div_ceil(S::PANEL);
    for panel in 0..n_panels {
        let (at, width) = (panel * S::PANEL, panel_width::<S>(c, panel));
        gather_gradients(job, &task, at, width, &mut dys[at * n_pixels..][..width * n_pixels]);
    }
    for kh in 0..sweep.kernel.0 {
        for i in (0..run).step_by(S::PIXELS) {
            // SAFETY: the level is the caller's promise; inputs past a row's end lie in the slack behind the view.
            unsafe { gather_inputs::<S>(sweep, &task, &view, kh * view.row + i, xs) };
            let rows = S::PIXELS.min(run - i);
            for panel in 0..n_panels {
                let (at, width) = (panel * S::PANEL, panel_width::<S>(c, panel));
                let out = &mut dw[at * depth + (kh * run + i) * width..][..rows * width];
                let dy = &dys[at * n_pixels..][..width * n_pixels];
                // SAFETY: the level is the caller's promise; all slices hold `n_pixels` entries of their width.
                unsafe {
                    if width == S::LANES {
                        weight_block::<S, 1>(&xs[..n_pixels * S::PIXELS], dy, out);
                    } else {
                        weight_block::<S, 2>(&xs[..n_pixels * S::PIXELS], dy, out);
                    }
                }
            }
        }
    }
}

/// Channels `at..at + width` of a task's gradients, pixel by pixel, zeros past the last channel.
#[inline(always)]
fn gather_gradients(job: &WeightJob, task: &Task, at: usize, width: usize, out: &mut [f32]) {
    let Dims { h, w, c } = job.sweep.dst;
    let n = width.min(c - at);
    let mut pixels = out.chunks_exact_mut(width);
    for image in task.image..task.image + task.n_images {
        let first = (image * h + task.row) * w;
        for (dy, out) in job.dy[first * c..].chunks_exact(c).take(task.n_rows * w).zip(&mut pixels) {
            out[..n].copy_from_slice(&dy[at..at + n]);
            out[n..].fill(0.0);
        }
    }
}

/// `S::PIXELS` inputs from `offset` on of every window of a task, window by window.
#[inline(always)]
unsafe fn gather_inputs<S: Simd>(sweep: &Sweep, task: &Task, view: &View, offset: usize, out: &mut [f32]) {
    let pixel = sweep.stride * sweep.src.c;
    let mut to = out.as_mut_ptr();
    for line in 0..task.n_images * task.n_rows {
        let (image, row) = (line / task.n_rows, line % task.n_rows);
        let mut from = view.data[offset + image * view.image + row * sweep.stride * view.row..].as_ptr();
        for _ in 0..sweep.grid.1 {
            // SAFETY: windows lie in the view and its slack by the caller's promise; `out` has room for every window.
            unsafe {
                S::load_first(from, S::PIXELS).store_first(to, S::PIXELS);
                from = from.add(pixel);
                to = to.add(S::PIXELS);
            }
        }
    }
}

/// The hot loop of the weight gradient: `S::PIXELS` inputs × `V` vectors of output channels in registers over all pixels.
#[inline(always)]
unsafe fn weight_block<S: Simd, const V: usize>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    // SAFETY: the caller vouches for the level; `x` and `dy` hold as many pixels; `out` holds whole rows of `V` vectors.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        let (mut from, mut dy) = (x.as_ptr(), dy.as_ptr());
        for _ in 0..x.len() / S::PIXELS {
            let mut g = [S::zero(); V];
            for (v, g) in g.iter_mut().enumerate() {
                *g = S::load(dy.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate().take(S::PIXELS) {
                let a = S::splat(from.add(r));
                for (acc, g) in acc.iter_mut().zip(g) {
                    *acc = acc.fma(a, g);
                }
            }
            from = from.add(S::PIXELS);
            dy = dy.add(V * S::LANES);
        }
        let one = S::splat(&1.0);
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(V * S::LANES)) {
            for (v, acc) in acc.iter().enumerate() {
                let to = out.as_mut_ptr().add(v * S::LANES);
                acc.fma(S::load(to), one).store_first(to, S::LANES);
            }
        }
    }
}
