# Makes the Python environment in .venv, once. Sourced by quickstart.sh and test.sh, which set nothing but `set -euo pipefail`.
#
#     make_environment EXTRAS    installs Headroom with the extras (such as worker,local); afterwards $venv is the environment
#
# What was installed is remembered in .venv/installed-EXTRAS: a hash of everything that decides it. The same hash
# means that nothing needs to be done.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

say() { printf '%s\n' "==> $*"; }

stop() {
    printf '%s\n' "${0##*/}: $*" >&2
    exit 1
}

# Prints the path of a Python of at least 3.11, or fails. HEADROOM_PYTHON names one to use.
find_python() {
    local candidate
    for candidate in ${HEADROOM_PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_environment() {
    local extras="$1" python stamp wanted
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        python="$(find_python)" || stop "Python 3.11 or newer is needed and none was found on PATH; install it, or set HEADROOM_PYTHON to one."
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            stop "$python cannot make environments: its venv or ensurepip module is missing (on Debian and Ubuntu: apt install python3-venv)."
        say "making the environment $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv" || stop "$python could not make the environment $venv."
    fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null ||
        stop "$venv has no pip and none could be put there. Remove $venv and run this again."
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "$venv has $("$venv/bin/python" --version); Python 3.11 or newer is needed. Remove $venv and run this again."
    stamp="$venv/installed-${extras//,/-}"
    wanted="$(fingerprint "$extras")"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "the environment $venv is up to date"
        return
    fi
    rm -f "$stamp"
    say "installing torch (the largest part; only this time)"
    install torch
    say "installing Headroom with: $extras (about a minute, without further words)"
    install -q -e "$root[$extras]"
    printf '%s\n' "$wanted" >"$stamp"
}

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check -c "$root/deploy/constraints.txt" "$@" ||
        stop "pip could not install $*; its message is above. Is the package registry reachable?"
}

fingerprint() {
    "$venv/bin/python" - "$1" "$root/pyproject.toml" "$root/deploy/constraints.txt" <<'PYTHON'
import hashlib, sys
digest = hashlib.sha256(repr((sys.argv[1], sys.version_info, sys.argv[2])).encode())
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())
PYTHON
}
