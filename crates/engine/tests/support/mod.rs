//! One engine with helpers that make filled buffers and read them back.
#![allow(dead_code)] // each test file uses its part

use sdclr_engine::*;

/// Random cases of a test: few under Miri, which takes minutes for what the processor does in milliseconds.
pub const fn cases(n: u32) -> u32 {
    if cfg!(miri) { 3 } else { n }
}

/// The most of a size in them.
pub const fn most(size: usize, in_miri: usize) -> usize {
    if cfg!(miri) { in_miri } else { size }
}

/// Numbers in [-1, 1) with `bits` significant bits that depend on `seed` alone (splitmix64).
pub fn numbers(seed: u64, len: usize, bits: u32) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> (64 - bits)) as f32 / (1u64 << (bits - 1)) as f32 - 1.0
        })
        .collect()
}

/// An engine, the seed of its next buffer, and the significant bits of the numbers in it.
pub struct Bench {
    pub engine: Box<dyn Engine>,
    seed: u64,
    bits: u32,
}

impl Bench {
    pub fn new(engine: Box<dyn Engine>, bits: u32) -> Self {
        Self { engine, seed: 0, bits }
    }

    pub fn next(&mut self, len: usize) -> Vec<f32> {
        self.seed += 1;
        numbers(self.seed, len, self.bits)
    }

    /// A vector where there is one pixel, else a map.
    pub fn act(&mut self, n: usize, dims: Dims) -> Act {
        self.filled(n, dims, if dims.pixels() == 1 { Role::Vector } else { Role::Map })
    }

    pub fn map(&mut self, n: usize, dims: Dims) -> Act {
        self.filled(n, dims, Role::Map)
    }

    fn filled(&mut self, n: usize, dims: Dims, role: Role) -> Act {
        let act = self.engine.alloc_act(n, dims, role).unwrap();
        let values = self.next(n * dims.len());
        self.engine.write_act(n, act, &values);
        act
    }

    pub fn span(&mut self, len: usize) -> Span {
        let buf = self.engine.alloc_f32(len).unwrap();
        let (span, values) = (self.engine.whole(buf), self.next(len));
        self.engine.write_f32(span, &values);
        span
    }

    pub fn mask(&mut self, len: usize) -> ByteSpan {
        let buf = self.engine.alloc_bytes(len).unwrap();
        let mask: Vec<u8> = self.next(len).into_iter().map(|v| u8::from(v > 0.0)).collect();
        self.engine.write_bytes(buf, &mask);
        ByteSpan { buf, offset: 0, len }
    }

    pub fn read(&mut self, n: usize, act: Act, dims: Dims) -> Vec<f32> {
        let mut values = vec![0.0; n * dims.len()];
        self.engine.read_act(n, act, &mut values).unwrap();
        values
    }

    pub fn floats(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![0.0; span.len];
        self.engine.read_f32(span, &mut values).unwrap();
        values
    }
}

/// What comes after a batch norm, and whether a gate without a residual is read off the output all the same.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub relu: bool,
    pub residual: bool,
    pub output: bool,
}

impl Norm {
    pub fn gate(self, y: Act) -> Gate {
        match (self.relu, self.residual) {
            (false, _) => Gate::Open,
            (true, false) if !self.output => Gate::Input,
            (true, _) => Gate::Output(y),
        }
    }
}
