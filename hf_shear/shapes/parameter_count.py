"""Exact parameter counts of a Llama of any shape, without building it.

Shapes: d hidden_size, H heads, K key/value heads, D head_dim, ff intermediate_size, V vocab_size, L layers.
Per layer: q [H*D, d], k and v [K*D, d], o [d, H*D], gate and up [ff, d], down [d, ff], two norms [d]; then
the embeddings [V, d], the output head [V, d] unless tied, and the final norm [d]. Biases as the config says.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

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
    return count_for_sizes(config, shape.sizes(), shape.head_dim)


def count_embedding_parameters(config: PretrainedConfig, shape: ModelShape | None = None) -> int:
    """Parameters of the input embeddings and the output head together, counted once where they are tied."""
    check_supported(config)
    shape = ModelShape.from_config(config) if shape is None else shape
    return _embedding_parameters(config, shape.hidden_size)


def count_for_sizes(config: PretrainedConfig, sizes: Mapping[str, float], head_dim: int) -> float:
    """As `count_parameters`, from the five sizes by name, which may be fractions (a search needs them)."""
    hidden_size = sizes["hidden_size"]
    layer = count_layer_parameters(
        config,
        hidden_size,
        sizes["num_attention_heads"] * head_dim,
        sizes["num_key_value_heads"] * head_dim,
        sizes["intermediate_size"],
    )
    return _embedding_parameters(config, hidden_size) + sizes["num_hidden_layers"] * layer + hidden_size


def count_layer_parameters(
    config: PretrainedConfig, hidden_size: float, query_size: float, key_size: float, intermediate_size: float
) -> float:
    """Parameters of one layer; `query_size` is heads * head_dim, `key_size` key/value heads * head_dim."""
    attention = 2 * hidden_size * query_size + 2 * hidden_size * key_size
    if config.attention_bias:
        attention += query_size + 2 * key_size + hidden_size
    mlp = 3 * hidden_size * intermediate_size
    if config.mlp_bias:
        mlp += 2 * intermediate_size + hidden_size
    norms = 2 * hidden_size
    return attention + mlp + norms


def _embedding_parameters(config: PretrainedConfig, hidden_size: float) -> float:
    num_matrices = 1 if config.tie_word_embeddings else 2
    return num_matrices * config.vocab_size * hidden_size
