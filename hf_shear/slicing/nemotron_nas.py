"""Write an uneven model in the nemotron-nas format (DeciLMForCausalLM), whose layers have MLP widths of their own.

mlx-lm, llama.cpp and vLLM, run, compute the same function from it. For SGLang the keys were checked against its reader's
source, untested; TensorRT-LLM, which knows the format, was neither read nor run. Per layer,
``block_configs`` says:

    attention   n_heads_in_group: query heads per KV head, of the model's ``num_attention_heads``; or no_op
    ffn         ffn_mult: the width is int(2 * ffn_mult * d / 3), rounded up to a multiple of 256; or no_op

What those four readers have in common sets the rules here (examples/docs/allocation.md lists them by reader and version):
    - All layers with attention have the same number of query heads, and a head has hidden_size / num_attention_heads
      channels (llama.cpp and mlx-lm do not read head_dim).
    - The first layer has attention (vLLM's layer expects a residual stream that an attention began).
    - No ``no_op`` MLP beside an attention (llama.cpp leaves out such a layer as a whole): 256 neurons of zeros stand in.
    - Narrower MLPs are padded to the next multiple of 256 with neurons of zeros.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError
from ..core.defaults import FORMS
from ..masks import ATTENTION, INTERMEDIATE, LAYER, MLP
from ..shapes import ModelShape
from ..sources import savable_generation_config
from .export import write_provenance
from .kept_units import KeptUnits
from .older_config_fields import older_rope_fields
from .tokenizer_files import save_tokenizer
from .whole_folders import replace_folder

PADDED, NEMOTRON_NAS = FORMS

MLP_MULTIPLE = 256
"""Those readers round the width of an MLP up to a multiple of this."""

NEMOTRON_NAS_KINDS = (LAYER, ATTENTION, MLP, INTERMEDIATE)
"""Kinds of units that layers of this format may keep different numbers of."""

CONFIGURATION = Path(__file__).with_name("configuration_decilm.py")
_NAMED_BY_FORMAT = ("model_type", "architectures", "auto_map", "transformers_version", "layer_types", "_name_or_path")

_ALWAYS_NAMED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "rope_parameters",
)  # fmt: skip
"""Written whatever transformers' defaults are, since other readers have defaults of their own."""


def check_nemotron_nas(config: PretrainedConfig, shape: ModelShape, uneven: Collection[str]) -> None:
    """Refuse what the format cannot hold.

    Args:
        config: of the source.
        shape: of the largest layer.
        uneven: kinds of units of which layers may keep different numbers.

    Raises:
        ValueError: the text names the rule, and what to do.
    """
    if config.model_type.removeprefix("hf_shear_") != "llama":
        raise UsageError(
            f"`form` 'nemotron_nas' holds what a Llama computes, but the source has model_type {config.model_type!r}. Save"
            " it padded (form='padded')."
        )
    unable = [kind for kind in uneven if kind not in NEMOTRON_NAS_KINDS]
    if unable:
        raise UsageError(
            f"`form` 'nemotron_nas' has one number of query heads for all layers, so {', '.join(unable)} cannot be removed"
            f" unevenly. Name `units` of {', '.join(NEMOTRON_NAS_KINDS)}, or save it padded (form='padded')."
        )
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name)]
    if biased and {LAYER, ATTENTION, MLP} & set(uneven):
        raise UsageError(
            f"`form` 'nemotron_nas' cannot hold the bias that stays where a sub-layer is removed ({', '.join(biased)}) is"
            " set). Leave layer, attention and mlp out of `units`, or save it padded (form='padded')."
        )
    if shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        raise UsageError(
            f"`form` 'nemotron_nas' needs hidden_size = num_attention_heads * head_dim, since llama.cpp and mlx-lm do not"
            f" read head_dim, but they are {shape.hidden_size}, {shape.num_attention_heads} and {shape.head_dim}. Save it"
            " padded (form='padded')."
        )
    if config.hidden_act != "silu":
        raise UsageError(
            f"`form` 'nemotron_nas' needs hidden_act 'silu', which llama.cpp takes for given, but it is"
            f" {config.hidden_act!r}. Save it padded (form='padded')."
        )


def save_nemotron_nas(
    model: PreTrainedModel,
    kept: KeptUnits,
    output_dir: str | os.PathLike,
    processing_class=None,
    provenance: dict | None = None,
) -> Path:
    """Save a padded model (``slice_uneven``) in the nemotron-nas format, without most of its padding.

    Args:
        model: trained since or not, as long as its padding is zero.
        kept: which units each layer has.
        output_dir, processing_class, provenance: as in ``save_checkpoint``; written as a whole or not at all.

    Raises:
        ValueError: layers have different numbers of heads, or the first has no attention.
    """
    state = nemotron_nas_state(model, kept)
    config = nemotron_nas_config(model, kept)
    output_dir = Path(output_dir)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        save_torch_state_dict(state, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        shutil.copyfile(CONFIGURATION, folder / CONFIGURATION.name)
        savable_generation_config(model.generation_config).save_pretrained(folder)
        if processing_class is not None:
            save_tokenizer(processing_class, folder)
        if provenance is not None:
            write_provenance(provenance, folder)

    replace_folder(output_dir, write)
    return output_dir


def nemotron_nas_config(model: PreTrainedModel, kept: KeptUnits) -> dict:
    """The config of a padded model, as the format's readers want it."""
    _check_heads(model, kept)
    config = model.config
    group_size = ModelShape.from_config(config).queries_per_group
    blocks = []
    for layer in kept.layers:
        width = mlp_width(kept, layer)
        blocks.append(
            {
                "attention": {
                    "n_heads_in_group": group_size if kept.heads[layer] else None,
                    "no_op": not kept.heads[layer],
                    "replace_with_linear": False,
                },
                "ffn": {
                    "ffn_mult": 3 * width / (2 * config.hidden_size) if width else None,
                    "no_op": not width,
                    "replace_with_linear": False,
                },
            }
        )
    rope = older_rope_fields(dict(config.rope_parameters or {}))
    values = config.to_diff_dict() | {name: getattr(config, name) for name in _ALWAYS_NAMED}
    values = {name: value for name, value in values.items() if name not in _NAMED_BY_FORMAT}
    return values | {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "block_configs": blocks,
        "intermediate_size": max(mlp_width(kept, layer) for layer in kept.layers),
        **({"torch_dtype": values["dtype"]} if values.get("dtype") else {}),
        **{name: value for name, value in rope.items() if value is not None},
    }


def nemotron_nas_state(model: PreTrainedModel, kept: KeptUnits) -> dict[str, Tensor]:
    """The weights of a padded model, MLPs at ``mlp_width`` and without the sub-layers that are gone."""
    _check_heads(model, kept)
    state = {}
    for name, weight in model.state_dict().items():
        parts = name.split(".")
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if parts[1] == "layers":
            layer = kept.layers[int(parts[2])]
            width = mlp_width(kept, layer)
            attention = parts[3] in ("self_attn", "input_layernorm")
            if (attention and not kept.heads[layer]) or (not attention and width == 0):
                continue
            weight = _cut_mlp(weight, parts[4:], width)
        state[name] = weight.detach().clone()
    return state


def mlp_width(kept: KeptUnits, layer: int) -> int:
    """Width of a layer's MLP in this format, zeros included; 0 = no MLP."""
    num_neurons = len(kept.intermediate[layer])
    if num_neurons == 0:
        return MLP_MULTIPLE if kept.heads[layer] else 0
    return -(-num_neurons // MLP_MULTIPLE) * MLP_MULTIPLE


def _cut_mlp(weight: Tensor, name: list[str], width: int) -> Tensor:
    """A weight of an MLP at another width; other weights as they are."""
    axis = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1,
            "gate_proj.bias": 0, "up_proj.bias": 0}.get(".".join(name))  # fmt: skip
    if axis is None:
        return weight
    weight = weight.narrow(axis, 0, min(width, weight.shape[axis]))
    missing = list(weight.shape)
    missing[axis] = width - weight.shape[axis]
    return torch.cat([weight, weight.new_zeros(missing)], dim=axis)


def _check_heads(model: PreTrainedModel, kept: KeptUnits) -> None:
    numbers = {(len(kept.heads[layer]), len(kept.key_value_heads[layer])) for layer in kept.layers} - {(0, 0)}
    size = (model.config.num_attention_heads, model.config.num_key_value_heads)
    if numbers != {size} or not kept.heads[kept.layers[0]]:
        raise UsageError(
            f"`kept` has layers of {sorted(numbers)} (query heads, KV heads), or a first layer without attention, but the"
            f" nemotron-nas format holds one number of heads for all layers with attention, here {size}, and needs an"
            " attention in the first. Save it padded, with save_checkpoint."
        )
