"""The lines of `benches/bf16_training.sh` as a Markdown table: mean ± sample standard deviation over seeds, f32 and bf16.

    bf16_table.py LINES.jsonl
"""

import json
import statistics
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
keys = [key for key in lines[0] if key not in ("method", "precision", "seed")]
for method in ("simclr", "sdclr"):
    sides = [[line for line in lines if (line["method"], line["precision"]) == (method, p)] for p in ("f32", "bf16")]
    print(f"\n| {method}, {len(sides[0])} seeds | f32 | bf16 | difference in pooled std | Welch t |\n|---|---|---|---|---|")
    for key in keys:
        (a, s), (b, t) = ((statistics.fmean(v), statistics.stdev(v)) for v in ([line[key] for line in side] for side in sides))
        error = (s**2 / len(sides[0]) + t**2 / len(sides[1])) ** 0.5
        pooled = ((s**2 + t**2) / 2) ** 0.5
        digits = 3 if key == "loss" else 1
        cells = [f"{mean:.{digits}f} ± {std:.{digits}f}" for mean, std in ((a, s), (b, t))]
        print(f"| {key} | {' | '.join(cells)} | {(b - a) / pooled:+.2f} | {(b - a) / error:+.1f} |")
