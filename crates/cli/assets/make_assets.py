#!/usr/bin/env python3
"""Make the demo's images: three small subsets of Fashion-MNIST as gzipped IDX files.

Usage: make_assets.py [SOURCE_DIR]     (numpy only)

SOURCE_DIR holds the four original `.gz` files; the default is where Debian's package `dataset-fashion-mnist` puts
them.  The same source gives byte-identical images and labels everywhere: numpy's frozen RandomState(2021) draws the
class order and the images, and the gzip headers carry no time.

train: long-tailed, int(1000 * 0.01^(i/9)) images of the class at place i of a random class order (1000 ... 10).
probe: 100 images per class from the same original training part, none of them in `train`.
test:  200 images per class from the original test part.
"""
import gzip
import struct
import sys
from pathlib import Path

import numpy as np

N_CLASSES, N_MAX, IMBALANCE = 10, 1000, 100
N_PROBE, N_TEST = 100, 200
SEED = 2021  # the year of the paper


def read_idx(path):
    data = gzip.decompress(path.read_bytes())
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + np.ascontiguousarray(array).tobytes(), 9, mtime=0))


def long_tail_counts():
    # Exact integers where the float power is a hair below one: 1000 * 0.01^(9/9) is 10.
    return [int(N_MAX * (1 / IMBALANCE) ** (i / (N_CLASSES - 1)) + 1e-9) for i in range(N_CLASSES)]


def main():
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    target = Path(__file__).parent / "fashion-mnist-lt"
    target.mkdir(exist_ok=True)
    random = np.random.RandomState(SEED)

    train_x, train_y = (read_idx(source / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    test_x, test_y = (read_idx(source / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))

    class_order = random.permutation(N_CLASSES)  # so that the tail is not the label order
    chosen = {"train": [], "probe": [], "test": []}
    for label, count in sorted(zip(class_order.tolist(), long_tail_counts())):
        shuffled = random.permutation(np.flatnonzero(train_y == label))
        chosen["train"].extend(shuffled[:count])
        chosen["probe"].extend(shuffled[-N_PROBE:])
        chosen["test"].extend(random.permutation(np.flatnonzero(test_y == label))[:N_TEST])
    assert not set(chosen["train"]) & set(chosen["probe"])

    for part, indices in chosen.items():
        x, y = (test_x, test_y) if part == "test" else (train_x, train_y)
        indices = np.sort(np.array(indices))
        write_idx(target / f"{part}-images-idx3-ubyte.gz", x[indices])
        write_idx(target / f"{part}-labels-idx1-ubyte.gz", y[indices])
        print(part, len(indices), "images; per label 0-9:", np.bincount(y[indices], minlength=N_CLASSES).tolist())
    print("bytes:", sum(f.stat().st_size for f in target.glob("*.gz")))


if __name__ == "__main__":
    main()
