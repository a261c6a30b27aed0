#!/usr/bin/env bash
# Compares the rate of `sdclr pretrain` with that of `sdclr bench step` at the same settings, interleaved: on stdout a JSON line of each
# a round, pretrain's being that of an epoch in metrics.jsonl (images_per_s; wait_share is the share of it spent waiting for data).
# Usage: benches/pretrain_rate.sh DATA [ROUNDS] [FLAG...]
#   DATA is any source of images; FLAGs go to both commands. The last of pretrain's two epochs counts. SDCLR names the program.
set -euo pipefail
data=$1
rounds=${2:-3}
flags=("${@:3}")
sdclr=${SDCLR:-target/release/sdclr}
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for round in $(seq "$rounds"); do
  "$sdclr" bench step --json --steps 40 "${flags[@]}" | tr -d '\n' | sed 's/  */ /g'
  echo
  "$sdclr" pretrain --data "$data" --epochs 2 --out "$runs/$round" --quiet "${flags[@]}" >/dev/null
  grep '"kind":"epoch"' "$runs/$round/metrics.jsonl" | tail -1
done
