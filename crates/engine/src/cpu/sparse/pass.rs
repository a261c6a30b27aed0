//! The geometry of a pass: which source numbers a kept weight meets.
//!
//! Images lie side by side in the lanes of vectors, so that what a weight is multiplied with is a run of whole vectors: the pixels of a row.
//! A row of the source is brought to `[channel, residue, column, lane]`, the columns of a window's first pixels (every other one with stride 2) next
//! to each other, zeros where the padding is. Then a weight at any tap meets its row's pixels from one address on: the window's, and an offset that
//! depends on the weight alone.

use crate::types::{ConvShape, Dims};
use std::ops::Range;

/// A pass as sums over kept weights: the forward pass, or backward-data, which with stride `s` falls into `s²` phases of the destination's pixels.
pub(super) struct Pass {
    pub source: Dims,
    pub dest: Dims,
    /// Source pixels from one window to the next.
    pub step: usize,
    /// Destination pixels from one of a phase to the next.
    pub spread: usize,
    /// Columns of padding before a source row's first pixel, and columns of each residue that windows read.
    pub before: usize,
    pub width: usize,
    /// Residues that some tap reads.
    pub residues: usize,
    pub phases: Vec<Phase>,
    /// Where each tap `[kh, kw]` of the master weights belongs.
    pub taps: Vec<Tap>,
    /// Runs of all phases: weights that meet the same row of their windows.
    pub n_runs: usize,
}

/// The destination's pixels `(row, col)`, `(row + spread, col)` …, and the runs of weights that meet them.
pub(super) struct Phase {
    pub row: usize,
    pub col: usize,
    first_run: usize,
    n_runs: usize,
    /// Source row that the first run meets where windows begin with row 0.
    top: isize,
}

/// The run of a tap's weights, and the offset of the source number that one of channel 0 meets, in vectors, its row apart.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    pub run: usize,
    /// Rows from that of the phase's first run.
    row: usize,
    /// Vectors from a row's start.
    column: usize,
}

impl Pass {
    /// Forward.
    pub fn forward(shape: &ConvShape) -> Self {
        let (k, step) = (shape.kernel, shape.stride);
        let dest = shape.output();
        let width = dest.w + (k - 1) / step;
        let taps = (0..k * k).map(|tap| {
            let (row, col) = (tap / k, tap % k);
            Tap { run: row, row, column: col % step * width + col / step }
        });
        let phase = Phase { row: 0, col: 0, first_run: 0, n_runs: k, top: -(shape.pad as isize) };
        Self {
            source: shape.input,
            dest,
            step,
            spread: 1,
            before: shape.pad,
            width,
            residues: step.min(k),
            phases: vec![phase],
            taps: taps.collect(),
            n_runs: k,
        }
    }

    /// Backward-data.
    pub fn backward_data(shape: &ConvShape) -> Self {
        let (k, spread, pad) = (shape.kernel, shape.stride, shape.pad);
        // A pixel `spread · i + phase` meets tap `t` of the window that begins `i + (phase + pad − t) / spread`, where that is whole.
        let meets = |phase: usize, t: usize| {
            let from = (phase + pad) as isize - t as isize;
            (from.rem_euclid(spread as isize) == 0).then_some(from.div_euclid(spread as isize))
        };
        let all = || (0..spread).flat_map(|phase| (0..k).filter_map(move |t| meets(phase, t)));
        let (least, most) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        let (mut phases, mut n_runs) = (Vec::new(), 0);
        let mut taps = vec![Tap { run: 0, row: 0, column: 0 }; k * k];
        for (row, col) in (0..spread * spread).map(|phase| (phase / spread, phase % spread)) {
            let rows = || (0..k).filter_map(|t| meets(row, t).map(|from| (t, from)));
            let cols = || (0..k).filter_map(|t| meets(col, t).map(|from| (t, from)));
            let top = rows().map(|(_, from)| from).min().unwrap_or(0);
            // Their source rows are neighbours; without a column none is met.
            let here = if cols().next().is_none() { 0 } else { rows().count() };
            for ((kh, from_row), (kw, from_col)) in rows().flat_map(|row| cols().map(move |col| (row, col))) {
                let row = (from_row - top) as usize;
                taps[kh * k + kw] = Tap { run: n_runs + row, row, column: (from_col - least) as usize };
            }
            phases.push(Phase { row, col, first_run: n_runs, n_runs: here, top });
            n_runs += here;
        }
        let (source, dest) = (shape.output(), shape.input);
        Self {
            source,
            dest,
            step: 1,
            spread,
            before: least.unsigned_abs(),
            width: dest.w.div_ceil(spread) + (most - least) as usize,
            residues: 1,
            phases,
            taps,
            n_runs,
        }
    }

    /// Whether a convolution has such passes, of offsets that a `u32` holds: windows begin in the padding or in the map, not before both.
    pub fn can(shape: &ConvShape, lanes: usize) -> bool {
        let holds = |pass: Self| shape.kernel.saturating_mul(pass.row_lens(lanes).1) <= u32::MAX as usize;
        shape.pad < shape.kernel && holds(Self::forward(shape)) && holds(Self::backward_data(shape))
    }

    /// Floats of a source channel's row, and of a row of all channels, with `lanes` images.
    pub fn row_lens(&self, lanes: usize) -> (usize, usize) {
        let channel = self.residues * self.width * lanes;
        (channel, self.source.c * channel)
    }

    /// Offset of what a weight of tap `tap` and source channel `channel` meets, in floats from the window's start.
    pub fn offset(&self, tap: usize, channel: usize, lanes: usize) -> usize {
        let ((per_channel, per_row), tap) = (self.row_lens(lanes), self.taps[tap]);
        tap.row * per_row + channel * per_channel + tap.column * lanes
    }

    /// Rows of the destination's grid: of its first phase, which has the most.
    pub fn rows(&self) -> usize {
        self.dest.h.div_ceil(self.spread)
    }

    /// Source rows that a grid row's weights may meet, from the row that its windows begin with.
    fn reach(&self) -> Range<isize> {
        let met = || self.phases.iter().filter(|phase| phase.n_runs > 0);
        let first = met().map(|phase| phase.top).min().unwrap_or(0);
        first..met().map(|phase| phase.top + phase.n_runs as isize).max().unwrap_or(0)
    }

    /// Source rows that the grid's rows `rows`, one at the least, read.
    pub fn source_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let at = |row: isize| row.clamp(0, self.source.h as isize) as usize;
        let (first, last) = ((rows.start * self.step) as isize, ((rows.end - 1) * self.step) as isize);
        at(first + self.reach().start)..at(last + self.reach().end)
    }

    /// Where a window begins whose first run meets source row `top`, the rows from `first` on lying at `source`. That may be outside of them: weights
    /// of runs that lie outside are not multiplied.
    pub fn window(&self, source: &[f32], first: usize, top: isize, lanes: usize) -> *const f32 {
        source.as_ptr().wrapping_offset((top - first as isize) * self.row_lens(lanes).1 as isize)
    }

    /// As many as `rows` of them read at the most.
    pub fn most_source_rows(&self, rows: usize) -> usize {
        ((rows - 1) * self.step + self.reach().len()).min(self.source.h)
    }

    /// Grid rows of a band whose source rows take at most `floats`, one at the least.
    pub fn band(&self, floats: usize, lanes: usize) -> usize {
        let fits = |&rows: &usize| self.most_source_rows(rows) * self.row_lens(lanes).1 <= floats;
        (1..=self.rows()).take_while(fits).last().unwrap_or(1)
    }
}

impl Phase {
    /// Rows and columns of the destination that are the phase's.
    pub fn size(&self, pass: &Pass) -> (usize, usize) {
        let count = |len: usize, first: usize| len.saturating_sub(first).div_ceil(pass.spread);
        (count(pass.dest.h, self.row), count(pass.dest.w, self.col))
    }

    /// The source row that the first run meets at grid row `row`, and the runs whose rows lie in the map.
    pub fn runs(&self, pass: &Pass, row: usize) -> (isize, Range<usize>) {
        let top = (row * pass.step) as isize + self.top;
        let from = (-top).clamp(0, self.n_runs as isize) as usize;
        let to = (pass.source.h as isize - top).clamp(from as isize, self.n_runs as isize) as usize;
        (top, self.first_run + from..self.first_run + to)
    }
}
