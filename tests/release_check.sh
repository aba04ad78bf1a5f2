#!/usr/bin/env bash
# Does what a newcomer does, from nothing: clones, runs both commands of the README, installs the
# wheel in a virtual environment of its own and trains away from the checkout.
set -euo pipefail
python=${1:-python3}
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet "$source" "$work/tenfold"
cd "$work/tenfold"
time make PYTHON="$python" quickstart
time make PYTHON="$python" test
.venv/bin/python -m build --quiet --wheel --outdir "$work/dist"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$work"/dist/*.whl
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export PATH="$work/venv/bin:$PATH"
tenfold list
tenfold copy language_model/quickstart my.yaml
tenfold fit --config my.yaml --trainer.max_steps 100
tenfold test --run_dir runs/elsewhere/my/version_0
echo "release check passed"
