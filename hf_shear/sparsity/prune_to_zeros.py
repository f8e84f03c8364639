"""The LLM Surgeon as published: weights become zeros, in several shots, under one threshold over all layers.

Zeros make a model neither smaller nor faster: this is for reproducing the paper's numbers and for study. To get a
smaller model, use ``hf_shear.prune_one_shot``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import ShortCalibrationWarning
from ..core import UsageError, check_ranges, count_over_ranks
from ..data import Calibration
from .costs import GROUP_SIZE, removed_by_pairs
from .factors import KroneckerFactors, collect_factors, mean_loss
from .layer import LayerSurgery
from .linear_layers import decoder_linears
from .selection import cheapest, cheapest_rows_and_columns
from .settings import SurgeonSettings

Masks = dict[str, Tensor]  # bool [R, C] by the name of the linear layer: True where a weight is kept


@dataclass(frozen=True)
class Shot:
    """One step of the schedule.

    Attributes:
        target_size, size: kept weights over all weights of the linear layers; asked for, and achieved.
        loss_before: on the calibration text, nats per predicted token.
        expected_rise: of that loss by this shot, as the quadratic form has it.
        most_iterations: of the joint update, over the layers; 0 where it has a closed form.
    """

    target_size: float
    size: float
    loss_before: float
    expected_rise: float
    most_iterations: int


@dataclass(frozen=True)
class ZeroedWeights:
    """What ``prune_to_zeros`` did.

    Attributes:
        masks: the truth about what was removed: a kept weight may be zero by chance.
        size: kept weights over all weights of the pruned linear layers (not embeddings, head, norms or biases), as the
            paper counts.
        loss_before, loss_after: on the calibration text, nats per predicted token.
    """

    masks: Masks
    size: float
    loss_before: float
    loss_after: float
    shots: list[Shot] = field(default_factory=list)


def prune_to_zeros(
    model: PreTrainedModel,
    size: float,
    calibration: Calibration | Iterable[dict[str, Tensor]],
    settings: SurgeonSettings | None = None,
    num_shots: int = 1,
    masks: Masks | None = None,
    between_shots: Callable[[PreTrainedModel, Masks], None] | None = None,
) -> ZeroedWeights:
    """Set weights of the linear layers in ``model``'s decoder to zero, in place, and update the others.

    Each shot estimates the curvature anew, removes what costs least over all layers, and updates what remains. The
    share that remains falls linearly from shot to shot. No shot removes more than asked for: ties and large rows end
    just above ``size``.

    Args:
        model: any causal language model whose decoder layers are made of ``nn.Linear``.
        size: share of their weights to keep, as the paper counts.
        calibration: text (batches with ``input_ids`` and ``labels``).
        masks: of an earlier call on this model, to go on from.
        between_shots: called with the model and the masks so far, after every shot but the last, to train the model for
            instance. Removed weights are set to zero again after it.

    Raises:
        ValueError: arguments or a model that do not fit; text on which the loss or a factor is not finite.
    """
    settings = settings or SurgeonSettings()
    calibration = calibration if isinstance(calibration, Calibration) else Calibration(list(calibration))
    linears = decoder_linears(model)
    masks = _starting_masks(linears, masks)
    _check(linears, masks, settings, size, num_shots)
    _warn_of_short_text(linears, calibration, settings)
    total = sum(kept.numel() for kept in masks.values())
    start, losses, shots = _num_kept(masks) / total, [], []
    for shot in range(num_shots):
        target = size + (start - size) * (1 - (shot + 1) / num_shots)  # exactly `size` in the last
        factors, loss = _factors(model, linears, calibration, settings)
        budget = _num_kept(masks) - int(-(-target * total // 1))  # never below the target
        chosen = _choose(linears, masks, factors, settings, max(0, budget))
        rise, iterations = _apply(linears, masks, chosen, factors, settings)
        masks, factors = chosen, None
        losses.append(loss)
        shots.append(Shot(target, _num_kept(masks) / total, loss, rise, iterations))
        if between_shots is not None and shot + 1 < num_shots:
            between_shots(model, masks)
            _zero(linears, masks)
    return ZeroedWeights(masks, _num_kept(masks) / total, losses[0], mean_loss(model, calibration), shots)


def _factors(
    model: PreTrainedModel, linears: dict[str, nn.Linear], calibration: Calibration, settings: SurgeonSettings
) -> tuple[dict[str, KroneckerFactors], float]:
    if settings.curvature == "none":
        return {name: KroneckerFactors(None, None) for name in linears}, mean_loss(model, calibration)
    return collect_factors(model, linears, calibration, settings.curvature == "kronecker", settings.layers_at_once)


def _choose(
    linears: dict[str, nn.Linear],
    masks: Masks,
    factors: dict[str, KroneckerFactors],
    settings: SurgeonSettings,
    budget: int,
) -> Masks:
    """Masks after the removal of at most ``budget`` weights more."""

    def surgery(name: str) -> LayerSurgery:
        return LayerSurgery(linears[name].weight, masks[name], factors[name], settings)

    def stored(costs: Tensor) -> Tensor:
        return costs.cpu() if settings.layers_at_once else costs

    if settings.structure == "unstructured":
        gone = cheapest({name: stored(surgery(name).entry_costs()) for name in linears}, budget)
        return {name: kept & ~gone[name].to(kept.device) for name, kept in masks.items()}
    if settings.structure == "2:4":
        found = {name: tuple(map(stored, surgery(name).pair_costs())) for name in linears}
        groups = cheapest({name: costs for name, (costs, _) in found.items()}, budget // 2)
        gone = {name: removed_by_pairs(groups[name], found[name][1]) for name in linears}
        return {name: kept & ~gone[name].to(kept.device) for name, kept in masks.items()}
    found = {name: surgery(name).row_and_column_costs() for name in linears}
    costs = {name: rows for name, (rows, _) in found.items()}, {name: columns for name, (_, columns) in found.items()}
    kept_now = (
        {name: kept.any(dim=1) for name, kept in masks.items()},
        {n: kept.any(dim=0) for n, kept in masks.items()},
    )
    rows, columns = cheapest_rows_and_columns(costs, kept_now, budget)
    return {name: rows[name][:, None] & columns[name] for name in masks}


@torch.no_grad()
def _apply(
    linears: dict[str, nn.Linear],
    masks: Masks,
    chosen: Masks,
    factors: dict[str, KroneckerFactors],
    settings: SurgeonSettings,
) -> tuple[float, int]:
    """Write the new weights of the layers that lose some; the expected rise, and the most iterations of a layer."""
    rise, most = 0.0, 0
    for name, module in linears.items():
        if not torch.equal(masks[name], chosen[name]):
            surgery = LayerSurgery(module.weight, masks[name], factors[name], settings)
            new, of_layer, iterations = surgery.remove(chosen[name])
            module.weight.copy_(new)
            rise, most = rise + of_layer, max(most, iterations)
    return rise, most


@torch.no_grad()
def _zero(linears: dict[str, nn.Linear], masks: Masks) -> None:
    for name, kept in masks.items():
        linears[name].weight.masked_fill_(~kept, 0)


def _num_kept(masks: Masks) -> int:
    return sum(int(kept.sum()) for kept in masks.values())


def _starting_masks(linears: dict[str, nn.Linear], masks: Masks | None) -> Masks:
    if masks is None:
        return {name: torch.ones_like(module.weight, dtype=torch.bool) for name, module in linears.items()}
    shapes = {name: module.weight.shape for name, module in linears.items()}
    if {name: kept.shape for name, kept in masks.items()} != shapes:
        raise UsageError(
            "`masks` must be those that an earlier call gave for this model: one for each of its "
            f"{len(shapes)} linear layers, of the weight's shape; but they are {len(masks)}, or differ in shape."
        )
    for name, module in linears.items():
        if bool(module.weight.detach()[~masks[name]].any()):
            raise UsageError(f"`masks` says that weights of {name} were removed which are not zero in `model`.")
    return {name: masks[name].to(module.weight.device) for name, module in linears.items()}


def _check(linears: dict[str, nn.Linear], masks: Masks, settings: SurgeonSettings, size: float, num_shots: int) -> None:
    now = _num_kept(masks) / sum(kept.numel() for kept in masks.values())
    if not settings.smallest_size <= size < now:
        raise UsageError(
            f"`size` must be at least {settings.smallest_size} for {settings.structure} and below the model's size now "
            f"({now:.4f}), but it is {size}. Give the share of the weights to keep, such as {now / 2:.2g}."
        )
    check_ranges({"num_shots": num_shots})
    for name, kept in masks.items():
        if settings.is_grid and bool((kept != (kept.any(dim=1, keepdim=True) & kept.any(dim=0))).any()):
            raise UsageError(
                f"`masks` must keep whole rows and columns for {settings.structure}, but those of {name} do not."
            )
        if settings.structure == "2:4":
            _check_groups(name, kept)


def _check_groups(name: str, kept: Tensor) -> None:
    if kept.shape[1] % GROUP_SIZE:
        raise UsageError(
            f"2:4 needs inputs in groups of {GROUP_SIZE}, but {name} has {kept.shape[1]}, which is no multiple of it."
        )
    left = kept.view(len(kept), -1, GROUP_SIZE).sum(dim=-1)
    if bool(((left != GROUP_SIZE) & (left != GROUP_SIZE // 2)).any()):
        raise UsageError(f"`masks` must keep two or four of every four inputs for 2:4, but those of {name} do not.")


def _warn_of_short_text(linears: dict[str, nn.Linear], calibration: Calibration, settings: SurgeonSettings) -> None:
    first = next(iter(linears.values()))
    num_tokens = count_over_ranks(calibration.num_tokens, first.weight.device)
    largest = max(max(module.weight.shape) for module in linears.values())
    if settings.curvature != "none" and num_tokens < largest:
        warnings.warn(
            f"`calibration` holds {num_tokens} tokens, but the largest linear layer has {largest} inputs or "
            f"outputs: its factor has no full rank, and damping alone fills it. Give at least {largest} tokens.",
            ShortCalibrationWarning,
            stacklevel=3,
        )
