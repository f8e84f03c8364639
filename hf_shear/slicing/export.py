"""Write a model as a plain Hugging Face checkpoint, with where it came from beside it."""

from __future__ import annotations

import copy
import json
import os
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel

from ..core import (
    UsageError,
    by_main_process,
    check_record,
    collect_versions,
    is_main_process,
    of_file,
    read_json_object,
)
from ..core.defaults import PROVENANCE_NAME, PRUNE_CONFIG_NAME
from ..modeling import ShearingMixin
from ..shapes import ModelShape
from ..sources import savable_generation_config
from .gathering import check_dtype, full_parameters, is_sharded
from .kept_units import KeptUnits
from .older_config_fields import add_older_config_fields
from .tokenizer_files import save_tokenizer
from .whole_folders import replace_folder


def save_checkpoint(
    model: PreTrainedModel,
    output_dir: str | os.PathLike,
    processing_class=None,
    provenance: dict | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Save a plain checkpoint as a whole or not at all: it is written next to ``output_dir`` and then renamed.

    With several processes all of them call this, whether the model is sharded (DeepSpeed ZeRO-3, FSDP2) or not. The
    main process gathers one weight after another and writes; all return once the checkpoint is complete.

    Args:
        model: a stock model, for example from ``slice_model``, without what a backend wraps around it.
        output_dir: folder to make; one that exists is replaced once the new one is complete.
        processing_class: tokenizer to save along, with its SentencePiece model if it has one.
        provenance: JSON-ready facts, written to ``shear_provenance.json``; its ``prune_config``, if it has one, to
            ``prune_config.json`` as well, where ``PruneConfig.from_pretrained`` reads it.
        dtype: of the saved weights; by default the model's. The model itself is left as it is.

    Raises:
        ValueError: ``dtype`` is not a floating-point one, or a masked model is sharded or to be cast.
        FailedError: the folder could not be written; what was there before still is.
    """
    check_dtype(dtype)
    output_dir = Path(output_dir)
    state = None
    if dtype is not None or is_sharded(model):
        model, state = _plain_copy(model, dtype)
    by_main_process(lambda: _write(model, state, output_dir, processing_class, provenance))
    return output_dir


def _write(
    model: PreTrainedModel, state: dict[str, Tensor] | None, output_dir: Path, processing_class, provenance: dict | None
) -> None:
    def write(folder: Path) -> None:
        use_cache, model.config.use_cache = model.config.use_cache, True  # trainers switch it off for training
        generation_config = model.generation_config
        model.generation_config = savable_generation_config(generation_config)
        try:
            model.save_pretrained(folder, state_dict=state)
            add_older_config_fields(folder)
        finally:
            model.config.use_cache, model.generation_config = use_cache, generation_config
        if processing_class is not None:
            save_tokenizer(processing_class, folder)
        if provenance is not None:
            write_provenance(provenance, folder)

    replace_folder(output_dir, write)


def write_provenance(provenance: dict, folder: Path) -> None:
    """Write a provenance record, and the choices in it, if the model was pruned by scores, as a file of their own."""
    files = {PROVENANCE_NAME: provenance, PRUNE_CONFIG_NAME: provenance.get("prune_config")}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


@torch.no_grad()
def _plain_copy(model: PreTrainedModel, dtype: torch.dtype | None) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The same model without weights (on the meta device), and copies of its weights on the CPU of the main process.

    The other processes only help to gather.
    """
    if isinstance(model, ShearingMixin):
        raise UsageError(
            "`model` has masks, and is sharded or to be cast: only plain models are saved like this. Cut it first, with"
            " `slice_model(model, dtype=...)`, and save what it returns."
        )
    config = copy.deepcopy(model.config)
    if hasattr(config, "distributed_config"):
        delattr(config, "distributed_config")  # save_pretrained would gather again
    with torch.device("meta"):
        plain = _stock_class(model)(config)
    # The config takes its dtype from it.
    plain.to(dtype or model.dtype)  # pyright: ignore[reportArgumentType]  # transformers wraps `to` without its types
    plain.generation_config = copy.deepcopy(model.generation_config)
    persistent = model.state_dict().keys()
    buffers = [{name: buffer} for name, buffer in model.named_buffers() if name in persistent]
    state = {}
    for tensors in chain(buffers, full_parameters(model)):
        if is_main_process():
            state |= {name: _cpu_copy(tensor, dtype) for name, tensor in tensors.items()}
    return plain, {name: state[name] for name in plain.state_dict() if name in state}


def _stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of a model before FSDP2 made a subclass of it."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def _cpu_copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else None, copy=True)


def read_provenance(checkpoint: str | os.PathLike) -> dict:
    """The provenance record beside a checkpoint that ``save_checkpoint`` wrote.

    Raises:
        UsageError: it is broken, or holds values of another kind.
    """
    path = Path(checkpoint) / PROVENANCE_NAME
    record = read_json_object(path)
    with of_file(path):
        check_record(record, "provenance")
    return record


def provenance_record(model: PreTrainedModel | PretrainedConfig, kept: KeptUnits | dict, **facts: object) -> dict:
    """What a sliced checkpoint is made of: source name and revision, target, kept units, versions.

    Args:
        model: the masked model that was sliced, or its config.
        kept: the kept units, indices of every mask into the source.
        facts: anything more, JSON-ready.
    """
    config = model if isinstance(model, PretrainedConfig) else model.config
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
