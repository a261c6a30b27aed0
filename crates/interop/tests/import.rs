//! Files that PyTorch wrote (`fixtures/make_checkpoints.py`) become tensors under this project's names.

use proptest::prelude::*;
use sdclr_interop::{ImportError, ImportedModel, import_masks, import_model};
use sdclr_nn::Head;
use sdclr_records::checkpoint::Tensor;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn model(name: &str) -> ImportedModel {
    import_model(&fixture(name)).expect(name)
}

#[track_caller]
fn check_network(name: &str, expected: &str, epoch: Option<usize>) {
    let model = model(name);
    assert_eq!(model.spec.describe(), expected, "{name}");
    assert_eq!((model.epoch, &model.left_out[..], &model.warnings[..]), (epoch, &[][..], &[][..]), "{name}");
}

#[test]
fn the_network_is_inferred_from_names_and_shapes() {
    check_network("sdclr_dual.pt", "resnet10, width 2, small stem, dual batch norm, 3-layer head of 32", Some(7));
    let single = "resnet10, width 2, small stem, single batch norm, 2-layer head of 32";
    check_network("sdclr_single_legacy.pt", single, Some(3));
    check_network("simclr.pt", single, Some(5));
    check_network("odd.pt", single, Some(5));
    check_network("odd_legacy.pt", single, None);
    check_network("resnet32s.pth", "resnet32s, width 2, small stem, single batch norm, 2-layer head of 32", None);
    check_network("torchvision_resnet18.pth", "resnet18, width 2, ImageNet stem, single batch norm, no head", None);
    check_network("resnet50.safetensors", "resnet50, width 1, ImageNet stem, single batch norm, no head", None);
    check_network("best_model.pt", "resnet10, width 2, small stem, single batch norm, no head", Some(21));
}

#[test]
fn both_containers_and_every_layout_of_tensors_hold_the_same_values() {
    let (plain, odd, legacy) = (model("simclr.pt"), model("odd.pt"), model("odd_legacy.pt"));
    assert_eq!(odd.tensors, legacy.tensors);
    assert_eq!(plain.tensors.len(), odd.tensors.len());
    for (name, tensor) in &plain.tensors {
        let (exact, rounded) = (tensor.as_f32().expect(name), odd.tensors[name].as_f32().expect(name));
        assert_eq!(tensor.shape, odd.tensors[name].shape, "{name}");
        // bfloat16 has 8 significant bits.
        let are_near = exact.iter().zip(rounded).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0 + 1e-7);
        assert!(are_near, "{name}: {exact:?} {rounded:?}");
    }
}

#[test]
fn a_classifier_comes_along_where_there_is_one() {
    let classifier = model("best_model.pt").classifier.expect("has one");
    assert_eq!((classifier.n_classes(), classifier.weight.shape.as_slice()), (5, &[5, 16][..]));
    assert_eq!(classifier.bias.as_f32().expect("floats").len(), 5);
    assert_eq!(model("torchvision_resnet18.pth").classifier.expect("has one").n_classes(), 6);
    assert_eq!(model("sdclr_dual.pt").classifier, None);
}

#[test]
fn a_probe_is_told_from_one_of_another_backbone() {
    let dual = model("sdclr_dual.pt");
    assert_eq!(dual.backbone_differences(&model("best_model.pt")), [""; 0]);
    let others = dual.backbone_differences(&model("simclr.pt"));
    assert!(
        others.contains(&"conv1.weight".to_owned()) && others.contains(&"bn1.running_mean".to_owned()),
        "{others:?}"
    );
}

#[test]
fn masks_belong_to_all_convolutions_of_their_network() {
    let dual = model("sdclr_dual.pt");
    let masks = import_masks(&fixture("mask_7.pt"), &dual).expect("masks");
    assert_eq!((masks.epoch, masks.warnings.len()), (Some(7), 0));
    let n_kept = |tensor: &Tensor| tensor.as_u8().expect("bytes").iter().map(|&kept| usize::from(kept)).sum::<usize>();
    let n_weights: usize = masks.tensors.values().map(|tensor| tensor.data.len()).sum();
    assert_eq!(masks.tensors.values().map(n_kept).sum::<usize>(), n_weights - n_weights.div_ceil(2));
    assert_eq!(masks.tensors["mask.layer2.0.downsample.conv.weight"].shape, [4, 2, 1, 1]);
    let error = import_masks(&fixture("mask_7.pt"), &model("torchvision_resnet18.pth")).expect_err("another network");
    assert!(error.to_string().contains("of another network than resnet18"), "{error}");
    let error = import_masks(&fixture("simclr.pt"), &dual).expect_err("a model");
    assert!(error.to_string().contains("no masks (`pruneMask`)"), "{error}");
    let error = import_model(&fixture("mask_7.pt")).expect_err("masks");
    assert!(error.to_string().contains("--mask"), "{error}");
}

#[test]
fn masks_that_keep_the_small_weights_are_pointed_out() {
    let mut dual = model("sdclr_dual.pt");
    for tensor in dual.tensors.values_mut().filter(|tensor| tensor.shape.len() == 4) {
        let inverse = tensor.as_f32().expect("floats").iter().map(|w| 1.0 / w.abs().max(1e-3)).collect();
        *tensor = Tensor::f32(&tensor.shape, inverse);
    }
    let masks = import_masks(&fixture("mask_7.pt"), &dual).expect("masks");
    assert!(masks.warnings[0].contains("another model"), "{:?}", masks.warnings);
}

#[test]
fn a_head_is_drawn_where_there_is_none() {
    let mut imported = model("resnet50.safetensors");
    let before = imported.tensors.clone();
    imported.draw_head(2, 128, 10).expect("draws");
    for (name, tensor) in &before {
        assert_eq!(&imported.tensors[name], tensor, "{name}");
    }
    assert_eq!(imported.spec.head, Head::Projection { layers: 2, dim: 128 });
    assert_eq!(imported.tensors["fc.fc2.weight"].shape, [128, 32]);
    let bound = 32f32.sqrt().recip();
    let drawn = imported.tensors["fc.fc1.weight"].as_f32().expect("floats");
    assert!(drawn.iter().all(|w| w.abs() <= bound) && drawn.iter().any(|w| w.abs() > bound / 2.0));
    assert_eq!(imported.tensors["fc.bn2.running_var"].as_f32(), Some(&[1.0; 128][..]));
}

#[test]
fn other_files_are_refused_with_what_they_are() {
    let refused = |name: &str| import_model(&fixture(name)).expect_err(name).to_string();
    let whole = refused("whole_module.pt");
    assert!(whole.contains("`torch.nn.modules.linear.Linear`") && whole.contains("data.pkl"), "{whole}");
    assert!(refused("make_checkpoints.py").contains("neither a file of torch.save nor a safetensors file"));
    let other = refused("expected.safetensors");
    assert!(other.contains("no `conv1.weight`") && other.contains("`best_model.dense`"), "{other}");
    let missing = import_model(&fixture("nowhere.pt")).expect_err("missing");
    assert!(matches!(missing, ImportError::Read(_)), "{missing}");
}

#[test]
fn a_damaged_file_is_noticed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for name in ["simclr.pt", "odd_legacy.pt", "resnet50.safetensors"] {
        let bytes = std::fs::read(fixture(name)).expect("reads");
        let path = folder.path().join(name);
        for len in [0, 1, 20, 5000, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).expect("writes");
            assert!(import_model(&path).is_err(), "{name} cut to {len} bytes");
        }
    }
    let cut = import_model(&folder.path().join("resnet50.safetensors")).expect_err("cut short").to_string();
    assert!(cut.contains("is it cut short?"), "{cut}");
    // The zip container has checksums of its own.
    let mut bytes = std::fs::read(fixture("simclr.pt")).expect("reads");
    let at = bytes.windows(13).position(|window| window == b"simclr/data/2").expect("a storage") + 100;
    bytes[at] ^= 0x10;
    let path = folder.path().join("flipped.pt");
    std::fs::write(&path, bytes).expect("writes");
    let error = import_model(&path).expect_err("damaged").to_string();
    assert!(error.contains("the file is damaged") && error.contains("simclr/data/2"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn real_files_with_flipped_bits_are_read_or_refused(
        which in 0..4usize,
        flips in proptest::collection::vec((any::<usize>(), 0..8u32), 1..4),
        is_near_the_front: bool,
    ) {
        let name = ["best_model.pt", "mask_7.pt", "odd_legacy.pt", "resnet50.safetensors"][which];
        let mut bytes = std::fs::read(fixture(name)).expect("reads");
        // The front of most files is their pickle or header, where a bit means the most.
        let reach = if is_near_the_front { bytes.len().min(4000) } else { bytes.len() };
        for (at, bit) in flips {
            bytes[at % reach] ^= 1u8 << bit;
        }
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), &bytes).expect("writes");
        // Neither may panic; a flip in a weight of the containers without checksums goes unnoticed.
        let _ = import_model(file.path());
        let _ = import_masks(file.path(), &model("simclr.pt"));
    }
}
