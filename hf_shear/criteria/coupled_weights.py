"""From a number per weight to a number per unit: sums over the weights that a unit takes along.

Legend: d hidden size, L layers, H query heads, KV key/value heads, g = H / KV, h head_dim, ff MLP width, E experts.

| unit | its weights |
|---|---|
| hidden dimension | columns of q, k, v, gate, up, embedding, head; rows and biases of o, down; entries of norms |
| layer | all of the layer |
| key/value group | those of its query heads; rows and biases of k and v |
| query head | rows and bias of q, columns of o |
| neuron | rows and biases of gate and up, columns of down |
| expert | its gate, up and down, its row of the router |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

from ..masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from ..modeling import ShearingMixin
from ..shapes import EXPERTS, GROUPS, HEADS, OUTPUT_PROJECTIONS, Axis, ModelShape

BLOCK = 2**22
"""Numbers of a weight that are summed at a time: 16 MB in float32, and as much again for each intermediate result."""


def weights_of(model: ShearingMixin) -> dict[str, Tensor]:
    """The model's weights by name, without its masks; tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if not name.startswith("masks.")}


def values_of(model: ShearingMixin) -> Iterator[tuple[str, Tensor]]:
    """(name, what becomes 0 without its units) of each weight: the weight, of a norm what it scales by, in float32."""
    family = model.family
    offset = {"norm", *family.pre_norms, *family.post_norms}
    for name, weight in weights_of(model).items():
        value = weight.detach()
        yield name, value.float() + family.norm_offset if name.split(".")[-2] in offset else value


def write_weights(model: ShearingMixin) -> Iterator[tuple[int, str, Tensor]]:
    """(layer, name, weight) of the matrices that write into the residual stream, o_proj and down_proj."""
    for index, layer in enumerate(model.model.layers):
        for name in OUTPUT_PROJECTIONS:
            yield index, f"model.layers.{index}.{name}.weight", layer.get_submodule(name).weight


@torch.no_grad()
def sum_over_units(
    entries: Iterable[tuple[str, Tensor]], model: ShearingMixin, measure: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Sum over each unit's weights.

    Args:
        entries: a name of ``weights_of`` and a tensor of that weight's shape; weights left out count as zeros.
        model: whose gates in use say which weights are closed; those are left out.
        measure: what is summed, of each number, from float32 to float32; by default the number. It is made of a few
            rows at a time: of a whole embedding it would take several times the embedding's memory.

    Returns:
        float32 [*rows, units] for all kinds of units.
    """
    shape, axes = model.masks.source, _axis_gates(model)
    sums = {axis: torch.zeros_like(gate) for axis, gate in axes.items()}
    for name, tensor in entries:
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else None
        along = [_parts_of(axis, axes) for axis in model.family.axes(name)[: tensor.dim()]]
        gates = [None if not units else torch.cat([_of_layer(axes[unit], unit, layer) for unit in units])
                 for units in along]  # fmt: skip
        total, added = _sums_along(tensor, gates, None if layer is None else axes[LAYER][layer], measure)
        if layer is not None:
            sums[LAYER][layer] += total
        for units, along_axis in zip(along, added, strict=True):
            if units:
                totals = [_of_layer(sums[unit], unit, layer) for unit in units]
                for total, part in zip(totals, along_axis.split([len(total) for total in totals]), strict=True):
                    total += part
    queries = by_head(sums[HEADS], shape).sum(dim=-1)
    groups = sums[GROUPS].unflatten(-1, (shape.num_key_value_heads, shape.head_dim)).sum(dim=-1)
    in_mlp = {EXPERT: sums[EXPERTS]} if EXPERTS in sums else {INTERMEDIATE: sums[INTERMEDIATE]}
    return {
        HIDDEN: sums[HIDDEN],
        LAYER: sums[LAYER],
        KEY_VALUE_HEAD: groups + queries.sum(dim=-1),
        QUERY_HEAD: queries,
        **in_mlp,
    }


def _sums_along(
    tensor: Tensor, gates: list[Tensor | None], layer_gate: Tensor | None, measure: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Sum of what is open of a tensor, and for each axis the sums at its places; float32."""
    total = tensor.new_zeros((), dtype=torch.float32)
    added = [tensor.new_zeros(size, dtype=torch.float32) for size in tensor.shape]
    num_rows = max(1, BLOCK // tensor[0].numel())
    for start in range(0, len(tensor), num_rows):
        rows = slice(start, start + num_rows)
        values = tensor[rows].float()
        if measure is not None:
            values = measure(values)
        for dim, gate in enumerate(gates):
            if gate is not None:
                own = gate[rows] if dim == 0 else gate
                values = values * own.view(-1, *[1] * (values.dim() - 1 - dim))
        if layer_gate is not None:
            values = values * layer_gate
        total += values.sum()
        for dim, sums in enumerate(added):
            others = [other for other in range(values.dim()) if other != dim]
            own = values.sum(dim=others) if others else values
            if dim == 0:
                sums[rows] = own
            else:
                sums += own
    return total, added


def open_units(model: ShearingMixin) -> dict[str, Tensor]:
    """1 for each unit that is open in the gates in use and 0 for others, float32 [*rows, units], for all kinds.

    A query head is open if it and its group are.
    """
    gates = model.gates_in_use
    found = {
        kind.name: (gates[kind.name] != 0).float().to(model.device)
        if kind.name in gates
        else torch.ones(kind.mask_shape, device=model.device)
        for kind in model.masks.kinds.values()
    }
    return found | {QUERY_HEAD: found[QUERY_HEAD] * found[KEY_VALUE_HEAD].unsqueeze(-1)}


def _parts_of(axis: Axis | None, axes: Collection[str]) -> tuple[str, ...]:
    """Units along an axis, several one behind the other in a fused projection; none for an axis that stays whole, which
    is one that is not in ``axes``: neurons of experts."""
    parts = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return parts if set(parts) <= set(axes) else ()


def _of_layer(tensor: Tensor, axis: str, layer: int | None) -> Tensor:
    return tensor if axis == HIDDEN else tensor[layer]


def _axis_gates(model: ShearingMixin) -> dict[str, Tensor]:
    """1 or 0 per index of each axis: [d], [L], [L, ff] or [L, E], [L, H * h], [L, KV * h]."""
    gates, shape = open_units(model), model.masks.source
    in_mlp = {EXPERTS: gates[EXPERT]} if EXPERT in gates else {INTERMEDIATE: gates[INTERMEDIATE]}
    return {
        HIDDEN: gates[HIDDEN],
        LAYER: gates[LAYER],
        **in_mlp,
        HEADS: gates[QUERY_HEAD].flatten(1).repeat_interleave(shape.head_dim, dim=1),
        GROUPS: gates[KEY_VALUE_HEAD].repeat_interleave(shape.head_dim, dim=1),
    }


def by_head(channels: Tensor, shape: ModelShape) -> Tensor:
    """[..., H * h] as [..., KV, g, h]."""
    return channels.unflatten(-1, (shape.num_key_value_heads, -1, shape.head_dim))
