"""From an installed program and a model folder to the first page with labelled latents: wall and processor seconds of
every stage (a busy machine lengthens the first, not the second).

    python benchmarks/first_insight.py [--model FOLDER] [--site L15R] [--sequences 1024] [--tokens 300000]
    python benchmarks/first_insight.py --peers-python VENV/bin/python   # and SAELens with sae-dashboard, on the same
    python benchmarks/first_insight.py --quick                          # the bundled miniature

Every stage is the command a user types, in a process of its own, so loading the program and the model counts each
time: activations, a dictionary (8 times the width, k = 32), the records of its latents, their labels by rule, and web
pages of them. The last stage is checked: the page must show labels. The peers read the same tokens (of the store) and
train as many rows of the same width and k in one process of their own environment; their page has no labels, which
sae-dashboard leaves to others (see ``_first_insight_peer.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
K, EXPANSION, SHOWN = 32, 8, 100
Stage = tuple[str, float, float]  # name, wall and processor seconds
HARVEST = """
id = "first"
hooks = ["{site}"]
n_seq = {sequences}
ctx = 128
threads = {threads}
[corpus]
kind = "{corpus}"
split = "all"
heldout = "documents"
tiled_share = 0.0
snippet_share = 0.0
agreement_share = 0.0
[[sources]]
model = "{model}"
"""
TRAIN = """
store = "first"
sites = ["{site}"]
expansions = [{expansion}]
ks = [{k}]
tokens = {tokens}
[sae]
preset = "few-steps"
"""


def children() -> float:
    """Processor seconds of the processes this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stage(args: argparse.Namespace, *command: str) -> tuple[float, float]:
    """(wall, processor) seconds of one command of the program."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(args.threads)}
    begin, before = time.perf_counter(), children()
    typed = [sys.executable, "-m", "workbench", *command, "--workspace", str(args.workspace), "--json"]
    done = subprocess.run(typed, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"workbench {' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return time.perf_counter() - begin, children() - before


def ours(args: argparse.Namespace) -> Iterator[Stage]:
    """Every command; at the end the number of labels on the page is said."""
    harvest, train = args.workspace / "harvest.toml", args.workspace / "train.toml"
    args.workspace.mkdir(parents=True, exist_ok=True)
    told = vars(args) | {"k": K, "expansion": EXPANSION, "corpus": "mini" if args.quick else "docs"}
    harvest.write_text(HARVEST.format(**told), encoding="utf-8")
    train.write_text(TRAIN.format(**told), encoding="utf-8")
    yield "activations", *stage(args, "harvest", str(harvest))
    yield "dictionary", *stage(args, "train", str(train))
    dictionary = next((args.workspace / "dictionaries").iterdir()).name
    some = str(min(args.tokens, 60_000))
    yield "records", *stage(args, "features", dictionary, "--tokens", some)
    yield "labels", *stage(args, "explain", dictionary, "--tokens", some)
    source = f"latents/{dictionary}"
    yield "pages", *stage(args, "export", "site", "--source", source, "--set", f"latents={SHOWN}")
    page = next((args.workspace / "exports").glob(f"site*/latents/{dictionary}/index.html"))
    labels = labelled(page.read_text(encoding="utf-8"))
    if not labels:
        raise SystemExit(f"{page} shows no labelled latent: nothing was reached.")
    print(f"{labels} of {SHOWN} latents on the first page have a label", file=sys.stderr)


def labelled(page: str) -> int:
    """Rows of a page's table of latents whose second cell is a label."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return sum(len(c) > 1 and re.sub(r"<[^>]*>", "", c[1]).strip() not in ("", "–") for c in cells)


def theirs(args: argparse.Namespace, out: Path) -> list[Stage]:
    """The peers' stages on the store's tokens, as their own process tells them; before them its start."""
    import numpy as np

    from workbench.activations import ActivationStore
    from workbench.models.load import load_hf, load_tokenizer
    from workbench.models.sites import hooks_of

    load_hf(args.model).save_pretrained(out / "model")
    load_tokenizer(args.model).save_pretrained(out / "model")
    store = ActivationStore.open(args.workspace / "stores" / "first")
    held = set(store.heldout)
    tokens = [store.sequence_tokens(i) for i in range(args.sequences) if i not in held]
    np.save(out / "tokens.npy", np.stack(tokens).astype(np.int64))
    job = {
        "model": str(out / "model"),
        "tokens": str(out / "tokens.npy"),
        "hook": hooks_of(args.site)[0],
        "rows": args.tokens,
        "k": K,
        "expansion": EXPANSION,
        "shown": SHOWN,
        "scratch": str(out),
    }
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
    peer = [args.peers_python, str(Path(__file__).with_name("_first_insight_peer.py")), json.dumps(job)]
    begin, before = time.perf_counter(), children()
    done = subprocess.run(peer, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peers failed with exit status {done.returncode}")
    found = [(str(name), float(w), float(p)) for name, w, p in json.loads(done.stdout.strip().splitlines()[-1])]
    wall = time.perf_counter() - begin - sum(s[1] for s in found)
    return [("program", wall, children() - before - sum(s[2] for s in found)), *found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model folder, or a name of ours")
    parser.add_argument("--site", default="L15R")
    parser.add_argument("--sequences", type=int, default=1024, help="of 128 tokens")
    parser.add_argument("--tokens", type=int, default=300_000, help="rows the dictionary is trained on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"), help="or PEERS_PYTHON")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the bundled miniature, 128 sequences")
    args = parser.parse_args()
    if args.quick:
        args.model, args.site, args.sequences, args.tokens = "mini-pythia", "L1R", 128, 51_200
    sys.path.insert(0, str(REPOSITORY))
    with tempfile.TemporaryDirectory() as folder:
        args.workspace = Path(folder) / "ws"
        print(f"{args.model} {args.site}, {args.sequences} sequences, {args.tokens:,} rows, {args.threads} thread(s)")
        print(f"{'':20}{'':28}{'wall s':>8} {'processor s':>12}")
        table: dict[str, list[Stage]] = {"workbench": []}
        for found in ours(args):
            table["workbench"].append(found)
            print(told("workbench", *found), flush=True)
        if args.peers_python:
            table["SAELens"] = theirs(args, Path(folder))
            for found in table["SAELens"]:
                print(told("SAELens, dashboard", *found), flush=True)
    for who, stages in table.items():
        print(told(who, "together", sum(s[1] for s in stages), sum(s[2] for s in stages)))
    if args.json:
        print(json.dumps({"stages": table}))
    return 0


def told(who: str, name: str, wall: float, processor: float) -> str:
    return f"{who:20}{name:28}{wall:8.1f} {processor:12.1f}"


if __name__ == "__main__":
    sys.exit(main())
