"""What checkpoints of a training take on the disk, and whether they can be written, known before the first step."""

from __future__ import annotations

import math

from transformers.trainer_utils import SaveStrategy

from ..slicing import check_saves
from .arguments import ShearTrainingArguments

WEIGHT_BYTES = 4  # trained in float32
MOMENT_BYTES = 8  # Adam's two, in float32


def checkpoints_kept(args: ShearTrainingArguments, num_steps: int) -> int:
    """Checkpoints that are on the disk at once at most: one more than ``save_total_limit`` while one is written."""
    if args.save_strategy == SaveStrategy.NO or num_steps < 1:
        return 0
    if args.save_strategy != SaveStrategy.STEPS:
        return 1
    every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * num_steps)
    written = math.ceil(num_steps / every)
    return min(written, args.save_total_limit + 1) if args.save_total_limit else written


def checkpoint_bytes(args: ShearTrainingArguments, num_parameters: int, num_trained: int | None = None) -> int:
    """Bytes of one checkpoint: weights and the moments of Adam, which take most.

    Args:
        num_parameters: of the model.
        num_trained: of those that are trained; all by default.
    """
    trained = num_parameters if num_trained is None else num_trained
    saved = args.recovery.saved_parameters(num_parameters, trained)
    return saved * WEIGHT_BYTES + (0 if args.save_only_model else trained * MOMENT_BYTES)


def check_checkpoints(trainer) -> None:
    """Save once, before the first step, what every checkpoint of ``trainer`` holds beside its weights and its state.

    Raises:
        UsageError: it cannot be written to ``args.output_dir``, or one checkpoint has no room there.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    kept = checkpoints_kept(args, args.max_steps)
    if not kept:
        return
    sizes = {parameter: getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters()}
    trained = sum(size for parameter, size in sizes.items() if parameter.requires_grad)
    one = checkpoint_bytes(args, sum(sizes.values()), trained)
    check_saves(
        args.output_dir, model.config, trainer.processing_class, getattr(model, "generation_config", None),
        result_bytes=one, checkpoint_bytes=one * (kept - 1),
    )  # fmt: skip
