//! Asking for what comes next while products run: the next task's maps, the next point's weights. Products leave the memory idle, and what they
//! begin with would have to be waited for.

use super::simd::{MAX_LANES, Simd};
use super::sweep::Task;
use crate::types::Dims;

/// Floats of a cache line.
pub(super) const LINE: usize = 16;

/// Steps of a hot loop to each line that it asks for: a register block of shorter vectors is so many times smaller, and there are so many
/// times as many of them.
pub(super) const fn pace<S: Simd>() -> usize {
    let shorter = MAX_LANES / S::LANES;
    if shorter * shorter < S::STEPS { shorter * shorter } else { S::STEPS }
}

/// Lines that a hot loop of `n` steps asks for, at that pace, in whole rounds of [`Simd::STEPS`].
pub(super) const fn n_asked<S: Simd>(n: usize) -> usize {
    n / S::STEPS * (S::STEPS / pace::<S>())
}

/// Cache lines of a map or of other numbers: where the next one begins, and how many are left; `start` is an address that is surely mapped.
pub(super) struct Lines {
    start: *const f32,
    at: *const f32,
    left: usize,
}

impl Lines {
    /// The lines of a task's part of a map whose images have `dims`, `stride` rows of which are one of the task's; none without a task.
    pub fn of<E>(map: &[E], dims: Dims, stride: usize, task: Option<&Task>) -> Self {
        let (row, start) = (dims.w * dims.c, map.as_ptr().cast());
        let Some(task) = task else {
            return Self { start, at: start, left: 0 };
        };
        let rows = if task.n_images > 1 { task.n_images * dims.h } else { task.n_rows * stride };
        let at = map.as_ptr().wrapping_add((task.image * dims.h + task.row * stride) * row);
        Self { start, at: at.cast(), left: (rows * row * size_of::<E>()).div_ceil(LINE * size_of::<f32>()) }
    }

    /// The lines of `len` floats.
    pub fn run(start: *const f32, len: usize) -> Self {
        Self { start, at: start, left: len.div_ceil(LINE) }
    }
}

/// The lines of some maps, one map after the other.
pub(super) struct Ahead<const N: usize>(pub [Lines; N]);

/// A run of lines: the address of the first, and floats from one to the next; zero, and an address that costs nothing, where there is
/// nothing to ask for.
pub(super) type Run = (*const f32, usize);

impl<const N: usize> Ahead<N> {
    /// The next `n` lines.
    pub fn take(&mut self, n: usize) -> Run {
        let Some(lines) = self.0.iter_mut().find(|lines| lines.left > 0) else {
            return (self.0[0].start, 0);
        };
        let first = lines.at;
        lines.at = first.wrapping_add(n * LINE);
        lines.left = lines.left.saturating_sub(n);
        (first, LINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(image: usize, n_images: usize, row: usize, n_rows: usize) -> Task {
        Task { image, n_images, row, n_rows }
    }

    #[test]
    fn lines_are_taken_once_and_cover_the_tasks_part() {
        let dims = Dims { h: 4, w: 8, c: 16 };
        let map = vec![0.0f32; 3 * dims.len()];
        for (task, from, n) in
            [(task(1, 1, 2, 2), dims.len() + 2 * 8 * 16, 2 * 8), (task(1, 2, 0, 4), dims.len(), 2 * 4 * 8)]
        {
            let mut ahead = Ahead([Lines::of(&map, dims, 1, Some(&task))]);
            let (mut at, mut taken) = (map[from..].as_ptr(), 0);
            while taken < n {
                assert_eq!(ahead.take(5), (at, LINE));
                (at, taken) = (at.wrapping_add(5 * LINE), taken + 5);
            }
            assert_eq!(ahead.take(5).1, 0);
        }
        let mut none = Ahead([Lines::of(&map, dims, 1, None)]);
        assert_eq!(none.take(1).1, 0);
    }
}
