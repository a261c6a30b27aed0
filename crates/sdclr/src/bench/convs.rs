//! Single convolutions, each pass by itself.
//!
//! A pass is called as training calls it: forward with the sums that batch norm needs, the weight gradient added.

use super::{Repeats, median, sample};
use crate::backend::Machine;
use crate::error::Error;
use sdclr_engine::{ByteSpan, ConvShape, ConvUse, Dims, Direction, Engine, Peaks, Role, Span, WeightGrad, Write};
use sdclr_nn::graph::Op;
use sdclr_nn::{Network, rng};
use std::time::Instant;

/// Median rates of a convolution's passes, in 10⁹ operations a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvRates {
    /// Geometry.
    pub shape: ConvShape,
    /// Forward.
    pub forward: f64,
    /// Gradient of the data.
    pub backward_data: f64,
    /// Gradient of the weights.
    pub backward_weight: f64,
}

/// The distinct convolutions of a network, in its order.
#[must_use]
pub fn shapes_of(network: &Network) -> Vec<ConvShape> {
    let mut shapes = Vec::new();
    for node in &network.nodes {
        if let Op::Conv { shape, .. } = node.op
            && !shapes.contains(&shape)
        {
            shapes.push(shape);
        }
    }
    shapes
}

/// `CIN,COUT,KERNEL,STRIDE,SIZE` as a convolution of a square image, padded by half its kernel.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_shape(text: &str) -> Result<ConvShape, String> {
    let wrong = || format!("`{text}`: expected CIN,COUT,KERNEL,STRIDE,SIZE, as in 64,128,3,2,32");
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    let numbers: [usize; 5] = numbers.map_err(|_| wrong())?.try_into().map_err(|_| wrong())?;
    let [cin, cout, kernel, stride, size] = numbers;
    if numbers.contains(&0) {
        return Err(format!("`{text}`: every number must be at least 1"));
    }
    if stride > 2 {
        return Err(format!("`{text}`: the stride must be 1 or 2"));
    }
    // Anything larger is a typing error, and would overflow what counts its memory.
    let is_large = |factors: &[usize]| {
        let product = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
        product.is_none_or(|product| product > 1 << 32)
    };
    let (weights, map) = ([cin, cout, kernel, kernel], [size, size, cin.max(cout)]);
    if is_large(&weights) || is_large(&map) || size + 2 * (kernel / 2) < kernel {
        return Err(format!("`{text}`: too large"));
    }
    Ok(ConvShape { input: Dims { h: size, w: size, c: cin }, cout, kernel, stride, pad: kernel / 2 })
}

/// Times the three passes of a convolution of `n` random images, each for `repeats`, a share of its weights, drawn at random, being pruned;
/// the machine's peaks are sampled before each.
///
/// # Errors
/// Out of memory, a failed device.
pub fn conv_rates(
    machine: &Machine,
    peaks: &mut Peaks,
    shape: ConvShape,
    n: usize,
    pruned: f64,
    repeats: Repeats,
) -> Result<ConvRates, Error> {
    let (mut engine, gflop) = (machine.engine()?, 2.0 * (n * shape.multiply_adds()) as f64 / 1e9);
    let engine = &mut *engine;
    let conv = engine.alloc_conv(shape, n, ConvUse::Train, pruned > 0.0)?;
    let (x, dx) = (engine.alloc_act(n, shape.input, Role::Map)?, engine.alloc_act(n, shape.input, Role::Map)?);
    let (y, dy) = (engine.alloc_act(n, shape.output(), Role::Map)?, engine.alloc_act(n, shape.output(), Role::Map)?);
    engine.write_act(n, x, &numbers("x", n * shape.input.len()));
    engine.write_act(n, dy, &numbers("dy", n * shape.output().len()));
    let (dw, sums) = (floats(engine, shape.n_weights())?, floats(engine, 2 * shape.cout)?);
    let weights = floats(engine, shape.n_weights())?;
    engine.write_f32(weights, &numbers("w", shape.n_weights()));
    let mask = if pruned > 0.0 { Some(drawn_mask(engine, shape.n_weights(), pruned)?) } else { None };
    let mut rate = |packed: Option<Direction>, pass: &mut dyn FnMut(&mut dyn Engine)| {
        if let Some(direction) = packed {
            engine.pack_conv(conv, direction, weights, mask);
        }
        let mut once = || {
            let began = Instant::now();
            pass(&mut *engine);
            engine.sync()?;
            Ok::<f64, Error>(began.elapsed().as_secs_f64())
        };
        // The first touches fresh memory.
        once()?;
        sample(peaks);
        Ok::<f64, Error>(gflop / median(&repeats.collect(once)?))
    };
    let forward = rate(Some(Direction::Forward), &mut |e| e.conv_forward(n, conv, x, y, Some(sums)))?;
    let backward_data =
        rate(Some(Direction::BackwardData), &mut |e| e.conv_backward_data(n, conv, dy, dx, Write::Set))?;
    let grad = WeightGrad { x, dy, dw, mask };
    let backward_weight = rate(None, &mut |e| e.conv_backward_weight(n, conv, grad))?;
    Ok(ConvRates { shape, forward, backward_data, backward_weight })
}

/// A mask that keeps all but a share of `len` weights.
fn drawn_mask(engine: &mut dyn Engine, len: usize, pruned: f64) -> Result<ByteSpan, Error> {
    let (buf, mut rng) = (engine.alloc_bytes(len)?, rng::stream(0, "mask", 0));
    let mask: Vec<u8> = (0..len).map(|_| u8::from(rng::uniform(&mut rng) >= pruned)).collect();
    engine.write_bytes(buf, &mask);
    Ok(ByteSpan { buf, offset: 0, len })
}

fn floats(engine: &mut dyn Engine, len: usize) -> Result<Span, Error> {
    let buf = engine.alloc_f32(len)?;
    Ok(engine.whole(buf))
}

/// Numbers in [-1, 1).
fn numbers(purpose: &'static str, len: usize) -> Vec<f32> {
    let mut rng = rng::stream(0, purpose, 0);
    (0..len).map(|_| (2.0 * rng::uniform(&mut rng) - 1.0) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::profile::Shape;
    use super::*;

    #[test]
    fn shapes_are_read_as_they_are_written() {
        for text in ["3,64,7,2,224", "64,128,1,2,32", "64,64,3,1,8"] {
            assert_eq!(Shape::Conv(parse_shape(text).unwrap()).to_string(), text);
        }
        let cases = [
            ("64,64,3,1", "expected"),
            ("a,b,c,d,e", "expected"),
            ("1,1,1,0,1", "at least 1"),
            ("1,1,1,3,8", "stride"),
            ("1,1,65537,1,65536", "too large"),
            ("65536,65536,65536,1,65536", "too large"),
            ("1,1,1,1,18446744073709551615", "too large"),
        ];
        for (text, expected) in cases {
            let problem = parse_shape(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
