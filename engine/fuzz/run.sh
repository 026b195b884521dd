#!/usr/bin/env bash
# Runs the engine's fuzz targets: see wal/fuzz/run.sh.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
FUZZ_PACKAGE="$here" exec "$here/../../wal/fuzz/run.sh" "$@"
