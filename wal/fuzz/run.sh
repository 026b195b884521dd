#!/usr/bin/env bash
# Runs each fuzz target for MINUTES (1 by default), or only those that are named: wal/fuzz/run.sh 10 segment footer.
# Needs cargo-fuzz; a nightly compiler is not needed. Corpora grow in wal/fuzz/corpus/; what is found lies in
# wal/fuzz/artifacts/: fix it, and keep the input in testdata/fuzz/<target>/, where a test runs over it.
set -euo pipefail
cd "$(dirname "$0")"

minutes="${1:-1}"
shift || true
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(directory frame footer segment)

export RUSTC_BOOTSTRAP=1
failed=0
for target in "${targets[@]}"; do
    printf '\n== %s, %s minutes\n' "$target" "$minutes"
    mkdir -p "corpus/$target"
    cargo fuzz run --sanitizer none "$target" "corpus/$target" "../../testdata/fuzz/$target" -- \
        -max_total_time=$((minutes * 60)) -max_len=66000 -timeout=10 -print_final_stats=1 || failed=1
done
exit "$failed"
