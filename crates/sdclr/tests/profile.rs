//! A step through the profiling engine is the same step, and every operation of it is counted.

use sdclr::Machine;
use sdclr::bench::StepBench;
use sdclr::bench::layers::LayersBench;
use sdclr::bench::profile::{Op, Phase, Row, grouped};
use sdclr::bench::profiler::Profiler;
use sdclr_engine::Kernels;
use sdclr_records::RunConfig;
use sdclr_records::layers::{Layer, merge};

const BATCH: usize = 4;

fn config(flags: &[(&str, &str)]) -> RunConfig {
    let base = [("data", "none"), ("image-size", "16"), ("base-width", "8"), ("batch-size", "4"), ("threads", "2")];
    let own = |flags: &[(&str, &str)]| flags.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect::<Vec<_>>();
    merge(&[Layer::from_flags(&own(&base)).unwrap(), Layer::from_flags(&own(flags)).unwrap()]).unwrap()
}

fn rows(config: &RunConfig) -> Vec<Row> {
    let mut bench = LayersBench::new(config, &Machine::of(config, Kernels::default())).unwrap();
    bench.warm_up().unwrap();
    bench.step().unwrap();
    bench.step().unwrap();
    assert_eq!(bench.n_steps(), 2);
    bench.rows()
}

#[test]
fn a_profiled_step_has_the_plain_step_s_losses() {
    let config = config(&[("model", "resnet10")]);
    let machine = Machine::of(&config, Kernels::default());
    let (profiler, profile) = Profiler::new(machine.engine().unwrap(), 4);
    let mut plain = StepBench::new(&config, &machine).unwrap();
    let mut profiled = StepBench::on(&config, Box::new(profiler)).unwrap();
    for _ in 0..3 {
        let (expected, got) = (plain.step_with_loss().unwrap().1, profiled.step_with_loss().unwrap().1);
        assert_eq!(expected.to_bits(), got.to_bits());
    }
    assert_eq!(plain.bytes_held(), profiled.bytes_held());
    assert!(!profile.lock().unwrap().take().is_empty());
}

#[test]
fn every_operation_of_a_step_is_counted() {
    let common = [
        Op::Copy,
        Op::InputNormalize,
        Op::PackConv,
        Op::ConvForward,
        Op::ConvBackwardData,
        Op::ConvBackwardWeight,
        Op::NormCoefficients,
        Op::NormApply,
        Op::NormApplyAgain,
        Op::NormBackwardSums,
        Op::NormBackwardApply,
        Op::NormParamGrad,
        Op::AvgPoolForward,
        Op::AvgPoolBackward,
        Op::LinearForward,
        Op::LinearBackwardData,
        Op::LinearBackwardWeight,
        Op::L2Normalize,
        Op::L2NormalizeBackward,
        Op::NtXent,
        Op::ReadLoss,
        Op::Fill,
        Op::OptimizerStep,
    ];
    let max_pool = [Op::MaxPoolForward, Op::MaxPoolBackward];
    let shortcut = [Op::ShortcutForward, Op::ShortcutBackward];
    let concat = [Op::ConcatForward, Op::ConcatBackward, Op::ShortcutForward, Op::ShortcutBackward];
    for (flags, more) in [
        (&[("model", "resnet10"), ("stem", "small")][..], &[][..]),
        (&[("model", "resnet10"), ("stem", "imagenet"), ("optimizer", "adam")], &max_pool),
        (&[("model", "resnet32s"), ("method", "simclr"), ("optimizer", "lars")], &shortcut),
        (&[("model", "resnet32s-bbn")], &concat),
    ] {
        let mut found: Vec<Op> = rows(&config(flags)).iter().map(|row| row.op).collect();
        found.sort_unstable();
        found.dedup();
        let mut expected = [&common, more].concat();
        expected.sort_unstable();
        assert_eq!(found, expected, "{flags:?}");
    }
}

#[test]
fn calls_and_arithmetic_are_the_network_s() {
    let config = config(&[("model", "resnet10")]);
    let network = sdclr::backend::run_network(&config).unwrap();
    let n_convs = network.prunable().count();
    let rows = rows(&config);
    let calls = |op| rows.iter().filter(|row| row.op == op).map(|row| row.calls).sum::<usize>();
    // Two branches; the first convolution needs no gradient of its data. Each forward and each backward-data packs its weights.
    let convs = [Op::PackConv, Op::ConvForward, Op::ConvBackwardWeight, Op::ConvBackwardData].map(calls);
    assert_eq!(convs, [4 * n_convs - 2, 2 * n_convs, 2 * n_convs, 2 * n_convs - 2]);
    assert_eq!(calls(Op::NormApply), 2 * network.norms.len());
    // Each of the four blocks computes its first activation again.
    assert_eq!(calls(Op::NormApplyAgain), 2 * 4);
    assert_eq!(calls(Op::OptimizerStep), 1);
    let multiplies = |row: &&Row| matches!(row.op, Op::ConvForward | Op::LinearForward);
    let flop: f64 = rows.iter().filter(multiplies).map(|row| row.flop).sum();
    assert_eq!(flop, (2 * 2 * BATCH * network.multiply_adds()) as f64);
    assert!(rows.iter().all(|row| row.bytes > 0.0 && row.seconds >= 0.0));
    let phases: Vec<Phase> = grouped(&rows, Op::phase).into_keys().collect();
    let all = [Phase::Input, Phase::Packing, Phase::Forward, Phase::Loss, Phase::Backward, Phase::Update];
    assert_eq!(phases, all);
}
