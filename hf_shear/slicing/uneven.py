"""Cut a masked model whose layers keep different numbers of units: a stock model, with zeros where a layer is narrower.

Every layer gets the width of the largest one, and places of units that it lacks are zero rows and columns. They add
nothing: a neuron of zeros gives silu(0) * 0 = 0, a KV head of zeros values of 0, and whatever a query head of zeros
reads meets zero columns of o_proj. In exact arithmetic the padded model is the unpadded one.

Legend: d hidden size, g query heads per KV head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError
from ..masks import LAYER
from ..modeling import ShearingModel
from ..shapes import (
    GROUPS,
    HIDDEN,
    NEURONS,
    Axis,
    LayerSizes,
    ModelShape,
    config_for_shape,
    count_uneven_parameters,
    family_of,
    smallest_holding,
)
from .gathering import check_dtype
from .kept_units import KeptUnits, kept_units_from_masks
from .select_kept import axis_length, head_channels
from .slice_model import build_sliced


@torch.no_grad()
def slice_uneven(
    model: ShearingModel, gates: dict[str, Tensor], dtype: torch.dtype | None = None, release_source: bool = False
) -> tuple[PreTrainedModel, KeptUnits]:
    """Slice a masked model by gates that may keep another number of units in each layer, or none of a sub-layer.

    Args:
        model: as in ``slice_model``.
        gates: values in [0, 1] per kind of unit; a unit whose gate is 0 is removed. A layer of which all KV heads, or
            all neurons, are closed has no such sub-layer (where o_proj or down_proj has a bias, that stays).
        dtype, release_source: as in ``slice_model``.

    Returns:
        A stock model with the widths of ``padded_shape``, and the units that were kept. Its logits equal the masked
        model's under ``gates``.

    Raises:
        ValueError: as in ``slice_model``; no layer stays; or the model is a mixture of experts, in which a token could be
            routed to an expert of zeros.
    """
    check_dtype(dtype)
    if model.family.has_experts:
        raise UsageError(
            f"Layers of a {model.family.model_type} must all keep the same numbers of units: a narrower one could only be"
            " padded with experts of zeros, to which tokens would be routed. Use `slice_model`."
        )
    kinds = model.masks.kinds
    masks = {
        name: gates[name].bool().cpu() if name in gates else torch.ones(kind.mask_shape, dtype=torch.bool)
        for name, kind in kinds.items()
    }
    if not bool(masks[LAYER].any()):
        raise UsageError(f"`gates[{LAYER!r}]` closes all layers; at least one must stay.")
    kept = kept_units_from_masks(masks, kinds, model.masks.source, uneven=True)
    shape = padded_shape(model.config, kept)
    config = config_for_shape(model.config, shape, kept.layers, config_class=model.family.config_class)
    source = model.masks.source

    def pad(name: str, weight: Tensor) -> Tensor:
        return _padded(name, weight, kept, source, shape, config)

    return build_sliced(model, config, gates, kept, dtype, pad, release_source), kept


def padded_shape(config: PretrainedConfig, kept: KeptUnits) -> ModelShape:
    """The smallest shape that holds every layer of ``kept``, and that the config's class accepts.

    Args:
        config: of the source.
        kept: units of the source.
    """
    source = ModelShape.from_config(config)
    per_group = [count for layer in kept.layers for count in _queries_per_group(kept.heads[layer], source)]
    return smallest_holding(
        config,
        hidden_size=len(kept.hidden),
        num_layers=len(kept.layers),
        num_groups=max(1, *(len(kept.key_value_heads[layer]) for layer in kept.layers)),
        num_queries=max([1, *per_group]),
        num_neurons=max(1, *(len(kept.intermediate[layer]) for layer in kept.layers)),
    )


def layer_sizes(kept: KeptUnits) -> Iterator[LayerSizes]:
    """Widths of the kept layers, in order."""
    for layer in kept.layers:
        yield LayerSizes(
            len(kept.heads[layer]),
            len(kept.key_value_heads[layer]),
            len(kept.intermediate[layer]),
            len(kept.experts[layer]) if kept.experts else None,
        )


def count_kept_parameters(config: PretrainedConfig, kept: KeptUnits) -> int:
    """Parameters of the model with the kept units alone, without padding; ``config`` is the source's."""
    head_dim = ModelShape.from_config(config).head_dim
    return count_uneven_parameters(config, len(kept.hidden), head_dim, layer_sizes(kept))


def _queries_per_group(heads: list[int], source: ModelShape) -> list[int]:
    groups = [head // source.queries_per_group for head in heads]
    return [groups.count(group) for group in sorted(set(groups))]


def _padded(
    name: str, weight: Tensor, kept: KeptUnits, source: ModelShape, shape: ModelShape, config: PretrainedConfig
) -> Tensor:
    """A weight of the sliced model, by its name there, with zeros in the places of units that its layer lacks."""
    parts = name.split(".")
    if parts[1] != "layers":
        return weight
    layer, module = kept.layers[int(parts[2])], parts[-2]
    family = family_of(config)
    if module in family.unused_norms(config, bool(kept.heads[layer]), bool(kept.intermediate[layer])):
        return torch.zeros_like(weight)
    for axis, units in enumerate(family.axes(name)[: weight.dim()]):
        if units is not None and units != HIDDEN:
            places, length = _places(units, layer, kept, source, shape)
            size = list(weight.shape)
            size[axis] = length
            weight = weight.new_zeros(size).index_copy_(axis, places.to(weight.device), weight)
    return weight


def _places(units: Axis, layer: int, kept: KeptUnits, source: ModelShape, shape: ModelShape) -> tuple[Tensor, int]:
    """Where the kept rows (or columns) of a layer stand in the padded weight, and how many that has."""
    places, start = [], 0
    for unit in units if isinstance(units, tuple) else (units,):
        groups = kept.key_value_heads[layer]
        if unit == NEURONS:
            found = torch.arange(len(kept.intermediate[layer]))
        elif unit == GROUPS:
            found = head_channels(list(range(len(groups))), source.head_dim, torch.device("cpu"))
        else:
            heads = _head_places(kept.heads[layer], groups, source, shape)
            found = head_channels(heads, source.head_dim, torch.device("cpu"))
        places.append(start + found)
        start += axis_length(unit, shape)
    return torch.cat(places), start


def _head_places(heads: list[int], groups: list[int], source: ModelShape, shape: ModelShape) -> list[int]:
    """Places of a layer's query heads in the padded model: those of a group side by side, from the group's first."""
    places, taken = [], dict.fromkeys(groups, 0)
    for head in heads:
        group = head // source.queries_per_group
        places.append(groups.index(group) * shape.queries_per_group + taken[group])
        taken[group] += 1
    return places
