//! What this machine can do at most: multiply-adds a second of its vector and matrix units, and bytes a second of its memory.
//!
//! On a shared machine these swing from minute to minute. So they are taken as many samples of a few milliseconds each,
//! interleaved with whatever is to be judged by them, and the best sample counts.

use crate::cpu::Level;
#[cfg(target_arch = "aarch64")]
use crate::cpu::simd::Neon;
#[cfg(not(target_arch = "aarch64"))]
use crate::cpu::simd::Portable;
use crate::cpu::simd::Simd;
use crate::cpu::team::Team;
use crate::types::EngineError;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Seconds that one sample of one unit should take: long beside a wake-up, short beside a training step.
const SAMPLE_S: f64 = 2e-3;
/// Cache lines that a thread copies in a sample (16 MiB), and how many such windows lie side by side: a window is cold
/// again when its turn comes.
const WINDOW: usize = 1 << 18;
const N_WINDOWS: usize = 4;
/// Lines of all threads' sources at most (1 GiB), however many threads there are.
const LINES_MAX: usize = 1 << 24;

/// Peak rates of all threads together. A multiply-add counts as two operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// f32 multiply-adds in the widest vectors, in 10⁹ operations a second.
    pub f32_gflops: f64,
    /// bf16 dot products in vectors (AVX512-BF16), in 10⁹ operations a second; `None` where the CPU has none.
    pub bf16_gflops: Option<f64>,
    /// bf16 tile products (AMX), loads from L2 included, in 10⁹ operations a second; `None` where the CPU has none.
    pub amx_gflops: Option<f64>,
    /// Copying from memory to memory, bytes read and bytes written both counted, in 10⁹ bytes a second. On x86-64 the stores
    /// go past the caches; ordinary ones, which first read what they overwrite, reach about 0.7 of this.
    pub memory_gb_per_s: f64,
}

impl Rates {
    /// The unit that bf16 convolutions run on at a level, and its rate: AMX, vector dot products, or f32.
    #[must_use]
    pub fn bf16_unit(&self, level: Level) -> (&'static str, f64) {
        match (level, self.amx_gflops, self.bf16_gflops) {
            (Level::Amx, Some(rate), _) => ("amx", rate),
            (Level::Amx | Level::Avx512Bf16, _, Some(rate)) => ("bf16", rate),
            _ => ("f32", self.f32_gflops),
        }
    }
}

/// A unit and how many rounds of its loop make a sample.
struct Unit {
    rounds: usize,
    /// Runs that many rounds on the calling thread; returns the operations done.
    run: fn(&Operands, usize) -> f64,
}

/// Source and target of a thread's copies.
type Copies = Mutex<(Vec<Line>, Vec<Line>)>;

/// Takes samples of this machine's peaks and keeps the best.
pub struct Peaks {
    team: Team,
    operands: Operands,
    f32: Unit,
    bf16: Option<Unit>,
    amx: Option<Unit>,
    copies: Vec<Copies>,
    window: usize,
    best: Rates,
}

impl Peaks {
    /// Starts `n_threads` threads (the caller's included), touches the memory to copy and takes a first sample.
    ///
    /// # Errors
    /// [`EngineError::Device`] if the operating system does not start the threads.
    pub fn new(n_threads: usize) -> Result<Self, EngineError> {
        let team = Team::new(n_threads).map_err(|e| EngineError::Device {
            device: "CPU".into(),
            message: format!("cannot start {n_threads} threads ({e}); give fewer with --threads"),
        })?;
        let operands = Operands::new();
        let unit = |run| calibrated(&team, &operands, run);
        let (f32, bf16, amx) = (unit(fma_rounds), bf16_loop().map(unit), amx_loop().map(unit));
        let n_lines = (N_WINDOWS * WINDOW).min(LINES_MAX / team.n_members());
        let lines = |value| vec![Line([value; 32]); n_lines];
        let copies = (0..team.n_members()).map(|_| Mutex::new((lines(1), lines(2)))).collect();
        let mut peaks = Self { team, operands, f32, bf16, amx, copies, window: 0, best: Rates::default() };
        peaks.sample();
        Ok(peaks)
    }

    /// One sample of every unit: some milliseconds each.
    pub fn sample(&mut self) {
        let rate = |unit: &Unit| unit.sample(&self.team, &self.operands) / 1e9;
        self.best.f32_gflops = self.best.f32_gflops.max(rate(&self.f32));
        let better = |best: &mut Option<f64>, rate: Option<f64>| *best = rate.map(|r| r.max(best.unwrap_or(0.0)));
        better(&mut self.best.bf16_gflops, self.bf16.as_ref().map(rate));
        better(&mut self.best.amx_gflops, self.amx.as_ref().map(rate));
        self.best.memory_gb_per_s = self.best.memory_gb_per_s.max(self.copy() / 1e9);
    }

    /// The best samples so far.
    #[must_use]
    pub fn best(&self) -> Rates {
        self.best
    }

    /// Bytes a second of copying the next window.
    fn copy(&mut self) -> f64 {
        self.window = (self.window + 1) % N_WINDOWS;
        let window = self.window;
        let n_bytes = AtomicUsize::new(0);
        let seconds = timed(&self.team, &|member, start| {
            // A thread that panicked here has left nothing but other numbers.
            let mut copies = self.copies[member].lock().unwrap_or_else(PoisonError::into_inner);
            let (source, target) = &mut *copies;
            let len = source.len() / N_WINDOWS;
            let part = window * len..(window + 1) * len;
            start();
            copy_lines(&source[part.clone()], &mut target[part]);
            n_bytes.fetch_add(2 * len * size_of::<Line>(), Ordering::Relaxed);
        });
        n_bytes.into_inner() as f64 / seconds
    }
}

impl Unit {
    /// Operations a second of all threads.
    fn sample(&self, team: &Team, operands: &Operands) -> f64 {
        let flop = Mutex::new(0.0);
        let seconds = timed(team, &|_, start| {
            start();
            let done = (self.run)(operands, self.rounds);
            *flop.lock().unwrap_or_else(PoisonError::into_inner) += done;
        });
        flop.into_inner().unwrap_or_else(PoisonError::into_inner) / seconds
    }
}

/// A unit with as many rounds as take [`SAMPLE_S`].
fn calibrated(team: &Team, operands: &Operands, run: fn(&Operands, usize) -> f64) -> Unit {
    let mut rounds = 64;
    while rounds < 1 << 40 {
        let began = Instant::now();
        run(operands, rounds);
        let seconds = began.elapsed().as_secs_f64();
        if seconds > SAMPLE_S / 4.0 {
            rounds = (rounds as f64 * SAMPLE_S / seconds) as usize + 1;
            break;
        }
        rounds *= 2;
    }
    let unit = Unit { rounds, run };
    unit.sample(team, operands);
    unit
}

/// Seconds from the first member's start to the last one's end. Each member calls `start` when it is ready and then works;
/// all of them start together.
fn timed(team: &Team, work: &(dyn Fn(usize, &mut dyn FnMut()) + Sync)) -> f64 {
    let n_ready = AtomicUsize::new(0);
    let times = Mutex::new(None::<(Instant, Instant)>);
    team.broadcast(&|member| {
        let mut began = Instant::now();
        work(member, &mut || {
            n_ready.fetch_add(1, Ordering::AcqRel);
            while n_ready.load(Ordering::Acquire) < team.n_members() {
                // There may be more members than processors.
                std::thread::yield_now();
            }
            began = Instant::now();
        });
        let ended = Instant::now();
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        *times = Some(times.map_or((began, ended), |(first, last)| (first.min(began), last.max(ended))));
    });
    let times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    times.map_or(f64::INFINITY, |(began, ended)| (ended - began).as_secs_f64().max(1e-9))
}

/// Copies lines by stores that do not read what they overwrite, which Miri lacks.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn copy_lines(source: &[Line], target: &mut [Line]) {
    use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_sfence, _mm_stream_si128};
    for (source, target) in source.iter().zip(target) {
        let (source, target) = (source.0.as_ptr().cast::<__m128i>(), target.0.as_mut_ptr().cast::<__m128i>());
        for i in 0..4 {
            // SAFETY: a line is four aligned vectors; SSE2 is part of x86-64.
            unsafe { _mm_stream_si128(target.add(i), _mm_load_si128(source.add(i))) };
        }
    }
    // SAFETY: part of x86-64. Orders the stores before whatever follows.
    unsafe { _mm_sfence() };
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn copy_lines(source: &[Line], target: &mut [Line]) {
    target.copy_from_slice(source);
}

/// Multiply-adds `s = s + a · b` on registers, in the widest vectors there are.
fn fma_rounds(_: &Operands, rounds: usize) -> f64 {
    // Accumulators: twice the latency of four at least, and no more than there are registers.
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Avx512 {
        // SAFETY: the level was detected.
        return unsafe { x86::fma_512(rounds) };
    } else if Level::detect() >= Level::Avx2 {
        // SAFETY: as above.
        return unsafe { x86::fma_256(rounds) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every processor of this kind has NEON.
    return unsafe { fma::<Neon, 12>(rounds) };
    #[cfg(not(target_arch = "aarch64"))]
    // SAFETY: plain arrays need nothing of the CPU.
    unsafe {
        fma::<Portable, 6>(rounds)
    }
}

/// `N` chains of multiply-adds.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn fma<V: Simd, const N: usize>(rounds: usize) -> f64 {
    // Different beginnings that the compiler does not know: equal chains would become one.
    let begin: [[f32; 16]; N] = black_box(std::array::from_fn(|i| [i as f32; 16]));
    let (a, b) = black_box((0.5f32, 0.25f32));
    // SAFETY: the caller's promise; all pointers are of 16 floats, and no vector is longer.
    unsafe {
        let (a, b) = (V::splat(&raw const a), V::splat(&raw const b));
        let mut chains: [V; N] = std::array::from_fn(|i| V::load(begin[i].as_ptr()));
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = chain.fma(a, b);
            }
        }
        let mut end = [0.0f32; 16];
        for chain in chains {
            chain.store_first(end.as_mut_ptr(), V::LANES);
            black_box(&mut end);
        }
    }
    (2 * N * V::LANES * rounds) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Operands, fma};
    use crate::cpu::simd::{Avx2, Avx512};
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_set1_ps, _mm512_storeu_ps};
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn fma_512(rounds: usize) -> f64 {
        // SAFETY: this function's own instruction set.
        unsafe { fma::<Avx512, 20>(rounds) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_256(rounds: usize) -> f64 {
        // SAFETY: this function's own instruction set.
        unsafe { fma::<Avx2, 12>(rounds) }
    }

    /// Chains of dot products of bf16 pairs.
    pub fn dot_rounds(_: &Operands, rounds: usize) -> f64 {
        const N: usize = 20;
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn dots(rounds: usize) {
            let one = |value: f32| _mm512_set1_ps(black_box(value));
            let (a, b) = (_mm512_cvtne2ps_pbh(one(0.5), one(0.25)), _mm512_cvtne2ps_pbh(one(0.125), one(-0.25)));
            let mut chains = [one(0.0); N];
            for (i, chain) in chains.iter_mut().enumerate() {
                *chain = one(i as f32);
            }
            for _ in 0..rounds {
                for chain in &mut chains {
                    *chain = _mm512_dpbf16_ps(*chain, a, b);
                }
            }
            let mut end = [0.0f32; 16];
            for chain in chains {
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(end.as_mut_ptr(), chain) };
                black_box(&mut end);
            }
        }
        // SAFETY: `bf16_loop` hands this out only where the instructions are.
        unsafe { dots(rounds) };
        (2 * 32 * N * rounds) as f64
    }
}

fn bf16_loop() -> Option<fn(&Operands, usize) -> f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        return Some(x86::dot_rounds);
    }
    None
}

fn amx_loop() -> Option<fn(&Operands, usize) -> f64> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if crate::cpu::amx::available() {
        return Some(tile_rounds);
    }
    None
}

/// A cache line: no row of a tile crosses one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

/// What the tile products read: 32 rows of `a` and the panel `b`, as a convolution would have them. Too much for L1, little for L2.
struct Operands {
    #[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code))]
    lines: Vec<Line>,
}

/// Depth of the tile products in steps of 32: a 3 × 3 convolution of 128 channels.
const STEPS: usize = 36;
/// Lines of a row of `a`: one more than it holds, so that its rows do not fall into the same cache sets.
const ROW: usize = STEPS + 1;

impl Operands {
    fn new() -> Self {
        // 1.0, for no unit can tell.
        Self { lines: vec![Line([0x3F80; 32]); 32 * ROW + 32 * STEPS] }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tile_rounds(operands: &Operands, rounds: usize) -> f64 {
    use crate::cpu::amx::tiles::{A, B, BLOCK, C, DEPTH, PANEL, ROWS, Tiles};
    #[repr(C, align(64))]
    struct Block([f32; BLOCK]);
    let tiles = Tiles::configure(DEPTH);
    let mut block = Block([0.0; BLOCK]);
    let a = operands.lines.as_ptr().cast::<u16>();
    for _ in 0..rounds {
        // SAFETY: `a` has 2 · ROWS rows of `ROW` lines, of which `STEPS` are read, and `b`, behind them, 32 lines a step;
        // `block` holds four tiles.
        unsafe {
            let b = B { start: a.add(2 * ROWS * ROW * DEPTH), skip: 0 };
            let (rows, to) = ((a, a.add(ROWS * ROW * DEPTH)), block.0.as_mut_ptr());
            let a = A { starts: [rows.0, rows.1], row: 64 * ROW, runs: 1, steps: STEPS, skip: 0 };
            let c = C { start: to, row: 64, right: ROWS * ROWS, down: 2 * ROWS * ROWS };
            tiles.multiply([(a, b)], &c, false, (a.starts[0].cast(), 0), || ());
        }
        black_box(&mut block);
    }
    (2 * 2 * ROWS * PANEL * DEPTH * STEPS * rounds) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "measures speed")]
    fn every_unit_that_the_cpu_has_gets_a_rate_and_samples_only_raise_it() {
        let mut peaks = Peaks::new(2).unwrap();
        let first = peaks.best();
        assert!(first.f32_gflops > 0.0 && first.memory_gb_per_s > 0.0, "{first:?}");
        assert_eq!(first.bf16_gflops.is_some(), bf16_loop().is_some());
        assert_eq!(first.amx_gflops.is_some(), amx_loop().is_some());
        peaks.sample();
        let second = peaks.best();
        assert!(second.f32_gflops >= first.f32_gflops && second.memory_gb_per_s >= first.memory_gb_per_s);
        assert!(second.bf16_unit(Level::Amx).1 > 0.0);
    }

    #[test]
    fn lines_are_copied() {
        let (source, mut target) = ([Line([7; 32]), Line([9; 32])], [Line([0; 32]); 2]);
        copy_lines(&source, &mut target);
        assert_eq!(target.map(|line| line.0), source.map(|line| line.0));
    }

    #[test]
    fn all_loops_count_the_operations_that_they_do() {
        let operands = Operands::new();
        for run in [Some(fma_rounds as fn(&Operands, usize) -> f64), bf16_loop(), amx_loop()].into_iter().flatten() {
            let one = run(&operands, 1);
            assert!(one > 0.0);
            assert_eq!(run(&operands, 3), 3.0 * one);
        }
    }
}
