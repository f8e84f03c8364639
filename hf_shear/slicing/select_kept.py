"""Select the kept rows and columns of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..shapes import EXPERTS, GROUPS, HEADS, HIDDEN, NEURONS, Axis, Family, ModelShape
from .kept_units import KeptUnits


def select_kept(
    tensors: Mapping[str, Tensor], kept: KeptUnits, source: ModelShape, family: Family
) -> dict[str, Tensor]:
    """The kept units alone, under the names they have in the sliced model: new tensors, but for what no kind of unit cuts.

    Args:
        tensors: by parameter name of the source, such as ``model.layers.3.mlp.up_proj.weight``.
        kept: the units to keep.
        source: shape of the source.
        family: says what the axes of its weights stand for.
    """
    places = {layer: str(place) for place, layer in enumerate(kept.layers)}
    selected = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else None
        if layer is not None:
            if layer not in places:
                continue
            parts[2] = places[layer]
        for axis, units in enumerate(family.axes(name)[: tensor.dim()]):
            if units is not None:
                tensor = tensor.index_select(axis, _axis_indices(kept, units, layer, source).to(tensor.device))
        selected[".".join(parts)] = tensor
    return selected


def head_channels(heads: list[int], head_dim: int, device: torch.device) -> Tensor:
    """Channels of the given heads, in order."""
    starts = torch.tensor(heads, dtype=torch.long, device=device).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim, device=device)).flatten()


def _axis_indices(kept: KeptUnits, units: Axis, layer: int | None, source: ModelShape) -> Tensor:
    """Kept places along an axis; of a fused projection, those of its parts one behind the other."""
    indices, start = [], 0
    for unit in units if isinstance(units, tuple) else (units,):
        indices.append(start + _indices(kept, unit, layer, source.head_dim))
        start += axis_length(unit, source)
    return torch.cat(indices)


def _indices(kept: KeptUnits, unit: str, layer: int | None, head_dim: int) -> Tensor:
    if unit == HIDDEN:
        return torch.tensor(kept.hidden)
    units = getattr(kept, unit)[layer]
    if unit in (NEURONS, EXPERTS):
        return torch.tensor(units, dtype=torch.long)
    return head_channels(units, head_dim, torch.device("cpu"))


def axis_length(unit: str, shape: ModelShape) -> int:
    """Rows or columns that stand for all units of a kind."""
    return {
        HIDDEN: shape.hidden_size,
        HEADS: shape.num_attention_heads * shape.head_dim,
        GROUPS: shape.num_key_value_heads * shape.head_dim,
        NEURONS: shape.intermediate_size,
        EXPERTS: shape.num_experts,
    }[unit]
