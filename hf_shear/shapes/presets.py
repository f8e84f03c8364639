"""The target shapes of Sheared LLaMA (arXiv 2310.06694 and its reference code), all cut from Llama-2-7B."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..core import UsageError
from .target_shape import TargetShape

PRESETS: dict[str, dict[str, int]] = {
    "sheared-llama-1.3b": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5504,
    },
    "sheared-llama-2.7b": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "intermediate_size": 6912,
    },
    "sheared-llama-370m": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2816,
    },
}


def preset_shape(name: str, source_config: PretrainedConfig) -> TargetShape:
    """The preset called `name`, checked against the source.

    Raises:
        ValueError: there is no such preset, or the source does not contain its shape.
    """
    if name not in PRESETS:
        raise UsageError(f"`preset` names no preset shape {name!r}. Choose one of {', '.join(PRESETS)}.")
    try:
        return TargetShape.from_source(source_config, **PRESETS[name])
    except ValueError as error:
        raise UsageError(f"The preset {name!r}, made for Llama-2-7B, does not fit this source: {error}") from error
