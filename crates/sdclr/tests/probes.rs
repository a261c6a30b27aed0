//! Probes: what they refuse, what they count, what their record says.

use sdclr::Machine;
use sdclr::metrics::GroupRule;
use sdclr::probe::{ProbeJob, Probed, StoredProbe, Subject, TestJob, Weights, probe, test};
use sdclr::progress::Unobserved;
use sdclr::signals::StopFlag;
use sdclr_data::{Dataset, RgbImage};
use sdclr_engine::Kernels;
use sdclr_records::names::{Method, ModelName, Protocol};
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};

/// Two classes, dark and light, alternating; the images at `broken` cannot be decoded.
fn images(n: usize, broken: impl Fn(usize) -> bool) -> Dataset {
    let image = |i: usize| {
        let pixels = (0..8 * 8 * 3).map(|k| ((i % 2) * 120 + (k * (i + 3)) % 100) as u8).collect();
        RgbImage { width: if broken(i) { 0 } else { 8 }, height: 8, pixels }
    };
    Dataset::from_memory((0..n).map(image).collect(), Some((0..n as u32).map(|i| i % 2).collect()))
}

fn subject(weights: Weights) -> Subject {
    let mut config = RunConfig { method: Method::SimClr, ..RunConfig::default() };
    config.data.image_size = 8;
    config.data.max_broken = 1.0;
    config.model.name = ModelName::ResNet10;
    config.model.base_width = 4;
    config.model.dual_bn = false;
    config.model.head_layers = 2;
    config.train.threads = 1;
    Subject { config, weights }
}

fn measure(
    subject: &Subject,
    protocol: Protocol,
    train: Dataset,
    test: Dataset,
    tail: Option<Vec<usize>>,
) -> Result<ProbeResult, String> {
    probed(subject, protocol, train, test, tail).map(|probed| probed.result)
}

fn probed(
    subject: &Subject,
    protocol: Protocol,
    train: Dataset,
    test: Dataset,
    tail: Option<Vec<usize>>,
) -> Result<Probed, String> {
    let mut settings = ProbeConfig::new(protocol, 8, 1);
    settings.set_epochs(2);
    settings.neighbours = 3;
    let job = ProbeJob {
        subject,
        probe: settings,
        train,
        validation: None,
        test,
        tail: tail.map(|counts| (counts, GroupRule::Thirds)),
        data: Default::default(),
        machine: Machine::of(&subject.config, Kernels::default()),
        memory_limit: None,
        stop: &StopFlag::new(),
        observer: &mut Unobserved,
    };
    match probe(job) {
        Ok(result) => Ok(result.expect("nobody raised the flag")),
        Err(error) => Err(error.to_string()),
    }
}

const PROTOCOLS: [Protocol; 4] = [Protocol::LinearPaper, Protocol::LinearCached, Protocol::FewShot, Protocol::Knn];

#[test]
fn broken_images_are_left_out_and_counted() {
    let subject = subject(Weights::Untrained);
    for protocol in PROTOCOLS {
        let result = measure(&subject, protocol, images(20, |i| i < 3), images(10, |i| i == 9), None).unwrap();
        assert_eq!((result.n_train, result.n_test, result.n_skipped), (17, 9, 4), "{protocol}");
        assert_eq!(result.subject, "untrained");
        let weights = result.weights.unwrap();
        assert_eq!((weights.method, weights.step, weights.checkpoint), (Method::SimClr, 0, None));
    }
}

/// `n` images of `n_classes` classes in turn.
fn images_of(n_classes: u32, n: usize) -> Dataset {
    let image = |i: usize| RgbImage::new(8, 8, (0..8 * 8 * 3).map(|k| ((k * (i + 3)) % 251) as u8).collect());
    Dataset::from_memory((0..n).map(image).collect(), Some((0..n as u32).map(|i| i % n_classes).collect()))
}

#[test]
fn top_5_is_measured_where_there_are_more_than_five_classes_and_a_classifier() {
    let subject = subject(Weights::RawPixels);
    for protocol in PROTOCOLS {
        let result = measure(&subject, protocol, images_of(7, 42), images_of(7, 21), None).unwrap();
        let top5 = (protocol != Protocol::Knn).then(|| result.top5.expect("measured"));
        assert_eq!(result.top5, top5, "{protocol}");
        assert!(top5.is_none_or(|top5| (result.top1..=100.0).contains(&top5)), "{protocol}: {top5:?}");
        assert_eq!(result.class_accuracy.len(), 7);
        let result = measure(&subject, protocol, images_of(5, 20), images_of(5, 10), None).unwrap();
        assert_eq!(result.top5, None, "{protocol}: five classes");
    }
}

#[test]
fn up_to_five_classes_choose_their_best_epoch_by_top_1() {
    let subject = subject(Weights::RawPixels);
    let mut settings = ProbeConfig::new(Protocol::LinearCached, 8, 1);
    settings.set_epochs(40);
    (settings.select_every_epochs, settings.select_by_top5, settings.lr) = (1, true, 1e-3);
    let whole = || images_of(5, 30);
    let job = ProbeJob {
        subject: &subject,
        probe: settings,
        train: whole(),
        validation: Some(whole()),
        test: whole(),
        tail: None,
        data: Default::default(),
        machine: Machine::of(&subject.config, Kernels::default()),
        memory_limit: None,
        stop: &StopFlag::new(),
        observer: &mut Unobserved,
    };
    let result = probe(job).unwrap().expect("nobody raised the flag").result;
    assert!(result.best_epoch.is_some_and(|epoch| epoch > 1), "top-5 of five is right from the first: {result:?}");
}

#[test]
fn a_set_of_broken_images_alone_is_an_error() {
    let subject = subject(Weights::RawPixels);
    for protocol in PROTOCOLS {
        let message = measure(&subject, protocol, images(20, |_| true), images(10, |_| false), None).unwrap_err();
        assert_eq!(message, "none of the 20 images to learn from can be decoded", "{protocol}");
        let message = measure(&subject, protocol, images(20, |_| false), images(10, |_| true), None).unwrap_err();
        assert_eq!(message, "none of the 10 images to test on can be decoded", "{protocol}");
    }
}

#[test]
fn raw_pixels_are_called_so_and_have_no_weights() {
    let whole = || images(20, |_| false);
    let result = measure(&subject(Weights::RawPixels), Protocol::RawPixels, whole(), whole(), None).unwrap();
    assert_eq!((result.subject.as_str(), result.weights), ("raw pixels", None));
    assert_eq!(result.all, 100.0, "dark and light are told apart");
}

#[test]
fn what_does_not_fit_the_images_to_learn_from_is_refused() {
    let subject = subject(Weights::RawPixels);
    let whole = || images(20, |_| false);
    let pixels: Vec<RgbImage> = (0..3).map(|i| whole().decode(i).unwrap()).collect();
    let more = Dataset::from_memory(pixels.clone(), Some(vec![0, 1, 2]));
    let message = measure(&subject, Protocol::Knn, whole(), more, None).unwrap_err();
    assert_eq!(message, "the images to test on have 3 classes, those to learn from 2");
    let message = measure(&subject, Protocol::Knn, whole(), Dataset::from_memory(pixels, None), None).unwrap_err();
    assert!(message.contains("the images to test on have no labels"), "{message}");
    let message = measure(&subject, Protocol::Knn, whole(), whole(), Some(vec![3, 2, 1])).unwrap_err();
    assert_eq!(message, "the long tail has 3 classes, the images to learn from 2");
}

fn retest(subject: &Subject, stored: &StoredProbe, images: Dataset) -> Result<ProbeResult, String> {
    let job = TestJob {
        subject,
        stored,
        test: images,
        recipe: ProbeConfig::new(stored.record.protocol, 8, 1).augment_test,
        tail: Some((vec![9, 4], GroupRule::Thirds)),
        data: Default::default(),
        machine: Machine::of(&subject.config, Kernels::default()),
        stop: &StopFlag::new(),
        observer: &mut Unobserved,
    };
    test(job).map(|result| result.expect("nobody raised the flag")).map_err(|e| e.to_string())
}

#[test]
fn a_stored_probe_gives_the_result_of_the_probe_that_made_it() {
    let subject = subject(Weights::Untrained);
    let folder = tempfile::tempdir().unwrap();
    let linear = [Protocol::LinearPaper, Protocol::LinearCached, Protocol::FewShot];
    for protocol in linear.into_iter().chain([Protocol::Finetune, Protocol::Supervised]) {
        let (learn, images) = (images(20, |i| i == 3), images(31, |i| i == 9));
        let made = probed(&subject, protocol, learn, images.clone(), Some(vec![9, 4])).unwrap();
        let stored = made.classifier.expect("what was trained is kept");
        assert_eq!(stored.backbone.is_empty(), linear.contains(&protocol), "{protocol}");
        let path = folder.path().join("probes").join(format!("{protocol}.safetensors"));
        stored.save(&path).unwrap();
        let stored = StoredProbe::load(&path).unwrap();
        assert_eq!(retest(&subject, &stored, images).unwrap(), made.result, "{protocol}");
    }
}

#[test]
fn a_stored_probe_is_refused_on_other_weights_features_or_classes() {
    let subject = subject(Weights::Untrained);
    let whole = || images(20, |_| false);
    let made = probed(&subject, Protocol::LinearCached, whole(), whole(), None).unwrap().classifier.unwrap();
    let check = |stored: &StoredProbe, expected: &str| {
        let message = retest(&subject, stored, whole()).unwrap_err();
        assert!(message.contains(expected), "{message}");
    };
    let mut other = made.clone();
    other.record.weights.as_mut().unwrap().step = 7;
    check(&other, "on the weights of step 7 and seed 10, the checkpoint is of step 0 and seed 10");
    let mut other = made.clone();
    other.weight.truncate(2 * 5);
    check(&other, "reads 5 features, the model has 32");
    let mut other = made.clone();
    (other.record.n_classes, other.bias) = (1, vec![0.0]);
    other.weight.truncate(32);
    check(&other, "have 2 classes, the stored probe 1");
    let mut other = probed(&subject, Protocol::Finetune, whole(), whole(), None).unwrap().classifier.unwrap();
    other.backbone.remove("layer4.0.conv2.weight");
    check(&other, "tensors are not those of resnet10");
}

#[test]
fn a_damaged_or_foreign_file_is_no_stored_probe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("probe.safetensors");
    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = StoredProbe::load(&path).unwrap_err().to_string();
        assert!(message.contains("probe.safetensors") && message.contains(expected), "{message}");
    };
    check(b"", "not a stored probe");
    check(b"\x02\0\0\0\0\0\0\0{}", "no entry `sdclr_probe`");
    let whole = || images(20, |_| false);
    let subject = subject(Weights::Untrained);
    let mut made = probed(&subject, Protocol::LinearCached, whole(), whole(), None).unwrap().classifier.unwrap();
    made.save(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    check(&bytes[..bytes.len() - 1], "damaged (its length is not what its header says)");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    check(&bytes, "damaged (its checksum does not match)");
    made.bias[0] = f32::NAN;
    let message = made.save(&path).unwrap_err().to_string();
    assert!(message.contains("fc.bias holds values that are not numbers; try a lower --lr"), "{message}");
    let message = StoredProbe::load(&folder.path().join("none")).unwrap_err().to_string();
    assert!(message.contains("cannot read"), "{message}");
}
