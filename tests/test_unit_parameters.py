"""Parameters per unit, against models with and without it."""

from __future__ import annotations

import pytest
from test_families import build

from hf_shear import slice_model
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, unit_parameters
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.shapes import ModelShape

SMALLER = {  # how many units go: one of every row, 4 layers, 3 groups of 3 query heads, 22 neurons
    HIDDEN: (9, {"hidden_size": 9}),  # nine less: some families want a multiple of the heads
    LAYER: (1, {"num_hidden_layers": 3}),
    KEY_VALUE_HEAD: (4, {"num_key_value_heads": 2, "num_attention_heads": 6}),
    QUERY_HEAD: (12, {"num_attention_heads": 6}),
    INTERMEDIATE: (4, {"intermediate_size": 21}),
}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("name, tied", [("llama", False), ("llama", True), ("qwen2", True), ("gemma2", False)])
def test_a_unit_takes_so_many_with_it(name, tied, kind):
    source = build(name, tied=tied)
    number, target = SMALLER[kind]
    masked = AutoShearingModelForCausalLM.from_model(source, target)
    freed = num_parameters(source) - num_parameters(slice_model(masked)[0])
    assert freed == number * unit_parameters(source.config)[kind]


def test_units_are_smaller_where_hidden_dimensions_are_gone():
    config = build("llama", bias=False).config
    shape = ModelShape.from_config(config)
    assert unit_parameters(config)[INTERMEDIATE] == 3 * 18
    assert unit_parameters(config)[QUERY_HEAD] == 2 * 18 * 4
    assert unit_parameters(config)[KEY_VALUE_HEAD] == (2 * 3 + 2) * 18 * 4
    small = ModelShape(**(shape.to_dict() | {"hidden_size": 12, "num_attention_heads": 1, "num_key_value_heads": 1}))
    assert unit_parameters(config, small)[INTERMEDIATE] == 3 * 12
    assert unit_parameters(config, small)[KEY_VALUE_HEAD] == 4 * 12 * 4
