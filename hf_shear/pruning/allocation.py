"""How layers share what is removed: from scores to gates of 0 and 1.

An allocation is a function of a ``Shot`` and a row of ``ALLOCATIONS``; its options are its keyword arguments.

- uniform: every layer has the same number of units, which a target shape says.
- global: one list of all units of all layers, the cheapest removed first, until a parameter budget is met. The LLM
  Surgeon's global threshold (arXiv 2312.17244, section 3.5), with exact accounting of what units share: a KV head whose
  query heads are partly gone frees less, a removed sub-layer frees its units. Scores that do not compare between layers
  are standardised layer by layer first, as FLAP does (arXiv 2312.11983).
- adaptive: layers that turn the residual stream little lose more, the schedule of Adapt-Pruner (arXiv 2502.03460,
  section 3). In many small steps, s_l += delta - amplitude * I_l: s_l is the share of its units that layer l has lost,
  I_l its influence under the units that are open now, centred and scaled to [-1, 1]. Within a layer the criterion ranks,
  kind by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from ..core import UsageError, keyword_options, named_entry, options_from_text
from ..criteria import Scores
from ..criteria.block_influence import block_influence
from ..data import Calibration
from ..masks import (
    ATTENTION,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    MLP,
    QUERY_HEAD,
    UnitKind,
    hard_topk,
    unit_parameters,
)
from ..modeling import ShearingModel
from ..shapes import PerLayerShape, count_attention, count_mlp, count_parameters
from .open_units import Closed, OpenUnits, Unit, units_per_layer

GLOBAL_KINDS = (LAYER, ATTENTION, MLP, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)
ADAPTIVE_KINDS = (KEY_VALUE_HEAD, INTERMEDIATE)
ROUNDING = 1e-6
"""A share that a sum of steps leaves this far below a whole number of units counts as that number."""


@dataclass(frozen=True)
class Shot:
    """One of the times that units are removed.

    Attributes:
        model: masked; its gates in use are those of the units that are open now.
        calibration: text.
        scores: [*rows, units] per kind of unit that loses some; higher = keep.
        progress: of the way from the source's size (0) to the target's (1) that is gone after this shot.
        comparable: whether scores of different layers and kinds compare.
        config: of the source; its parameters are counted.
        budget: parameters that may be left after the last shot.
        protected: units that stay.
    """

    model: ShearingModel
    calibration: Calibration
    scores: Scores
    progress: float
    comparable: bool
    config: PretrainedConfig
    budget: int
    protected: frozenset[Unit] = frozenset()

    def open_units(self) -> OpenUnits:
        """The units that are open before this shot."""
        return OpenUnits(self.config, self.model.masks.source, self.model.gates_in_use, self.protected)

    @property
    def num_source(self) -> int:
        """Parameters of the source."""
        return count_parameters(self.config, self.model.masks.source)

    @property
    def num_left(self) -> int:
        """Parameters that this shot may leave."""
        assert self.budget is not None, "of a target shape"
        return self.budget + round((self.num_source - self.budget) * (1 - self.progress))


@dataclass(frozen=True)
class Allocation:
    """A way to share what is removed, with its options.

    Attributes:
        name: without options.
        choose: from a shot to gates of 0 and 1 by kind of unit. What the gates in use close stays closed.
        kinds: of units that it can remove to a budget, layer by layer; none: those that a target shape says.
    """

    name: str
    choose: Callable[[Shot], Scores]
    kinds: tuple[str, ...] = ()

    @property
    def uneven(self) -> bool:
        """Whether layers may end with different widths."""
        return bool(self.kinds)


def uniform(shot: Shot) -> Scores:
    """Every row keeps the same number of its best units; earlier shots go part of the way."""
    return uniform_gates(shot.scores, shot.model.masks.kinds, shot.model.gates_in_use, shot.progress)


def sized_layers(shot: Shot, *, shape: PerLayerShape) -> Scores:
    """Every layer keeps what a shape says."""
    return per_layer_gates(shot.scores, shape, shot.model.device)


def one_list(shot: Shot, *, per_parameter: bool = True) -> Scores:
    """The cheapest units of all layers go; see ``close_cheapest``."""
    units = shot.open_units()
    close_cheapest(units, shot.scores, shot.num_left, shot.comparable, per_parameter)
    return units.gates(shot.model.device)


def adaptive(shot: Shot, *, num_steps: int = 50, amplitude: float = 0.5, num_batches: int = 1) -> Scores:
    """The share that the budget removes goes in about ``num_steps`` steps; see ``close_by_influence``."""
    units = shot.open_units()
    # At the source's size nothing is to be removed, and no step is taken.
    assert shot.budget is not None, "of a target shape"
    removed = max(1 - shot.budget / shot.num_source, 1 / shot.num_source)
    close_by_influence(
        shot.model, shot.calibration, units, shot.scores, shot.num_left, removed / num_steps, amplitude, num_batches
    )
    return units.gates(shot.model.device)


ALLOCATIONS: dict[str, Allocation] = {
    found.name: found
    for found in (
        Allocation("uniform", uniform),
        Allocation("global", one_list, GLOBAL_KINDS),
        Allocation("adaptive", adaptive, ADAPTIVE_KINDS),
    )
}
"""Every allocation by its name."""


def resolve_allocation(choice: str | Allocation) -> Allocation:
    """The allocation that a name with options stands for, such as ``"adaptive:num_steps=20"``.

    Raises:
        UsageError: an unknown name or option.
    """
    if isinstance(choice, Allocation):
        return choice
    name, found, text = named_entry(ALLOCATIONS, choice, "allocation")
    options = options_from_text(text, keyword_options(found.choose), f"Allocation {name!r}")
    return replace(found, choose=partial(found.choose, **options))


# ---- uniform -----------------------------------------------------------------------------------------------------


def uniform_gates(
    scores: Scores, kinds: dict[str, UnitKind], gates: dict[str, Tensor], progress: float = 1.0
) -> Scores:
    """Every row keeps the same number of its best units: uniform allocation, which a target shape implies.

    Args:
        scores: [*rows, units] per kind of unit that loses some; higher = keep.
        kinds: with the numbers of the target.
        gates: those in use; a unit that is closed there stays closed.
        progress: of the way from the source's numbers (0) to the target's (1), which earlier shots go.

    Returns:
        Gates of 0 and 1, [*rows, units], for each kind of ``scores``.
    """
    chosen = {}
    for name, score in scores.items():
        if name in gates:
            score = score.masked_fill(gates[name] == 0, float("-inf"))
        chosen[name] = hard_topk(score, kept_by(kinds[name], progress))
    return chosen


def kept_by(kind: UnitKind, progress: float) -> int:
    """Units of each row that stay on the way from the source (0) to the target (1)."""
    return round(kind.budget(progress))


# ---- sizes of each layer -------------------------------------------------------------------------------------------


def per_layer_gates(scores: Scores, shape: PerLayerShape, device: torch.device | str = "cpu") -> Scores:
    """Every layer keeps as many of its best units as a shape says.

    Args:
        scores: [*rows, units] per kind of unit, of all kinds that some layer loses; higher = keep.
        shape: sizes of each layer.

    Returns:
        Gates of 0 and 1, [*rows, units], for the kinds of which units are lost. A removed sub-layer has closed units.
    """
    layers, source = shape.layers, shape.source
    width, queries = (len(layers), source.num_key_value_heads), source.queries_per_group
    of = {
        KEY_VALUE_HEAD: (width, [sizes.num_key_value_heads for sizes in layers]),
        QUERY_HEAD: (
            (*width, queries),
            [sizes.num_heads // sizes.num_key_value_heads if sizes.num_heads else queries for sizes in layers],
        ),
        INTERMEDIATE: ((len(layers), source.intermediate_size), [sizes.num_neurons for sizes in layers]),
    }
    gates = {}
    for kind, (size, numbers) in of.items():
        if all(number == size[-1] for number in numbers):
            continue
        whole_rows = all(number in (0, size[-1]) for number in numbers)  # in which no unit is chosen
        score = torch.zeros(size) if whole_rows else scores[kind].cpu()
        rank = torch.sort(score, dim=-1, descending=True, stable=True).indices.argsort(dim=-1)  # 0: the best of its row
        most = torch.tensor(numbers).reshape(-1, *[1] * (rank.dim() - 1))
        gates[kind] = (rank < most).float()
    if shape.hidden_size < source.hidden_size:
        gates[HIDDEN] = hard_topk(scores[HIDDEN], shape.hidden_size)
    if len(shape.kept_layers) < len(layers):
        gates[LAYER] = torch.tensor([float(bool(sizes.num_heads or sizes.num_neurons)) for sizes in layers])
    return {kind: gate.to(device) for kind, gate in gates.items()}


# ---- global ------------------------------------------------------------------------------------------------------


def close_cheapest(
    units: OpenUnits, scores: Scores, budget: int, comparable: bool = True, per_parameter: bool = True
) -> None:
    """Close units until the model has at most ``budget`` parameters.

    Units are closed one by one in the order of their scores (ties: by kind, layer and index), and the budget ends the
    walk. What the last ones freed too much is given back to the best units that were closed and still fit.

    Args:
        units: open now; changed.
        scores: by kind of unit, of ``GLOBAL_KINDS``; higher = keep.
        budget: parameters.
        comparable: whether scores of different rows compare. If not they are standardised per layer, to mean 0 and
            standard deviation 1, and one threshold on them decides.
        per_parameter: divide comparable scores by the parameters that a unit frees.

    Raises:
        ValueError: the budget cannot be met by these kinds of units.
    """
    closed = _close_in_order(units, _in_order(units, scores, comparable, per_parameter), budget)
    if units.num_parameters > budget:
        # Which sub-layers stay as the last ones depends on the order; the smallest model goes by the largest units first.
        for unit in reversed(closed):
            units.reopen(unit)
        closed = _close_in_order(units, _largest_first(units, scores), budget)
    if units.num_parameters > budget:
        raise UsageError(too_small(units.num_parameters, budget, scores))
    give_back(units, closed, budget)


def _close_in_order(units: OpenUnits, order: Iterable[Unit], budget: int) -> list[Closed]:
    """Close units until the budget is met; returns those that were closed."""
    closed = []
    for unit in order:
        if units.num_parameters <= budget:
            break
        done = units.close(unit)
        if done is not None:
            closed.append(done)
    return closed


def give_back(units: OpenUnits, closed: list[Closed], budget: int) -> None:
    """Open again what fits under ``budget``: the last that were closed first."""
    for unit in reversed(closed):
        if units.num_parameters == budget:
            break
        units.reopen_within(unit, budget)


def smallest_count(units: OpenUnits, kinds: Collection[str]) -> int:
    """Parameters that remain once everything of ``kinds`` is closed that may be; ``units`` are left as they are."""
    closed = _close_in_order(units, _largest_first(units, kinds), 0)
    smallest = units.num_parameters
    for unit in reversed(closed):
        units.reopen(unit)
    return smallest


def _largest_first(units: OpenUnits, kinds: Collection[str]) -> Iterator[Unit]:
    source = units.source
    for kind in [kind for kind in GLOBAL_KINDS if kind in kinds]:
        for layer in range(source.num_hidden_layers):
            for index in range(units_per_layer(kind, source)):
                yield Unit(kind, layer, index)


def too_small(smallest: int, budget: int, kinds: Collection[str]) -> str:
    """The text of the error for a budget that cannot be met, since ``smallest`` parameters remain."""
    return (
        f"`target` is a budget of {budget:,} parameters, but {smallest:,} remain when everything is removed"
        f" of {', '.join(kinds)} that may be (one unit of each row stays; embeddings and hidden_size do too). Raise the"
        " budget, or name more kinds in `units`."
    )


def _in_order(units: OpenUnits, scores: Scores, comparable: bool, per_parameter: bool) -> Iterator[Unit]:
    keys, where = [], []
    for number, kind in enumerate([kind for kind in GLOBAL_KINDS if kind in scores]):
        key = _standardised(scores[kind]) if not comparable else scores[kind].double().cpu()
        if comparable and per_parameter:
            key = key / _freed_by(kind, units)
        key = key.reshape(units.source.num_hidden_layers, -1)
        keys.append(key.flatten().numpy())
        layer, index = np.divmod(np.arange(key.numel()), key.shape[1])
        where.append(np.stack([np.full(key.numel(), number), layer, index], axis=1))
    names = [kind for kind in GLOBAL_KINDS if kind in scores]
    places = np.concatenate(where)[np.argsort(np.concatenate(keys), kind="stable")]
    return (Unit(names[kind], layer, index) for kind, layer, index in places.tolist())


def _standardised(score: Tensor) -> Tensor:
    """Mean 0, standard deviation 1 in each layer; 0 where all scores of a layer are the same."""
    flat = score.double().cpu().reshape(len(score), -1)
    spread = flat.std(dim=1, correction=0, keepdim=True)
    return torch.where(spread > 0, (flat - flat.mean(dim=1, keepdim=True)) / spread, torch.zeros_like(flat))


def _freed_by(kind: str, units: OpenUnits) -> int:
    """Parameters that a unit of the source frees, alone."""
    config, source = units.config, units.source
    hidden, width, head_dim = source.hidden_size, source.intermediate_size, source.head_dim
    heads, groups = source.num_attention_heads, source.num_key_value_heads
    if kind == ATTENTION:
        whole = count_attention(config, hidden, heads, groups, head_dim)
        return whole - count_attention(config, hidden, 0, 0, head_dim)
    if kind == MLP:
        return count_mlp(config, hidden, width) - count_mlp(config, hidden, 0)
    return unit_parameters(config, source)[kind]


# ---- adaptive ----------------------------------------------------------------------------------------------------


def close_by_influence(
    model: ShearingModel,
    calibration: Calibration,
    units: OpenUnits,
    scores: Scores,
    budget: int,
    delta: float,
    amplitude: float = 0.5,
    num_batches: int = 1,
) -> None:
    """Close units, step by step, until the model has at most ``budget`` parameters.

    The last step ends within the step, and what it freed too much is given back.

    Args:
        model: masked; the gates in use are those of ``units``. Left as it is.
        calibration: text for the influence.
        units: open now; changed.
        scores: of ``ADAPTIVE_KINDS``, at the beginning of the steps; higher = keep.
        budget: parameters.
        delta: share of its units that a layer of mean influence loses per step.
        amplitude: in units of ``delta``: how much less, or more, the layers of influence 1 and -1 lose. A layer whose
            step is negative waits: what was removed never comes back.
        num_batches: of the calibration, behind each estimate of the influence, one forward pass each; it is a mean over
            all tokens, which one batch gives well.

    Raises:
        ValueError: the budget cannot be met by these kinds of units.
    """
    closed, text = [], replace(calibration, batches=calibration.batches[:num_batches])
    shares = torch.tensor([_share_lost(units, layer, scores) for layer in range(units.source.num_hidden_layers)])
    order = {kind: score.cpu().argsort(dim=-1, stable=True).tolist() for kind, score in scores.items()}
    while units.num_parameters > budget:
        if bool((shares >= 1).all()):
            raise UsageError(too_small(units.num_parameters, budget, scores))
        with model.use_gates(units.gates(model.device)):
            influence = centred(block_influence(model, text)[LAYER].cpu())  # layer by layer it is read by the host
        stepped = (shares + delta * (1 - amplitude * influence)).clamp(0, 1)
        # Where all layers that may lose have lost everything, the rest lose alike.
        shares = stepped if not torch.equal(stepped, shares) else (shares + delta).clamp(0, 1)
        for layer in influence.argsort(stable=True).tolist():  # where the budget ends a step, it spares the influential
            closed += _close_share(units, layer, float(shares[layer]), order, budget)
    give_back(units, closed, budget)


def centred(influence: Tensor) -> Tensor:
    """Influence minus its mean, divided by the largest magnitude: in [-1, 1]; 0 where all layers are alike."""
    gap = influence - influence.mean()
    return gap / gap.abs().max().clamp(min=torch.finfo(gap.dtype).tiny)


def _share_lost(units: OpenUnits, layer: int, kinds: Collection[str]) -> float:
    """Mean over kinds of the share of a layer's units that are closed."""
    sizes, source = units.sizes(layer), units.source
    lost = {
        KEY_VALUE_HEAD: 1 - sizes.num_key_value_heads / source.num_key_value_heads,
        INTERMEDIATE: 1 - sizes.num_neurons / source.intermediate_size,
    }
    return sum(lost[kind] for kind in kinds) / len(kinds)


def _close_share(units: OpenUnits, layer: int, share: float, order: dict[str, list], budget: int) -> list[Closed]:
    """Close the lowest units of a layer until ``share`` of each kind is closed, or the budget is met."""
    sizes, closed = units.sizes(layer), []
    for kind, layers in order.items():
        num_units = units_per_layer(kind, units.source)
        num_open = sizes.num_key_value_heads if kind == KEY_VALUE_HEAD else sizes.num_neurons
        missing = int(share * num_units + ROUNDING) - (num_units - num_open)
        for index in layers[layer]:
            if missing <= 0 or units.num_parameters <= budget:
                break
            done = units.close(Unit(kind, layer, index))
            if done is not None:
                closed.append(done)
                missing -= 1
    return closed
