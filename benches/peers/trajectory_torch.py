"""Step by step: sdclr and PyTorch train from the same weights on the same batches.

    trajectory_torch.py --sdclr PATH --data DIR --method sdclr --lr 0.003 --work TMP

Without augmentation the only random things left are the first weights, taken from sdclr's checkpoint, and the order of
the images, drawn here by an independent ChaCha8. Both sides then compute the same function, in their own roundings. How
fast roundings grow is shown by PyTorch itself: in float64, in float32, and in float32 from weights that differ by one
part in 2^24. The batches are 128, 128 and 46 images, so the partial batch is covered, as is the mask of a new epoch.
"""

import argparse
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from torchvision import transforms
from train_torch import Encoder, magnitude_masks, nt_xent, prunable, read_part

SEED, BATCH, TEMPERATURE = 1, 128, 0.2
WORD = 0xFFFFFFFF


def chacha8_block(key, counter):
    state = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter, 0, 0, 0]
    work = list(state)

    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            work[x] = (work[x] + work[y]) & WORD
            mixed = work[z] ^ work[x]
            work[z] = ((mixed << turn) | (mixed >> (32 - turn))) & WORD

    for _ in range(4):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return [(a + b) & WORD for a, b in zip(work, state)]


def epoch_order(n, epoch, seed=SEED, purpose=1, index=0):
    """The order of the images in an epoch, counted from 0, as sdclr draws it."""
    key, words, counter, items = struct.pack("<4Q", seed, purpose, epoch, index), [], 0, list(range(n))
    for last in range(n - 1, 0, -1):
        if not words:
            words, counter = chacha8_block(key, counter), counter + 1
        value = words.pop(0) | words.pop(0) << 32
        at = (value * (last + 1)) >> 64
        items[last], items[at] = items[at], items[last]
    return items


def parameters_of_checkpoint(path):
    raw = Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__" or name.startswith(("optimizer.", "mask.")) or entry["dtype"] != "F32":
            continue
        first, end = (start + offset for offset in entry["data_offsets"])
        tensors[torch_name(name)] = torch.from_numpy(np.frombuffer(raw[first:end], np.float32).reshape(entry["shape"]).copy())
    return tensors


def torch_name(name):
    name = name.replace(".dense.", ".of_branch.0.").replace(".pruned.", ".of_branch.1.")
    name = name.replace("downsample.conv", "downsample.0").replace("downsample.bn", "downsample.1")
    parts = name.split(".")
    if parts[0] == "fc":  # fc1, bn1, (ReLU), fc2, bn2, ...
        parts[:2] = ["head", str(3 * (int(parts[1][2:]) - 1) + (parts[1][:2] == "bn"))]
    elif parts[0].startswith("layer"):
        parts[:2] = ["backbone", str(int(parts[0][5:]) + 2)]
    else:
        parts[:1] = ["backbone", "0" if parts[0] == "conv1" else "1"]
    return ".".join(parts)


def train_sdclr(args, name, *flags):
    out = Path(args.work) / name
    command = [args.sdclr, "pretrain", "--data", f"{args.data}/train-images-idx3-ubyte.gz", "--split", f"{args.work}/images.npy"]
    command += ["--out", out, "--overwrite", "--method", args.method, "--model", "resnet10", "--base-width", "16"]
    command += ["--image-size", "32", "--batch-size", str(BATCH), "--temperature", str(TEMPERATURE), "--prune-rate", "0.9"]
    command += ["--seed", str(SEED), "--threads", "1", "--device", "cpu", "--no-progress", "--log-every", "1"]
    for setting in ["area_min=1", "ratio=[1.0,1.0]", "flip_p=0", "jitter_p=0", "grayscale_p=0"]:
        command += ["--set", f"augment.{setting}"]
    subprocess.run([*command, *flags], check=True, capture_output=True)
    return out


def train_torch(args, weights, images, dtype=torch.float32, perturbation=None):
    sdclr = args.method == "sdclr"
    model = Encoder(16, head_layers=3 if sdclr else 2, twin_norms=sdclr)
    own = {name for name, _ in model.named_parameters()}
    model.load_state_dict(model.state_dict() | {name: value for name, value in weights.items() if name in own})
    assert own <= weights.keys()
    model.to(dtype)
    if perturbation is not None:
        generator = torch.Generator().manual_seed(perturbation)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 2**-24 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for epoch in range(args.epochs):
        if sdclr:
            masks = {name: mask.to(dtype) for name, mask in magnitude_masks(model, 0.9)[0].items()}
        order = epoch_order(len(images), epoch)
        for at in range(0, len(images), BATCH):
            x = images[order[at : at + BATCH]].to(dtype)
            if sdclr:
                model.use_branch(0)
                a = model(x)
                model.use_branch(1)
                b = functional_call(model, {k: w * masks[k] for k, w in prunable(model).items()}, (x,))
            else:
                a, b = model(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).unbind(1)
            loss = nt_xent(a, b, TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdclr", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--method", choices=["simclr", "sdclr"], default="sdclr")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=302)
    args = parser.parse_args()
    torch.set_num_threads(1)
    assert epoch_order(8, 0, seed=10, purpose=3, index=7) == [2, 3, 0, 6, 1, 4, 5, 7]

    Path(args.work).mkdir(parents=True, exist_ok=True)
    images, _ = read_part(args.data, "train")
    chosen = np.random.default_rng(1).permutation(len(images))[: args.images].astype(np.int64)
    np.save(f"{args.work}/images.npy", chosen)
    images = torch.stack([transforms.ToTensor()(images[i]) for i in chosen])

    # A rate that moves nothing leaves the first weights in the checkpoint.
    start = train_sdclr(args, "start", "--epochs", "1", "--lr", "1e-30", "--min-lr", "0")
    run = train_sdclr(
        args, "run", "--epochs", str(args.epochs), "--lr", str(args.lr), "--schedule", "constant", "--warmup-epochs", "0"
    )
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in steps if line["kind"] == "step"]
    weights = parameters_of_checkpoint(start / "checkpoints" / "last.safetensors")
    exact = train_torch(args, weights, images, torch.float64)
    others = [train_torch(args, weights, images)]
    others += [train_torch(args, weights, images, perturbation=seed) for seed in range(4)]

    print(f"{args.method}, lr {args.lr}: loss of a step, less that of PyTorch in float64")
    print("| step | float64 | sdclr | float32 | float32, weights moved by 2^-24, four times |\n|---|---|---|---|---|")
    for step, reference in enumerate(exact):
        cells = [f"{losses[step] - reference:+.1e}" for losses in [ours, *others]]
        print(f"| {step + 1} | {reference:.6f} | {cells[0]} | {cells[1]} | {' '.join(cells[2:])} |")


if __name__ == "__main__":
    main()
