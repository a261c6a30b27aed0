"""SimCLR and SDCLR in plain PyTorch, to hold sdclr's training against.

    train_torch.py train --data DIR --method sdclr --seed 1 --out RUN    one training run: loss.json, probe.npy, test.npy
    train_torch.py judge --data DIR --name torch-sdclr RUN... --name ours-sdclr RUN... --out result.json

`train` is an independent reading of the method: nothing in it comes from sdclr's source. DIR holds IDX files
(`train-`, `probe-`, `test-images-idx3-ubyte.gz` and their labels); 28x28 grey images are zero-padded to 32x32 and made RGB.

`judge` reads run folders of either side, each with probe.npy, test.npy and either loss.json (from `train`) or
metrics.jsonl (from `sdclr pretrain`), and applies one and the same probe to all of them.
"""

import argparse
import gzip
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, conv1x1

# ---------------------------------------------------------------------------------------------------------------- data


def read_idx(path):
    raw = gzip.decompress(Path(path).read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def read_part(folder, part):
    images = read_idx(Path(folder) / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(Path(folder) / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return [Image.fromarray(image).convert("RGB") for image in images], labels


class TwoViews(Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.transform(self.images[index])


def augmentation(args):
    if args.no_augmentation:
        return transforms.ToTensor()
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                32, scale=(0.1, 1.0), ratio=(3 / 4, 4 / 3), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
        ]
    )


# --------------------------------------------------------------------------------------------------------------- model


class TwinNorm(nn.Module):
    """One batch norm for each branch; `branch` says which one is in use."""

    def __init__(self, make, channels):
        super().__init__()
        self.of_branch = nn.ModuleList([make(channels), make(channels)])
        self.branch = 0

    def forward(self, x):
        return self.of_branch[self.branch](x)


class Encoder(nn.Module):
    """ResNet-10 with the small-image stem and a projection head."""

    def __init__(self, width, head_layers, twin_norms, head_dim=128):
        super().__init__()

        def norm2d(channels):
            return TwinNorm(nn.BatchNorm2d, channels) if twin_norms else nn.BatchNorm2d(channels)

        def norm1d(channels):
            return TwinNorm(nn.BatchNorm1d, channels) if twin_norms else nn.BatchNorm1d(channels)

        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        backbone = [nn.Conv2d(3, width, 3, padding=1, bias=False), norm2d(width), nn.ReLU(inplace=True)]
        channels = width
        for stage in range(4):
            wider, stride = width * 2**stage, 1 if stage == 0 else 2
            shortcut = None
            if stride != 1 or channels != wider:
                shortcut = nn.Sequential(conv1x1(channels, wider, stride), norm2d(wider))
            backbone.append(BasicBlock(channels, wider, stride, shortcut, norm_layer=norm2d))
            channels = wider
        backbone += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.backbone = nn.Sequential(*backbone)

        head = [nn.Linear(channels, channels, bias=True), norm1d(channels), nn.ReLU(inplace=True)]
        if head_layers == 3:
            head += [nn.Linear(channels, channels, bias=False), norm1d(channels), nn.ReLU(inplace=True)]
        head += [nn.Linear(channels, head_dim, bias=False), norm1d(head_dim)]
        self.head = nn.Sequential(*head)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def use_branch(self, branch):
        for module in self.modules():
            if isinstance(module, TwinNorm):
                module.branch = branch

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.head(self.features(x))


def prunable(model):
    return {
        f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }


@torch.no_grad()
def magnitude_masks(model, rate):
    """Global: drops the ceil(rate*N) convolution weights of least magnitude. Returns masks, threshold, kept share."""
    weights = prunable(model)
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    n = magnitudes.numel()
    threshold = magnitudes.sort().values[min(math.ceil(rate * n), n - 1)]
    masks = {name: (weight.abs() >= threshold).float() for name, weight in weights.items()}
    return masks, threshold.item(), sum(mask.sum().item() for mask in masks.values()) / n


# ------------------------------------------------------------------------------------------------------------ training


def nt_xent(a, b, temperature):
    z = F.normalize(torch.cat([a, b]))
    n = len(a)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    positives = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(logits, positives)


def rate_at(update, total, warmup, lr, min_lr):
    """`update` counts from 1."""
    if update <= warmup:
        return lr * update / warmup
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))


@torch.no_grad()
def embed(model, images):
    model.eval()
    model.use_branch(0)
    to_tensor = transforms.ToTensor()
    batches = [torch.stack([to_tensor(i) for i in images[at : at + 200]]) for at in range(0, len(images), 200)]
    return torch.cat([model.features(batch) for batch in batches]).numpy()


def train(args):
    torch.set_num_threads(args.threads)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    images, _ = read_part(args.data, "train")
    loader = DataLoader(TwoViews(images, augmentation(args)), args.batch_size, shuffle=True, num_workers=0)
    sdclr = args.method == "sdclr"
    model = Encoder(args.base_width, head_layers=3 if sdclr else 2, twin_norms=sdclr)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    total = args.epochs * len(loader)
    warmup = min(10, args.epochs / 10) * len(loader)

    update, epochs, started = 0, [], time.time()
    for epoch in range(1, args.epochs + 1):
        record = {"epoch": epoch}
        if sdclr:
            masks, record["mask_threshold"], record["mask_kept_share"] = magnitude_masks(model, args.prune_rate)
        model.train()
        losses = []
        for view1, view2 in loader:
            update += 1
            if len(view1) < 2:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate_at(update, total, warmup, args.lr, 1e-6)
            if sdclr:
                model.use_branch(0)
                a = model(view1)
                model.use_branch(1)
                b = functional_call(model, {k: w * masks[k] for k, w in prunable(model).items()}, (view2,))
            else:
                a, b = model(torch.stack([view1, view2], 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
            loss = nt_xent(a, b, args.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        record |= {"loss": statistics.fmean(losses), "elapsed_s": round(time.time() - started, 1)}
        epochs.append(record)
        print(json.dumps(record), flush=True)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for part in ["probe", "test"]:
        np.save(out / f"{part}.npy", embed(model, read_part(args.data, part)[0]))
    config = {key: value for key, value in vars(args).items() if key not in ("run", "data", "out")}
    (out / "loss.json").write_text(json.dumps({"config": config, "torch": torch.__version__, "epochs": epochs}, indent=1))


# ------------------------------------------------------------------------------------------------------------- judging


def logistic_regression(x, y, test_x, n_classes, l2=1e-3):
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test_x = (x - mean) / std, (test_x - mean) / std
    layer = nn.Linear(x.shape[1], n_classes).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + l2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer(test_x).argmax(1)


def nearest_neighbours(x, y, test_x, n_classes, k=20):
    similarity = F.normalize(test_x) @ F.normalize(x).T
    votes = F.one_hot(y[similarity.topk(k).indices], n_classes).sum(1)
    return votes.argmax(1)


def accuracies(predicted, labels, groups):
    by_class = [(predicted[labels == c] == c).double().mean().item() * 100 for c in range(len(set(labels.tolist())))]
    result = {"all": statistics.fmean(by_class)}
    return result | {group: statistics.fmean(by_class[c] for c in classes) for group, classes in groups.items()}


def judge_run(folder, parts, groups):
    """Everything measured of one run, as one flat mapping, and its loss curve."""
    folder = Path(folder)
    if (folder / "loss.json").exists():
        epochs = json.loads((folder / "loss.json").read_text())["epochs"]
    else:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if line["kind"] == "epoch"]
    x, test_x = (torch.from_numpy(np.load(folder / f"{part}.npy")).double() for part in ("probe", "test"))
    y, test_y = (torch.from_numpy(parts[part]) for part in ("probe", "test"))
    assert len(x) == len(y) and len(test_x) == len(test_y), folder
    n_classes = int(y.max()) + 1
    measured = {"last loss": epochs[-1]["loss"]}
    for name, probe in [("linear", logistic_regression), ("knn", nearest_neighbours)]:
        for group, value in accuracies(probe(x, y, test_x, n_classes), test_y, groups).items():
            measured[f"{name} {group}"] = value
    spectrum = torch.linalg.eigvalsh(torch.cov(test_x.T)).clamp(min=0)
    measured |= {
        "feature mean": test_x.mean().item(),
        "feature std": test_x.std().item(),
        "feature norm": test_x.norm(dim=1).mean().item(),
        "feature channel std": test_x.std(0).mean().item(),
        "feature dimensions": (spectrum.sum() ** 2 / spectrum.square().sum()).item(),
    }
    if "mask_threshold" in epochs[-1]:
        measured["last mask threshold"] = epochs[-1]["mask_threshold"]
    return {"measured": measured, "loss": [epoch["loss"] for epoch in epochs]}


def judge(args):
    torch.set_num_threads(args.threads)
    parts = {part: read_idx(Path(args.data) / f"{part}-labels-idx1-ubyte.gz").astype(np.int64) for part in ("train", "probe", "test")}
    counts = np.bincount(parts["train"])
    order, third = np.argsort(counts, kind="stable").tolist(), len(counts) // 3
    groups = {"few": order[:third], "medium": order[third : 2 * third], "many": order[2 * third :]}
    sides = {}
    for name, *folders in args.name:
        runs = [judge_run(folder, parts, groups) for folder in folders]
        spread = {}
        for key in runs[0]["measured"]:
            values = [run["measured"][key] for run in runs]
            spread[key] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None, "runs": values}
        curves = np.array([run["loss"] for run in runs])
        spread["loss by epoch"] = {
            "mean": curves.mean(0).tolist(),
            "std": curves.std(0, ddof=1).tolist() if len(runs) > 1 else None,
            "runs": curves.tolist(),
        }
        sides[name] = spread

    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    if args.out:
        Path(args.out).write_text(json.dumps(rounded({"groups": groups, "sides": sides}), indent=1) + "\n")

    # Sides are compared in pairs, in the order given.
    names = list(sides)
    for left, right in zip(names[::2], names[1::2]):
        print(f"\n| | {left} | {right} | difference | Welch t |\n|---|---|---|---|---|")
        rows = [(key, sides[left][key], sides[right][key]) for key in sides[left] if key != "loss by epoch" and key in sides[right]]
        curves = [sides[side]["loss by epoch"] for side in (left, right)]
        for epoch in range(len(curves[0]["mean"])):
            at = [{"mean": c["mean"][epoch], "std": c["std"] and c["std"][epoch], "runs": c["runs"]} for c in curves]
            rows.append((f"loss, epoch {epoch + 1}", *at))
        for key, a, b in rows:
            difference = b["mean"] - a["mean"]
            if a["std"] is None or b["std"] is None:
                print(f"| {key} | {a['mean']:.4g} | {b['mean']:.4g} | {difference:+.3g} | |")
                continue
            error = math.sqrt(a["std"] ** 2 / len(a["runs"]) + b["std"] ** 2 / len(b["runs"]))
            ratio = f"{difference / error:+.1f}" if error else ""
            print(f"| {key} | {a['mean']:.4g} ± {a['std']:.2g} | {b['mean']:.4g} ± {b['std']:.2g} | {difference:+.3g} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.set_defaults(run=train)
    command.add_argument("--data", required=True)
    command.add_argument("--out", required=True)
    command.add_argument("--method", choices=["simclr", "sdclr"], default="sdclr")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--epochs", type=int, default=12)
    command.add_argument("--batch-size", type=int, default=128)
    command.add_argument("--base-width", type=int, default=16)
    command.add_argument("--lr", type=float, default=0.5)
    command.add_argument("--temperature", type=float, default=0.2)
    command.add_argument("--prune-rate", type=float, default=0.9)
    command.add_argument("--no-augmentation", action="store_true", help="both views are the image itself")
    command.add_argument("--threads", type=int, default=1)
    command = commands.add_parser("judge")
    command.set_defaults(run=judge)
    command.add_argument("--data", required=True)
    command.add_argument("--name", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    command.add_argument("--out")
    command.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
