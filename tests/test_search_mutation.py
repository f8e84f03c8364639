"""Layers of different widths: budgets are kept, a planted best shape is found, a resumed search equals a whole one."""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_helpers import written_by
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.search import ShapeBudget, ShapeFilter, read_candidates, search_shapes
from hf_shear.search.divergence import SourceDivergence
from hf_shear.search.mutation import Levels, mutate
from hf_shear.search.ranked_source import RankedSource, shape_of_gates
from hf_shear.shapes import LayerSizes, ModelShape, PerLayerShape, TargetShape, count_parameters

CONFIG = LlamaConfig(
    hidden_size=64, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, intermediate_size=160, vocab_size=50,
    head_dim=8,
)  # fmt: skip
SOURCE = ModelShape.from_config(CONFIG)
KINDS = ("key_value_head", "query_head", "intermediate")
CHEAP = PruneConfig({"default": "activation", "layer": "block_influence"}, compensation="none")
TAYLOR = PruneConfig("taylor", compensation="least_squares")


@pytest.fixture
def model(build_llama):
    return build_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64)


def uniform(config, **sizes):
    whole = ModelShape.from_config(config)
    layer = LayerSizes(
        sizes.get("heads", whole.num_attention_heads), sizes.get("groups", whole.num_key_value_heads), sizes["neurons"]
    )
    return PerLayerShape(whole, whole.hidden_size, (layer,) * whole.num_hidden_layers)


@settings(max_examples=6, deadline=None)
@given(share=st.floats(0.3, 0.95), seed=st.integers(0, 1000), family=st.sampled_from(["all", "neurons"]))
def test_children_keep_the_budget_fill_it_and_have_known_levels(share, seed, family):
    budget, draw = int(share * count_parameters(CONFIG)), random.Random(seed)
    kinds = KINDS if family == "all" else ("intermediate",)
    levels = Levels.within(CONFIG, budget, ShapeFilter(), kinds)
    parent = uniform(CONFIG, neurons=8) if family == "neurons" else uniform(CONFIG, neurons=8, heads=2, groups=2)
    if not levels.fits(parent):
        return
    parent = levels.snapped(parent, draw)
    for _ in range(10):
        child = levels.child(parent, draw)
        if child is None:
            continue
        assert child != parent and child.num_parameters(CONFIG) <= budget
        for sizes in child.layers:
            assert (sizes.num_heads, sizes.num_key_value_heads) in levels.of["attention"]
            assert (sizes.num_neurons,) in levels.of["mlp"]
        parent = child
    # What is left would not hold another level of any part that is there, but for the one that paid for the last switch.
    fitting = [
        place
        for place in [(layer, part) for layer in range(6) for part in ("attention", "mlp")]
        if (larger := levels.moved(parent, place, 1)) is not None and larger.num_parameters(CONFIG) <= budget
        and (parent.layers[place[0]].num_heads if place[1] == "attention" else parent.layers[place[0]].num_neurons)
    ]  # fmt: skip
    assert len(fitting) <= 1


def test_what_was_drawn_decides_and_nothing_else():
    levels = Levels.within(CONFIG, int(0.6 * count_parameters(CONFIG)), ShapeFilter(), KINDS)
    start = levels.snapped(uniform(CONFIG, neurons=40, heads=4, groups=2), random.Random(0))

    def judge(shape, share):
        return sum((sizes.num_neurons - 20 * index) ** 2 for index, sizes in enumerate(shape.layers)) / 1e4

    found = [list(mutate(start, levels, judge, 10, random.Random(seed))) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    losses = [loss for _, loss in found[0]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_filters_are_kept_layer_by_layer():
    wanted = ShapeFilter(
        multiple_of={"intermediate_size": 32}, tensor_parallel=2, at_least={"num_hidden_layers": 6},
        accepts=lambda shape: "too wide" if shape.intermediate_size > 128 else None,
    )  # fmt: skip
    levels = Levels.within(CONFIG, int(0.6 * count_parameters(CONFIG)), wanted, KINDS)
    draw = random.Random(0)
    parent = levels.snapped(uniform(CONFIG, neurons=64, heads=4, groups=2), draw)
    children = [child for _ in range(60) if (child := levels.child(parent, draw)) is not None]
    assert len(children) > 10
    for child in children:
        assert len(child.kept_layers) == 6 and max(sizes.num_neurons for sizes in child.layers) <= 128
        for sizes in child.layers:
            assert sizes.num_neurons % 32 == 0
            assert sizes.num_heads % 2 == 0 and sizes.num_key_value_heads % 2 == 0


def test_a_cut_of_layers_alike_is_the_cut_of_the_shape(model):
    calibration, _ = written_by(model)
    shape = TargetShape.from_source(
        model.config, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=40,
    )  # fmt: skip
    ranked = RankedSource(model, calibration, PruneConfig(CHEAP.criterion), [shape])
    layers = shape_of_gates(ranked.gates(shape), shape.source)
    assert layers.num_parameters(model.config) == count_parameters(model.config, shape)
    assert layers.padded(model.config).sizes() == shape.sizes()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(ranked.cut(shape)(ids).logits, ranked.cut_layers(layers)(ids).logits)


UNEVEN = [[4, 2, 40], [2, 1, 0], [0, 0, 64], [2, 2, 16]]


@pytest.mark.parametrize("config", [TAYLOR, PruneConfig(CHEAP.criterion)])
@pytest.mark.parametrize(("hidden", "layers"), [(32, UNEVEN), (24, UNEVEN), (32, [*UNEVEN[:2], [0, 0, 0], UNEVEN[3]])])
def test_a_model_pruned_to_layers_of_its_own_keeps_them_after_reload(model, tmp_path, config, hidden, layers):
    """Also the invariant: what is saved and loaded computes what was cut, and that is what the search cuts."""
    calibration, _ = written_by(model)
    shape = PerLayerShape.from_list(model.config, hidden, layers)
    pruning = prune_one_shot(model, shape, calibration, config)
    assert pruning.num_parameters == shape.num_parameters(model.config) == pruning.budget
    kept = pruning.kept
    for index, (heads, groups, neurons) in enumerate(layers):
        if heads or neurons:
            sizes = (len(kept.heads[index]), len(kept.key_value_heads[index]), len(kept.intermediate[index]))
            assert sizes == (heads, groups, neurons)
        else:
            assert index not in kept.layers
    pruning.save(tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert ModelShape.from_config(loaded.config).sizes() == shape.padded(model.config).sizes()
    least = TargetShape.from_source(
        model.config, num_attention_heads=1, num_key_value_heads=1, intermediate_size=8, hidden_size=24
    )
    ranked = RankedSource(model, calibration, config, [least])
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        logits = loaded(ids).logits
        assert torch.equal(logits, pruning.model(ids).logits)
        if hidden == 32:  # hidden dimensions are ranked along with other kinds there
            torch.testing.assert_close(logits, ranked.cut_layers(shape)(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_divergence_is_that_of_each_token_from_the_source(model, build_llama):
    _, held_out = written_by(model)
    held_out = {"one": held_out["own"].select(range(5)), "other": held_out["own"].select(range(5, 7))}
    other = build_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48)
    measured = SourceDivergence(model, held_out, 2)
    assert measured(model) == pytest.approx(0, abs=1e-6)

    def expected(rows):
        with torch.no_grad():
            wanted, found = (one(rows["input_ids"][:]).logits[:, :-1].log_softmax(-1) for one in (model, other))
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    whole = (expected(held_out["one"]) + expected(held_out["other"])) / 2
    part = (expected(held_out["one"].select(range(2))) + expected(held_out["other"].select(range(1)))) / 2
    assert measured(other) == pytest.approx(whole, rel=1e-4)
    assert measured(other, 0.4) == pytest.approx(part, rel=1e-4)


def test_a_planted_best_shape_is_found():
    """Layers 1 and 4 have no use for their MLPs, layer 3 none for its attention."""
    useful = {layer: (layer != 3, layer not in (1, 4)) for layer in range(6)}

    def judge(shape, share):
        return -sum(
            heads * sizes.num_heads / 8 + neurons * sizes.num_neurons / 160
            for sizes, (heads, neurons) in zip(shape.layers, useful.values(), strict=True)
        )

    planted = tuple(LayerSizes(8 * heads, 4 * heads, 160 * neurons) for heads, neurons in useful.values())
    budget = PerLayerShape(SOURCE, 64, planted).num_parameters(CONFIG)
    levels = Levels.within(CONFIG, budget, ShapeFilter(), KINDS)
    start = levels.snapped(uniform(CONFIG, neurons=80, heads=4, groups=4), random.Random(0))
    *_, (best, _) = mutate(start, levels, judge, 60, random.Random(0))
    assert best.layers == planted


def test_a_layer_that_adds_nothing_pays_for_the_others(model):
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[2].get_submodule(name).weight.zero_()
    budget = ShapeBudget(max_parameters=int(0.85 * count_parameters(model.config)))
    wanted = ShapeFilter(at_least={"num_hidden_layers": 4})  # so that no uniform shape leaves that layer out
    found = search_shapes(model, *written_by(model), budget, config=CHEAP, num_generations=3, wanted=wanted)
    (best,) = [one for one in found if one.layers is not None]
    assert found[0] == best
    assert best.costs["num_parameters"] <= budget.max_parameters
    assert best.rise < 0.7 * min(one.rise for one in found if one.rise is not None and one.layers is None)


def test_an_interrupted_search_equals_a_whole_one(model, tmp_path, monkeypatch):
    text, budget = written_by(model), ShapeBudget(max_parameters=20_000)
    options = {"config": CHEAP, "num_generations": 2, "seed": 3}
    whole = search_shapes(model, *text, budget, **options, output_dir=tmp_path / "whole")
    cut, done = RankedSource.cut_layers, []

    def interrupted(self, shape):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(shape)
        return cut(self, shape)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RankedSource, "cut_layers", interrupted)
        search_shapes(model, *text, budget, **options, output_dir=tmp_path / "part")
    with pytest.raises(UsageError, match="other settings \\(seed\\)"):
        search_shapes(model, *text, budget, **(options | {"seed": 4}), output_dir=tmp_path / "part", resume=True)
    assert search_shapes(model, *text, budget, **options, output_dir=tmp_path / "part", resume=True) == whole
    assert read_candidates(tmp_path / "part") == read_candidates(tmp_path / "whole") == whole


def test_what_layers_cannot_be_searched_for_says_so(model):
    text = written_by(model)
    with pytest.raises(UsageError, match="`max_parameters` alone limits.*flops_per_token"):
        search_shapes(model, *text, ShapeBudget(max_flops=1e5), config=CHEAP, num_generations=2)
    with pytest.raises(UsageError, match="finalists are to be trained"):
        search_shapes(
            model, *text, ShapeBudget(max_parameters=20_000), config=CHEAP, num_generations=2,
            recover=lambda model, flops: (model, 1), finalist_flops=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "needs"),
    [
        ([[4, 2, 64]] * 3, "4 layers, but it has 3"),
        ([[4, 2, 65]] * 4, "0 to 64 neurons"),
        ([[4, 3, 64]] * 4, "0 to 2 key/value heads"),
        ([[3, 2, 64]] * 4, "as many for each"),
        ([[0, 2, 64]] * 4, "or neither"),
        ([[0, 0, 64]] * 4, "no layer with attention"),
        ([[4, 2, 0]] * 4, "no layer with an MLP"),
    ],
)
def test_layers_that_cannot_be_are_refused(model, layers, needs):
    with pytest.raises(UsageError, match=needs):
        PerLayerShape.from_list(model.config, 32, layers)


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({"allocation": "global"}, "Leave it at 'uniform'"),
        ({"num_shots": 2}, "Leave `num_shots` at 1"),
        ({"protect": "first:2"}, "protects layer 1, which `target` leaves without"),
        ({"form": "nemotron_nas"}, "cannot be removed unevenly"),
    ],
)
def test_choices_that_layers_of_their_own_exclude_are_refused(model, changes, needs):
    calibration, _ = written_by(model)
    shape = PerLayerShape.from_list(model.config, 32, UNEVEN)
    with pytest.raises(UsageError, match=needs):
        prune_one_shot(model, shape, calibration, PruneConfig("taylor", **changes))


def test_the_command_searches_layers_and_prune_cuts_them(tmp_path, shared_data, capsys):
    model, text = str(shared_data / "models" / "stories260K"), str(shared_data / "data" / "tinystories")
    cheap = ["--data_dir", text, "--max_length", "64", "--calibration_batches", "1", "--compensation", "none"]
    words = ["search", model, *cheap, "--max_parameters", "200000", "--batch_size", "2", "--eval_tokens", "512"]
    words += ["--criterion", "activation", "layer=block_influence", "--num_generations", "1"]
    assert main([*words, "--output_dir", str(tmp_path / "found")]) == 0
    assert "layers differ" in capsys.readouterr().out
    candidates = read_candidates(tmp_path / "found")
    rank = next(number for number, one in enumerate(candidates, 1) if one.layers is not None)
    row = ["--from_search", str(tmp_path / "found"), "--search_rank", str(rank)]
    pruned = ["prune", model, *cheap, *row, "--eval_tokens", "64", "--criterion", "magnitude"]
    assert main([*pruned, "--output_dir", str(tmp_path / "pruned")]) == 0
    record = json.loads((tmp_path / "pruned" / "shear_provenance.json").read_text())
    assert record["num_parameters"] == candidates[rank - 1].costs["num_parameters"] <= 200_000
    learn = ["learn", model, "--data_dir", text, *row, "--output_dir", str(tmp_path / "learned")]
    assert main(learn) == 2
    assert "`hf-shear prune` alone cuts" in capsys.readouterr().err
