//! Probes: what they refuse, what they count, what their record says.

use sdclr::Machine;
use sdclr::metrics::GroupRule;
use sdclr::probe::{ProbeJob, Subject, Weights, probe};
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
