use super::*;
use crate::RunConfig;
use crate::layers::{Layer, resolve};
use crate::names::{ModelName, OptimizerKind, ScheduleKind, Stem};

fn config(experiment: &str, method: Method) -> RunConfig {
    let flags = [("method", method.as_str()), ("data", "images")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    resolve(&[Layer::preset(experiment).unwrap(), Layer::from_flags(&flags).unwrap()]).unwrap()
}

#[test]
fn there_are_the_papers_experiments_and_ours() {
    let names: Vec<String> = Experiment::all().unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["cifar10-lt", "cifar100-lt", "imagenet100-lt", "imagenet-lt", "fashion-mnist-lt"]);
    assert!(Experiment::names().eq(names.iter().map(String::as_str)));
    let error = Experiment::named("cifar-10-lt").unwrap_err().to_string();
    assert_eq!(error, "unknown experiment `cifar-10-lt`; did you mean `cifar10-lt`?");
}

/// Every hyper-parameter of the table of recipes.
#[test]
fn recipes_are_the_papers() {
    for name in ["cifar10-lt", "cifar100-lt", "fashion-mnist-lt"] {
        for method in [Method::SimClr, Method::SdClr] {
            let c = config(name, method);
            assert_eq!(
                (c.model.name, c.model.stem, c.data.image_size),
                (ModelName::ResNet18, Stem::Small, 32),
                "{name}"
            );
            assert_eq!((c.train.epochs, c.train.batch_size, c.seed), (2000, 512, 10), "{name}");
            assert_eq!((c.train.temperature, c.model.head_dim), (0.2, 128), "{name}");
            assert_eq!((c.augment.area_min, c.augment.blur_p), (0.1, 0.0), "{name}");
        }
        assert_eq!(config(name, Method::SdClr).prune.rate, 0.9, "{name}");
    }
    for name in ["imagenet100-lt", "imagenet-lt"] {
        for (method, temperature) in [(Method::SimClr, 0.2), (Method::SdClr, 0.3)] {
            let c = config(name, method);
            assert_eq!((c.model.name, c.model.stem, c.data.image_size), (ModelName::ResNet50, Stem::ImageNet, 224));
            assert_eq!((c.train.epochs, c.train.batch_size, c.seed), (500, 256, 1), "{name}");
            assert_eq!((c.train.temperature, c.model.head_dim), (temperature, 128), "{name}");
            assert_eq!((c.augment.area_min, c.augment.blur_p), (0.08, 0.5), "{name}");
        }
        assert_eq!(config(name, Method::SdClr).prune.rate, 0.3, "{name}");
    }
}

#[test]
fn all_recipes_share_optimizer_schedule_heads_and_masks() {
    for experiment in Experiment::all().unwrap() {
        for (method, layers, dual_bn) in [(Method::SimClr, 2, false), (Method::SdClr, 3, true)] {
            let c = config(&experiment.name, method);
            let optimizer = (c.optimizer.kind, c.optimizer.lr, c.optimizer.momentum, c.optimizer.weight_decay);
            assert_eq!(optimizer, (OptimizerKind::Sgd, 0.5, 0.9, 1e-4));
            let schedule = (c.schedule.kind, c.schedule.warmup_epochs, c.schedule.min_lr);
            assert_eq!(schedule, (ScheduleKind::Cosine, 10.0, 1e-6));
            assert_eq!((c.model.head_layers, c.model.dual_bn), (layers, dual_bn));
            assert_eq!((c.prune.random_rate, c.prune.mask_save_every_epochs), (0.0, 100));
            let a = &c.augment;
            assert_eq!((a.area_max, a.flip_p, a.jitter_p, a.grayscale_p, a.strength), (1.0, 0.5, 0.8, 0.2, 1.0));
            let jitter = (a.jitter.brightness, a.jitter.contrast, a.jitter.saturation, a.jitter.hue);
            assert_eq!(jitter, (0.4, 0.4, 0.4, 0.1));
        }
    }
}

#[test]
fn probes_are_the_papers() {
    for experiment in Experiment::all().unwrap() {
        let small = experiment.groups == Grouping::Thirds;
        let size = if small { 32 } else { 224 };
        for (protocol, epochs, every, milestones) in [
            (Protocol::LinearPaper, 30, if small { 1 } else { 2 }, if small { [9, 19] } else { [10, 20] }),
            (Protocol::FewShot, 100, if small { 5 } else { 10 }, if small { [39, 59] } else { [40, 60] }),
        ] {
            let p = experiment.probe(protocol, size, 0);
            assert_eq!((p.epochs, p.select_every_epochs, p.milestones.as_slice()), (epochs, every, &milestones[..]));
            assert_eq!((p.batch_size, p.select_by_top5), (if small { 128 } else { 512 }, !small));
            assert_eq!((p.lr, p.momentum, p.weight_decay, p.gamma, p.init_std), (30.0, 0.9, 0.0, 0.1, 0.01));
            // What `sdclr eval` does without an experiment is the same.
            assert_eq!(p, ProbeConfig::new(protocol, size, 0), "{}", experiment.name);
        }
    }
}

#[test]
fn sets_have_the_papers_sizes() {
    let sizes = [
        ("cifar10-lt", 10, 5, 500, None, 1116, 45),
        ("cifar100-lt", 100, 5, 50, Some(400), 97, 4),
        ("imagenet100-lt", 100, 1, 20, None, 122, 12),
        ("imagenet-lt", 1000, 1, 20, None, 229, 12),
        ("fashion-mnist-lt", 10, 5, 600, None, 1339, 54),
    ];
    for (name, n_classes, n_splits, validation, probe, balanced, few_shot) in sizes {
        let e = Experiment::named(name).unwrap();
        assert_eq!((e.n_classes, e.n_splits, e.validation_per_class), (n_classes, n_splits, validation), "{name}");
        assert_eq!((e.probe_per_class, e.balanced_per_class, e.few_shot_per_class), (probe, balanced, few_shot));
        if let Tail::Named { class_counts } = &e.tail {
            assert_eq!(class_counts.len(), n_splits, "{name}");
            let n_images = if name == "cifar10-lt" { 11_165 } else { 12_205 };
            for counts in class_counts {
                assert_eq!((counts.len(), counts.iter().sum::<usize>()), (n_classes, n_images), "{name}");
            }
        }
    }
    let tail = |name: &str| Experiment::named(name).unwrap().tail;
    assert_eq!(tail("cifar100-lt"), Tail::Exponential { n_max: 450, imbalance_factor: 100.0 });
    assert_eq!(tail("imagenet-lt"), Tail::Exponential { n_max: 1280, imbalance_factor: 256.0 });
    assert_eq!(tail("fashion-mnist-lt"), Tail::Exponential { n_max: 5400, imbalance_factor: 100.0 });
}

#[test]
fn only_full_imagenet_has_an_unpublished_arm() {
    for experiment in Experiment::all().unwrap() {
        let names: Vec<&str> = experiment.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["simclr-balanced", "simclr", "sdclr"], "{}", experiment.name);
        for arm in &experiment.arms {
            assert_eq!(arm.balanced, arm.name == "simclr-balanced");
            assert_eq!(arm.unpublished, arm.name == "sdclr" && experiment.name == "imagenet-lt");
        }
    }
}

/// Where all three groups are published, All must follow from them by the groups' sizes.
#[test]
fn published_rows_agree_with_themselves() {
    let mut n_checked = 0;
    for experiment in Experiment::all().unwrap() {
        for row in &experiment.published {
            assert!(experiment.arm(&row.arm).is_ok(), "{row:?}");
            let known = ["many", "medium", "few", "std", "all"];
            assert!(row.recalled.iter().all(|field| known.contains(&field.as_str())), "{row:?}");
            let (Some(many), Some(medium), Some(few)) = (row.many, row.medium, row.few) else { continue };
            let sizes = match (experiment.groups, &experiment.tail) {
                (Grouping::Thresholds, Tail::Named { class_counts }) => {
                    let (a, b) = class_counts[0]
                        .iter()
                        .fold((0, 0), |(a, b), &n| (a + i32::from(n > 100), b + i32::from(n < 20)));
                    [a, 100 - a - b, b]
                }
                _ => {
                    let third = experiment.n_classes as i32 / 3;
                    [experiment.n_classes as i32 - 2 * third, third, third]
                }
            };
            let [a, b, c] = sizes.map(f64::from);
            let all = (a * many + b * medium + c * few) / (a + b + c);
            assert!((all - row.all).abs() < 0.06, "{}: {all} for {row:?}", experiment.name);
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, 11);
    let row = Experiment::named("cifar10-lt").unwrap();
    let row = row.published("sdclr", Protocol::LinearPaper).unwrap();
    assert_eq!((row.many, row.all), (Some(86.44), 82.0));
    assert!(row.is_recalled("all") && !row.is_recalled("many"));
}
