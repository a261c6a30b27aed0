use super::*;

fn settings() -> Settings {
    Settings {
        experiment: "cifar10-lt".to_owned(),
        data: "images".into(),
        split_dir: None,
        epochs: None,
        probe_epochs: None,
        seed: None,
        scale: 1.0,
        precision: "auto".to_owned(),
        assignments: Vec::new(),
    }
}

fn images() -> ImagesRecord {
    ImagesRecord {
        source: "images".into(),
        part: sdclr_records::names::Part::Train,
        split: Some("tail.npy".into()),
        root: None,
        per_class: None,
    }
}

fn config(settings: &Settings, arm: &str, n_images: usize) -> RunConfig {
    let experiment = Experiment::named(&settings.experiment).unwrap();
    recipe(&experiment, settings, experiment.arm(arm).unwrap(), &images(), n_images, &[]).unwrap()
}

#[test]
fn an_unchanged_experiment_is_the_presets_recipe_on_its_images() {
    let run = config(&settings(), "sdclr", 11_165);
    assert_eq!((run.train.epochs, run.train.batch_size, run.seed), (2000, 512, 10));
    assert_eq!((run.schedule.warmup_epochs, run.model.dual_bn), (10.0, true));
    assert_eq!(run.data.split.as_deref(), Some(Path::new("tail.npy")));
    assert!(settings().departures().is_empty());
    let simclr = config(&settings(), "simclr-balanced", 11_160);
    assert_eq!((simclr.method.as_str(), simclr.model.head_layers), ("simclr", 2));
}

#[test]
fn changes_are_applied_and_said() {
    let changed = Settings {
        epochs: Some(20),
        probe_epochs: Some(3),
        seed: Some(4),
        scale: 0.01,
        assignments: vec!["model.base_width=8".to_owned()],
        ..settings()
    };
    let run = config(&changed, "sdclr", 112);
    // Warm-up is a tenth of a short schedule; a batch is a power of two that the images fill.
    assert_eq!((run.train.epochs, run.schedule.warmup_epochs, run.train.batch_size), (20, 2.0, 64));
    assert_eq!((run.seed, run.model.base_width), (4, 8));
    let said = changed.departures().join(", ");
    for part in ["20 epochs", "3 epochs of the linear probe", "seed 4", "0.01 of every class count", "base_width=8"] {
        assert!(said.contains(part), "{said}");
    }
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let epochs = [Protocol::LinearPaper, Protocol::FewShot].map(|protocol| changed.probe_epochs(&experiment, protocol));
    assert_eq!(epochs, [3, 10]);
    let epochs =
        [Protocol::LinearPaper, Protocol::FewShot].map(|protocol| settings().probe_epochs(&experiment, protocol));
    assert_eq!(epochs, [30, 100]);
}

#[test]
fn a_folder_goes_on_with_the_same_settings_only() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(Settings::stored(out.path()).unwrap(), None);
    settings().keep(out.path()).unwrap();
    settings().keep(out.path()).unwrap();
    assert_eq!(Settings::stored(out.path()).unwrap(), Some(settings()));
    let message = Settings { epochs: Some(3), ..settings() }.keep(out.path()).unwrap_err().to_string();
    assert!(message.contains("was begun with epochs = the paper's, not 3"), "{message}");
    let message = Settings { split_dir: Some("s".into()), ..settings() }.keep(out.path()).unwrap_err().to_string();
    assert!(message.contains("was begun without --split-dir"), "{message}");
    // The data may have moved, and the folder remembers where to.
    let moved = Settings { data: "elsewhere".into(), ..settings() };
    moved.keep(out.path()).unwrap();
    assert_eq!(Settings::stored(out.path()).unwrap(), Some(moved));
    std::fs::write(out.path().join(SETTINGS_FILE), "{}").unwrap();
    let message = Settings::stored(out.path()).unwrap_err().to_string();
    assert!(message.contains("not the settings of a reproduction"), "{message}");
}

#[test]
fn a_task_costs_what_its_images_cost() {
    // Two views, forward and twice backward, of 100 images in each of 10 epochs.
    assert_eq!(forward_passes(Phase::Pretrain, 100, 10, 7), 6000.0);
    assert_eq!(forward_passes(Phase::Probe(Protocol::FewShot), 100, 10, 7), 1007.0);
}

#[test]
fn what_the_experiment_decides_cannot_be_set() {
    for key in ["train.precision=f32", " seed = 3", "model.init_from=run", "data.source"] {
        let message = Settings { assignments: vec![key.to_owned()], ..settings() }.validate().unwrap_err().to_string();
        assert!(message.contains("the experiment decides it"), "{message}");
    }
    Settings { assignments: vec!["train.batch_size=64".to_owned()], ..settings() }.validate().unwrap();
    assert!(Settings { scale: 0.0, ..settings() }.validate().is_err());
}
