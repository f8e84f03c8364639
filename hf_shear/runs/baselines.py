"""Models of the target's shape that a sheared one must beat at equal tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..core import UsageError
from ..data import Calibration
from ..modeling import ShearingModel
from ..pruning import PruneConfig, prune_one_shot
from .pipeline_arguments import PAPER, RIVALS, SURGEON


def baseline_model(
    name: str, source: ShearingModel, calibration: Iterable[dict], seed: int, micro_batch_size: int
) -> tuple[PreTrainedModel, float]:
    """A baseline before training, and the FLOPs that its choice took.

    Args:
        name: "random" (randomly kept units), "taylor" (units kept by first-order Taylor importance), "llm_surgeon" (the
            defaults of ``PruneConfig``) or "scratch" (the same shape, randomly initialised).
        source: a masked model with the source's weights.
        calibration: batches for Taylor importance.
        seed: of the random choice and initialisation.
        micro_batch_size: samples per forward of the calibration.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RIVALS or name == PAPER:
        known = ", ".join(rival for rival in RIVALS if rival != PAPER)
        raise UsageError(f"Unknown baseline {name!r}; there are {known}.")
    text = Calibration.from_batches(calibration, micro_batch_size, seed)
    # A baseline stays what it was published as, whatever pruning does by default.
    plain = PruneConfig("random" if name == "scratch" else name, compensation="none", num_shots=1)
    config = PruneConfig() if name == SURGEON else plain
    found = prune_one_shot(source, source.config.resolved_target(), text, config)
    model, flops = found.model, found.cost.flops
    if name == "scratch":
        torch.manual_seed(seed)
        model, flops = type(model)(model.config), 0.0
    return model, flops
