"""Every architecture of the zoo: each of nine properties is right, or refused in one line."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae.errors import UserError
from tests.workbench.models.conformance import PROPERTIES, Case, joined, measured, page, put
from tests.workbench.models.zoo import ONE_OF_EACH_KIND, ZOO
from workbench.cli import app
from workbench.models import sites

RIGHT = {  # of the five that always run, what must not be refused
    "llama_gqa": set(PROPERTIES),
    "gpt2": set(PROPERTIES),
    "gemma2": set(PROPERTIES),
    "bamba": set(PROPERTIES),
    "qwen3_next": set(PROPERTIES),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("zoo"), {}
    return lambda name: made.setdefault(name, Case(name, root))


@pytest.mark.parametrize("name", [n if n in ONE_OF_EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
@pytest.mark.filterwarnings("ignore")
def test_right_or_refused(cases, name):
    case = cases(name)
    found = measured(case)
    if into := os.environ.get("ARCHITECTURES_PAGE"):
        put(Path(into), page([(case, found)]))
    wrong = [e for e in found.values() if isinstance(e, Exception)]
    if wrong:
        raise wrong[0]
    refused = {prop: why for prop, why in found.items() if why}
    assert not set(refused) & RIGHT.get(name, {"BOS"} if name not in ("gemma3n", "falcon_40b_like") else set()), refused


def test_a_page_takes_rows_that_were_measured_again():
    head = "# T\n\n| architecture | layers | logits |\n|---|---|---|\n"
    why = "\n\n## Why refused\n\n"
    refused = f"{why}- logits: no (a) way (gpt2, bamba).\n"
    kept = f"{head}| gpt2 | attention | – |\n| bamba | Mamba-2 (layers 0, 1) | – |{refused}"
    new = f"{head}| bamba | Mamba-2 (layers 0, 1) | ✓ |{why}"
    assert joined(kept, new) == (
        f"{head}| gpt2 | attention | – |\n| bamba | Mamba-2 (layers 0, 1) | ✓ |{why}- logits: no (a) way (gpt2).\n"
    )
    assert joined(new, kept) == kept


def test_a_page_names_what_it_lacks(tmp_path):
    into = tmp_path / "page.md"
    head = "# T\n\n| architecture | layers | logits |\n|---|---|---|\n"
    for name in ZOO:
        put(into, f"{head}| {name} | attention | ✓ |\n\n## Why refused\n\n")
        assert f"| {name} | attention | ✓ |" in into.read_text()
        assert ("Not measured yet" in into.read_text()) == (name != list(ZOO)[-1])
    assert into.read_text().count("| ✓ |") == len(ZOO)


HARVEST = """id = "st"
hooks = [{hooks}]
n_seq = 40
ctx = 24
seqs_per_shard = 20
batch_size = 20
[corpus]
kind = "jsonl"
paths = ["{text}"]
split = "all"
tiled_share = 0.0
snippet_share = 0.0
agreement_share = 0.0
[[sources]]
model = "{model}"
"""
TRAIN = 'store = "st"\nexpansions = [2]\nks = [4]\nbatch_size = 256\ntokens = 2000\n'


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore")
def test_no_verb_ends_in_a_traceback(cases, tmp_path, name):
    """Harvest at every kind of site the model has, train, features, evaluate, graph, circuits, plan: exit 0, 1 or 2."""
    case, runner = cases(name), CliRunner()
    text = tmp_path / "text.jsonl"
    lines = [
        json.dumps({"text": f"def f{i}(x):\n    return x + {i * i}  # the {i}th of them\n" * 6}) for i in range(60)
    ]
    text.write_text("\n".join(lines))
    workspace = ["--workspace", str(tmp_path / "ws")]

    def run(*args: str) -> int:
        done = runner.invoke(app, [*args, *workspace])
        raised = done.exception is not None and not isinstance(done.exception, SystemExit)
        assert not raised and done.exit_code in (0, 1, 2), (args, done.exception, done.output[-500:])
        return done.exit_code

    try:
        kinds = sorted({site.lstrip("L0123456789") for site in sites(case.model)} - {"M"})
    except UserError:  # no bridge: every verb says so
        kinds = ["R"]
    recipe = HARVEST.format(hooks=", ".join(f'"*{k}"' for k in kinds), text=text, model=case.folder)
    (tmp_path / "harvest.toml").write_text(recipe)
    (tmp_path / "train.toml").write_text(TRAIN)
    run("plan", str(tmp_path / "harvest.toml"))
    harvested = run("harvest", str(tmp_path / "harvest.toml"))
    assert harvested == 0 or "model" not in vars(case)
    run("circuits", str(case.folder), "--prompts", "8", "--length", "12")
    if harvested:
        return
    assert run("train", str(tmp_path / "train.toml")) == 0
    made = sorted(p.name for p in (tmp_path / "ws" / "dictionaries").iterdir() if not p.name.startswith("."))
    for kind in kinds:
        id = next(i for i in reversed(made) if i.split(".L")[1].split("-")[0].lstrip("0123456789") == kind)
        assert run("features", id, "--contexts", "2") == 0
        assert run("evaluate", id, "--sequences", "4") == 0
    for site in ("R", "TC"):
        run("graph", "def f1(x)", "--model", str(case.folder), "--site", site)
