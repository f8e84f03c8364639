"""Shapes for a budget: never above it, close below it, by a rule, in hardware-friendly multiples."""

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from hf_shear.shapes import TargetShape, config_for_shape, count_parameters, preset_shape, shape_for_budget
from hf_shear.shapes.budget import TOLERANCE, WEIGHTS
from hf_shear.shapes.parameter_count import count_embedding_parameters

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    intermediate_size=11008,
)
LLAMA_3_2_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=8192,
    head_dim=64,
    tie_word_embeddings=True,
)
STORIES_260K = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=172,
    tie_word_embeddings=True,
)
LARGE = pytest.mark.parametrize("config", [LLAMA_2_7B, LLAMA_3_2_1B], ids=["7b", "1b"])


@LARGE
@given(fraction=st.floats(0.02, 1.0))
@settings(max_examples=30, deadline=None)
def test_large_sources_fill_the_budget_within_the_tolerance(config, fraction):
    choice = shape_for_budget(config, fraction_kept=fraction)
    assert choice.budget == math.floor(fraction * count_parameters(config))
    assert (1 - TOLERANCE) * choice.budget <= choice.num_parameters <= choice.budget
    assert choice.num_parameters == count_parameters(config, choice.shape)
    assert list(choice.multiples.values()) == [128, 2, 2, 128]
    for name, multiple in choice.multiples.items():
        size = getattr(choice.shape, name)
        assert size % multiple == 0 or size == getattr(choice.shape.source, name)
    config_for_shape(config, choice.shape).validate()


def test_the_tolerance_stated_is_two_percent():
    assert TOLERANCE == 0.02


@given(fraction=st.floats(0.05, 1.0))
@settings(max_examples=30, deadline=None)
def test_tiny_source_stays_within_four_percent_below_the_budget(fraction):
    choice = shape_for_budget(STORIES_260K, fraction_kept=fraction)
    assert 0.96 * choice.budget <= choice.num_parameters <= choice.budget
    assert choice.num_parameters == count_parameters(STORIES_260K, choice.shape)
    assert choice.multiples["hidden_size"] == choice.multiples["intermediate_size"] == 8
    assert choice.shape.hidden_size % 8 == 0
    assert choice.shape.intermediate_size % 8 == 0 or choice.shape.intermediate_size == 172


def test_budget_that_no_multiples_fill_gets_the_fullest_shape():
    config = LlamaConfig(**{**STORIES_260K.to_dict(), "num_key_value_heads": 8})
    choice = shape_for_budget(config, fraction_kept=0.9)
    assert choice.num_parameters == 245_952  # intermediate_size 136; 144 has 253,632, the budget is 252,460
    assert choice.num_parameters < (1 - TOLERANCE) * choice.budget
    assert choice.shape.intermediate_size == 136


@LARGE
@given(fraction=st.floats(0.15, 1.0))
@settings(max_examples=30, deadline=None)
def test_proportional_shapes_of_large_sources_keep_like_shares(config, fraction):
    """The shares kept of the widths lie within a factor of 1.5; layers hardly shrink faster than those."""
    kept = shares_kept(shape_for_budget(config, fraction_kept=fraction, balance="proportional").shape)
    layers = kept.pop("num_hidden_layers")
    assert max(kept.values()) <= 1.5 * min(kept.values())
    assert layers >= 0.9 * min(kept.values())


@LARGE
@given(fraction=st.floats(0.5, 1.0))  # below, embeddings are most of the smaller source: hidden dimensions go
@settings(max_examples=30, deadline=None)
def test_weighted_shapes_keep_most_of_the_stream_then_of_the_layers_and_least_of_the_mlps(config, fraction):
    kept = shares_kept(shape_for_budget(config, fraction_kept=fraction).shape)
    apart = 1 / 16  # by which multiples of 128 move a share
    assert kept["intermediate_size"] <= kept["num_hidden_layers"] + apart
    assert kept["num_hidden_layers"] <= kept["hidden_size"] + apart


@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.3])
def test_no_shape_that_fills_the_budget_is_nearer_to_the_source(fraction):
    """Of all shapes of a small source in the same multiples, counted one by one."""
    choice = shape_for_budget(STORIES_260K, fraction_kept=fraction)
    source = choice.shape.source

    def distance(shape):
        return sum(WEIGHTS[name] * math.log(share) ** 2 for name, share in shares_kept(shape).items())

    heads = [(heads, groups) for groups in (1, 2, 3, 4) for heads in range(groups, 2 * groups + 1, groups)]
    step = choice.multiples["num_attention_heads"]
    sizes = itertools.product(range(8, 65, 8), range(1, 6), heads, [*range(8, 172, 8), 172])
    for hidden, layers, (queries, groups), width in sizes:
        allowed = hidden % queries == 0 and not (queries % step and queries != source.num_attention_heads)
        if not allowed or (groups % step and groups != source.num_key_value_heads):
            continue
        shape = TargetShape.from_source(
            STORIES_260K, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=queries,
            num_key_value_heads=groups, intermediate_size=width,
        )  # fmt: skip
        if (1 - TOLERANCE) * choice.budget <= count_parameters(STORIES_260K, shape) <= choice.budget:
            assert distance(choice.shape) <= distance(shape) + 1e-12


def shares_kept(shape):
    return {name: size / getattr(shape.source, name) for name, size in shape.sizes().items()}


def test_proportional_budget_of_the_papers_smallest_published_target_gives_its_very_shape():
    choice = shape_for_budget(LLAMA_2_7B, num_parameters=1_345_423_360, balance="proportional")
    assert choice.shape == preset_shape("sheared-llama-1.3b", LLAMA_2_7B)


def test_another_balance_is_refused():
    with pytest.raises(ValueError, match="`balance` must be one of weighted, proportional, but it is 'even'"):
        shape_for_budget(LLAMA_2_7B, fraction_kept=0.5, balance="even")


def test_whole_budget_keeps_the_source():
    for config in (LLAMA_2_7B, LLAMA_3_2_1B, STORIES_260K):
        for budget in ({"fraction_kept": 1.0}, {"num_parameters": count_parameters(config)}):
            for balance in ("weighted", "proportional"):
                shape = shape_for_budget(config, **budget, balance=balance).shape
                assert shape.sizes() == shape.source.sizes()


@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (9, 4, 12, 60)]),
    fraction=st.floats(0.3, 1.0),
    tied=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_small_source_gets_a_shape_or_a_clear_refusal(sizes, fraction, tied):
    """Sources of odd sizes with biases: only a budget below the smallest shape is refused."""
    kv_heads, queries, width, intermediate_size = sizes
    heads = kv_heads * queries
    config = LlamaConfig(
        vocab_size=7, hidden_size=heads * width, num_hidden_layers=3, num_attention_heads=heads, head_dim=2,
        num_key_value_heads=kv_heads, intermediate_size=intermediate_size, tie_word_embeddings=tied,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    try:
        choice = shape_for_budget(config, fraction_kept=fraction)
    except ValueError as error:
        assert "smallest shape of this source has" in str(error)
        least = int(str(error).rsplit("at least ", 1)[1].rstrip(".").replace(",", ""))
        assert least > fraction * count_parameters(config) - 1
        choice = shape_for_budget(config, num_parameters=least)
    assert choice.num_parameters == count_parameters(config, choice.shape) <= choice.budget


def test_description_says_shape_multiples_and_the_embeddings_share():
    choice = shape_for_budget(LLAMA_3_2_1B, fraction_kept=0.5)
    embeddings = count_embedding_parameters(LLAMA_3_2_1B, choice.shape)
    assert choice.num_embedding_parameters == embeddings
    assert choice.embedding_share == embeddings / choice.num_parameters
    assert choice.fraction_kept == choice.num_parameters / count_parameters(LLAMA_3_2_1B)
    lines = choice.describe().splitlines()
    assert lines[0] == f"Target shape: {choice.shape}"
    assert f"{choice.num_parameters:,} of a budget of {choice.budget:,}" in lines[1]
    assert lines[2].startswith("Balance: weighted. MLPs")
    assert "hidden_size kept at the source's 2048" in lines[3] and "intermediate_size of 128" in lines[3]
    assert f"{embeddings:,} parameters, {choice.embedding_share:.1%} of the target" in lines[4]
    assert "kept at the source's 8192" in shape_for_budget(LLAMA_3_2_1B, fraction_kept=1.0).describe()


def test_search_is_fast_for_7b():
    start = time.perf_counter()
    shape_for_budget(LLAMA_2_7B, fraction_kept=0.3)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("arguments", [{}, {"num_parameters": 10**9, "fraction_kept": 0.5}])
def test_exactly_one_form_of_budget_is_asked_for(arguments):
    with pytest.raises(ValueError, match="exactly one of `num_parameters` and `fraction_kept`"):
        shape_for_budget(LLAMA_2_7B, **arguments)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, math.nan, True, "0.5"])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="`fraction_kept` must be above 0 and at most 1, but it is"):
        shape_for_budget(LLAMA_2_7B, fraction_kept=fraction)


@pytest.mark.parametrize("count", [1.3e9, True, "1.3B"])
def test_number_that_is_no_integer_is_refused(count):
    with pytest.raises(ValueError, match="`num_parameters` must be an integer, but it is .*`fraction_kept`"):
        shape_for_budget(LLAMA_2_7B, num_parameters=count)


@pytest.mark.parametrize("count", [0, -1, 6_738_415_617])
def test_number_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match="between 1 and the source's 6,738,415,616, but it is"):
        shape_for_budget(LLAMA_2_7B, num_parameters=count)


def test_budget_below_the_smallest_shape_names_it_and_its_embeddings():
    with pytest.raises(ValueError, match="smallest shape of this source has 4,568 .*89.7% of them embeddings"):
        shape_for_budget(STORIES_260K, num_parameters=4567)
    assert shape_for_budget(STORIES_260K, num_parameters=4568).num_parameters == 4568
