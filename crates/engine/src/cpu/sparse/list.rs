//! The kept weights of a convolution, in the order in which a pass multiplies them.

use super::pass::Pass;
use crate::buffer::{Buffer, Zero};
use crate::cpu::team::{Shards, Team};
use crate::types::EngineError;
use std::ops::Range;

/// A kept weight, and the offset of the source number that it meets, in floats from its window's start.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub at: u32,
    pub weight: f32,
}

// SAFETY: all bits zero are a valid `u32` and a valid `f32`.
unsafe impl Zero for Kept {}

/// Some kept weights that follow one another. They are reached by address: loops look [`AHEAD`] of them.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    first: *const Kept,
    pub n: usize,
}

impl Stretch {
    /// Weight `i`, and the offset of the one [`AHEAD`].
    ///
    /// # Safety
    /// `i < n`, and the list must outlive the call.
    #[inline(always)]
    pub unsafe fn at(self, i: usize) -> (Kept, usize) {
        // SAFETY: the caller's promise; as many weights lie behind the last one.
        unsafe { (*self.first.add(i), (*self.first.add(i + AHEAD)).at as usize) }
    }
}

/// The kept weights of a pass by destination channel, and those of a channel by run.
pub(super) struct List {
    /// First place of each channel's runs, `[channel, run]`, and twice the end of the last: [`List::fill`] needs one more.
    starts: Buffer<u32>,
    kept: Buffer<Kept>,
    /// Their numbers among the master weights.
    pub masters: Buffer<u32>,
    n_runs: usize,
    visit: Visit,
}

/// Visits what `mask` keeps of the weights of some of a pass's destination channels.
type Visit = fn(&Shape, mask: &[u8], channels: Range<usize>, f: &mut dyn FnMut(Weight));

/// Taps and input channels of the master weights `[cout, taps, cin]`.
pub(super) struct Shape {
    pub n_taps: usize,
    pub cin: usize,
}

/// Weights that follow the last one in memory: loops look as far ahead.
const AHEAD: usize = 8;
/// Channels whose weights a thread counts and lists at a time: in backward-data a cache line of each row of the mask.
const BLOCK: usize = 64;
/// Weights that a thread brings up to date at a time.
const REFRESHED: usize = 1 << 12;

impl List {
    /// Room for at most `most` kept weights of a forward pass, or of backward-data.
    pub fn new(pass: &Pass, is_forward: bool, most: usize, held: &mut usize) -> Result<Self, EngineError> {
        const WHAT: &str = "kept weights";
        Ok(Self {
            starts: Buffer::zeroed(pass.dest.c * pass.n_runs + 2, WHAT, held)?,
            kept: Buffer::zeroed(most + AHEAD, WHAT, held)?,
            masters: Buffer::zeroed(most, WHAT, held)?,
            n_runs: pass.n_runs,
            visit: if is_forward { by_output } else { by_input },
        })
    }

    /// Lists what `mask` keeps, without their weights, unless that is more than there is room for; returns whether it is not.
    pub fn fill(&mut self, team: &Team, pass: &Pass, shape: &Shape, mask: &[u8], lanes: usize) -> bool {
        let (n_runs, part, visit) = (self.n_runs, BLOCK * self.n_runs, self.visit);
        let channels = |block: usize| block * BLOCK..((block + 1) * BLOCK).min(pass.dest.c);
        // How many there are of a run is counted two places behind it: summed up, that is where the next run begins. Each weight
        // listed then moves the place before it on, which ends up right.
        self.starts.fill(0);
        team.for_parts(&mut self.starts[2..], part, |block, counts| {
            visit(shape, mask, channels(block), &mut |w| {
                counts[(w.dest - block * BLOCK) * n_runs + pass.taps[w.tap].run] += 1
            });
        });
        let mut total = 0;
        for start in self.starts.iter_mut() {
            total += *start;
            *start = total;
        }
        if total as usize > self.masters.len() {
            return false;
        }
        let n_starts = pass.dest.c * n_runs;
        let (kept, masters) = (Shards::new(&mut self.kept), Shards::new(&mut self.masters));
        team.for_parts(&mut self.starts[1..=n_starts], part, |block, next| {
            visit(shape, mask, channels(block), &mut |w| {
                let next = &mut next[(w.dest - block * BLOCK) * n_runs + pass.taps[w.tap].run];
                // SAFETY: every weight has a place of its own.
                unsafe {
                    kept.part(*next as usize, 1)[0].at = pass.offset(w.tap, w.source, lanes) as u32;
                    masters.part(*next as usize, 1)[0] = w.master as u32;
                }
                *next += 1;
            });
        });
        true
    }

    /// Takes the listed weights from the masters.
    pub fn refresh(&mut self, team: &Team, weights: &[f32]) {
        let (n, masters) = (self.len(), &self.masters);
        team.for_parts(&mut self.kept[..n], REFRESHED, |chunk, kept| {
            for (kept, &master) in kept.iter_mut().zip(&masters[chunk * REFRESHED..]) {
                kept.weight = weights[master as usize];
            }
        });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts[self.starts.len() - 1] as usize
    }

    /// The places of a channel's weights of some runs.
    pub fn places(&self, channel: usize, runs: Range<usize>) -> Range<usize> {
        let at = |run: usize| self.starts[channel * self.n_runs + run] as usize;
        at(runs.start)..at(runs.end)
    }

    /// The weights at some places.
    pub fn stretch(&self, places: Range<usize>) -> Stretch {
        assert!(places.start <= places.end && places.end <= self.len());
        Stretch { first: self.kept.as_ptr().wrapping_add(places.start), n: places.len() }
    }
}

/// A kept weight: its channels in a pass, its tap, and its number among the master weights.
pub(super) struct Weight {
    dest: usize,
    source: usize,
    tap: usize,
    master: usize,
}

/// The weights towards some output channels: a forward pass's.
fn by_output(&Shape { n_taps, cin }: &Shape, mask: &[u8], channels: Range<usize>, f: &mut dyn FnMut(Weight)) {
    for (dest, tap) in channels.flat_map(|dest| (0..n_taps).map(move |tap| (dest, tap))) {
        let at = (dest * n_taps + tap) * cin;
        each_kept(&mask[at..at + cin], |source| f(Weight { dest, source, tap, master: at + source }));
    }
}

/// The weights of some input channels: backward-data's.
fn by_input(&Shape { n_taps, cin }: &Shape, mask: &[u8], channels: Range<usize>, f: &mut dyn FnMut(Weight)) {
    let cout = mask.len() / (n_taps * cin);
    for (source, tap) in (0..cout).flat_map(|source| (0..n_taps).map(move |tap| (source, tap))) {
        let at = (source * n_taps + tap) * cin + channels.start;
        each_kept(&mask[at..at + channels.len()], |i| {
            f(Weight { dest: channels.start + i, source, tap, master: at + i });
        });
    }
}

/// Visits the places where a mask is not 0. Most are 0: eight are skipped at a time.
fn each_kept(mask: &[u8], mut f: impl FnMut(usize)) {
    let mut byte = |i: usize, keep: u8| {
        if keep != 0 {
            f(i);
        }
    };
    let (words, rest) = mask.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        if u64::from_ne_bytes(*word) != 0 {
            word.iter().enumerate().for_each(|(k, &keep)| byte(8 * i + k, keep));
        }
    }
    let at = mask.len() - rest.len();
    rest.iter().enumerate().for_each(|(k, &keep)| byte(at + k, keep));
}
