"""Prune at once: keep the units with the highest importance, all gates at 1."""

from __future__ import annotations

from torch import Tensor
from transformers import LlamaForCausalLM

from ..masks import hard_topk
from ..modeling import ShearingLlamaForCausalLM
from ..slicing import KeptUnits, slice_model


def prune_one_shot(
    model: ShearingLlamaForCausalLM, importance: dict[str, Tensor]
) -> tuple[LlamaForCausalLM, KeptUnits]:
    """Slice ``model`` to its target, keeping the highest scores of each row.

    Args:
        model: a masked model with weights of the source; left as it is.
        importance: scores [*rows, units] per kind of unit; higher = keep.
    """
    gates = {
        kind.name: hard_topk(importance[kind.name].to(model.device), kind.num_kept) for kind in model.masks.constrained
    }
    return slice_model(model, gates)
