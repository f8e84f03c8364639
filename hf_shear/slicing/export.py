"""Write a model as a plain Hugging Face checkpoint, with where it came from beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from ..reporting import collect_versions
from ..shapes import ModelShape
from .kept_units import KeptUnits

PROVENANCE_NAME = "shear_provenance.json"


def save_checkpoint(
    model: PreTrainedModel, output_dir: str | os.PathLike, processing_class=None, provenance: dict | None = None
) -> Path:
    """Save a plain checkpoint as a whole or not at all: it is written next to ``output_dir`` and then renamed.

    Args:
        model: a stock model, for example from ``slice_model``.
        output_dir: folder to make; one that exists is replaced once the new one is complete.
        processing_class: tokenizer to save along.
        provenance: JSON-ready facts, written to ``shear_provenance.json``.
    """
    output_dir = Path(output_dir)
    unfinished = output_dir.with_name(output_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    use_cache, model.config.use_cache = model.config.use_cache, True  # trainers switch it off for training
    try:
        model.save_pretrained(unfinished)
    finally:
        model.config.use_cache = use_cache
    if processing_class is not None:
        processing_class.save_pretrained(unfinished)
    if provenance is not None:
        (unfinished / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    replaced = output_dir.with_name(output_dir.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if output_dir.exists():
        os.replace(output_dir, replaced)
    os.replace(unfinished, output_dir)
    shutil.rmtree(replaced, ignore_errors=True)
    return output_dir


def read_provenance(checkpoint: str | os.PathLike) -> dict:
    """The provenance record beside a checkpoint that ``save_checkpoint`` wrote."""
    return json.loads((Path(checkpoint) / PROVENANCE_NAME).read_text(encoding="utf-8"))


def provenance_record(model: PreTrainedModel, kept: KeptUnits | dict, **facts: object) -> dict:
    """What a sliced checkpoint is made of: source name and revision, target, kept units, versions.

    Args:
        model: the masked model that was sliced.
        kept: the kept units, indices of every mask into the source.
        facts: anything more, JSON-ready.
    """
    config = model.config
    return {
        "source": {
            "name_or_path": config.source_name_or_path,
            "revision": config.source_revision,
            "shape": ModelShape.from_config(config).to_dict(),
        },
        "target_shape": config.target_shape,
        "mask_settings": config.mask_settings,
        "kept": kept.to_dict() if isinstance(kept, KeptUnits) else kept,
        "versions": collect_versions(),
        **facts,
    }
