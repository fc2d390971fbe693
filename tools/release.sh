#!/usr/bin/env bash
# Builds wheel and source archive, checks them, installs the wheel into an empty environment and runs the demo from there.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf dist
test -f workbench/_site/index.html || { echo "workbench/_site is missing: make docs builds it, make release does so first"; exit 1; }
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build twine
"$work/tools/bin/python" -m build --outdir dist .
"$work/tools/bin/twine" check --strict dist/*
"${PYTHON:-python3}" -m venv "$work/empty"
"$work/empty/bin/pip" install --quiet -c constraints.txt torch dist/*.whl
cp constraints.txt "$work"
cd "$work"
"$work/empty/bin/python" "$here/tools/compiled_here.py"
du -sh empty/lib/python3*/site-packages | sed 's/empty.*/installed/'
"$work/empty/bin/python" -X importtime -c "import workbench" 2>&1 | tail -1
"$work/empty/bin/workbench" --version
du -sh empty/lib/python3*/site-packages/workbench/_site | sed 's/empty.*/documentation/'
"$work/empty/bin/workbench" docs compare --json
"$work/empty/bin/workbench" demo --no-ui --workspace "$work/workspace"
