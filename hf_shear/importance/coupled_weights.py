"""From a number per weight to a number per unit: sums over the weights that a unit takes along.

Legend: d hidden size, L layers, H query heads, KV key/value heads, g = H / KV, h head_dim, ff MLP width.

| unit | its weights |
|---|---|
| hidden dimension | columns of q, k, v, gate, up, embedding, head; rows and biases of o, down; entries of norms |
| layer | all of the layer |
| key/value group | those of its query heads; rows and biases of k and v |
| query head | rows and bias of q, columns of o |
| neuron | rows and biases of gate and up, columns of down |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from ..modeling import ShearingMixin, head_channel_masks
from ..shapes import ModelShape

_GROUPS = "group channels"  # of k and v
_HEADS = "head channels"

# What the axes of each module's weight stand for (None: the vocabulary, which stays); a bias has the first one.
_AXES = {
    "embed_tokens": (None, HIDDEN),
    "lm_head": (None, HIDDEN),
    "norm": (HIDDEN,),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
    "q_proj": (_HEADS, HIDDEN),
    "k_proj": (_GROUPS, HIDDEN),
    "v_proj": (_GROUPS, HIDDEN),
    "o_proj": (HIDDEN, _HEADS),
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}


def weights_of(model: ShearingMixin) -> dict[str, Tensor]:
    """The model's weights by name, without its masks; tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if not name.startswith("masks.")}


def write_weights(model: ShearingMixin) -> Iterator[tuple[int, str, Tensor]]:
    """(layer, name, weight) of the matrices that write into the residual stream, o_proj and down_proj."""
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            yield index, f"model.layers.{index}.{name}.weight", layer.get_submodule(name).weight


@torch.no_grad()
def sum_over_units(entries: Iterable[tuple[str, Tensor]], model: ShearingMixin) -> dict[str, Tensor]:
    """Sum over each unit's weights.

    Args:
        entries: a name of ``weights_of`` and a tensor of that weight's shape; weights left out count as zeros.
        model: whose gates in use say which weights are closed; those are left out.

    Returns:
        float32 [*rows, units] for all kinds of units.
    """
    shape, device = model.masks.source, model.device
    axes = _axis_gates(model)
    num_layers = shape.num_hidden_layers
    sums = {axis: torch.zeros(gate.shape, device=device) for axis, gate in axes.items()}
    for name, tensor in entries:
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else None
        names = _AXES[parts[-2]][: tensor.dim()]
        rows = [None if axis is None else _of_layer(axes[axis], axis, layer) for axis in names]
        values = tensor.float()
        for dim, gate in enumerate(rows):
            if gate is not None:
                values = values * (gate if dim == values.dim() - 1 else gate.unsqueeze(1))
        if layer is not None:
            values = values * axes[LAYER][layer]
            sums[LAYER][layer] += values.sum()
        for dim, axis in enumerate(names):
            if axis is not None:
                along = values if values.dim() == 1 else values.sum(dim=1 - dim)
                _of_layer(sums[axis], axis, layer).add_(along)
    queries = sums[_HEADS].view(num_layers, shape.num_key_value_heads, -1, shape.head_dim).sum(dim=-1)
    groups = sums[_GROUPS].view(num_layers, shape.num_key_value_heads, shape.head_dim).sum(dim=-1)
    return {
        HIDDEN: sums[HIDDEN],
        LAYER: sums[LAYER],
        KEY_VALUE_HEAD: groups + queries.sum(dim=-1),
        QUERY_HEAD: queries,
        INTERMEDIATE: sums[INTERMEDIATE],
    }


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


def _of_layer(tensor: Tensor, axis: str, layer: int | None) -> Tensor:
    return tensor if axis == HIDDEN else tensor[layer]


def _axis_gates(model: ShearingMixin) -> dict[str, Tensor]:
    """1 or 0 per index of each axis: [d], [L], [L, H * h], [L, KV * h], [L, ff]."""
    gates, shape = open_units(model), model.masks.source
    return {
        HIDDEN: gates[HIDDEN],
        LAYER: gates[LAYER],
        INTERMEDIATE: gates[INTERMEDIATE],
        _HEADS: head_channel_masks(gates, shape),
        _GROUPS: gates[KEY_VALUE_HEAD].repeat_interleave(shape.head_dim, dim=1),
    }


def by_head(channels: Tensor, shape: ModelShape) -> Tensor:
    """[..., H * h] as [..., KV, g, h]."""
    return channels.unflatten(-1, (shape.num_key_value_heads, -1, shape.head_dim))
