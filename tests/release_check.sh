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

# Known vulnerabilities of what was installed, where the service that knows them can be reached: it
# is asked for an old package that has some, as a mirror may answer without knowing any.
service=https://pypi.org/pypi/urllib3/1.24.1/json
knows="import json, urllib.request as r; assert json.load(r.urlopen('$service', timeout=10))['vulnerabilities']"
if "$python" -c "$knows" 2> /dev/null; then
    "$python" -m venv "$work/audit"
    "$work/audit/bin/pip" install --quiet pip-audit
    "$work/venv/bin/pip" freeze --exclude tenfold > "$work/installed.txt"
    "$work/audit/bin/pip-audit" --strict --disable-pip --no-deps --requirement "$work/installed.txt"
    echo "release check passed"
else
    echo "release check passed; SKIPPED: pip-audit, as $service knows no vulnerabilities"
fi
