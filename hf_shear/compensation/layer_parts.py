"""The linear layers of a decoder layer that compensation may write to, and which of their inputs and outputs stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER
from ..modeling import ShearingModel, head_channel_masks
from ..shapes.family import GROUPS, HEADS, NEURONS, Axis
from ..shapes.family import HIDDEN as HIDDEN_AXIS

ATTENTION, MLP = "self_attn", "mlp"


@dataclass(frozen=True)
class Part:
    """One linear layer.

    Attributes:
        name: as in ``named_modules`` of the decoder layer.
        columns, rows: inputs and outputs that stay, bool [C] and [R].
        writes: whether it adds to the residual stream (o_proj, down_proj); else it reads it.
    """

    name: str
    columns: Tensor
    rows: Tensor
    writes: bool


def layer_parts(model: ShearingModel, gates: dict[str, Tensor], index: int) -> list[list[Part]]:
    """The parts of layer ``index`` in the order of the forward, those that read the same together.

    Empty if the layer is removed; those that read the residual stream only if it loses dimensions.
    """
    if LAYER in gates and not bool(gates[LAYER][index]):
        return []
    groups = []
    for block, axes in ((ATTENTION, model.family.attention), (MLP, model.family.mlp)):
        parts = {True: [], False: []}
        for name, (rows, columns) in axes.items():
            writes = columns != HIDDEN_AXIS
            part = Part(
                f"{block}.{name}", _open(model, gates, index, columns), _open(model, gates, index, rows), writes
            )
            parts[writes].append(part)
        reads = HIDDEN in gates and not bool(gates[HIDDEN].all())
        groups += [parts[False], parts[True]] if reads else [parts[True]]
    return groups


def _open(model: ShearingModel, gates: dict[str, Tensor], index: int, axis: Axis) -> Tensor:
    """Which places of an axis are open: bool."""
    if isinstance(axis, tuple):
        return torch.cat([_open(model, gates, index, part) for part in axis])
    source = model.masks.source
    if axis == HIDDEN_AXIS:
        mask, size = gates.get(HIDDEN), source.hidden_size
    elif axis == HEADS:
        heads = head_channel_masks(gates, source)
        mask, size = None if heads is None else heads[index], source.num_attention_heads * source.head_dim
    elif axis == GROUPS:
        groups = gates.get(KEY_VALUE_HEAD)
        mask = None if groups is None else groups[index].repeat_interleave(source.head_dim)
        size = source.num_key_value_heads * source.head_dim
    else:
        assert axis == NEURONS
        mask = gates[INTERMEDIATE][index] if INTERMEDIATE in gates else None
        size = source.intermediate_size
    return torch.ones(size, dtype=torch.bool, device=model.device) if mask is None else mask != 0
