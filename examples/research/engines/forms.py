"""Checkpoints of every form that hf_shear can leave behind, all made from one trained model, pruned by Taylor scores.

`SHAPES` are targets of the two trained models that tests and results use; each form below starts from one of them. The
forms are ordinary checkpoints: engines get nothing that a user's export would not have.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.slicing import save_checkpoint

PADDED, NEMOTRON_NAS = "padded", "nemotron_nas"  # one uneven model, saved in both forms
JSON_TOKENIZER = "json_tokenizer"  # without tokenizer.model, as transformers 5 saves a tokenizer by itself
NEW_ROPE_ONLY = "rope_parameters_only"  # llama3_rope with a config.json as transformers 5 writes it by itself

SHAPES: dict[str, dict[str, dict[str, int] | float]] = {
    "stories260K": {
        "uniform": {"num_hidden_layers": 4, "intermediate_size": 128},
        "narrow_attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128},
        "all_heads": {"intermediate_size": 128},
        "odd_rows": {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 104},
        PADDED: 0.75,
    },
    "embedded": {
        "uniform": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 256},
        "narrow_attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256},
        "all_heads": {"intermediate_size": 256},
        "odd_rows": {"hidden_size": 104, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 200},
        PADDED: 0.75,
    },
    "smollm2_135m": {
        "narrow_hidden": {"hidden_size": 480, "num_attention_heads": 6, "num_key_value_heads": 2},
        "narrow_attention": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1280},
        "hidden_mistral": {"hidden_size": 544},
        PADDED: 0.85,
    },
}
"""Target sizes by source; of an uneven model the share of parameters that it keeps. Every row is a multiple of 32 weights,
except in ``odd_rows``, and in what is made of the ``all_heads`` of stories260K (6 heads of 8). The ``hidden_mistral`` has
nine heads, which do not divide its hidden size."""

UNEVEN_UNITS = ("intermediate", "attention", "mlp")
UNEVEN_CRITERION = {
    "default": "taylor", "attention": "sub_layer_rise:num_samples=2", "mlp": "sub_layer_rise:num_samples=2"
}  # fmt: skip
LARGER_THETA = {"rope_type": "default", "rope_theta": 100_000.0}
BIAS_SCALE = 0.05  # standard deviation; large enough that a dropped bias changes the text
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def prune(source: str, sizes: dict[str, int], batches: list[dict], folder: Path) -> None:
    """Write the source, cut to ``sizes`` by Taylor scores with compensation, as hf_shear writes every checkpoint.

    Sizes that `LlamaConfig` refuses, of heads that do not divide the hidden size, are saved as a Mistral's.
    """
    model = LlamaForCausalLM.from_pretrained(source).float()
    now = {**model.config.to_dict(), **sizes}
    family = "mistral" if now["hidden_size"] % now["num_attention_heads"] else None
    config = PruneConfig("taylor", "least_squares", num_shots=1, as_family=family)
    prune_one_shot(model, sizes, batches, config).save(folder, AutoTokenizer.from_pretrained(source))


def prune_unevenly(source: str, share: float, batches: list[dict], padded: Path, own_widths: Path) -> None:
    """Write the source, cut to a share of its parameters, layers unlike each other, as an ordinary checkpoint padded with
    zeros and as a nemotron-nas."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(source).float(), AutoTokenizer.from_pretrained(source)
    config = PruneConfig(UNEVEN_CRITERION, "least_squares", allocation="global", units=UNEVEN_UNITS, form=NEMOTRON_NAS)
    pruning = prune_one_shot(model, share, batches, config)
    pruning.save(own_widths, tokenizer)
    replace(pruning, config=replace(config, form=PADDED)).save(padded, tokenizer)


def untied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function with a head of its own."""
    return _rebuilt(model, tie_word_embeddings=False)


def biased(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """With biases in attention and MLP, as compensation by biases leaves them."""
    changed = _rebuilt(model, attention_bias=True, mlp_bias=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name.endswith(".bias"):
                parameter.copy_(BIAS_SCALE * torch.randn(parameter.shape, generator=generator))
    return changed


def attention_biased(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same with biases in attention only."""
    changed = biased(model)
    state = {
        name: tensor for name, tensor in changed.state_dict().items() if ".mlp." not in name or ".bias" not in name
    }
    return _rebuilt(model, state, attention_bias=True)


def llama3_rope(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """With the rotary embedding of Llama 3.1. Its text is worse; what counts is that engines compute the same."""
    return _rebuilt(model, rope_parameters=LLAMA3_ROPE)


def llama3_rope_8192(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same with the length that Llama 3.1 itself was trained on before it was extended."""
    return _rebuilt(model, rope_parameters=LLAMA3_ROPE | {"original_max_position_embeddings": 8192})


def larger_theta(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """With another theta and no scaling, as SmolLM2 has."""
    return _rebuilt(model, rope_parameters=LARGER_THETA)


def as_mistral(model: LlamaForCausalLM) -> MistralForCausalLM:
    """The same function as a Mistral without a window: its config accepts any number of heads. Without biases only."""
    return _in_family(model, MistralConfig, MistralForCausalLM, {"sliding_window": None})


def indivisible_mistral(model: LlamaForCausalLM) -> MistralForCausalLM:
    """A Mistral whose heads do not divide its hidden size, which `LlamaConfig` refuses: the last KV group is cut off."""
    whole = as_mistral(model)
    config = copy.deepcopy(whole.config)
    config.num_attention_heads -= config.num_attention_heads // config.num_key_value_heads
    config.num_key_value_heads -= 1
    assert config.hidden_size % config.num_attention_heads, "choose a source whose heads do not divide after the cut"
    changed = MistralForCausalLM(config).to(model.dtype)
    sizes = {name: tensor.shape for name, tensor in changed.state_dict().items()}
    cut = {name: tensor[tuple(map(slice, sizes[name]))] for name, tensor in whole.state_dict().items()}
    changed.load_state_dict(cut)
    changed.generation_config = model.generation_config
    return changed.eval()


def qwen2(model: LlamaForCausalLM) -> Qwen2ForCausalLM:
    """The weights in the family that adds biases to queries, keys and values."""
    return _in_family(model, Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False, "sliding_window": None})


def qwen3(model: LlamaForCausalLM) -> Qwen3ForCausalLM:
    """The weights in the family that normalises queries and keys. It computes something else than the Llama did."""
    return _in_family(model, Qwen3Config, Qwen3ForCausalLM, {"use_sliding_window": False, "sliding_window": None})


FORMS: dict[str, tuple[str, Callable[[PreTrainedModel], PreTrainedModel] | None]] = {
    "uniform": ("uniform", None),
    "narrow_attention": ("narrow_attention", None),
    "odd_rows": ("odd_rows", None),
    "narrow_hidden": ("narrow_hidden", None),
    "hidden_mistral": ("hidden_mistral", None),
    PADDED: (PADDED, None),
    NEMOTRON_NAS: (PADDED, None),
    "untied": ("uniform", untied),
    "attention_bias": ("uniform", attention_biased),
    "mlp_bias": ("uniform", biased),
    "llama3_rope": ("uniform", llama3_rope),
    "llama3_rope_8192": ("uniform", llama3_rope_8192),
    "larger_theta": ("uniform", larger_theta),
    "narrow_mistral": ("narrow_attention", as_mistral),
    "indivisible_mistral": ("all_heads", indivisible_mistral),
    "qwen2": ("uniform", qwen2),
    "qwen3": ("uniform", qwen3),
    JSON_TOKENIZER: ("uniform", None),
    NEW_ROPE_ONLY: ("uniform", None),
}
"""Form -> the shape it starts from, and what is changed."""


def forms_of(source_name: str) -> list[str]:
    """The forms whose shape the source has."""
    return [name for name, (shape, _) in FORMS.items() if shape in SHAPES[source_name]]


def make_form(name: str, source: str, shapes: dict, batches: list[dict], folder: Path) -> Path:
    """Write the checkpoint of a form, and of the shape it starts from, in ``folder``; what is there is kept."""
    base_name, change = FORMS[name]
    base, output = folder / base_name, folder / name
    if not base.exists():
        if base_name == PADDED:
            prune_unevenly(source, shapes[base_name], batches, base, folder / NEMOTRON_NAS)
        else:
            prune(source, shapes[base_name], batches, base)
    if name == NEW_ROPE_ONLY and not output.exists():
        shutil.copytree(make_form("llama3_rope", source, shapes, batches, folder), output)
        AutoConfig.from_pretrained(output).save_pretrained(output)
    if name == JSON_TOKENIZER and not output.exists():
        shutil.copytree(base, output, ignore=shutil.ignore_patterns("tokenizer.model"))
    if change is not None and not output.exists():
        model = LlamaForCausalLM.from_pretrained(base).eval()
        save_checkpoint(change(model), output, AutoTokenizer.from_pretrained(base))
    return output


def _rebuilt(model: LlamaForCausalLM, state: dict | None = None, **changes) -> LlamaForCausalLM:
    config = type(model.config)(**{**model.config.to_dict(), **changes})
    changed = LlamaForCausalLM(config).to(model.dtype)
    own = changed.state_dict()
    changed.load_state_dict({**own, **model.state_dict(), **(state or {})})
    changed.generation_config = model.generation_config
    return changed.eval()


def _in_family(model: LlamaForCausalLM, config_class, model_class, fields: dict) -> PreTrainedModel:
    """The weights as another family's; what that family has besides is random, norms around 1 and biases around 0."""
    known = config_class().to_dict().keys() - {"model_type", "architectures", "layer_types", *fields}
    values = {name: value for name, value in model.config.to_dict().items() if name in known}
    changed = model_class(config_class(**values, **fields)).to(model.dtype)
    generator = torch.Generator().manual_seed(0)
    state = changed.state_dict() | model.state_dict()
    for name in state.keys() - model.state_dict().keys():
        noise = BIAS_SCALE * torch.randn(state[name].shape, generator=generator)
        state[name] = noise if name.endswith(".bias") else 1 + noise
    changed.load_state_dict(state)
    changed.generation_config = model.generation_config
    return changed.eval()
