#!/usr/bin/env bash
# Every check there is, in the order of its cost; stops at the first that fails. The last line is pytest's own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment worker,local,dev
cd "$root"
export PATH="$venv/bin:$PATH"

check() {
    local name="$1"
    shift
    say "$name: $*"
    "$@" || stop "$name failed"
}

check "format" ruff format --check .
check "lint" ruff check .
check "types" mypy
check "import contracts" lint-imports
check "tests" pytest --cov --cov-report=term:skip-covered
