"""Do SAELens and circuit-tracer read what is written here? Each release in a folder of its own, its numbers by ours.

    python tools/peers_read.py FOLDER

FOLDER gets one release per peer (``pip install --no-deps --target``: their pinned dependencies exclude each other, and
this project's environment has what their classes need). Then the same dictionaries of ours are written, loaded by the
peer's own loader in a process of its own, and its outputs of the same rows are compared. Exit 1: a peer did not
install, did not load a folder, or says something else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

RELEASES = {"sae-lens": "6.54.12", "circuit-tracer": "0.5.0"}
# what a release needs and this project has in another version, or not at all
BESIDE = {
    "sae-lens": (
        "transformer-lens==2.18.0",
        "better-abc",
        "simple-parsing",
        "docstring-parser",
        "python-dotenv",
        "tenacity",
    )
}
ROOT = Path(__file__).resolve().parents[1]
D, F, N = 6, 12, 64


def install(folder: Path, name: str) -> Path:
    """The release, without its dependencies."""
    target = folder / f"{name}-{RELEASES[name]}"
    if not target.is_dir():
        asked = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*asked, f"{name}=={RELEASES[name]}", *BESIDE.get(name, ())], check=True)
    return target


def write_ours(folder: Path) -> list[tuple[str, str, Path]]:
    """(peer, kind, folder) of dictionaries of ours, each with ``ours.safetensors``: rows, latents, outputs."""
    import torch
    from safetensors.torch import save_file

    from sae.activation import Threshold, TopK
    from sae.formats import read_cross_layer, to_dictionary, to_normal, write_cross_layer, write_transcoder_set
    from sae.formats.normal import NormalForm
    from sae.model import empty_sae
    from sae.transcoder import Transcoder

    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=g) + 0.3
    made: list[tuple[str, str, Path]] = []

    def keep(peer: str, kind: str, at: Path, f: torch.Tensor, y: torch.Tensor, rows: torch.Tensor = x) -> None:
        save_file({"x": rows, "f": f.contiguous(), "y": y.contiguous()}, at / "ours.safetensors")
        made.append((peer, kind, at))

    def draw(dictionary):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            for p in dictionary.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.5)
            threshold = dictionary.thresholds()
            if threshold is not None and dictionary.activation.architecture == "jumprelu":
                dictionary.threshold_F.copy_(torch.rand(F, generator=g))
        dictionary.metadata = {"model_name": "gpt2", "hook_name": "blocks.0.hook_resid_post"}
        return dictionary

    def transcoder(act: str, skip: bool, layer: int) -> NormalForm:
        parts = [torch.randn(s, generator=g) * 0.5 for s in ((D, F), (F,), (F, D), (D,), (D, D))]
        about = {"hook_name": f"blocks.{layer}.mlp.hook_in", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
        gate = torch.rand(F, generator=g) if act == "jumprelu" else None
        about |= {"kind": "transcoder", "model_name": "gpt2"}
        return NormalForm(act, *parts[:4], threshold=gate, W_skip=parts[4] if skip else None, metadata=about)  # type: ignore[arg-type]

    for kind, activation in (
        ("topk", TopK(3)),
        ("standard", Threshold(3, "standard")),
        ("jumprelu", Threshold(3, "jumprelu")),
    ):
        dictionary, at = draw(empty_sae(D, F, activation, dtype=torch.float32)), folder / f"saelens-{kind}"
        dictionary.save(at)
        form = to_normal(dictionary)
        f = form.encode(x)
        keep("sae-lens", kind, at, f, form.decode(f, x))
    for kind, act, skip in (("transcoder", "jumprelu", False), ("skip transcoder", "jumprelu", True)):
        form, at = transcoder(act, skip, 0), folder / f"saelens-{kind.replace(' ', '-')}"
        dictionary = to_dictionary(form)
        assert isinstance(dictionary, Transcoder)
        dictionary.save(at)
        f = form.encode(x)
        keep("sae-lens", kind, at, f, form.decode(f, x))
    for kind, act, skip in (("relu", "relu", False), ("jumprelu", "jumprelu", False), ("skip", "relu", True)):
        forms, at = [transcoder(act, skip, layer) for layer in range(2)], folder / f"set-{kind}"
        write_transcoder_set(forms, at)
        f = torch.stack([form.encode(x) for form in forms])
        y = torch.stack([form.decode(f[i], x) for i, form in enumerate(forms)])
        keep("circuit-tracer", f"transcoder set, {kind}", at, f, y, torch.stack([x, x]))
    for kind in ("relu", "jumprelu"):
        clt = read_cross_layer(ROOT / "tests/sae/golden" / f"circuit-tracer-0.5.0-clt-{kind}")
        at = write_cross_layer(clt, folder / f"clt-{kind}")
        rows = torch.stack([x, x + 1, x - 1])
        f = clt.encode(rows)
        keep("circuit-tracer", f"cross-layer transcoder, {kind}", at, f, clt.decode(f), rows)
    return made


READ = {
    "sae-lens": """
from sae_lens import SAE, Transcoder, SkipTranscoder, JumpReLUTranscoder, JumpReLUSkipTranscoder
sae = SAE.load_from_disk(folder, device="cpu")
f = sae.encode(x)
y = sae.decode(f)
skip = getattr(sae, "W_skip", None)
y = y if skip is None else y + x @ skip.T
""",
    "circuit-tracer": """
import glob
cpu = torch.device("cpu")
if glob.glob(folder + "/W_enc_0.safetensors"):
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    clt = load_clt(folder, lazy_decoder=False, device=cpu, dtype=torch.float32)
    f = clt.encode(x)
    y = clt.decode(f)
else:
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    import yaml
    cfg = yaml.safe_load(open(folder + "/config.yaml"))
    files = {i: folder + f"/layer_{i}.safetensors" for i in range(len(x))}
    found = load_transcoder_set(files, cfg["scan"], cfg["feature_input_hook"], cfg["feature_output_hook"], device=cpu,
                                lazy_encoder=False, lazy_decoder=False)
    f = torch.stack([found.transcoders[i].encode(x[i]) for i in range(len(x))])
    y = torch.stack([found.transcoders[i](x[i]) for i in range(len(x))])
""",
}
CHECK = """
import sys, torch
from safetensors.torch import load_file
for folder in sys.argv[1:]:
    try:
        want = load_file(folder + "/ours.safetensors")
        x = want["x"]
        with torch.no_grad():
{read}
        error = float((y - want["y"]).abs().max() / want["y"].abs().max())
        print(f"{error:.1e}\\t{'yes' if torch.equal(f > 1e-6, want['f'] > 1e-6) else 'no'}")
    except Exception as e:
        print(f"not read: {type(e).__name__}: {str(e).splitlines()[0][:120] if str(e) else ''}\\t-")
"""


GRAPH = """
import json, sys
from circuit_tracer.frontend.graph_models import Link, Model
document = json.load(open(sys.argv[1]))
found = Model(**document)
links = [Link(**link) for link in document["links"]]
ids = {n.node_id for n in found.nodes}
assert len(ids) == len(found.nodes) and all(l.source in ids and l.target in ids for l in links)
print(f"{len(found.nodes)} nodes, {len(links)} links")
"""


def read_graph(target: Path, folder: Path) -> str:
    """What circuit-tracer's own classes say of a graph of ours; begins with "not read" where they refuse it."""
    import json

    from tests.workbench.analysis.graph.test_graph_schema import document_of

    at = folder / "graph.json"
    at.write_text(json.dumps(document_of("transcoders")))
    env = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", GRAPH, str(at)], env=env, capture_output=True, text=True, check=False)
    return done.stdout.strip() or f"not read: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"


def answers(peer: str, target: Path, folders: list[Path]) -> list[tuple[str, str]]:
    """(largest relative difference, whether the same latents are on) of each folder, as the peer reads it."""
    body = "\n".join(f"            {line}" for line in READ[peer].strip().splitlines())
    env = os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK.replace("{read}", body), *map(str, folders)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    if len(lines) != len(folders):
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return [(f"not read: {said}", "-")] * len(folders)
    return [(a, b) for a, b in lines]


def main(folder: Path) -> int:
    """Print the table; 1 where a line is not as it should be."""
    sys.path.insert(0, str(ROOT))
    folder.mkdir(parents=True, exist_ok=True)
    good = True
    print("| peer | what we wrote | largest relative difference | same latents |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        ours = write_ours(Path(tmp))
        for peer, version in RELEASES.items():
            mine = [(kind, at) for p, kind, at in ours if p == peer]
            try:
                found = answers(peer, install(folder, peer), [at for _, at in mine])
            except subprocess.CalledProcessError as e:
                found = [(f"did not install (exit {e.returncode})", "-")] * len(mine)
            for (kind, _), (error, same) in zip(mine, found, strict=True):
                good &= same == "yes" and float(error) <= 1e-5
                print(f"| {peer} {version} | {kind} | {error} | {same} |")
        said = read_graph(install(folder, "circuit-tracer"), Path(tmp))
        good &= not said.startswith("not read")
        print(f"| circuit-tracer {RELEASES['circuit-tracer']} | graph.json: {said} | | |")
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
