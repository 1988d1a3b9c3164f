#!/usr/bin/env bash
# Puts in place what the browser checks need: Chromium (or what HEADROOM_CHROMIUM names), and axe-core beside the
# environment's packages. What is missing is installed where apt-get (as root) and npm allow it; otherwise the last
# line says what is missing, and the exit status is 1.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

axe_version=4.14.1
axe="$venv/browser"

# Installs a Debian package, or says why not. Output is kept back unless it fails.
install_package() {
    command -v apt-get >/dev/null 2>&1 || stop "$1 is missing, and there is no apt-get here to install it."
    [ "$(id -u)" = 0 ] || stop "$1 is missing, and only root can install it: apt-get install $1"
    say "installing $1"
    local output
    output="$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } 2>&1)" ||
        stop "apt-get could not install $1: $(tail -n 3 <<<"$output")"
}

if [ -n "${HEADROOM_CHROMIUM:-}" ]; then
    command -v "$HEADROOM_CHROMIUM" >/dev/null 2>&1 || stop "HEADROOM_CHROMIUM: '$HEADROOM_CHROMIUM' cannot be run."
elif ! command -v chromium >/dev/null 2>&1 && ! command -v chromium-browser >/dev/null 2>&1 && ! command -v google-chrome >/dev/null 2>&1; then
    install_package chromium fonts-dejavu-core
fi

if ! grep -qs "\"version\": \"$axe_version\"" "$axe/node_modules/axe-core/package.json"; then
    command -v npm >/dev/null 2>&1 || install_package npm
    say "installing axe-core $axe_version"
    mkdir -p "$axe"
    output="$(npm install --prefix "$axe" --no-save --no-package-lock --ignore-scripts --no-audit --no-fund "axe-core@$axe_version" 2>&1)" ||
        stop "npm could not install axe-core: $(tail -n 3 <<<"$output")"
fi
say "the browser checks have what they need"
