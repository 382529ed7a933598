#!/usr/bin/env bash
# Trains four methods on one real data set and measures every budget on its test clips.
#   benchmarks/real_data.sh DIR EPOCHS [SETTING=VALUE ...]
# DIR: an AudioFolder with metadata.csv. Results: benchmarks/results/NAME.json and plots.
# Goes on where it stopped.
set -euo pipefail
data=$1 epochs=$2
shift 2
name=$(basename "$data")
cd "$(dirname "$0")/.."
settings=()
for setting in "$@"; do settings+=(--set "$setting"); done
for method in full random early-exit input; do
    sounding train --backbone whisper-base --data "$data" --out "runs/$name/$method" \
        --method "$method" --epochs "$epochs" "${settings[@]}"
done
sounding sweep "runs/$name/full" "runs/$name/random" "runs/$name/early-exit" "runs/$name/input" \
    --data "$data" --json "benchmarks/results/$name.json" --plots "benchmarks/results/$name"
