//! The tiles of a batch of images.

use super::transform::TILE;

/// Tiles of 4 × 4 outputs over images of `h` × `w` pixels; the last ones of a row or column may reach over the edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub h: usize,
    pub w: usize,
}

/// One tile: its image, and its first row and column.
#[derive(Clone, Copy, Debug, PartialEq)]
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

    /// The tiles from `index` on, counted through the images of a batch, without end.
    pub fn tiles(self, index: usize) -> Tiles {
        Tiles { grid: self, next: self.tile(index) }
    }

    /// Tile `index`.
    fn tile(&self, index: usize) -> Tile {
        let per_row = self.w.div_ceil(TILE);
        let (image, at) = (index / self.per_image(), index % self.per_image());
        Tile { image, row: at / per_row * TILE, col: at % per_row * TILE }
    }
}

/// Tiles one after the other: see [`Grid::tiles`].
pub(super) struct Tiles {
    grid: Grid,
    next: Tile,
}

impl Iterator for Tiles {
    type Item = Tile;

    #[inline]
    fn next(&mut self) -> Option<Tile> {
        let (grid, tile) = (self.grid, self.next);
        self.next.col += TILE;
        if self.next.col >= grid.w {
            (self.next.row, self.next.col) = (tile.row + TILE, 0);
            if self.next.row >= grid.h {
                (self.next.image, self.next.row) = (tile.image + 1, 0);
            }
        }
        Some(tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_one_another() {
        for (h, w) in [(4, 4), (8, 8), (5, 9), (1, 1), (12, 3)] {
            let grid = Grid { h, w };
            for start in [0, 1, 7] {
                let expected: Vec<Tile> = (start..start + 20).map(|index| grid.tile(index)).collect();
                assert_eq!(grid.tiles(start).take(20).collect::<Vec<_>>(), expected, "{h} × {w} from {start}");
            }
        }
    }
}
