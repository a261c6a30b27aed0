#!/usr/bin/env python3
"""PyTorch peer of the features that a probe computes: a frozen ResNet in evaluation mode, without a loader.

Needs: pip install torch torchvision.  Prints one JSON line for `sdclr bench probe --against`:
  {"peer": "torch", "mode": ..., "features_images_per_s": ...}
Images lie in memory as bytes and are normalised a batch at a time; no decoding is timed.

Modes (--mode):
  fp32          NCHW, as most scripts run it
  fp32-last     channels_last
  bf16          autocast bfloat16, channels_last
  fp32-compile  fp32-last and torch.compile
"""
import argparse, json, statistics, time
import torch, torch.nn as nn, torchvision

parser = argparse.ArgumentParser()
parser.add_argument("--mode", default="fp32", choices=["fp32", "fp32-last", "bf16", "fp32-compile"])
parser.add_argument("--depth", type=int, default=18, choices=[18, 50])
parser.add_argument("--image-size", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--images", type=int, default=512)
parser.add_argument("--repeats", type=int, default=3)
args = parser.parse_args()

torch.manual_seed(0)
model = getattr(torchvision.models, f"resnet{args.depth}")()
model.fc = nn.Identity()
if args.image_size <= 64:
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
layout = torch.contiguous_format if args.mode == "fp32" else torch.channels_last
model = model.eval().to(memory_format=layout)
images = torch.randint(0, 256, (args.images, 3, args.image_size, args.image_size), dtype=torch.uint8)
run = torch.compile(model) if args.mode == "fp32-compile" else model


@torch.inference_mode()
def features():
    rows = []
    for batch in images.split(args.batch_size):
        batch = ((batch.float() / 255 - 0.5) / 0.25).to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mode == "bf16"):
            rows.append(run(batch).float())
    return torch.cat(rows)


features()
times = []
for _ in range(args.repeats):
    start = time.perf_counter()
    features()
    times.append(time.perf_counter() - start)
rate = args.images / statistics.median(times)
print(json.dumps({"peer": "torch", "mode": args.mode, "features_images_per_s": round(rate, 1)}))
