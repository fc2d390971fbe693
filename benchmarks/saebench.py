"""A dictionary in SAEBench's core evaluation and in sae-probes' k-sparse probing, run by the benchmarks themselves.

    python benchmarks/saebench.py WORKSPACE DICTIONARY --peers-python VENV/bin/python [--write PAGE.md]
    python benchmarks/saebench.py --quick --peers-python VENV/bin/python     # the bundled miniature

``benchmarks/peers.sh VENV`` makes the environment. The same folder is loaded twice there: by SAELens, as the benchmarks
take any dictionary of its format, and as :class:`sae.formats.BenchSAE`. Both go through the benchmarks' own functions;
every number must agree, to rounding. Core reads held-out tokens of the dictionary's store in place of its data set on
the hub. Probing reads the data sets that sae-probes' package holds. SAEBench's absorption is left out: its authors
advise models of two billion parameters and more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
DATASETS = ("5_hist_fig_ismale", "100_news_fake", "105_click_bait", "113_movie_sent")
KS = (1, 2, 5)
AGREE = 1e-4  # relative; what two orders of the same sums may differ by


def prepare(workspace: Path, dictionary: str, sequences: int, out: Path) -> dict[str, Any]:
    """Write what the other environment needs: the dictionary's folder, the model's, and held-out tokens."""
    import numpy as np

    from workbench.dictionaries.reference import find_dictionary
    from workbench.models.load import load_hf, load_tokenizer
    from workbench.workspace import Workspace

    ws = Workspace(workspace)
    found = find_dictionary(ws, dictionary)
    found.load().save(out / "dictionary")
    load_hf(found.model_name).save_pretrained(out / "model")
    load_tokenizer(found.model_name).save_pretrained(out / "model")
    store = found.store(ws)
    chosen = [i for i in store.heldout if i not in set(store.skipped)][:sequences]
    np.save(out / "tokens.npy", np.stack([store.sequence_tokens(i) for i in chosen]).astype(np.int64))
    return {
        "dictionary": str(out / "dictionary"),
        "model": str(out / "model"),
        "tokens": str(out / "tokens.npy"),
        "hook": found.hook,
        "name": found.model_name,
        "id": dictionary,
        "sequences": len(chosen),
    }


def miniature(out: Path) -> tuple[Path, str]:
    """(workspace, id) of a small dictionary of the bundled Transformer."""
    from workbench import harvest, train
    from workbench.activations import HarvestRecipe
    from workbench.dictionaries.recipe import TrainRecipe

    recipe = HarvestRecipe(
        id="bench", sources=({"model": "mini-pythia"},), hooks=("L1R",), n_seq=192, ctx=64, threads=1
    )
    harvest(out, recipe)
    made = train(out, TrainRecipe(store="bench", sites=("L1R",), expansions=(4,), batch_size=256, tokens=25_600))
    return out, made.all[0].id


def told(row: dict[str, Any]) -> str:
    return f"{row['what']:44} {row['ours']:12.6g} {row['theirs']:12.6g} {row['off']:10.1e}"


def markdown(document: dict[str, Any]) -> str:
    """The table as a page of the documentation."""
    from datetime import date

    head = (
        "# A dictionary in other benchmarks\n\n"
        f"Written by `python benchmarks/saebench.py --write` on {date.today().isoformat()} with SAEBench"
        f" {document['versions']['sae-bench']} and sae-probes {document['versions']['sae-probes']}, in their own"
        f" environment. {document['id']} of {document['model']}, `{document['hook']}`; {document['sequences']} held-out"
        " sequences. `ours`: the dictionary through the adapter; `SAELens`: the same folder as SAELens loads it.\n\n"
    )
    lines = ["| number | ours | SAELens | relative difference |", "|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['ours']:.6g} | {r['theirs']:.6g} | {r['off']:.1e} |" for r in document["rows"]]
    return head + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?")
    parser.add_argument("dictionary", nargs="?")
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"), help="or PEERS_PYTHON")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help="of sae-probes")
    parser.add_argument("--write", type=Path, help="write the table into this Markdown file")
    parser.add_argument(
        "--quick", action="store_true", help="a small dictionary of the bundled miniature, one data set"
    )
    args = parser.parse_args()
    if not args.peers_python:
        print("no benchmark to run: `benchmarks/peers.sh VENV` makes an environment; pass --peers-python")
        return 0
    if not args.quick and args.dictionary is None:
        parser.error("say which dictionary of which workspace, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if args.quick:
            args.workspace, args.dictionary = miniature(out / "ws")
            args.sequences, args.datasets = 16, args.datasets[:1]
        job = prepare(args.workspace, args.dictionary, args.sequences, out)
        job |= {"datasets": args.datasets, "ks": KS, "scratch": folder}
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        peer = [args.peers_python, str(Path(__file__).with_name("_saebench_peer.py")), json.dumps(job)]
        done = subprocess.run(peer, env=env, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    document = json.loads(done.stdout.strip().splitlines()[-1])
    document |= {"id": job["id"], "model": job["name"], "hook": job["hook"], "sequences": job["sequences"]}
    print(f"{'':44} {'ours':>12} {'SAELens':>12} {'difference':>10}")
    for row in document["rows"]:
        print(told(row))
    if args.write:
        args.write.write_text(markdown(document), encoding="utf-8")
    worst = max(row["off"] for row in document["rows"])
    print(f"largest relative difference {worst:.1e}" + ("" if worst <= AGREE else f", more than {AGREE:g}"))
    return int(worst > AGREE)


if __name__ == "__main__":
    sys.exit(main())
