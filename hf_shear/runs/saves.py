"""Whether what a verb makes can be saved, known before text is read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig

from ..shapes import ModelShape, as_family, config_for_shape, count_parameters, family_named, family_of
from ..slicing import check_saves
from ..sources import Source, read_generation_config
from ..training import ShearTrainingArguments, checkpoint_bytes, checkpoints_kept


def check_result(
    output_dir: str | Path,
    source: str,
    config: PretrainedConfig,
    target: ModelShape | int,
    tokenizer,
    family: str | None = None,
    *,
    result_bytes: int | None = None,
    checkpoint_bytes: int = 0,
) -> None:
    """Save once what a result holds beside its weights; see ``check_saves``.

    Args:
        output_dir: of the result.
        source: folder or Hub name of the checkpoint whose generation_config is kept.
        config: the source's.
        target: the result's shape, or a budget of parameters for layers of different widths.
        tokenizer: saved along.
        family: of the result, if it is not the source's.
        result_bytes: default: those of the result's weights.
        checkpoint_bytes: of what is saved before it.
    """
    kind = family_named(family, "`as_family`: ") if family is not None else family_of(config)
    if isinstance(target, int):
        result, num_parameters = as_family(config, kind), target
    else:
        result = config_for_shape(config, target, config_class=kind.config_class)
        num_parameters = count_parameters(result)
    if result_bytes is None:
        result_bytes = num_parameters * _dtype(config).itemsize
    check_saves(
        output_dir, result, tokenizer, read_generation_config(source), result_bytes=result_bytes,
        checkpoint_bytes=checkpoint_bytes,
    )  # fmt: skip


def check_run(pipeline, args: ShearTrainingArguments, source: Source, target: ModelShape, tokenizer) -> None:
    """As ``check_result``, for a run of mask learning and recovery: its next result must find room.

    What comes after that, and checkpoints during training, are warned of.
    """
    config = source.config
    folder = Path(args.named_output_dir or "runs")
    size = count_parameters(config, target) * _dtype(config).itemsize
    left = [name for name in ("pruned", "recovered") if not (folder / name).exists()]
    checkpoints = 0
    for tokens, shape in ((pipeline.mask_tokens, None), (pipeline.recovery_tokens, target)):
        kept = checkpoints_kept(args, args.steps_for_tokens(tokens, pipeline.max_length))
        full = not args.recovery.adapts or shape is None
        checkpoints += kept * full * checkpoint_bytes(args, count_parameters(config, shape))
    check_result(
        folder, source.location, config, target, tokenizer, pipeline.as_family,
        result_bytes=size if left else 0, checkpoint_bytes=checkpoints + size * max(0, len(left) - 1),
    )  # fmt: skip


def _dtype(config: PretrainedConfig) -> torch.dtype:
    return getattr(config, "dtype", None) or torch.float32
