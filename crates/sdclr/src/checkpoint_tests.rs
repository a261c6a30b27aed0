//! Tests of the checkpoint file: what goes in comes out, and every kind of damage is noticed.

use super::*;
use safetensors::tensor::TensorView;
use sdclr_records::checkpoint::DataMark;
use sdclr_records::names::{Method, OptimizerKind};

fn state() -> CheckpointState {
    CheckpointState {
        model: "resnet18, small stem".to_owned(),
        method: Method::SdClr,
        epoch: 3,
        batch_in_epoch: 0,
        step: 63,
        total_steps: 420,
        seed: 10,
        optimizer: OptimizerKind::Sgd,
        optimizer_steps: 63,
        epoch_loss_sum: 0.1 + 0.2,
        epoch_steps: 3,
        interval_loss_sum: 1.0 / 3.0,
        interval_steps: 3,
        elapsed_s: 12.25,
        n_skipped: 0,
        mask_threshold: Some(f64::from(0.012_345_678_f32)),
        data: Some(DataMark { n_images: 2478, crc32: "00c0ffee".to_owned() }),
    }
}

fn sample() -> Checkpoint {
    let mut checkpoint = Checkpoint::new(state());
    checkpoint.insert("conv1.weight", Tensor::f32(&[2, 1, 1, 1], vec![f32::MIN_POSITIVE / 2.0, -0.0]));
    checkpoint.insert("conv1.mask", Tensor::u8(&[2, 1, 1, 1], vec![0, 1]));
    checkpoint.insert("scalar", Tensor::f32(&[], vec![1.0]));
    checkpoint
}

fn saved() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("last.safetensors");
    sample().save(&path).expect("saves");
    (dir, path)
}

fn load_error(path: &Path) -> String {
    Checkpoint::load(path).expect_err("must not load").to_string()
}

#[test]
fn what_goes_in_comes_out() {
    let (_dir, path) = saved();
    let mut expected = sample();
    expected.path = path.clone();
    assert_eq!(Checkpoint::load(&path).expect("loads"), expected);
}

#[test]
fn equal_checkpoints_are_equal_bytes() {
    let [(_one, a), (_other, b)] = [saved(), saved()];
    assert_eq!(std::fs::read(a).expect("reads"), std::fs::read(b).expect("reads"));
}

#[test]
fn other_readers_can_open_it() {
    let (_dir, path) = saved();
    let bytes = std::fs::read(path).expect("reads");
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    assert_eq!(file.tensor("conv1.weight").expect("inside").shape(), [2, 1, 1, 1]);
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    assert_eq!(safetensors::serialize(file.iter(), header.metadata().clone()).expect("bytes"), bytes);
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (_dir, path) = saved();
    let bytes = std::fs::read(&path).expect("reads");
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        assert!(Checkpoint::from_bytes(&damaged, &path).is_err(), "byte {position}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let (_dir, path) = saved();
    let bytes = std::fs::read(&path).expect("reads");
    for length in 0..bytes.len() {
        assert!(Checkpoint::from_bytes(&bytes[..length], &path).is_err(), "{length} bytes");
    }
    std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("writes");
    let message = load_error(&path);
    assert!(message.contains("damaged (its length is not what its header says)"), "{message}");
}

#[test]
fn files_of_other_kinds_are_told_apart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("x.safetensors");
    assert!(load_error(&path).contains("cannot read the checkpoint"));
    std::fs::write(&path, "x".repeat(100)).expect("writes");
    assert!(load_error(&path).contains("not an sdclr checkpoint"));
    let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("a view");
    let bytes = safetensors::serialize([("w", view)], None).expect("bytes");
    std::fs::write(&path, bytes).expect("writes");
    assert!(load_error(&path).contains("a safetensors file, but no checkpoint of this program"));
}

#[test]
fn another_layout_version_is_named() {
    let envelope = r#"{"version":99,"crc32":"00000000","state":{"new":"things"}}"#;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), envelope.to_owned())]);
    let nothing: [(&str, TensorView<'_>); 0] = [];
    let bytes = safetensors::serialize(nothing, Some(metadata)).expect("bytes");
    let message = Checkpoint::from_bytes(&bytes, Path::new("a")).expect_err("other layout").to_string();
    assert!(message.contains("layout 99, this program reads layout 1"), "{message}");
}

#[test]
fn another_network_is_named_with_the_first_differences() {
    let checkpoint = sample();
    let fits: [(&str, &[usize]); 3] = [("conv1.weight", &[2, 1, 1, 1]), ("conv1.mask", &[2, 1, 1, 1]), ("scalar", &[])];
    checkpoint.expect_layout(fits).expect("the same network");
    let other: [(&str, &[usize]); 4] = [("conv1.weight", &[4, 1, 1, 1]), ("a", &[1]), ("b", &[1]), ("scalar", &[])];
    let message = checkpoint.expect_layout(other).expect_err("another").to_string();
    let parts = ["(resnet18, small stem)", "`a` is missing", "[2, 1, 1, 1] instead of [4, 1, 1, 1]", "and 1 more"];
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(checkpoint.expect_f32("conv1.mask", &[2, 1, 1, 1]).is_err(), "bytes are not floats");
    assert_eq!(checkpoint.expect_f32("conv1.weight", &[2, 1, 1, 1]).expect("there").len(), 2);
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let (dir, path) = saved();
    let missing = dir.path().join("no/such/folder/last.safetensors");
    let message = sample().save(&missing).expect_err("no folder").to_string();
    assert!(message.contains("cannot write the checkpoint"), "{message}");
    assert!(Checkpoint::load(&path).is_ok());
}

#[test]
fn weights_that_are_not_numbers_never_replace_a_good_checkpoint() {
    let (_dir, path) = saved();
    for value in [f32::NAN, f32::INFINITY] {
        let mut bad = sample();
        bad.insert("layer1.weight", Tensor::f32(&[2], vec![1.0, value]));
        let message = bad.save(&path).expect_err("refused").to_string();
        assert!(message.contains("`layer1.weight` holds values that are infinite or not numbers"), "{message}");
    }
    assert!(Checkpoint::load(&path).is_ok());
}

#[test]
fn a_damaged_checkpoint_names_the_one_that_can_take_its_place() {
    let (dir, path) = saved();
    std::fs::write(&path, "x").expect("writes");
    assert!(load_error(&path).contains("start over with pretrain --overwrite"), "{}", load_error(&path));
    for epoch in [9, 10] {
        std::fs::write(dir.path().join(format!("epoch-{epoch}.safetensors")), "x").expect("writes");
    }
    let message = load_error(&path);
    let expected = format!("copy {} over it", dir.path().join("epoch-10.safetensors").display());
    assert!(message.contains(&expected), "{message}");
    let message = load_error(&dir.path().join("epoch-10.safetensors"));
    let expected = format!("{} is another", dir.path().join("epoch-9.safetensors").display());
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn the_state_alone_is_read_without_the_tensors_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    let checkpoint = sample();
    checkpoint.save(&path).unwrap();
    assert_eq!(Checkpoint::load_state(&path).unwrap(), checkpoint.state);
    let bytes = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = Checkpoint::load_state(&path).unwrap_err().to_string();
        assert!(message.contains("last.safetensors") && message.contains(expected), "{message}");
    };
    check(&bytes[..5], "it is cut short");
    check(&bytes[..60], "it is cut short");
    check(&[0xff; 64], "its header is longer than any");
    check(b"\x02\0\0\0\0\0\0\0{}", "a safetensors file, but no checkpoint of this program");
}
