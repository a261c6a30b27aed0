//! How a level's kernels want packed weights and weight gradients laid out.

use super::cell::Cell;
#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Level, Portable, Simd};
use super::sweep::Sweep;

/// Sizes in channels, cells and inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layout {
    /// Channels of a panel, and of one that has no more than that left.
    pub panel: usize,
    pub narrow: usize,
    /// A panel's rows of cells come in multiples of this, zeros behind the last.
    pub rows: usize,
    /// Inputs of a block of the weight gradient.
    pub inputs: usize,
    /// Whether the kernels are those on AMX tiles.
    pub on_tiles: bool,
}

impl Layout {
    /// The layout of feature maps of `E` at a level.
    pub fn of<E: Cell>(level: Level) -> Self {
        if E::PER_CELL == 2 && level == Level::Amx {
            return Self::TILES;
        }
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Self::vectors::<Avx2>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => Self::vectors::<Avx512>(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => Self::vectors::<Neon>(),
            _ => Self::vectors::<Portable>(),
        }
    }

    const TILES: Self = Self { panel: 32, narrow: 32, rows: 16, inputs: 32, on_tiles: true };

    fn vectors<S: Simd>() -> Self {
        Self { panel: S::PANEL, narrow: S::LANES, rows: 1, inputs: S::PIXELS, on_tiles: false }
    }

    /// Width of the panel that begins where `left` channels are left.
    pub fn width(self, left: usize) -> usize {
        if left <= self.narrow { self.narrow } else { self.panel }
    }

    /// Channels of all panels of `c`.
    pub fn channels(self, c: usize) -> usize {
        let rest = c % self.panel;
        c - rest + if rest == 0 { 0 } else { self.width(rest) }
    }

    /// Rows of cells of a sweep's packed weights.
    pub fn packed_rows(self, sweep: &Sweep) -> usize {
        sweep.cells().next_multiple_of(self.rows)
    }
}

/// The blocks that a slice of a weight gradient consists of, each of some inputs of a filter row towards all channels.
///
/// On vectors a block is, per panel of channels, `[inputs, width]`, and blocks run along filter rows. On tiles a block is
/// `[channels, columns]`, the columns of even inputs first, and all filter rows' blocks of the same inputs lie together; where inputs fill
/// blocks, those of all taps.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub layout: Layout,
    /// Filter rows, and inputs of each.
    pub rows: usize,
    pub row: usize,
    /// Filter columns whose blocks of the same inputs lie together.
    columns: usize,
    /// How many there are, and floats of one.
    pub n: usize,
    pub len: usize,
}

impl Blocks {
    /// The blocks of the weight gradient of a forward sweep.
    pub fn of(layout: Layout, sweep: &Sweep) -> Self {
        let channels = if layout.on_tiles { sweep.src.c } else { sweep.channels() };
        let (rows, row) = (sweep.kernel.0, sweep.kernel.1 * channels);
        let filled = layout.on_tiles && channels.is_multiple_of(layout.inputs);
        let columns = if filled { sweep.kernel.1 } else { 1 };
        let (n, len) = (rows * row.div_ceil(layout.inputs), layout.inputs * layout.channels(sweep.dst.c));
        Self { layout, rows, row, columns, n, len }
    }

    /// Blocks of a filter row.
    pub fn per_row(&self) -> usize {
        self.row.div_ceil(self.layout.inputs)
    }

    /// Block of a filter row's input.
    pub fn block(&self, row: usize, input: usize) -> usize {
        if !self.layout.on_tiles {
            return row * self.per_row() + input / self.layout.inputs;
        }
        let of_column = self.row / self.columns;
        (input % of_column / self.layout.inputs * self.columns + input / of_column) * self.rows + row
    }

    /// The first input of a filter row's block on tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn input(&self, block: usize) -> usize {
        let along = block / self.rows;
        along % self.columns * (self.row / self.columns) + along / self.columns * self.layout.inputs
    }
}
