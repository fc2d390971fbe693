"""Language models with hooks: loading, sites, and the miniature models' training.

    load_model(name, revision)     a TransformerBridge of a bundled model, a folder, or a hub model
    load_tokenizer(name)           its tokenizer
    revisions(name), bundled()     what there is to load
    sites(model), site_hooks(model, "L2R"), hooks_of("L2R"), site_of(hook)

Pre-training is in :mod:`workbench.models.pretrain`, its acceptance criteria in :mod:`workbench.models.criteria`.
"""

from workbench.models.load import (
    bundled,
    describe,
    load_hf,
    load_model,
    load_tokenizer,
    model_id,
    resolve_revision,
    revisions,
)
from workbench.models.sites import hooks_of, parse_site, site_hooks, site_of, sites

__all__ = [
    "bundled",
    "describe",
    "hooks_of",
    "load_hf",
    "load_model",
    "load_tokenizer",
    "model_id",
    "parse_site",
    "resolve_revision",
    "revisions",
    "site_hooks",
    "site_of",
    "sites",
]
