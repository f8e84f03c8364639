"""Target shapes: defaults, rules and their error texts, exact parameter counts, configs of another shape."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, OPTConfig

from hf_shear.shapes import SHAPE_NAMES, ModelShape, TargetShape, config_for_shape, count_parameters
from hf_shear.shapes.parameter_count import count_embedding_parameters


def llama_config(**changes):
    """A small GQA config: hidden 64, 5 layers, 8 heads of 8 in 4 groups, ff 172, vocabulary 512, tied."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 172,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**sizes, **changes})


def mha_config(**changes):
    return llama_config(num_key_value_heads=8, **changes)


def error_text(config, **sizes):
    with pytest.raises(ValueError) as caught:
        TargetShape.from_source(config, **sizes)
    return str(caught.value)


def nearest_in(text):
    """The shape that an error text recommends, as keyword arguments."""
    written = text.split("The nearest shape that would do: ")[1].split(".")[0]
    return {name: int(size) for name, size in (item.split("=") for item in written.split(", "))}


@st.composite
def configs(draw):
    """Any config that LlamaConfig accepts, with a head_dim that need not be hidden_size / heads."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    return LlamaConfig(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=heads * draw(st.integers(1, 6)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=draw(st.integers(1, 50)),
        head_dim=2 * draw(st.integers(1, 8)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        bos_token_id=None,
        eos_token_id=None,
    )


@st.composite
def configs_with_targets(draw):
    """A config and the five sizes of some shape that can be cut out of it, by construction."""
    config = draw(configs())
    queries_per_group = config.num_attention_heads // config.num_key_value_heads
    kv_heads = draw(st.integers(1, config.num_key_value_heads))
    heads = kv_heads * draw(st.integers(1, queries_per_group))
    sizes = {
        "hidden_size": heads * draw(st.integers(1, max(1, config.hidden_size // heads))),
        "num_hidden_layers": draw(st.integers(1, config.num_hidden_layers)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.integers(1, config.intermediate_size)),
    }
    return config, sizes


def count_by_building(config):
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


# The shape of a config


def test_model_shape_reads_what_transformers_means_by_missing_sizes():
    config = LlamaConfig(hidden_size=48, num_attention_heads=6, num_hidden_layers=2, intermediate_size=100)
    config.num_key_value_heads = None
    config.head_dim = None
    shape = ModelShape.from_config(config)
    assert shape == ModelShape(48, 2, 6, 6, 100, 8)
    assert str(shape) == (
        "hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=6, "
        "intermediate_size=100, head_dim=8"
    )
    assert list(shape.to_dict()) == [*SHAPE_NAMES, "head_dim"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("intermediate_size", 0, "`intermediate_size` must be at least 1, but it is 0"),
        (
            "num_key_value_heads",
            3,
            r"`num_attention_heads` \(8\) must be a multiple of `num_key_value_heads` \(3\)",
        ),
        ("num_attention_heads", 0, "`num_attention_heads` must be at least 1, but it is 0"),
        ("head_dim", -8, "`head_dim` must be at least 1, but it is -8"),
    ],
)
def test_malformed_source_is_refused(name, value, text):
    config = llama_config()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"The LlamaConfig is malformed: {text}"):
        TargetShape.from_source(config)


def test_source_that_its_own_class_refuses_is_refused():
    config = llama_config()
    config.hidden_size = 63
    with pytest.raises(ValueError, match="source config is malformed: LlamaConfig itself refuses it .*63"):
        TargetShape.from_source(config, num_hidden_layers=4)


@pytest.mark.parametrize("function", [ModelShape.from_config, TargetShape.from_source, count_parameters])
def test_unsupported_family_is_refused_by_name(function):
    with pytest.raises(ValueError, match=r"supported family \(model_type: arcee.*OPTConfig.*'opt'"):
        function(OPTConfig())


def test_source_whose_layers_differ_in_shape_is_refused():
    config = llama_config(per_layer_config={1: {"intermediate_size": 100}})
    with pytest.raises(ValueError, match="one shape, but its `per_layer_config` gives them different ones"):
        TargetShape.from_source(config)


# Defaults


def test_unnamed_sizes_are_the_sources():
    shape = TargetShape.from_source(llama_config(), hidden_size=48)
    assert shape.sizes() == {**ModelShape.from_config(llama_config()).sizes(), "hidden_size": 48}
    assert shape.head_dim == 8
    assert shape.source == ModelShape.from_config(llama_config())
    assert shape.sizes() != shape.source.sizes()
    assert str(shape) == (
        "hidden_size 64 -> 48, num_hidden_layers 5, num_attention_heads 8, num_key_value_heads 4, "
        "intermediate_size 172, head_dim 8"
    )


def test_heads_alone_keep_multi_head_attention_multi_head():
    shape = TargetShape.from_source(mha_config(), num_attention_heads=4)
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (4, 4)


def test_heads_alone_keep_the_sources_key_value_heads_under_gqa():
    shape = TargetShape.from_source(llama_config(), num_attention_heads=4)
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (4, 4)
    shape = TargetShape.from_source(llama_config(num_key_value_heads=2), num_attention_heads=4)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.queries_per_group) == (4, 2, 2)


def test_target_equal_to_the_source_is_allowed_and_says_so():
    for sizes in ({}, {"hidden_size": 64, "intermediate_size": 172}):
        shape = TargetShape.from_source(llama_config(), **sizes)
        assert shape.sizes() == shape.source.sizes()


def test_numpy_integers_become_plain_ints():
    shape = TargetShape.from_source(llama_config(), hidden_size=np.int64(48))
    assert type(shape.hidden_size) is int
    assert json.loads(json.dumps(shape.to_dict()))["hidden_size"] == 48


# Rules


@given(configs_with_targets())
@settings(max_examples=60, deadline=None)
def test_every_shape_that_can_be_cut_is_accepted_and_survives_json(config_and_sizes):
    config, sizes = config_and_sizes
    shape = TargetShape.from_source(config, **sizes)
    assert shape.sizes() == sizes
    assert TargetShape.from_dict(config, json.loads(json.dumps(shape.to_dict()))) == shape


@given(configs(), st.data())
@settings(max_examples=80, deadline=None)
def test_any_request_is_either_cuttable_or_answered_with_a_shape_that_is(config, data):
    source = ModelShape.from_config(config)
    named = data.draw(st.sets(st.sampled_from(SHAPE_NAMES), min_size=1))
    sizes = {name: data.draw(st.integers(-1, getattr(source, name) + 2), label=name) for name in sorted(named)}
    try:
        shape = TargetShape.from_source(config, **sizes)
    except ValueError as error:
        shape = TargetShape.from_source(config, **nearest_in(str(error)))
        assert shape.sizes() != sizes
    assert all(1 <= getattr(shape, name) <= getattr(source, name) for name in SHAPE_NAMES)
    assert shape.num_attention_heads % shape.num_key_value_heads == 0
    assert shape.queries_per_group <= source.queries_per_group
    assert shape.hidden_size % shape.num_attention_heads == 0
    assert shape.head_dim == source.head_dim


@given(configs(), st.data())
@settings(max_examples=60, deadline=None)
def test_nearest_shape_is_the_best_of_all_shapes(config, data):
    source = ModelShape.from_config(config)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    wanted = {name: data.draw(st.integers(1, getattr(source, name)), label=name) for name in names}

    def cost(sizes):
        return sum(abs(sizes[name] - wanted[name]) / getattr(source, name) for name in names)

    allowed = [
        dict(zip(names, (hidden_size, kv_heads * queries, kv_heads), strict=True))
        for kv_heads in range(1, source.num_key_value_heads + 1)
        for queries in range(1, source.queries_per_group + 1)
        for hidden_size in range(kv_heads * queries, source.hidden_size + 1, kv_heads * queries)
    ]
    try:
        TargetShape.from_source(config, **wanted)
        assert wanted in allowed
    except ValueError as error:
        assert wanted not in allowed
        assert math.isclose(cost(nearest_in(str(error))), min(map(cost, allowed)))


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_larger_than_the_source_names_argument_value_rule_and_nearest(name):
    largest = getattr(ModelShape.from_config(llama_config()), name)
    text = error_text(llama_config(), **{name: largest + 1})
    assert f"`{name}` must be between 1 and the source's {largest}, but it is {largest + 1}." in text
    assert "can only be smaller than the source model" in text
    assert nearest_in(text)[name] == largest


@pytest.mark.parametrize("name", SHAPE_NAMES)
@pytest.mark.parametrize("value", [0, -3])
def test_empty_sizes_are_refused(name, value):
    text = error_text(llama_config(), **{name: value})
    assert f"`{name}` must be at least 1, but it is {value}." in text
    assert TargetShape.from_source(llama_config(), **nearest_in(text))


@pytest.mark.parametrize(
    ("value", "written", "nearest"),
    [
        (True, "True (bool)", 172),
        (48.0, "48.0 (float)", 48),
        ("48", "'48' (str)", 48),
        (math.nan, "nan", 172),
    ],
)
def test_sizes_that_are_no_integers_are_refused(value, written, nearest):
    text = error_text(llama_config(), intermediate_size=value)
    assert f"`intermediate_size` must be an integer, but it is {written}" in text
    assert nearest_in(text)["intermediate_size"] == nearest


def test_key_value_heads_alone_name_both_numbers_of_the_nearest_shape():
    text = error_text(llama_config(), num_key_value_heads=2)
    assert "must not serve more query heads than the source's 2" in text
    assert "`num_attention_heads` 8 (the source's) and `num_key_value_heads` 2 make it 4" in text
    assert "removed, not merged" in text
    assert "num_attention_heads=4, num_key_value_heads=2" in text
    assert TargetShape.from_source(llama_config(), num_attention_heads=4, num_key_value_heads=2)


def test_heads_that_do_not_divide_name_both_numbers():
    text = error_text(llama_config(), hidden_size=48, num_attention_heads=6)
    assert "`num_attention_heads` 6 and `num_key_value_heads` 4 (the source's) are not" in text
    assert "num_attention_heads=6, num_key_value_heads=3" in text


def test_shape_that_the_config_class_refuses_names_nearest_hidden_size_and_heads():
    text = error_text(mha_config(), hidden_size=48, num_attention_heads=5)
    assert "LlamaConfig refuses `hidden_size` 48, `num_attention_heads` 5" in text
    assert "not a multiple of the number of attention heads (5)." in text
    assert nearest_in(text)["hidden_size"] == 50
    assert "To keep hidden_size=48: num_attention_heads=6, num_key_value_heads=6." in text


@pytest.mark.parametrize(("hidden_size", "nearest"), [(49, 48), (51, 48), (52, 56), (53, 56), (3, 8)])
def test_nearest_hidden_size_is_sought_on_both_sides(hidden_size, nearest):
    text = error_text(mha_config(), hidden_size=hidden_size, num_attention_heads=8)
    assert nearest_in(text)["hidden_size"] == nearest


def test_an_unnamed_hidden_size_stays_good_for_hardware():
    config = LlamaConfig(
        hidden_size=4096, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8, intermediate_size=64
    )
    text = error_text(config, num_attention_heads=20)
    nearest = nearest_in(text)
    assert (nearest["hidden_size"], nearest["num_attention_heads"], nearest["num_key_value_heads"]) == (4096, 16, 8)
    assert "To keep num_attention_heads=20: hidden_size=3840, num_key_value_heads=5." in text
    text = error_text(mha_config(), num_attention_heads=5)  # 60 would be nearer, and slow
    assert (nearest_in(text)["hidden_size"], nearest_in(text)["num_attention_heads"]) == (64, 4)
    assert "To keep num_attention_heads=5: hidden_size=60." in text  # 5 does not divide 64


@pytest.mark.parametrize(("hidden_size", "multiple"), [(1152, 128), (960, 64), (72, 8), (81, 1)])
@pytest.mark.parametrize("heads", range(1, 9))
def test_the_multiple_is_the_largest_that_the_source_has(hidden_size, multiple, heads):
    source_heads = next(number for number in (9, 8) if hidden_size % number == 0)
    config = llama_config(hidden_size=hidden_size, num_attention_heads=source_heads, num_key_value_heads=source_heads)
    try:
        TargetShape.from_source(config, num_attention_heads=heads)
    except ValueError as error:
        assert nearest_in(str(error))["hidden_size"] % multiple == 0


def test_direct_construction_is_checked_too():
    source = ModelShape.from_config(llama_config())
    with pytest.raises(ValueError, match="`hidden_size` must be between 1 and the source's 64, but it is 128"):
        TargetShape(128, 5, 8, 4, 172, 8, source=source)
    with pytest.raises(ValueError, match=r"`head_dim` must stay at the source's 8, but it is 16\. Give 8\."):
        TargetShape(64, 5, 8, 4, 172, 16, source=source)


def test_dict_with_unknown_names_or_another_head_dim_is_refused():
    with pytest.raises(ValueError, match="no size named 'num_layers', 'vocab_size'.*num_hidden_layers"):
        TargetShape.from_dict(llama_config(), {"num_layers": 4, "vocab_size": 3, "hidden_size": 48})
    with pytest.raises(ValueError, match=r"`head_dim` must stay .*8, but it is 4\. Leave it out: it is 8\."):
        TargetShape.from_dict(llama_config(), {"head_dim": 4})
    assert TargetShape.from_dict(llama_config(), {"hidden_size": 48}).hidden_size == 48


# Parameter counts


@given(configs_with_targets())
@settings(max_examples=40, deadline=None)
def test_counts_equal_those_of_the_built_model(config_and_sizes):
    config, sizes = config_and_sizes
    shape = TargetShape.from_source(config, **sizes)
    assert count_parameters(config) == count_by_building(config)
    target_count = count_parameters(config, shape)
    assert target_count == count_by_building(config_for_shape(config, shape))
    assert isinstance(target_count, int)


def test_embeddings_are_counted_once_where_tied():
    shape = TargetShape.from_source(llama_config(), hidden_size=48)
    assert count_embedding_parameters(llama_config()) == 512 * 64
    assert count_embedding_parameters(llama_config(), shape) == 512 * 48
    assert count_embedding_parameters(llama_config(tie_word_embeddings=False), shape) == 2 * 512 * 48


# Configs of another shape


def test_config_keeps_everything_but_the_shape():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = llama_config(
        rope_parameters=rope, attention_bias=True, mlp_bias=True, max_position_embeddings=512,
        dtype="bfloat16", attn_implementation="eager", bos_token_id=3, eos_token_id=[4, 5], rms_norm_eps=1e-5,
    )  # fmt: skip
    before = config.to_dict()
    shape = TargetShape.from_source(
        config, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3,
        intermediate_size=100,
    )  # fmt: skip
    cut = config_for_shape(config, shape)
    assert type(cut) is LlamaConfig
    assert cut.to_dict() == {**before, **shape.to_dict()}
    assert cut._attn_implementation == "eager"
    assert config.to_dict() == before
    cut.rope_parameters["factor"] = 1.0
    assert config.rope_parameters["factor"] == 8.0


def test_config_survives_saving_with_an_explicit_head_dim(tmp_path):
    shape = TargetShape.from_source(llama_config(), num_attention_heads=4, num_key_value_heads=2)
    config_for_shape(llama_config(), shape).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["head_dim"] == 8
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.model_type == "llama"
    assert ModelShape.from_config(loaded).to_dict() == shape.to_dict()


def test_per_layer_lists_are_cut_to_the_kept_layers_and_others_are_not():
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = llama_config(layer_types=types, window_per_layer=[0, 1, 2, 3, 4], eos_token_id=[5, 6, 7, 8, 9])
    shape = TargetShape.from_source(config, num_hidden_layers=3)
    cut = config_for_shape(config, shape, kept_layers=[0, 1, 3])
    assert cut.layer_types == [types[0], types[1], types[3]]
    assert cut.window_per_layer == [0, 1, 3]
    assert cut.eos_token_id == [5, 6, 7, 8, 9]
    assert config_for_shape(config, shape).window_per_layer == [0, 1, 2]
    config.architectures = ["A", "B", "C", "D", "E"]
    assert config_for_shape(config, shape).architectures == config.architectures
    assert len(config.layer_types) == 5


@pytest.mark.parametrize("kept", [[0, 1], [0, 1, 2, 3], [1, 0, 2], [0, 1, 1], [0, 1, 5], [-1, 0, 1], [0, 1, 2.0]])
def test_kept_layers_that_do_not_fit_are_refused(kept):
    shape = TargetShape.from_source(llama_config(), num_hidden_layers=3)
    with pytest.raises(ValueError, match="`kept_layers` must name 3 of the source's layers 0 to 4"):
        config_for_shape(llama_config(), shape, kept_layers=kept)


def test_config_of_another_class_drops_what_that_class_does_not_know():
    class MaskedLlamaConfig(LlamaConfig):
        model_type = "hf_shear_llama"
        mask_settings: dict | None = None

    values = llama_config(attention_bias=True, layer_types=["full_attention"] * 5).to_dict()
    values = {name: value for name, value in values.items() if name not in ("model_type", "transformers_version")}
    source = MaskedLlamaConfig(**values, mask_settings={"a": 1}, attn_implementation="eager")
    source.architectures = ["MaskedLlamaForCausalLM"]
    shape = TargetShape.from_source(source, num_hidden_layers=2, hidden_size=32)
    cut = config_for_shape(source, shape, config_class=LlamaConfig)
    assert type(cut) is LlamaConfig
    assert cut.to_dict()["model_type"] == "llama"
    assert ModelShape.from_config(cut).to_dict() == shape.to_dict()
    assert not hasattr(cut, "mask_settings")
    assert cut.architectures is None
    assert cut.attention_bias and cut.tie_word_embeddings and cut.layer_types == ["full_attention"] * 2
    assert cut._attn_implementation == "eager"
    assert config_for_shape(source, shape).mask_settings == {"a": 1}


def test_config_refuses_another_head_dim_more_layers_and_what_the_class_refuses():
    config = llama_config()
    with pytest.raises(ValueError, match="`head_dim` must stay at the source's 8, but the shape has 16"):
        config_for_shape(config, ModelShape(64, 5, 8, 4, 172, 16))
    with pytest.raises(ValueError, match="`num_hidden_layers` must be at most the source's 5, but it is 6"):
        config_for_shape(config, ModelShape(64, 6, 8, 4, 172, 8))
    with pytest.raises(ValueError, match="LlamaConfig refuses the shape .*hidden_size=50.*not a multiple"):
        config_for_shape(config, ModelShape(50, 5, 8, 4, 172, 8))
