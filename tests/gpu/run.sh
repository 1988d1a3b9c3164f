#!/usr/bin/env bash
# Proves Headroom on a GPU, and says what it costs there: correctness, speed and memory, in at most 8 minutes on an H100.
#
#     bash tests/gpu/run.sh OUT [--dry] [--scratch DIR]
#
# The device is the first that CUDA_VISIBLE_DEVICES leaves; --scratch names a folder for 20 GB of checkpoints.
# OUT/gpu.jsonl gets a line as soon as a step has ended, OUT/gpu.md is a table of them. --dry does the same on the CPU
# with small sizes. Needs Python >= 3.11, torch >= 2.11 with CUDA, triton >= 3.6, transformers >= 5.17 and accelerate, and
# neither network nor service; wheels of what else is missing lie in the folder that WHEELS names. HEADROOM_PYTHON names
# another Python.
# Exit status: 0 every step was ok or skipped; 1 one failed; 2 it could not begin.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

stop() {
    printf '%s\n' "run.sh: $*" >&2
    exit 2
}

case "${1:-}" in
    "" | -*) stop "usage: bash tests/gpu/run.sh OUT [--dry] [--scratch DIR]" ;;
esac
[ -z "${WHEELS:-}" ] || [ -d "$WHEELS" ] || stop "WHEELS: '$WHEELS' is no folder; give the folder that holds the wheels."
for python in ${HEADROOM_PYTHON:-} python3 python; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        exec "$python" "$here/gpu_driver.py" "$@"
    fi
done
stop "Python 3.11 or newer is needed and none was found on PATH; set HEADROOM_PYTHON to one."
