"""Makes the golden files beside this script with the libraries themselves (never needed to run the tests).

In an environment of its own: ``pip install torch sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0``,
then ``python tests/sae/golden/make.py``. Each folder is what the library saves; ``expected.safetensors`` beside it
holds raw rows ``x`` and the library's own ``f`` (dense latents) and ``y`` (reconstruction) of them.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
D, F, K, N = 6, 12, 3, 16


def fill(module):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return module


def rows():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) + 0.3


def expected(folder, f, y):
    save_file(
        {"x": rows(), "f": f.detach().float().contiguous(), "y": y.detach().float().contiguous()},
        folder / "expected.safetensors",
    )


def fresh(name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def saelens():
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    kinds = {
        "saelens-topk": (TopKSAE, TopKSAEConfig(d_in=D, d_sae=F, k=K, rescale_acts_by_decoder_norm=True)),
        "saelens-topk-plain": (TopKSAE, TopKSAEConfig(d_in=D, d_sae=F, k=K, rescale_acts_by_decoder_norm=False)),
        "saelens-jumprelu": (JumpReLUSAE, JumpReLUSAEConfig(d_in=D, d_sae=F)),
        "saelens-standard": (StandardSAE, StandardSAEConfig(d_in=D, d_sae=F)),
    }
    for name, (cls, cfg) in kinds.items():
        sae = fill(cls(cfg))
        if hasattr(sae, "threshold"):
            with torch.no_grad():
                sae.threshold.abs_()
        folder = fresh(name)
        sae.save_model(folder)
        f = sae.encode(rows())
        expected(folder, f, sae.decode(f))


def sparsify():
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    for name, options in {
        "sparsify-sae": {},
        "sparsify-transcoder": {"transcode": True, "skip_connection": True},
    }.items():
        coder = fill(SparseCoder(D, SparseCoderConfig(expansion_factor=F // D, k=K, **options)))
        folder = fresh(name)
        coder.save_to_disk(folder)
        x = rows()
        values, indices, _ = coder.encode(x)
        f = torch.zeros(N, F).scatter(1, indices, values)
        y = coder.decode(values, indices)
        expected(folder, f, y if coder.W_skip is None else y + x @ coder.W_skip.mT)


def dictionary_learning():
    from dictionary_learning.dictionary import AutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    kinds = {
        "dl-topk": (AutoEncoderTopK(D, F, K), "AutoEncoderTopK"),
        "dl-batchtopk": (BatchTopKSAE(D, F, K), "BatchTopKSAE"),
        "dl-relu": (AutoEncoder(D, F), "AutoEncoder"),
        "dl-jumprelu": (JumpReluAutoEncoder(D, F), "JumpReluAutoEncoder"),
    }
    for name, (ae, dict_class) in kinds.items():
        fill(ae)
        with torch.no_grad():
            if name == "dl-batchtopk":
                ae.threshold.fill_(0.4)
            if name == "dl-jumprelu":
                ae.threshold.abs_()
        folder = fresh(name)
        torch.save(ae.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": dict_class,
            "activation_dim": D,
            "dict_size": F,
            "k": K,
            "layer": 3,
            "lm_name": "EleutherAI/pythia-70m-deduped",
        }
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}, indent=2))
        f = ae.encode(rows())
        expected(folder, f, ae.decode(f))


if __name__ == "__main__":
    saelens()
    sparsify()
    dictionary_learning()
