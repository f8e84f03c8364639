"""Models of the target's shape that a sheared one must beat at equal tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..core import RANGES, UsageError, json_object
from ..data import Calibration
from ..modeling import ShearingModel
from ..pruning import PruneConfig, prune_one_shot

BASELINES = ("random", "taylor", "scratch")
"""Of every run that ends with a comparison."""
PAPER, SURGEON = "paper", "llm_surgeon"
RIVALS = ("random", "taylor", PAPER, SURGEON, "scratch")
"""All that there are: besides ``BASELINES`` the paper's learned masks, where units are chosen at once, and this library's
choice at once, where masks are learned."""


def baseline_learning_rates(text: str | None) -> dict[str, float]:
    """Learning rate by baseline from JSON such as ``{"scratch": 0.002}``; a baseline not named takes the run's rate."""
    rule = (
        f"`baseline_learning_rates` must be JSON that gives some of {', '.join(RIVALS)} a rate, such as"
        f" '{{\"scratch\": 0.002}}', but it is {text!r}"
    )
    try:
        rates = json_object(text or "{}", "it")
    except UsageError as error:
        raise UsageError(f"{rule}: {error}") from error
    for name, rate in rates.items():
        if name not in RIVALS:
            raise UsageError(f"{rule}. Leave {name!r} out.")
        RANGES["learning_rate"].check(f"baseline_learning_rates[{name!r}]", rate)
    return rates


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
