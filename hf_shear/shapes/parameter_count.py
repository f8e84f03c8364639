"""Exact parameter counts of a model of any shape, without building it.

d hidden_size, V vocab_size, L layers: the embeddings [V, d], the output head [V, d] unless tied, the final norm [d], and
L layers, whose parts are in the family's row (``hf_shear.shapes``).
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from .family import EXPERTS, GROUPS, HEADS, HIDDEN, NEURONS, family_of
from .model_shape import ModelShape, check_supported


def count_parameters(config: PretrainedConfig, shape: ModelShape | None = None) -> int:
    """Parameters of the causal language model that `config` describes, tied weights counted once.

    Args:
        config: gives the vocabulary, the tie flag and the bias flags.
        shape: sizes to use instead of the config's own.

    Raises:
        ValueError: the config's family is not supported, or its sizes are malformed.
    """
    check_supported(config)
    shape = ModelShape.from_config(config) if shape is None else shape
    return int(count_for_sizes(config, shape.sizes(), shape.head_dim))


def count_embedding_parameters(config: PretrainedConfig, shape: ModelShape | None = None) -> int:
    """Parameters of the input embeddings and the output head together, counted once where they are tied."""
    check_supported(config)
    shape = ModelShape.from_config(config) if shape is None else shape
    return int(_embedding_parameters(config, shape.hidden_size))


def count_for_sizes(config: PretrainedConfig, sizes: Mapping[str, float], head_dim: int) -> float:
    """As `count_parameters`, from the sizes by name, which may be fractions (a search needs them)."""
    hidden_size = sizes["hidden_size"]
    layer = count_layer_parameters(
        config,
        hidden_size,
        sizes["num_attention_heads"] * head_dim,
        sizes["num_key_value_heads"] * head_dim,
        sizes["intermediate_size"],
        head_dim,
        sizes.get("num_experts", 0),
    )
    return _embedding_parameters(config, hidden_size) + sizes["num_hidden_layers"] * layer + hidden_size


def count_layer_parameters(
    config: PretrainedConfig,
    hidden_size: float,
    query_size: float,
    key_size: float,
    intermediate_size: float,
    head_dim: int,
    num_experts: float = 0,
) -> float:
    """Parameters of one layer; `query_size` is heads * head_dim, `key_size` key/value heads * head_dim."""
    sizes = {HIDDEN: hidden_size, HEADS: query_size, GROUPS: key_size, NEURONS: intermediate_size, EXPERTS: num_experts}
    return family_of(config).layer_parameters(config, sizes, head_dim)


def _embedding_parameters(config: PretrainedConfig, hidden_size: float) -> float:
    num_matrices = 1 if config.tie_word_embeddings else 2
    return num_matrices * config.vocab_size * hidden_size
