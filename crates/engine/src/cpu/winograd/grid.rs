//! The tiles of a batch of images.

use super::transform::TILE;

/// Tiles of 4 × 4 outputs over images of `h` × `w` pixels; the last ones of a row or column may reach over the edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub h: usize,
    pub w: usize,
}

/// One tile: its image, and its first row and column.
pub(super) struct Tile {
    pub image: usize,
    pub row: usize,
    pub col: usize,
}

impl Grid {
    /// Tiles of an image.
    pub fn per_image(&self) -> usize {
        self.h.div_ceil(TILE) * self.w.div_ceil(TILE)
    }

    /// Tile `index`, counted through the images of a batch.
    pub fn tile(&self, index: usize) -> Tile {
        let per_row = self.w.div_ceil(TILE);
        let (image, at) = (index / self.per_image(), index % self.per_image());
        Tile { image, row: at / per_row * TILE, col: at % per_row * TILE }
    }
}

impl Tile {
    /// Rows and columns that lie in the image.
    pub fn size(&self, grid: &Grid) -> (usize, usize) {
        (TILE.min(grid.h - self.row), TILE.min(grid.w - self.col))
    }

    /// Whether all of the tile lies in the image.
    pub fn is_whole(&self, grid: &Grid) -> bool {
        self.size(grid) == (TILE, TILE)
    }
}
