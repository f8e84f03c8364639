"""Which inputs of o_proj and down_proj the gates leave open: heads and neurons as columns of weights.

The masked forward folds these gates into the columns of the weight (``folding``), so what reaches the two linear layers
in the activations is not masked. Whoever takes statistics there must leave closed inputs out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import HIDDEN, INTERMEDIATE, LAYER
from ..shapes import ATTENTION_OUTPUT, MLP_OUTPUT
from .mixin import ShearingMixin, head_channel_masks


def open_columns(model: ShearingMixin, gates: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Per layer the inputs of o_proj and down_proj that are open.

    Args:
        gates: as for ``use_gates``; absent = open.

    Returns:
        For each layer a bool [C] by name within it.
    """
    rows = {ATTENTION_OUTPUT: head_channel_masks(gates, model.masks.source), MLP_OUTPUT: gates.get(INTERMEDIATE)}
    found = []
    for index, layer in enumerate(model.model.layers):
        found.append({})
        for name, masks in rows.items():
            size = layer.get_submodule(name).in_features
            is_open = torch.ones(size, dtype=torch.bool) if masks is None else masks[index] != 0
            found[-1][name] = is_open.to(model.device)
    return found


def written_weight(model: ShearingMixin, index: int, name: str, gates: dict[str, Tensor]) -> Tensor:
    """The weight [R, C] of a layer's o_proj or down_proj as far as it is written: rows of closed hidden dimensions are
    0, and all of it where the layer is closed."""
    weight = model.model.layers[index].get_submodule(name).weight.detach()
    if HIDDEN in gates:
        weight = weight * gates[HIDDEN].to(weight).unsqueeze(-1)
    return weight * gates[LAYER][index].to(weight) if LAYER in gates else weight
