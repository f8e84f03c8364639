"""Select the kept rows and columns of a Llama's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .kept_units import KeptUnits

_HIDDEN, _HEADS, _GROUPS, _NEURONS = "hidden", "heads", "key_value_heads", "intermediate"

# What the axes of a module's weight stand for; the vocabulary (None) is kept whole. A bias has the first axis alone.
_AXES = {
    "embed_tokens": (None, _HIDDEN),
    "lm_head": (None, _HIDDEN),
    "norm": (_HIDDEN,),
    "input_layernorm": (_HIDDEN,),
    "post_attention_layernorm": (_HIDDEN,),
    "q_proj": (_HEADS, _HIDDEN),
    "k_proj": (_GROUPS, _HIDDEN),
    "v_proj": (_GROUPS, _HIDDEN),
    "o_proj": (_HIDDEN, _HEADS),
    "gate_proj": (_NEURONS, _HIDDEN),
    "up_proj": (_NEURONS, _HIDDEN),
    "down_proj": (_HIDDEN, _NEURONS),
}


def select_kept(tensors: Mapping[str, Tensor], kept: KeptUnits, head_dim: int) -> dict[str, Tensor]:
    """New tensors with the kept units alone, under the names they have in the sliced model.

    Args:
        tensors: by parameter name of the source, such as ``model.layers.3.mlp.up_proj.weight``.
        kept: the units to keep.
        head_dim: channels per head.
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
        for axis, unit in enumerate(_AXES[parts[-2]][: tensor.dim()]):
            if unit is not None:
                tensor = tensor.index_select(axis, _indices(kept, unit, layer, head_dim, tensor.device))
        selected[".".join(parts)] = tensor
    return selected


def head_channels(heads: list[int], head_dim: int, device: torch.device) -> Tensor:
    """Channels of the given heads, in order."""
    starts = torch.tensor(heads, device=device).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim, device=device)).flatten()


def _indices(kept: KeptUnits, unit: str, layer: int | None, head_dim: int, device: torch.device) -> Tensor:
    if unit == _HIDDEN:
        return torch.tensor(kept.hidden, device=device)
    units = getattr(kept, unit)[layer]
    return torch.tensor(units, device=device) if unit == _NEURONS else head_channels(units, head_dim, device)
