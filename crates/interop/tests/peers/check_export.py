#!/usr/bin/env python3
"""Load exports of runs into other people's programs and hold their features against those of `sdclr embed`.

    check_export.py --sdclr PROGRAM --images DIR RUN...        prints one line a comparison; fails if one is too far off

Needs torch, torchvision, timm, onnx, onnxruntime, safetensors, numpy, Pillow.  RUN is a run directory in f32 of standard width, SimCLR's
or SDCLR's; DIR holds images of any size that every decoder reads alike, so no JPEGs.  `check_export.txt` beside this file is what it printed
for five runs on 48 synthetic photographs in two folders:

    sdclr pretrain --data DIR --out run-MODEL-SIZE --model MODEL --image-size SIZE --stem small|imagenet --batch-size 16 --epochs 3 \\
        --lr 0.1 --precision f32 [--method simclr]
    sdclr eval linear run-MODEL-SIZE --data DIR --test DIR --protocol cached
    sdclr eval finetune run-MODEL-SIZE --data DIR --test DIR --epochs 2 --batch-size 16

For each run and each of its branches:
  onnx      the checker's full check passes; onnxruntime gives the features (and the embedding) from pixels in [0, 1]
  timm      `create_model(NAME, num_classes=0)` takes the safetensors file, strictly
  torchvision  `resnetN` with its `fc` taken off takes it, strictly
  pt        `torch.load(..., weights_only=True)` gives the same tensors as the safetensors file, bit for bit

For each classifier in RUN/probes, exported with `--probe`: timm's and torchvision's networks with as many classes take it, strictly, and
give onnxruntime's logits; a linear one's are also held against its `fc` on what `sdclr embed` writes.

`sdclr embed` writes the dense branch's features, so onnxruntime, timm and torchvision are held against it there.  The pruned branch and the
embedding have no command of their own; there onnxruntime is held against torchvision's network (for ResNet-32s, which neither timm nor
torchvision has, against nothing: that comparison is in `onnx_runtime.rs`).
"""
import argparse
import csv
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

TOLERANCE = 1e-4  # largest difference over largest magnitude; all sides compute in f32
failures = 0


def report(run, what, ours, theirs, magnitude=None):
    """One line: how far two arrays are apart, of the largest value or of a magnitude that they came from."""
    global failures
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (run, what, ours.shape, theirs.shape)
    apart = np.abs(ours - theirs).max() / (magnitude or np.abs(ours).max())
    good = bool(apart <= TOLERANCE)
    failures += not good
    print(f"{run:26} {what:42} {apart:.1e}  {'agrees' if good else 'DIFFERS'}")


def small_stem(model):
    """The stem for images up to 64 pixels."""
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()


def torchvision_model(name, stem, n_classes=0):
    blocks = {"resnet10": (BasicBlock, [1, 1, 1, 1])}
    if name in blocks:
        model = ResNet(*blocks[name])
    else:
        model = torchvision.models.get_model(name.replace("wide-resnet50-2", "wide_resnet50_2"))
    model.fc = nn.Linear(model.fc.in_features, n_classes) if n_classes else nn.Identity()
    if stem == "small":
        small_stem(model)
    return model


def timm_model(name, stem, n_classes=0):
    if name == "resnet10":
        model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=n_classes)
    else:
        model = timm.create_model(name.replace("wide-resnet50-2", "wide_resnet50_2"), num_classes=n_classes)
    if stem == "small":
        small_stem(model)
    return model


def projection_head(tensors):
    """fc-BN-ReLU(-fc-BN-ReLU)-fc-BN from `projection_head.*`."""
    n_layers = sum(name.startswith("projection_head.fc") and name.endswith("weight") for name in tensors)
    layers = []
    for i in range(1, n_layers + 1):
        part = lambda name: {k.rsplit(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"projection_head.{name}.")}
        fc, bn = part(f"fc{i}"), part(f"bn{i}")
        linear = nn.Linear(fc["weight"].shape[1], fc["weight"].shape[0], bias="bias" in fc)
        linear.load_state_dict(fc)
        norm = nn.BatchNorm1d(len(bn["weight"]))
        norm.load_state_dict(bn)
        layers += [linear, norm] + [nn.ReLU()] * (i < n_layers)
    return nn.Sequential(*layers).eval()


def normalized(pixels, path):
    """Pixels in [0, 1] by the mean and standard deviation that a safetensors file names."""
    with safe_open(path, "pt") as file:
        mean, std = (torch.tensor(json.loads(file.metadata()[k])).view(3, 1, 1) for k in ("mean", "std"))
    return (torch.from_numpy(pixels) - mean) / std


def run_model(model, x):
    with torch.no_grad():
        return model.eval()(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdclr", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, timm, onnx, onnxruntime)}
    print(" ".join(f"{name} {version}" for name, version in versions.items()))
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            check(args.sdclr, args.images, run, Path(folder))
    sys.exit(failures > 0)


def check(program, images, run, folder):
    sdclr = lambda *arguments: subprocess.run([program, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    config = tomllib.loads((run / "config.toml").read_text())
    name, stem, size = config["model"]["name"], config["model"]["stem"], config["data"]["image_size"]
    sdclr("embed", run, "--data", images, "--part", "all", "--out", folder / "e.npy", "--quiet")
    embedded = np.load(folder / "e.npy")
    rows = csv.DictReader((folder / "e.csv").open())
    # What the exports expect: the same for all.
    prepare = transforms.Compose([transforms.Resize(256 if size > 64 else size), transforms.CenterCrop(size)])
    paths = [Path(images) / row["path"] for row in rows]
    pixels = np.stack([np.asarray(prepare(Image.open(path).convert("RGB"))) for path in paths])
    pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for branch in ["dense", "pruned"] if config["method"] == "sdclr" else ["dense"]:
        flags = ["--branch", branch, "--with-head", "--quiet"]
        for ending in ["safetensors", "pt", "onnx"]:
            sdclr("export", run, "--out", folder / f"{branch}.{ending}", *flags)
        tensors = load_file(folder / f"{branch}.safetensors")
        # pt
        state = torch.load(folder / f"{branch}.pt", weights_only=True)
        mapped = torch.load(folder / f"{branch}.pt", weights_only=True, mmap=True)
        assert state.keys() == tensors.keys() == mapped.keys()
        assert all(torch.equal(state[k], tensors[k]) and torch.equal(mapped[k], tensors[k]) for k in state)
        print(f"{run.name:26} {branch + ', pt: equal tensors':42} {len(state)}")
        # onnx
        onnx.checker.check_model(folder / f"{branch}.onnx", full_check=True)
        session = onnxruntime.InferenceSession(folder / f"{branch}.onnx")
        features, embedding = session.run(["features", "embedding"], {"images": pixels})
        alone, _ = session.run(None, {"images": pixels[:1]})
        report(run.name, f"{branch}, onnxruntime, one image", features[:1], alone)
        if branch == "dense":
            report(run.name, "dense, onnxruntime against embed", embedded, features)
        if name.startswith("resnet32s"):
            continue
        # timm and torchvision
        backbone = {k: v for k, v in tensors.items() if not k.startswith("projection_head.")}
        x = normalized(pixels, folder / f"{branch}.safetensors")
        for library, make in [("timm", timm_model), ("torchvision", torchvision_model)]:
            model = make(name, stem)
            model.load_state_dict(backbone, strict=True)
            theirs = run_model(model, x)
            if branch == "dense":
                report(run.name, f"dense, {library} against embed", embedded, theirs)
            report(run.name, f"{branch}, {library} against onnxruntime", features, theirs)
        report(run.name, f"{branch}, head in torch against onnxruntime", embedding, run_model(projection_head(tensors), theirs))
    for probe in sorted(run.glob("probes/*.safetensors")):
        files = [folder / f"classifier.{ending}" for ending in ["safetensors", "onnx"]]
        for file in files:
            sdclr("export", run, "--probe", probe.stem, "--out", file, "--overwrite", "--quiet")
        tensors = load_file(files[0])
        onnx.checker.check_model(files[1], full_check=True)
        features, logits = onnxruntime.InferenceSession(files[1]).run(["features", "logits"], {"images": pixels})
        # Logits of features that hardly differ are small sums of large products, and as exact as those.
        weight, bias = tensors["fc.weight"].numpy(), tensors["fc.bias"].numpy()
        magnitude = (np.abs(features) @ np.abs(weight).T + np.abs(bias)).max()
        if set(load_file(probe)) == {"fc.weight", "fc.bias"}:
            own = embedded @ weight.T + bias
            report(run.name, f"{probe.stem}, fc of embed against onnxruntime", own, logits, magnitude)
        if name.startswith("resnet32s"):
            continue
        x = normalized(pixels, files[0])
        for library, make in [("timm", timm_model), ("torchvision", torchvision_model)]:
            model = make(name, stem, len(bias))
            model.load_state_dict(tensors, strict=True)
            theirs = run_model(model, x)
            report(run.name, f"{probe.stem}, {library} against onnxruntime", logits, theirs, magnitude)


main()
