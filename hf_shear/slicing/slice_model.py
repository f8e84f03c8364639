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
from ..shapes import ModelShape, config_for_shape
from .kept_units import KeptUnits, kept_units_from_masks


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
        ValueError: a row of ``gates`` keeps another number of units than the target.
    """
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
    device, tied = model.device, model.config.tie_word_embeddings
    hidden = torch.tensor(kept.hidden, device=device)
    mask = gates[HIDDEN][hidden] if HIDDEN in gates else None
    embedding = model.model.embed_tokens.weight[:, hidden]
    embedding = embedding if mask is None else embedding * mask.to(embedding.dtype)
    state = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": _sliced_norm(model.model.norm.weight, hidden, None if tied else mask),
        "lm_head.weight": embedding if tied else model.lm_head.weight[:, hidden].clone(),
    }
    writes = residual_write_masks(gates, len(model.model.layers))
    heads = head_channel_masks(gates, model.masks.source)
    for new_index, index in enumerate(kept.layers):
        neuron_mask = gates[INTERMEDIATE][index] if INTERMEDIATE in gates else None
        layer_state = _sliced_layer(
            model.model.layers[index],
            index,
            kept,
            model.masks.source,
            hidden,
            mask,
            writes[index],
            None if heads is None else heads[index],
            neuron_mask,
        )
        state.update({f"model.layers.{new_index}.{name}": tensor for name, tensor in layer_state.items()})
    return state


def _sliced_layer(
    layer: torch.nn.Module,
    index: int,
    kept: KeptUnits,
    source: ModelShape,
    hidden: Tensor,
    hidden_mask: Tensor | None,
    write_mask: Tensor | None,
    head_mask: Tensor | None,
    neuron_mask: Tensor | None,
) -> dict[str, Tensor]:
    """State dict of one layer: rows and columns selected, masks folded into norms, o_proj and down_proj."""
    device = hidden.device
    queries = _channels(kept.heads[index], source.head_dim, device)
    groups = _channels(kept.key_value_heads[index], source.head_dim, device)
    neurons = torch.tensor(kept.intermediate[index], device=device)
    if write_mask is not None and write_mask.numel() == 1:
        write_mask = write_mask.expand(source.hidden_size)
    attention, mlp = layer.self_attn, layer.mlp
    state = {
        "input_layernorm.weight": _sliced_norm(layer.input_layernorm.weight, hidden, hidden_mask),
        "post_attention_layernorm.weight": _sliced_norm(layer.post_attention_layernorm.weight, hidden, hidden_mask),
    }
    for name, projection, rows, columns, row_mask, column_mask in (
        ("self_attn.q_proj", attention.q_proj, queries, hidden, None, None),
        ("self_attn.k_proj", attention.k_proj, groups, hidden, None, None),
        ("self_attn.v_proj", attention.v_proj, groups, hidden, None, None),
        ("self_attn.o_proj", attention.o_proj, hidden, queries, write_mask, head_mask),
        ("mlp.gate_proj", mlp.gate_proj, neurons, hidden, None, None),
        ("mlp.up_proj", mlp.up_proj, neurons, hidden, None, None),
        ("mlp.down_proj", mlp.down_proj, hidden, neurons, write_mask, neuron_mask),
    ):
        row_mask = None if row_mask is None else row_mask[rows]
        column_mask = None if column_mask is None else column_mask[columns]
        weight = projection.weight.index_select(0, rows).index_select(1, columns)
        state[f"{name}.weight"] = scale_weight(weight, row_mask, column_mask)
        if projection.bias is not None:
            bias = projection.bias[rows]
            state[f"{name}.bias"] = bias if row_mask is None else bias * row_mask.to(bias.dtype)
    return state


def _sliced_norm(weight: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
    kept = weight[hidden]
    return kept if mask is None else (kept.float() * mask).to(weight.dtype)


def _channels(heads: list[int], head_dim: int, device: torch.device) -> Tensor:
    """Channels of the given heads, in order."""
    starts = torch.tensor(heads, device=device).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim, device=device)).flatten()
