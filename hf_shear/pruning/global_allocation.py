"""One list of all units of all layers, the cheapest removed first, until a parameter budget is met.

The LLM Surgeon's global threshold (arXiv 2312.17244, section 3.5), with exact accounting of what units share: a KV head
whose query heads are partly gone frees less, a removed sub-layer frees its units. Scores that do not compare between
layers are standardised layer by layer first, as FLAP does (arXiv 2312.11983).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..core import UsageError
from ..criteria import Scores
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, unit_parameters
from ..shapes import count_attention, count_mlp
from .open_units import Closed, OpenUnits, Unit, units_per_layer

GLOBAL_KINDS = (LAYER, ATTENTION, MLP, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)


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
        raise UsageError(too_small(units, budget, scores))
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
    """Parameters that remain once everything of ``kinds`` is closed that may be; closes it."""
    _close_in_order(units, _largest_first(units, kinds), 0)
    return units.num_parameters


def _largest_first(units: OpenUnits, kinds: Collection[str]) -> Iterator[Unit]:
    source = units.source
    for kind in [kind for kind in GLOBAL_KINDS if kind in kinds]:
        for layer in range(source.num_hidden_layers):
            for index in range(units_per_layer(kind, source)):
                yield Unit(kind, layer, index)


def too_small(units: OpenUnits, budget: int, kinds: Collection[str]) -> str:
    """The text of the error for a budget that cannot be met."""
    return (
        f"`target` is a budget of {budget:,} parameters, but {units.num_parameters:,} remain when everything is removed"
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
