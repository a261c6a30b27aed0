//! Convolution kernels for bf16 on AMX tiles.

mod finish;
pub(crate) mod gradient;
mod images;
pub(crate) mod sweep;
pub(crate) mod tiles;

pub(crate) use tiles::available;

/// Most bytes of a task's copied source and what it meets at a time: of a second cache of 2 MB.
const TASK_BYTES: usize = 1408 << 10;

#[cfg(test)]
mod tests {
    use super::{gradient, sweep};
    use crate::cpu::conv::testing::passes;
    use crate::cpu::direct::DirectConv;
    use crate::cpu::simd::Level;
    use crate::element::Bf16;
    use crate::types::{ConvShape, ConvUse, Dims};

    /// Gathering, packing, turning and finishing around the tiles, on every machine with AVX512-BF16: where there is no AMX, the
    /// tiles' products are emulated.
    #[test]
    fn tiles_and_vectors_agree() {
        if Level::detect() < Level::Avx512Bf16 {
            return;
        }
        let shapes = [
            (3, 16, 3, 1, 9, 7, 2),
            (64, 64, 3, 1, 8, 8, 3),
            (32, 40, 3, 2, 9, 6, 2),
            (17, 33, 1, 2, 7, 7, 2),
            (64, 32, 1, 1, 8, 4, 3),
            (3, 8, 7, 2, 20, 18, 1),
            (40, 96, 3, 2, 4, 4, 5),
            (32, 32, 3, 1, 16, 32, 1),
            (32, 64, 3, 1, 14, 14, 2),
            (32, 48, 3, 1, 5, 28, 1),
            (64, 96, 1, 1, 7, 7, 3),
            (64, 40, 1, 1, 3, 3, 1),
            (64, 160, 3, 2, 32, 32, 1),
            (160, 288, 3, 1, 4, 4, 9),
            (32, 64, 3, 2, 6, 56, 1),
            (64, 40, 3, 2, 10, 6, 4),
            // Filter rows, or pixels, of less than a step.
            (3, 40, 3, 1, 5, 32, 2),
            (3, 64, 7, 2, 12, 28, 1),
            (16, 40, 1, 1, 6, 6, 2),
            (16, 40, 1, 2, 4, 32, 1),
            // Pairs of blocks that meet several panels; more inputs than a task's, far apart.
            (96, 160, 1, 1, 28, 28, 2),
            (288, 40, 1, 2, 32, 32, 1),
        ];
        for (cin, cout, kernel, stride, h, w, n) in shapes {
            let shape = ConvShape { input: Dims { h, w, c: cin }, cout, kernel, stride, pad: kernel / 2 };
            agree(shape, n);
        }
    }

    #[test]
    fn images_side_by_side_agree() {
        if Level::detect() < Level::Avx512Bf16 {
            return;
        }
        // The last have pixels whose windows meet nothing; so many weights that members share them, and several tasks each.
        let shapes = [
            (32, 40, 3, 1, 4, 4, 1, 46),
            (64, 64, 3, 2, 8, 8, 1, 64),
            (32, 64, 3, 1, 7, 5, 1, 32),
            (96, 64, 3, 2, 4, 4, 1, 24),
            (32, 32, 3, 2, 7, 6, 1, 50),
            (32, 72, 5, 1, 2, 1, 2, 31),
            (64, 40, 3, 1, 4, 4, 1, 90),
            (32, 16, 3, 1, 1, 1, 3, 16),
            (256, 128, 3, 1, 1, 1, 1, 130),
        ];
        for (cin, cout, kernel, stride, h, w, pad, n) in shapes {
            let shape = ConvShape { input: Dims { h, w, c: cin }, cout, kernel, stride, pad };
            let conv = DirectConv::new::<Bf16>(shape, ConvUse::Train, Level::Amx);
            let sweep = conv.forward_sweep();
            assert!(sweep::task_images(sweep, n).is_some(), "forward of {shape:?}, n = {n}");
            assert_eq!(gradient::cut(sweep, n, 1, (25, 1)).unit, kernel * kernel, "gradient of {shape:?}, n = {n}");
            agree(shape, n);
        }
    }

    /// Compares all passes of a convolution on tiles with those on portable vectors.
    fn agree(shape: ConvShape, n: usize) {
        let plan = |level| DirectConv::new::<Bf16>(shape, ConvUse::Train, level);
        let expected = passes::<2>(&mut plan(Level::Portable), shape, ConvUse::Train, n, Level::Portable);
        // Of many members some share their blocks of a wide weight gradient.
        let two = passes::<2>(&mut plan(Level::Amx), shape, ConvUse::Train, n, Level::Amx);
        let many = passes::<16>(&mut plan(Level::Amx), shape, ConvUse::Train, n, Level::Amx);
        for (what, ((expected, two), many)) in
            ["forward", "data", "sums", "weights"].iter().zip(expected.iter().zip(&two).zip(&many))
        {
            for got in [two, many] {
                let wrong = (0..got.len()).find(|&i| got[i] != expected[i]);
                assert!(wrong.is_none(), "{what} of {shape:?}, n = {n}: wrong from {wrong:?} on");
            }
        }
    }
}
