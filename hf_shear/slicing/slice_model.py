"""Cut a masked model down to a stock one that computes the same function.

Each mask value is folded in once, where the masked forward has it (the reference code folded hidden masks three times
over, into embeddings, final norm and head). With tied embeddings E' = E * diag(z) serves both ends, so the final norm
keeps its weight without z.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ..masks import HIDDEN, INTERMEDIATE
from ..modeling import ShearingLlamaForCausalLM, head_channel_masks, residual_write_masks, scale_weight
from ..shapes import config_for_shape
from .kept_units import KeptUnits, kept_units_from_masks
from .select_kept import head_channels, select_kept


@torch.no_grad()
def slice_model(
    model: ShearingLlamaForCausalLM, gates: dict[str, Tensor] | None = None
) -> tuple[LlamaForCausalLM, KeptUnits]:
    """Slice a masked model to its target shape.

    Args:
        model: the masked model; left as it is.
        gates: values in [0, 1] per kind of unit, in place of the model's deterministic masks; a unit whose gate is 0
            is removed, and each row must keep the target's number. Kinds left out are kept whole.

    Returns:
        A stock model of the target's shape, in the dtype and on the device of the source, in evaluation mode, and the
        units that were kept. Its logits equal the masked model's in evaluation mode.

    Raises:
        ValueError: the model has no masks, or a row of ``gates`` keeps another number of units than the target.
    """
    if not isinstance(model, ShearingLlamaForCausalLM):
        raise ValueError(
            f"`model` must be masked, but it is a {type(model).__name__}. Load it with"
            " ShearingLlamaForCausalLM.from_pretrained(path, target_shape=...)."
        )
    masks = model.masks
    if gates is None:
        gates, kept_masks = masks.deterministic(), masks.kept_units()
    else:
        kept_masks = {
            kind.name: gates[kind.name].bool().cpu()
            if kind.name in gates
            else torch.ones(kind.mask_shape, dtype=torch.bool)
            for kind in masks.kinds.values()
        }
    kept = kept_units_from_masks(kept_masks, masks.kinds, masks.source)
    config = config_for_shape(model.config, masks.target, kept.layers, config_class=LlamaConfig)
    config.dtype = model.dtype
    with torch.device("meta"):
        sliced = LlamaForCausalLM(config)
    sliced.load_state_dict(_sliced_state_dict(model, gates, kept), assign=True, strict=True)
    sliced.tie_weights()
    sliced.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    sliced.model.rotary_emb.config = config
    sliced.generation_config = copy.deepcopy(model.generation_config)
    sliced.set_attn_implementation(model.config._attn_implementation)
    for parameter in sliced.parameters():
        parameter.requires_grad_(True)
    return sliced.eval(), kept


def _sliced_state_dict(model: ShearingLlamaForCausalLM, gates: dict[str, Tensor], kept: KeptUnits) -> dict[str, Tensor]:
    """The kept rows and columns, with the masks folded into embeddings, norms, o_proj and down_proj."""
    source = model.masks.source
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith("masks.")}
    state = select_kept(weights, kept, source.head_dim)
    tied = model.config.tie_word_embeddings
    if HIDDEN in gates:
        _fold_hidden(state, gates[HIDDEN][kept.hidden], tied)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    writes, heads = residual_write_masks(gates, len(model.model.layers)), head_channel_masks(gates, source)
    for place, index in enumerate(kept.layers):
        write = writes[index]
        if write is not None and write.numel() > 1:
            write = write[kept.hidden]
        elif write is not None:
            write = write.expand(len(kept.hidden))
        channels = head_channels(kept.heads[index], source.head_dim, model.device)
        head_mask = None if heads is None else heads[index][channels]
        neuron_mask = gates[INTERMEDIATE][index][kept.intermediate[index]] if INTERMEDIATE in gates else None
        _fold_write(state, f"model.layers.{place}.self_attn.o_proj", write, head_mask)
        _fold_write(state, f"model.layers.{place}.mlp.down_proj", write, neuron_mask)
    return state


def _fold_hidden(state: dict[str, Tensor], mask: Tensor, tied: bool) -> None:
    """Masks of hidden dimensions into embeddings and norms."""
    for name, weight in state.items():
        if name == "model.embed_tokens.weight":
            state[name] = weight * mask.to(weight.dtype)
        elif name.endswith("norm.weight") and not (tied and name == "model.norm.weight"):
            state[name] = (weight.float() * mask).to(weight.dtype)


def _fold_write(state: dict[str, Tensor], module: str, write: Tensor | None, columns: Tensor | None) -> None:
    """Masks of a write into the residual stream (rows, bias) and of what it reads (columns)."""
    state[f"{module}.weight"] = scale_weight(state[f"{module}.weight"], write, columns)
    if write is not None and f"{module}.bias" in state:
        bias = state[f"{module}.bias"]
        state[f"{module}.bias"] = bias * write.to(bias.dtype)
