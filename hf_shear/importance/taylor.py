"""Taylor importance of every unit: how the loss would change without it, by a polynomial around the model as it is.

Two ways lead there. The gate of a unit multiplies what it hands on, so the loss rise from closing it is -dL/dz to first
order (``gate_slopes.py``). Or the unit's weights theta are set to zero, each of which changes the loss by
-theta * g + 1/2 * theta^2 * h, h the squared gradient in place of the curvature (LLM-Pruner, arXiv 2305.11627, section
3.2; ``weight_gradients.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..calibration import mean_over_slopes, micro_batches
from ..core import UsageError
from ..modeling import ShearingMixin
from .coupled_weights import sum_over_units, values_of
from .weight_gradients import WeightGradients, weight_gradients

ORDERS = ("first", "mixed", "norm")
GATE_AGGREGATIONS = ("gate", "token")
WEIGHT_AGGREGATIONS = ("element", "vector", "fused")


def check_taylor_options(order: str, aggregation: str) -> None:
    """Raise ValueError for an unknown order or aggregation."""
    for name, value, known in (
        ("order", order, ORDERS),
        ("aggregation", aggregation, GATE_AGGREGATIONS + WEIGHT_AGGREGATIONS),
    ):
        if value not in known:
            raise UsageError(f"`{name}` of Taylor scores must be one of {', '.join(known)}, but it is {value!r}.")


def taylor_importance(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    micro_batch_size: int | None = None,
    order: str = "first",
    aggregation: str = "gate",
) -> dict[str, Tensor]:
    """Importance per unit; higher = keep. It does not depend on how samples are batched.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are. Its gates in use apply.
        batches: inputs with ``input_ids`` and ``labels``, [batch, length].
        micro_batch_size: samples per forward and backward pass. Default: a batch at once.
        order: with s a sample's slope theta * g (or dL/dz of a gate), "first": |s|; "mixed": |s - 1/2 s^2|; "norm":
            the root mean square of s over samples. Of weights, "first" takes the gradient of the mean loss, "mixed"
            that and the mean of squares, and "norm" is |theta| * sqrt(E[g^2]), GBLM's (arXiv 2311.04902).
        aggregation: "gate": the mean over samples of the gate's slope; "token": the same with a magnitude per token
            (activation times gradient); "element": the sum of each weight's magnitude over the unit's weights;
            "vector": the magnitude of their sum; "fused": both of these, each over its deviation among the kind's
            units (after SAAP, arXiv 2412.15127, which learns the two scales).

    Returns:
        float32 scores [*rows, units] per kind of unit, frozen kinds included.

    Raises:
        ValueError: unknown options, no tokens to predict, or a gradient that is not finite.
    """
    check_taylor_options(order, aggregation)
    parts = (part for batch in batches for _, part in micro_batches(batch, micro_batch_size))
    if aggregation in GATE_AGGREGATIONS:
        scores = mean_over_slopes(model, parts, _MAGNITUDES[order], aggregation == "token")
        return {name: score.sqrt() for name, score in scores.items()} if order == "norm" else scores
    gradients = weight_gradients(model, parts, second=order != "first")
    return aggregate_weights(_saliency(values_of(model), gradients, order), model, aggregation)


_MAGNITUDES = {"first": torch.abs, "mixed": lambda slope: (slope - slope.square() / 2).abs(), "norm": torch.square}


@torch.no_grad()
def _saliency(
    weights: Iterable[tuple[str, Tensor]], gradients: WeightGradients, order: str
) -> Iterator[tuple[str, Tensor]]:
    """What each weight adds to the slope, or to the loss, with its sign."""
    for name, weight in weights:
        weight = weight.float()
        if order == "norm":
            yield name, weight.abs() * gradients.second[name].sqrt()
        elif order == "mixed":
            yield name, weight * gradients.mean[name] - weight.square() * gradients.second[name] / 2
        else:
            yield name, weight * gradients.mean[name]


def aggregate_weights(
    saliency: Iterable[tuple[str, Tensor]], model: ShearingMixin, aggregation: str
) -> dict[str, Tensor]:
    """Scores of units from signed numbers of their weights; ``aggregation`` is one of ``WEIGHT_AGGREGATIONS``."""
    if aggregation == "element":
        return sum_over_units(((name, tensor.abs()) for name, tensor in saliency), model)
    if aggregation == "vector":
        return {kind: total.abs() for kind, total in sum_over_units(saliency, model).items()}
    saliency = list(saliency)
    coarse, fine = (aggregate_weights(saliency, model, part) for part in ("vector", "element"))
    return {kind: _over_deviation(coarse[kind]) + _over_deviation(fine[kind]) for kind in coarse}


def _over_deviation(scores: Tensor) -> Tensor:
    """Scores over their standard deviation; equal ones are left as they are."""
    deviation = scores.std(correction=0)
    return scores / torch.where(deviation > 0, deviation, 1.0)


def random_importance(model: ShearingMixin, seed: int) -> dict[str, Tensor]:
    """Seeded uniform scores: the choice of units that knows nothing, as a baseline."""
    generator = torch.Generator().manual_seed(seed)
    return {kind.name: torch.rand(kind.mask_shape, generator=generator) for kind in model.masks.kinds.values()}
