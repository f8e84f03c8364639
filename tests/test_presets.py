"""Presets against the parameter counts and the configs that were published."""

import json
import os
from pathlib import Path

import pytest
from transformers import LlamaConfig

from hf_shear.shapes import SHAPE_NAMES, ModelShape, config_for_shape, count_parameters, preset_shape
from hf_shear.shapes.presets import PRESETS


def llama_2_7b():
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=11008,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=0,
    )


def reference_config(name):
    root = os.environ.get("HF_SHEAR_TEST_DATA")
    if root is None:
        pytest.skip("HF_SHEAR_TEST_DATA is not set: the published configs are not at hand")
    path = Path(root) / "reference" / "configs" / name
    return LlamaConfig.from_dict(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("sheared-llama-1.3b", 1_345_423_360),
        ("sheared-llama-2.7b", 2_701_560_320),
        ("sheared-llama-370m", 373_867_520),
    ],
)
def test_presets_have_exactly_the_published_parameter_counts(name, num_parameters):
    shape = preset_shape(name, llama_2_7b())
    assert count_parameters(llama_2_7b(), shape) == num_parameters
    assert shape.head_dim == 128
    assert shape.queries_per_group == 1


def test_source_has_exactly_the_published_parameter_count():
    assert count_parameters(llama_2_7b()) == 6_738_415_616


def test_every_preset_names_all_five_sizes():
    assert {tuple(sizes) for sizes in PRESETS.values()} == {SHAPE_NAMES}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sheared-llama-1.3b", "Sheared-LLaMA-1.3B.config.json"),
        ("sheared-llama-2.7b", "Sheared-LLaMA-2.7B.config.json"),
    ],
)
def test_presets_are_the_published_configs(name, file):
    published = reference_config(file)
    shape = preset_shape(name, llama_2_7b())
    assert ModelShape.from_config(published).to_dict() == shape.to_dict()
    assert count_parameters(published) == count_parameters(llama_2_7b(), shape)
    ours = config_for_shape(llama_2_7b(), shape).to_dict()
    theirs = published.to_dict()
    incidental = {"_name_or_path", "architectures", "dtype"}
    assert {k: v for k, v in ours.items() if k not in incidental} == {
        k: v for k, v in theirs.items() if k not in incidental
    }


def test_unknown_preset_lists_the_names():
    with pytest.raises(
        ValueError, match="no preset shape '7b'.*sheared-llama-1.3b, sheared-llama-2.7b, sheared-llama-370m"
    ):
        preset_shape("7b", llama_2_7b())


def test_preset_that_does_not_fit_names_itself_and_the_size():
    small = LlamaConfig(hidden_size=1024, num_attention_heads=8, num_hidden_layers=24, intermediate_size=2816)
    with pytest.raises(ValueError, match="'sheared-llama-1.3b', made for Llama-2-7B.*`hidden_size`.*1024.*2048"):
        preset_shape("sheared-llama-1.3b", small)
