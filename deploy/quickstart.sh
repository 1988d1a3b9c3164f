#!/usr/bin/env bash
# From a clean clone to a first report: makes the environment, then audits the bundled sample model through the real
# path: API, database, queue, worker, report. Needs Python >= 3.11, pip and the package registry, nothing else.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

unset HEADROOM_URL  # the stack of this machine, not a service elsewhere
make_environment worker,local
home="$("$venv/bin/python" -c 'from service.settings import settings; print(settings().home.expanduser().absolute())')"
out="$home/quickstart/$(date +%Y%m%d-%H%M%S)-$$"

say "analyzing the sample model; report: $out"
"$venv/bin/headroom" analyze sample --out "$out"
say "done. The same for a real trained model (93 MB to fetch): $venv/bin/headroom analyze \"\$(bash $root/deploy/real_model.sh | tail -n 1)\" --out DIR"
say "The same for a model of your own: $venv/bin/headroom analyze MODEL --out DIR"
say "To keep the service running: $venv/bin/headroom serve"
