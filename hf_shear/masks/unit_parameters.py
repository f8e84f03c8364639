"""How many parameters one unit of each kind takes with it."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from ..shapes import ModelShape, count_parameters
from .unit_kinds import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD


def unit_parameters(config: PretrainedConfig, shape: ModelShape | None = None) -> dict[str, int]:
    """Parameters of one unit, by kind: exact as long as the other kinds have the sizes of ``shape``.

    A neuron, an expert, a KV group (its query heads with it) and a query head are those of one layer; a hidden
    dimension runs through all layers, the embeddings and the head. Units of different kinds overlap: without a layer its
    neurons are gone as well, and a neuron is larger the more hidden dimensions there are. So count them one after
    another, each at the sizes that the ones before it left; within one kind and within one layer counts add up.

    Args:
        config: of the model; gives the family, the vocabulary, the tie flag and biases.
        shape: sizes in place of the config's.

    Raises:
        ValueError: the config's family is not supported, or its sizes are malformed.
    """
    shape = ModelShape.from_config(config) if shape is None else shape
    layers, groups, size = shape.num_hidden_layers, shape.num_key_value_heads, shape.queries_per_group
    # With one unit more in each row, for every count is linear in each size: so sizes of 1 need no case of their own.
    larger = {
        HIDDEN: (1, {"hidden_size": shape.hidden_size + 1}),
        LAYER: (1, {"num_hidden_layers": layers + 1}),
        KEY_VALUE_HEAD: (layers, {"num_key_value_heads": groups + 1, "num_attention_heads": (groups + 1) * size}),
        QUERY_HEAD: (layers * groups, {"num_attention_heads": groups * (size + 1)}),
    }
    if shape.num_experts is None:
        larger[INTERMEDIATE] = layers, {"intermediate_size": shape.intermediate_size + 1}
    else:
        larger[EXPERT] = layers, {"num_experts": shape.num_experts + 1}
    own = count_parameters(config, shape)
    return {
        kind: int(count_parameters(config, replace(shape, **sizes)) - own) // rows
        for kind, (rows, sizes) in larger.items()
    }
