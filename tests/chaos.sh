#!/usr/bin/env bash
# Chaos over several seeds: tests/chaos.sh [MINUTES [SEED…]]. Without seeds, as many random ones as minutes.
# Each seed runs one minute of faults; what it finds ends the script, with the command that repeats it.
# As root, each node gets a small disk of its own that is filled, turned read-only and robbed of its power, too.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes="${1:-10}"
shift || true
seeds=("$@")
while [ "${#seeds[@]}" -lt "$minutes" ]; do
    seeds+=("$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')")
done
for seed in "${seeds[@]:0:$minutes}"; do
    CHAOS_SEED="$seed" CHAOS_SECONDS=60 cargo test --workspace --test chaos -- --nocapture
done
