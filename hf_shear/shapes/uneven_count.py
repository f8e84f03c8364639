"""Exact parameter counts of models whose layers differ in width, and may lack attention or MLP.

A layer without heads has no attention: no projections and no norms. Where its o_proj has a bias, what that writes to the
residual stream stays: the bias, and a norm behind it. The same holds for an MLP without neurons and down_proj. That is
what the masked model computes when all heads, or all neurons, of a layer are closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PretrainedConfig

from .family import EXPERTS, GROUPS, HEADS, HIDDEN, NEURONS, family_of
from .parameter_count import count_for_sizes


@dataclass(frozen=True)
class LayerSizes:
    """Widths of one layer; 0 heads, 0 neurons or 0 experts: no such sub-layer; None: no mixture of experts."""

    num_heads: int
    num_key_value_heads: int
    num_neurons: int
    num_experts: int | None = None


def count_attention(config: PretrainedConfig, hidden_size: int, num_heads: int, num_groups: int, head_dim: int) -> int:
    """Parameters of a layer's attention with its norms."""
    sizes = {HIDDEN: hidden_size, HEADS: num_heads * head_dim, GROUPS: num_groups * head_dim}
    return int(family_of(config).attention_parameters(config, sizes, head_dim))


def count_mlp(config: PretrainedConfig, hidden_size: int, num_neurons: int, num_experts: int | None = None) -> int:
    """Parameters of a layer's MLP with its norms."""
    sizes = {HIDDEN: hidden_size, NEURONS: num_neurons, EXPERTS: num_experts or 0}
    return int(family_of(config).mlp_parameters(config, sizes))


def count_uneven_parameters(
    config: PretrainedConfig, hidden_size: int, head_dim: int, layers: Iterable[LayerSizes]
) -> int:
    """Parameters of a causal language model with these layers, tied weights counted once."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "num_experts")
    outside_layers = int(count_for_sizes(config, {"hidden_size": hidden_size, **dict.fromkeys(names, 0)}, head_dim))
    return outside_layers + sum(
        count_attention(config, hidden_size, layer.num_heads, layer.num_key_value_heads, head_dim)
        + count_mlp(config, hidden_size, layer.num_neurons, layer.num_experts)
        for layer in layers
    )
