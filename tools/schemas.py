"""JSON Schemas of what people and programs write and read here: recipes, figure specifications, manifests, lists.

They are made from the models' own fields, and published with the documentation (``schemas/*.json``). A schema says what
keys there are, their types, ranges and defaults; what two keys may not say together is checked when a recipe is read.
"""

from __future__ import annotations

from typing import Any

BASE = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Name -> schema."""
    from crosscoders.config import CrosscoderConfig
    from sae.config import SAEConfig, TranscoderConfig
    from workbench.activations.harvesting.recipe import HarvestRecipe
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.dictionaries.recipe import TrainRecipe
    from workbench.exporting.spec import FigureSpec
    from workbench.models.pretrain import PretrainRecipe
    from workbench.provenance import Manifest
    from workbench.results.lists import LatentList

    return {
        "harvest": _schema(HarvestRecipe, "A recipe of `workbench harvest`."),
        "train": _schema(TrainRecipe, "A recipe of `workbench train`.", sae=_merged(TranscoderConfig)),
        "evolve": _schema(EvolveRecipe, "A recipe of `workbench evolve`.", crosscoder=_merged(CrosscoderConfig)),
        "pretrain": _schema(PretrainRecipe, "A recipe of `workbench pretrain`."),
        "sae": _with_kinds(_schema(SAEConfig, "How a dictionary is trained, as its manifest keeps it.")),
        "figure": _schema(FigureSpec, "A specification of `workbench export`."),
        "manifest": _schema(Manifest, "`manifest.json` of a result."),
        "list": _schema(LatentList, "A list of latents, `lists/ID.json`."),
    }


def _schema(model: Any, about: str, **tables: dict[str, Any]) -> dict[str, Any]:
    """A model's schema; ``tables`` are keys whose model has none of its own, with the schema of what they hold."""
    found: dict[str, Any] = model.model_json_schema()
    found["description"] = about
    for key, table in tables.items():
        found.setdefault("$defs", {}).update(table.pop("$defs", {}))
        found["properties"][key] = table | {"description": found["properties"][key]["description"]}
    return {"$schema": BASE, **found}


def _merged(model: Any) -> dict[str, Any]:
    """The table of a recipe that changes some fields of ``model``, after a preset."""
    found: dict[str, Any] = _with_kinds(model.model_json_schema())
    found.pop("description", None)
    found["properties"] = {"preset": {"type": "string", "description": "settings by name"}, **found["properties"]}
    return found


def _with_kinds(schema: dict[str, Any]) -> dict[str, Any]:
    """An activation may be its kind alone."""
    kinds = schema["$defs"]["ActivationConfig"]["properties"]["kind"]["enum"]
    own = schema["properties"]["activation"]
    ref = own.pop("$ref")
    schema["properties"]["activation"] = {"anyOf": [{"enum": kinds}, {"$ref": ref}], **own}
    return schema
