"""Floating-point operations per training token, so that ways of recovery can be compared at equal cost.

A multiply-add counts as two. Embedding look-ups, norms and softmax are left out (below 1 % from hidden sizes of 256 on).
Legend: d hidden size, L layers, H heads, D head_dim, V vocabulary, S tokens of a sample.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from .family import EXPERTS, GROUPS, HEADS, HIDDEN, NEURONS, family_of
from .model_shape import ModelShape

BACKWARD_TO_INPUTS = 1
BACKWARD_TO_WEIGHTS = 1
"""Cost of each half of the backward pass in forward passes: each has the matrix products of the forward once more."""


def forward_flops_per_token(config: PretrainedConfig, sample_length: int, shape: ModelShape | None = None) -> float:
    """FLOPs of one forward pass for each token: two per weight of a matrix that it passes, and causal attention.

    Attention costs 2 * 2 * H * D for each earlier token (scores, values), of which there are S / 2 on average.
    """
    shape = ModelShape.from_config(config) if shape is None else shape
    return _matrix_flops(config, shape) + _attention_flops(shape, sample_length)


def _matrix_flops(config: PretrainedConfig, shape: ModelShape) -> float:
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes = {
        HIDDEN: shape.hidden_size,
        HEADS: query,
        GROUPS: key,
        NEURONS: shape.intermediate_size,
        EXPERTS: shape.num_experts or 0,
    }
    layer = family_of(config).layer_active_parameters(config, sizes)
    return 2 * (shape.num_hidden_layers * layer + config.vocab_size * shape.hidden_size)


def _attention_flops(shape: ModelShape, sample_length: int) -> float:
    return shape.num_hidden_layers * 2 * 2 * shape.num_attention_heads * shape.head_dim * sample_length / 2


def training_flops_per_token(
    config: PretrainedConfig,
    sample_length: int,
    frozen: bool = False,
    num_adapter_parameters: int = 0,
    teacher: PretrainedConfig | None = None,
) -> float:
    """FLOPs of one training token.

    Args:
        config: of the model that is trained.
        sample_length: S.
        frozen: the matrices are not trained. They then need no gradients, but gradients still pass through all of them,
            since norms and adapters sit in every layer.
        num_adapter_parameters: parameters of adapters, which pay all three.
        teacher: config of a teacher that runs one forward pass for each token; None for none. Stored teacher logits
            cost the same pass once for each stored token: count it for the run that stored them.
    """
    every = 1 + BACKWARD_TO_INPUTS + BACKWARD_TO_WEIGHTS
    passes = 1 + BACKWARD_TO_INPUTS if frozen else every
    shape = ModelShape.from_config(config)
    own = passes * _matrix_flops(config, shape) + every * _attention_flops(shape, sample_length)
    adapters = 2 * num_adapter_parameters * every
    return own + adapters + (forward_flops_per_token(teacher, sample_length) if teacher is not None else 0)
