//! Convolution kernels for bf16 on AMX tiles.

mod finish;
pub(crate) mod gradient;
mod images;
pub(crate) mod sweep;
pub(crate) mod tiles;

pub(crate) use tiles::available;

#[cfg(test)]
mod tests {
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
            // Images side by side, some with a group that is not whole, or not two groups.
            (32, 40, 3, 1, 4, 4, 33),
            (64, 64, 3, 2, 8, 8, 64),
            (32, 64, 3, 1, 7, 5, 16),
            (96, 64, 3, 2, 4, 4, 18),
            (32, 32, 3, 2, 7, 6, 46),
            (32, 72, 5, 1, 2, 1, 31),
            (64, 40, 3, 1, 4, 4, 90),
        ];
        for (cin, cout, kernel, stride, h, w, n) in shapes {
            let shape = ConvShape { input: Dims { h, w, c: cin }, cout, kernel, stride, pad: kernel / 2 };
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
}
