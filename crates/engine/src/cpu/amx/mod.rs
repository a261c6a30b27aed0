//! Convolution kernels for bf16 on AMX tiles.

mod finish;
pub(crate) mod gradient;
pub(crate) mod sweep;
pub(crate) mod tiles;

pub(crate) use tiles::available;

#[cfg(test)]
mod tests {
    use crate::buffer::Buffer;
    use crate::cpu::conv::{Context, Convolution};
    use crate::cpu::direct::DirectConv;
    use crate::cpu::simd::Level;
    use crate::cpu::team::Team;
    use crate::element::{Bf16, Element};
    use crate::host::slack;
    use crate::types::{ConvShape, ConvUse, Dims, Write};

    /// Small whole numbers, exact in every sum.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 2_654_435_761 + seed * 40_503) % 1009 % 7) as f32 - 3.0).collect()
    }

    /// Forward with its sums, backward-data set and added, and the masked weight gradient of a convolution.
    fn passes(shape: ConvShape, n: usize, level: Level) -> [Vec<f32>; 4] {
        let team = Team::new(2).unwrap();
        let (mut held, used) = (0, ConvUse::Train);
        let mut conv = DirectConv::new::<Bf16>(shape, used, level, &mut held).unwrap();
        let scratch_len = Convolution::<Bf16>::scratch_len(&conv, used);
        let scratch = &mut [(); 2].map(|()| Buffer::zeroed(scratch_len, "scratch", &mut held).unwrap());
        let partial = &mut vec![0.0; Convolution::<Bf16>::partial_len(&conv, n, 2, used)];
        let mut ctx = Context { team: &team, level, scratch, partial };
        let map = |dims: Dims, seed: usize| -> Vec<Bf16> {
            numbers(n * dims.len() + slack(dims), seed).into_iter().map(Bf16::of).collect()
        };
        let mask: Vec<u8> = numbers(shape.n_weights(), 9).iter().map(|&v| u8::from(v > 0.0)).collect();
        Convolution::<Bf16>::pack(&mut conv, &team, level, &numbers(shape.n_weights(), 1), Some(&mask));
        let (x, dy) = (map(shape.input, 2), map(shape.output(), 3));
        let (mut y, mut dx) = (map(shape.output(), 4), map(shape.input, 5));
        let (mut sums, mut dw) = (vec![0.0; 2 * shape.cout], numbers(shape.n_weights(), 6));
        conv.forward(&mut ctx, n, &x, &mut y, Some(&mut sums));
        conv.backward_data(&mut ctx, n, &dy, &mut dx, Write::Set);
        conv.backward_data(&mut ctx, n, &dy, &mut dx, Write::Add);
        conv.backward_weight(&mut ctx, n, &x, &dy, &mut dw, Some(&mask));
        let floats = |map: &[Bf16], dims: Dims| map[..n * dims.len()].iter().map(|v| v.get()).collect();
        [floats(&y, shape.output()), floats(&dx, shape.input), sums, dw]
    }

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
        ];
        for (cin, cout, kernel, stride, h, w, n) in shapes {
            let shape = ConvShape { input: Dims { h, w, c: cin }, cout, kernel, stride, pad: kernel / 2 };
            let expected = passes(shape, n, Level::Portable);
            let got = passes(shape, n, Level::Amx);
            for (what, (expected, got)) in ["forward", "data", "sums", "weights"].iter().zip(expected.iter().zip(&got))
            {
                let wrong = (0..got.len()).find(|&i| got[i] != expected[i]);
                assert!(wrong.is_none(), "{what} of {shape:?}, n = {n}: wrong from {wrong:?} on");
            }
        }
    }
}
