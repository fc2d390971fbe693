#!/usr/bin/env bash
# peers.sh VENV: an environment with the other libraries and benchmarks, for `workbench benchmark synth --peers VENV`,
# race.py, first_insight.py and saebench.py.
# It sees the packages of the environment that runs this (torch, transformers, … are not fetched again); SAELens asks for
# an older TransformerLens, which is installed beside it, without its own dependencies. Wheels only: nothing is built.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 VENV" >&2; exit 2; }
python -m venv "$1"
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$site/shared.pth"
"$1/bin/pip" install --no-deps --only-binary :all: sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 \
  "transformer-lens<4" simple-parsing docstring-parser natsort schedulefree nltk python-dotenv tenacity better-abc nnsight \
  sae-bench==0.6.0 sae-probes==0.4.2 sae-dashboard==0.8.0 xgboost-cpu zstandard collectibles tabulate seaborn \
  eindex-callum dataclasses-json marshmallow==3.26.1 typing-inspect decode-clt
