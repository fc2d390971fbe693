"""From a model folder to the first page of latents with SAELens and sae-dashboard, in their environment.

See ``first_insight.py``. Activations are made while SAELens trains, as it does; the page has no labels.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from _peers_model import hooked


def main() -> None:
    job = json.loads(sys.argv[1])
    out, scratch = sys.stdout, Path(job["scratch"])
    sys.stdout = sys.stderr  # theirs print
    import numpy as np
    import torch
    from datasets import Dataset
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
    from sae_lens.config import LoggingConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

    stages = []
    begin = time.perf_counter(), time.process_time()

    def done(stage: str) -> None:
        nonlocal begin
        now = time.perf_counter(), time.process_time()
        stages.append((stage, now[0] - begin[0], now[1] - begin[1]))
        begin = now

    model = hooked(Path(job["model"]))
    done("model")
    tokens = torch.from_numpy(np.load(job["tokens"]))
    width = model.cfg.d_model
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=width, d_sae=job["expansion"] * width, k=job["k"]),
        model_name="model",
        hook_name=job["hook"],
        is_dataset_tokenized=True,
        streaming=False,
        context_size=tokens.shape[1],
        prepend_bos=False,
        training_tokens=job["rows"],
        train_batch_size_tokens=1024,
        store_batch_size_prompts=16,
        n_batches_in_buffer=16,
        lr=3e-3,
        lr_warm_up_steps=job["rows"] // 1024 // 10,
        lr_decay_steps=job["rows"] // 1024 // 5,
        device="cpu",
        n_checkpoints=0,
        checkpoint_path=str(scratch / "checkpoints"),
        output_path=str(scratch / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    rows = Dataset.from_dict({"input_ids": tokens.tolist()})
    LanguageModelSAETrainingRunner(config, override_dataset=rows, override_model=model).run()
    done("activations and dictionary")
    sae = SAE.load_from_disk(str(scratch / "sae"), device="cpu")
    shown = SaeVisConfig(
        hook_point=job["hook"], features=list(range(job["shown"])), minibatch_size_tokens=64, device="cpu"
    )
    data = SaeVisRunner(shown).run(encoder=sae, model=model, tokens=tokens[: 60_000 // tokens.shape[1]])
    page = scratch / "latents.html"
    save_feature_centric_vis(data, page)
    if page.stat().st_size < 10_000:
        raise SystemExit(f"{page} holds {page.stat().st_size} bytes: no page of latents")
    done("pages")
    print(json.dumps(stages), file=out)


if __name__ == "__main__":
    main()
