//! Tests of the merge: precedence, dependent defaults, presets, and what the messages say.

use super::*;

fn flags(values: &[(&str, Value)]) -> Layer {
    let own = |(k, v): &(&str, Value)| ((*k).to_owned(), v.clone());
    Layer::from_values("command line", values.iter().map(own).collect())
}

fn source() -> Layer {
    flags(&[("data.source", Value::from("images"))])
}

fn toml(text: &str) -> Layer {
    Layer::from_toml("run.toml", text).expect("test text is TOML")
}

fn error(layers: &[Layer]) -> String {
    resolve(layers).map(|c| format!("accepted: {c:?}")).unwrap_or_else(|e| e.to_string())
}

#[test]
fn every_flag_names_a_known_key() {
    let schema = Schema::new();
    for (flag, key) in FLAGS {
        assert!(schema.kind("", key).is_ok(), "{flag} -> {key}");
    }
    for key in AUTO_KEYS {
        assert!(schema.kind("", key).is_ok(), "{key}");
    }
}

#[test]
fn nothing_but_a_source_gives_the_default_config() {
    let mut expected = RunConfig::default();
    expected.data.source = "images".into();
    assert_eq!(resolve(&[source()]).expect("runs"), expected);
}

#[test]
fn higher_layers_win() {
    let preset = Layer::preset("cifar10-lt").expect("known");
    let file = toml("[train]\nepochs = 3\nbatch_size = 64\n");
    let (env, warnings) = Layer::from_env(
        [("SDCLR_BATCH_SIZE", "32"), ("SDCLR_TRAIN_TEMPERATURE", "1"), ("HOME", "/")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        &[],
    )
    .expect("good values");
    assert!(warnings.is_empty());
    let set = Layer::from_assignments(&["train.temperature=0.5".to_owned()]).expect("good");
    let config = resolve(&[preset, file, env, set, source()]).expect("runs");
    assert_eq!((config.train.epochs, config.train.batch_size), (3, 32));
    assert_eq!(config.train.temperature, 0.5);
    assert_eq!(config.schedule.warmup_epochs, 0.3, "a tenth of the epochs");
}

#[test]
fn dependent_defaults_follow_what_they_depend_on() {
    let simclr = resolve(&[source(), toml("method = \"simclr\"")]).expect("runs");
    assert_eq!((simclr.model.dual_bn, simclr.model.head_layers), (false, 2));
    let single = resolve(&[source(), toml("[model]\ndual_bn = false")]).expect("runs");
    assert_eq!(single.model.head_layers, 2);
    let large = resolve(&[source(), toml("[data]\nimage_size = 224")]).expect("runs");
    assert_eq!(large.model.stem, Stem::ImageNet);
    assert_eq!((large.augment.area_min, large.augment.blur_p), (0.08, 0.5));
    let family = resolve(&[source(), toml("[model]\nname = \"resnet32s-ride\"")]).expect("runs");
    assert_eq!((family.model.base_width, family.model.stem), (16, Stem::Small));
    let adam = resolve(&[source(), toml("[optimizer]\nkind = \"adam\"")]).expect("runs");
    assert_eq!((adam.optimizer.lr, adam.optimizer.weight_decay), (1e-3, 0.0));
    let short = resolve(&[source(), toml("[train]\nepochs = 5")]).expect("runs");
    assert_eq!(short.schedule.warmup_epochs, 0.5);
}

#[test]
fn auto_overrides_a_lower_layer() {
    let layers = [toml("[model]\nstem = \"imagenet\""), source(), flags(&[("model.stem", Value::from("auto"))])];
    assert_eq!(resolve(&layers).expect("runs").model.stem, Stem::Small);
}

#[test]
fn presets_match_the_paper_s_table() {
    let resolved = |name: &str, method: &str| {
        let method = flags(&[("method", Value::from(method))]);
        resolve(&[Layer::preset(name).expect("known"), source(), method]).expect("runs")
    };
    for name in ["cifar10-lt", "cifar100-lt"] {
        let c = resolved(name, "sdclr");
        assert_eq!((c.train.epochs, c.train.batch_size, c.seed), (2000, 512, 10));
        assert_eq!((c.model.name, c.model.stem), (ModelName::ResNet18, Stem::Small));
        assert_eq!((c.train.temperature, c.prune.rate, c.model.dual_bn), (0.2, 0.9, true));
        assert_eq!(resolved(name, "simclr").model.head_layers, 2);
    }
    let c = resolved("imagenet100-lt", "sdclr");
    assert_eq!((c.train.epochs, c.train.batch_size, c.seed), (500, 256, 1));
    assert_eq!((c.model.name, c.model.stem), (ModelName::ResNet50, Stem::ImageNet));
    assert_eq!((c.train.temperature, c.prune.rate), (0.3, 0.3));
    assert_eq!(resolved("imagenet100-lt", "simclr").train.temperature, 0.2);
}

#[test]
fn presets_keep_the_pixels_of_the_published_recipes() {
    for name in crate::presets::names() {
        let config = resolve(&[Layer::preset(name).expect("known"), source()]).expect("runs");
        assert!(!config.data.jpeg_scaling, "{name}");
    }
}

#[test]
fn a_written_config_reads_back_the_same() {
    let config = resolve(&[Layer::preset("imagenet100-lt").expect("known"), source()]).expect("runs");
    let text = config.to_toml();
    assert_eq!(resolve(&[toml(&text)]).expect("own output"), config, "{text}");
    assert_eq!(toml::from_str::<RunConfig>(&text).expect("own output"), config);
}

/// What runs wrote before there were options.
#[test]
fn a_config_without_options_reads_as_one_with_all_of_them_off() {
    let config = resolve(&[source()]).expect("runs");
    let mut table = toml::Table::try_from(&config).expect("a table");
    for (section, keys) in [
        (
            "train",
            &["focal_gamma", "temperature_schedule", "temperature_min", "temperature_max", "temperature_period_epochs"]
                [..],
        ),
        ("prune", &["schedule", "rate_start", "ramp_epochs"]),
    ] {
        let section = table[section].as_table_mut().expect("a section");
        keys.iter().for_each(|key| drop(section.remove(*key).expect("written")));
    }
    table.remove("boost").expect("written");
    let text = table.to_string();
    assert_eq!(toml::from_str::<RunConfig>(&text).expect("an old config"), config, "{text}");
    assert_eq!(resolve(&[toml(&text)]).expect("an old config"), config, "{text}");
}

#[test]
fn messages_say_where_what_and_what_instead() {
    let cases: &[(&str, &str)] = &[
        ("[train]\nepoch = 3", "run.toml: unknown key `train.epoch`; did you mean `train.epochs`?"),
        ("[train]\nepochs = \"ten\"", "run.toml: train.epochs = \"ten\": expected a whole number"),
        ("[train]\nepochs = -1", "run.toml: train.epochs = -1: must not be negative"),
        ("[model]\nname = \"resnet19\"", "unknown model `resnet19`; did you mean `resnet1"),
        ("[train]\ndevice = \"gpu\"", "unknown device `gpu`; known: auto, cpu, cuda, cuda:N"),
        ("[train]\ntemperature_schedul = \"cosine\"", "did you mean `train.temperature_schedule`?"),
        ("[train]\ntemperature_schedule = \"cosin\"", "unknown temperature schedule `cosin`; did you mean `cosine`?"),
        ("[prune]\nschedule = \"cubed\"", "unknown prune schedule `cubed`; did you mean `cubic`?"),
        ("[prune]\nrate = 1.3", "--prune-rate (prune.rate) = 1.3: must be at least 0 and below 1"),
        ("[augment]\ninterpolation = \"nearest\"", "run.toml: augment.interpolation = \"nearest\": unknown variant"),
        ("[augment]\nratio = [1.0]", "run.toml: augment.ratio = [1.0]: invalid length 1"),
    ];
    for (text, expected) in cases {
        let message = error(&[source(), toml(text)]);
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
    let broken = Layer::from_toml("run.toml", "[train]\nepochs = \n").expect_err("no value");
    assert!(broken.to_string().starts_with("run.toml:2: not valid TOML"), "{broken}");
    let preset = Layer::preset("cifar10").expect_err("unknown").to_string();
    assert_eq!(preset, "unknown preset `cifar10`; did you mean `cifar10-lt`?");
}

#[test]
fn assignments_take_toml_and_bare_words() {
    let set = |text: &str| Layer::from_assignments(&[text.to_owned()]);
    for text in ["train.device=cpu", "train.device=\"cpu\"", "schedule.milestones=[3, 4]", "schedule.milestones=3,4"] {
        let layer = set(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        resolve(&[source(), layer]).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
    for (text, expected) in [
        ("train.epochs", "expected KEY=VALUE"),
        ("trian.epochs=3", "did you mean `train.epochs`?"),
        ("train.epochs=three", "expected a whole number"),
        ("data.strict=maybe", "expected true or false"),
    ] {
        let message = set(text).expect_err(text).to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

#[test]
fn an_unknown_environment_name_is_warned_about() {
    let vars = [("SDCLR_EPOCS", "3"), ("SDCLR_OTHER", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let (layer, warnings) = Layer::from_env(vars, &["SDCLR_OTHER"]).expect("no bad value");
    assert!(layer.values.is_empty());
    assert_eq!(warnings, ["environment variable SDCLR_EPOCS means nothing here; did you mean `SDCLR_EPOCHS`?"]);
}

#[test]
fn a_far_environment_name_gets_no_suggestion() {
    for name in ["SDCLR_HOME", "SDCLR_BACKTRACE", "SDCLR_X"] {
        let (_, warnings) = Layer::from_env([(name.to_owned(), "1".to_owned())], &[]).expect("no bad value");
        assert_eq!(warnings, [format!("environment variable {name} means nothing here")]);
    }
}

#[test]
fn a_switch_in_the_environment_takes_ones_and_zeros() {
    for (text, expected) in [("1", true), ("0", false), ("true", true), ("false", false)] {
        let (layer, _) = Layer::from_env([("SDCLR_STRICT".to_owned(), text.to_owned())], &[]).expect(text);
        assert_eq!(resolve(&[source(), layer]).expect("runs").data.strict, expected, "{text}");
    }
    let wrong = Layer::from_env([("SDCLR_STRICT".to_owned(), "2".to_owned())], &[]).expect_err("no switch");
    assert!(wrong.to_string().contains("expected true or false"), "{wrong}");
}

#[test]
fn what_was_typed_and_has_no_effect_is_named() {
    let check = |text: &str, expected: &[&str]| {
        let layers = [source(), toml(text)];
        let config = resolve(&layers).expect("runs");
        assert_eq!(ignored(&config, &[&layers[1]]), expected, "{text}");
    };
    check("method = \"simclr\"\n[prune]\nrate = 0.5", &["--prune-rate has no effect with --method simclr"]);
    check("[prune]\nrate = 0.5", &[]);
    check(
        "[optimizer]\nkind = \"adam\"\nmomentum = 0.5\nweight_decay = 0.1\nlars_eta = 0.1",
        &[
            "--momentum has no effect with --optimizer adam",
            "--weight-decay has no effect with --optimizer adam",
            "optimizer.lars_eta has no effect with --optimizer adam",
        ],
    );
    check("[schedule]\ngamma = 0.2", &["--gamma has no effect with --schedule cosine"]);
    check(
        "[train]\ntemperature_schedule = \"cosine\"\ntemperature = 0.3",
        &["--temperature has no effect with --temperature-schedule cosine"],
    );
    check("[train]\ntemperature_max = 0.5", &["--temperature-max has no effect with --temperature-schedule constant"]);
    check("[boost]\nmomentum = 0.9", &["--boost-momentum has no effect with boost.enabled = false (give --boost)"]);
    check("[boost]\nenabled = true\nmomentum = 0.9", &[]);
    check("[prune]\nrate_start = 0.5", &["--prune-rate-start has no effect with --prune-schedule constant"]);
    check(
        "method = \"simclr\"\n[prune]\nschedule = \"linear\"\nramp_epochs = 3",
        &[
            "--prune-ramp-epochs has no effect with --method simclr",
            "--prune-schedule has no effect with --method simclr",
        ],
    );
    check(
        "[train]\nepochs = 3\n[prune]\nschedule = \"linear\"\nramp_epochs = 4",
        &["--prune-ramp-epochs 4 is more than --epochs 3: the prune rate will not reach 0.9"],
    );
    check("[train]\nepochs = 3\n[prune]\nschedule = \"linear\"\nramp_epochs = 3", &[]);
    check("[schedule]\nkind = \"constant\"\nmin_lr = 0.0", &["--min-lr has no effect with --schedule constant"]);
}
