#!/usr/bin/env bash
# Runs each fuzz target for MINUTES (1 by default), or only those that are named: wal/fuzz/run.sh 10 segment footer.
# engine/fuzz/run.sh does the same with the engine's targets.
#
# Needs cargo-fuzz and a C++ compiler; a nightly compiler is not needed. Corpora grow in corpus/ beside this file; what is
# found lies in artifacts/: fix it, and keep the input in testdata/fuzz/<target>/, where a test runs over it.
set -euo pipefail
cd "${FUZZ_PACKAGE:-$(dirname "$0")}"

minutes="${1:-1}"
shift || true
targets=("$@")
if [ "${#targets[@]}" -eq 0 ]; then
    for file in fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

# For sanitizer coverage; no sanitizer, because there is no unsafe code to watch.
export RUSTC_BOOTSTRAP=1
failed=0
for target in "${targets[@]}"; do
    printf '\n== %s, %s minutes\n' "$target" "$minutes"
    mkdir -p "corpus/$target"
    options=(-max_total_time=$((minutes * 60)) -max_len=66000 -timeout=10 -print_final_stats=1)
    [ ! -e "$target.dict" ] || options+=("-dict=$target.dict")
    cargo fuzz run --sanitizer none "$target" "corpus/$target" "../../testdata/fuzz/$target" -- "${options[@]}" || failed=1
done
exit "$failed"
