#!/usr/bin/env python3
"""Writes JPEGs with the spectrum of photographs (amplitude 1/frequency^1.3): quality 90, 4:2:0, baseline.

make_photos.py FOLDER WIDTH HEIGHT COUNT.  Needs: pip install numpy pillow.
"""
import pathlib, sys
import numpy as np
from PIL import Image

folder, (width, height, count) = pathlib.Path(sys.argv[1]), map(int, sys.argv[2:5])
folder.mkdir(parents=True)
radius = np.hypot(np.fft.fftfreq(width)[None, :], np.fft.fftfreq(height)[:, None])
radius[0, 0] = 1
for n in range(count):
    random = np.random.default_rng(n)
    planes = [np.fft.ifft2(np.fft.fft2(random.normal(size=(height, width))) / radius**1.3).real for _ in range(4)]
    planes = [plane / plane.std() for plane in planes]
    pixels = np.stack([128 + 50 * (planes[3] + 0.5 * plane) for plane in planes[:3]], -1)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n:04}.jpg", quality=90, subsampling=2)
