#!/usr/bin/env bash
# peers.sh VENV: an environment with the other libraries, for `workbench benchmark synth --peers VENV` and race.py.
# It sees the packages of the environment that runs this (torch, transformers, … are not fetched again); SAELens asks for
# an older TransformerLens, which is installed beside it, without its own dependencies. Wheels only: nothing is built.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 VENV" >&2; exit 2; }
python -m venv "$1"
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$site/shared.pth"
"$1/bin/pip" install --no-deps --only-binary :all: sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 \
  "transformer-lens<4" simple-parsing docstring-parser natsort schedulefree nltk python-dotenv tenacity better-abc nnsight
