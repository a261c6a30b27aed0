//! Initial parameters: Kaiming-normal convolutions, PyTorch's default linear layers, batch norm 1 and 0.
//!
//! Source: the paper's published code. ResNets draw convolutions with fan-out (He et al. 2015), the ResNet-32s family with
//! fan-in. Projection heads are PyTorch's default in both, because the published code attaches them after the backbone
//! was initialised.

use crate::graph::{Network, Param, ParamKind};
use crate::rng;

/// Which fan scales the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// ResNets.
    Out,
    /// ResNet-32s.
    In,
}

/// The whole parameter vector of `network` drawn from `seed`; each tensor has its own stream.
#[must_use]
pub fn parameters(network: &Network, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; network.n_params()];
    for (index, param) in network.params.iter().enumerate() {
        tensor(param, network.fan, seed, index as u64, &mut values[param.range()]);
    }
    values
}

fn tensor(param: &Param, fan: Fan, seed: u64, index: u64, values: &mut [f32]) {
    let mut rng = rng::stream(seed, "init", index);
    let mut uniform_within = |bound: f64, values: &mut [f32]| {
        values.iter_mut().for_each(|v| *v = ((2.0 * rng::uniform(&mut rng) - 1.0) * bound) as f32);
    };
    match param.kind {
        ParamKind::NormWeight => values.fill(1.0),
        ParamKind::NormBias => values.fill(0.0),
        // PyTorch: kaiming_uniform(a = √5) is U(±1/√fan_in), as is the bias.
        ParamKind::Linear => uniform_within((param.shape[1] as f64).powf(-0.5), values),
        ParamKind::LinearBias { fan_in } => uniform_within((fan_in as f64).powf(-0.5), values),
        ParamKind::Conv => {
            let taps = param.shape[1] * param.shape[2];
            let fan = taps * if fan == Fan::Out { param.shape[0] } else { param.shape[3] };
            let std = (2.0 / fan as f64).sqrt();
            values.iter_mut().for_each(|v| *v = (rng::normal(&mut rng) * std) as f32);
        }
    }
}

/// The running statistics before the first step: mean 0, variance 1.
#[must_use]
pub fn running(network: &Network) -> Vec<f32> {
    let mut values = vec![0.0; network.n_running];
    for norm in &network.norms {
        for set in &norm.sets {
            values[set.running + norm.channels..set.running + 2 * norm.channels].fill(1.0);
        }
    }
    values
}
