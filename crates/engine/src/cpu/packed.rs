//! Where packed weights lie.
//!
//! A training step uses what it packs of a layer once, so all layers pack to one place: memory for the largest, not for all. Evaluation packs
//! once for many batches, and keeps it.

use crate::buffer::Buffer;
use crate::types::{Conv, ConvUse, Direction, EngineError};

/// The packed weights of an engine's convolutions.
#[derive(Default)]
pub(super) struct PackedWeights {
    /// Those that a convolution keeps.
    kept: Vec<Option<Buffer<f32>>>,
    /// Those packed last of all others.
    shared: Buffer<f32>,
    /// Whose those are.
    owner: Option<(Conv, Direction)>,
}

impl PackedWeights {
    /// Makes room for the next convolution, which packs so many floats in either direction.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    pub fn plan(&mut self, lens: [usize; 2], used: ConvUse, held: &mut usize) -> Result<(), EngineError> {
        let [forward, backward] = lens;
        let len = forward.max(backward);
        let kept = if used == ConvUse::Forward { Some(Buffer::zeroed(forward, WHAT, held)?) } else { None };
        if kept.is_none() && self.shared.len() < len {
            *held -= size_of_val(&*self.shared);
            self.owner = None;
            self.shared = Buffer::default();
            self.shared = Buffer::zeroed(len, WHAT, held)?;
        }
        self.kept.push(kept);
        Ok(())
    }

    /// Room for the `len` floats of a convolution's weights, which are packed anew.
    pub fn replace(&mut self, conv: Conv, direction: Direction, len: usize) -> &mut [f32] {
        match &mut self.kept[conv.0] {
            Some(kept) => &mut kept[..len],
            None => {
                self.owner = Some((conv, direction));
                &mut self.shared[..len]
            }
        }
    }

    /// The `len` floats of a convolution's weights.
    ///
    /// # Panics
    /// If another's have replaced them.
    pub fn of(&self, conv: Conv, direction: Direction, len: usize) -> &[f32] {
        match &self.kept[conv.0] {
            Some(kept) => &kept[..len],
            None => {
                assert!(self.owner == Some((conv, direction)), "a convolution's weights are packed before its passes");
                &self.shared[..len]
            }
        }
    }
}

const WHAT: &str = "packed weights";

#[cfg(test)]
mod tests {
    use super::*;

    /// Two training convolutions, of which the second is larger, and one that keeps its weights.
    fn three() -> (PackedWeights, usize) {
        let (mut packed, mut held) = (PackedWeights::default(), 0);
        for (lens, used) in [([4, 6], ConvUse::Train), ([9, 5], ConvUse::ForwardWeight), ([3, 0], ConvUse::Forward)] {
            packed.plan(lens, used, &mut held).unwrap();
        }
        (packed, held)
    }

    #[test]
    fn one_place_is_as_large_as_the_largest_and_holds_what_was_packed_last() {
        let (mut packed, held) = three();
        assert_eq!(held, 4 * (9 + 3));
        let [first, second, kept] = [0, 1, 2].map(Conv);
        packed.replace(kept, Direction::Forward, 3).fill(3.0);
        for (conv, direction, len) in
            [(first, Direction::Forward, 4), (second, Direction::Forward, 9), (first, Direction::BackwardData, 6)]
        {
            packed.replace(conv, direction, len).fill(len as f32);
            assert_eq!(packed.of(conv, direction, len), vec![len as f32; len]);
            assert_eq!(packed.of(kept, Direction::Forward, 3), [3.0; 3]);
        }
    }

    #[test]
    #[should_panic(expected = "packed before its passes")]
    fn what_was_replaced_is_not_given_out() {
        let (mut packed, _) = three();
        packed.replace(Conv(0), Direction::Forward, 4);
        packed.of(Conv(0), Direction::BackwardData, 6);
    }
}
