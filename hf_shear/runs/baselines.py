"""Models of the target's shape that a sheared one must beat at equal tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import LlamaForCausalLM

from ..importance import prune_one_shot, random_importance, taylor_importance
from ..modeling import ShearingLlamaForCausalLM

BASELINES = ("random", "taylor", "scratch")


def baseline_model(
    name: str, source: ShearingLlamaForCausalLM, calibration: Iterable[dict], seed: int
) -> LlamaForCausalLM:
    """A baseline before training.

    Args:
        name: "random" (randomly kept units), "taylor" (units kept by first-order Taylor importance) or "scratch" (the
            same shape, randomly initialised).
        source: a masked model with the source's weights.
        calibration: batches for Taylor importance.
        seed: of the random choice and initialisation.

    Raises:
        ValueError: an unknown name.
    """
    if name == "taylor":
        return prune_one_shot(source, taylor_importance(source, calibration))[0]
    if name not in BASELINES:
        raise ValueError(f"Unknown baseline {name!r}; there are {', '.join(BASELINES)}.")
    model, _ = prune_one_shot(source, random_importance(source, seed))
    if name == "scratch":
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model.config)
    return model
