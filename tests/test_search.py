"""The search of shapes: budgets are kept, a planted best shape is found, an interrupted search equals a whole one."""

import json

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from search_helpers import written_by
from transformers import LlamaConfig

from hf_shear.cli import main
from hf_shear.core import FailedError, UsageError
from hf_shear.data import Calibration
from hf_shear.pruning import PruneConfig
from hf_shear.search import ShapeBudget, ShapeCandidate, ShapeFilter, read_candidates, search_shapes, shapes_within
from hf_shear.search import latency as latency_module
from hf_shear.search import search as search_module
from hf_shear.search.latency import Latency, LatencyModel, shapes_to_time
from hf_shear.search.rises import RiseForecast, single_cuts
from hf_shear.shapes import ModelShape, TargetShape, count_parameters, forward_flops_per_token, weighted_distance

CONFIG = LlamaConfig(
    hidden_size=64, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, intermediate_size=160, vocab_size=50,
    head_dim=8,
)  # fmt: skip
CHEAP = PruneConfig({"default": "activation", "layer": "block_influence"}, compensation="none")


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(3, 40, (12, 24), generator=torch.Generator().manual_seed(3))
    held_out = torch.randint(3, 40, (2, 8, 24), generator=torch.Generator().manual_seed(4))
    calibration = Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4)
    domains = {name: Dataset.from_dict({"input_ids": part.tolist()}) for name, part in zip("ab", held_out, strict=True)}
    return calibration, {name: part.with_format("torch") for name, part in domains.items()}


HEADS = ((1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (6, 3), (8, 4))
NAMES = {"max_parameters": "num_parameters", "max_flops": "flops_per_token", "max_memory": "memory_bytes"}


@pytest.fixture(scope="module")
def costs_of_all():
    """Of every shape there is, by its sizes."""
    unlimited, found = ShapeBudget(max_parameters=10**9), {}
    for hidden in range(8, 65, 8):
        for heads, groups in [pair for pair in HEADS if hidden % pair[0] == 0]:
            for layers in range(1, 7):
                for width in range(8, 161, 8):
                    shape = ModelShape(
                        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
                        intermediate_size=width, head_dim=8,
                    )  # fmt: skip
                    found[tuple(shape.sizes().items())] = unlimited.costs(CONFIG, shape)
    return found


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.15, 1.0), limit=st.sampled_from(sorted(NAMES)))
def test_what_is_listed_keeps_the_budget_and_is_all_that_fills_it(costs_of_all, share, limit):
    """Against every shape, one by one."""
    name = NAMES[limit]
    budget = ShapeBudget(**{limit: int(share * max(costs[name] for costs in costs_of_all.values()))})
    found = {tuple(shape.sizes().items()) for shape in shapes_within(CONFIG, budget)}
    used = {sizes: budget.used(costs) for sizes, costs in costs_of_all.items()}
    widest = {sizes for sizes, part in used.items() if part <= 1 < used.get(_wider(sizes), 2)}
    fullest = max(used[sizes] for sizes in widest)
    assert found == {sizes for sizes in widest if used[sizes] >= min(0.97, fullest)}


def _wider(sizes):
    return tuple((name, size + 8 if name == "intermediate_size" else size) for name, size in sizes)


def test_costs_are_those_of_the_shape():
    shape = TargetShape.from_source(CONFIG, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    budget = ShapeBudget(max_memory=1.0, context=100, batch_size=3, dtype=torch.float16)
    costs = budget.costs(CONFIG, shape)
    assert costs["num_parameters"] == count_parameters(CONFIG, shape)
    assert costs["flops_per_token"] == forward_flops_per_token(CONFIG, 100, shape)
    cache = 2 * 3 * (2 * 8) * 100 * 3  # keys and values, layers, KV heads x head_dim, tokens, sequences
    assert costs["memory_bytes"] == 2 * (costs["num_parameters"] + cache)


def test_filters_leave_what_was_asked_for():
    wanted = ShapeFilter(
        multiple_of={"hidden_size": 16, "intermediate_size": 32}, tensor_parallel=2, at_least={"num_hidden_layers": 3},
        accepts=lambda shape: "too flat" if shape.hidden_size == 48 else None,
    )  # fmt: skip
    found = shapes_within(CONFIG, ShapeBudget(max_parameters=120_000), wanted)
    assert found
    for shape in found:
        assert shape.hidden_size % 16 == 0 and shape.hidden_size != 48
        assert shape.intermediate_size % 32 == 0
        assert shape.num_attention_heads % 2 == 0 and shape.num_key_value_heads % 2 == 0
        assert shape.num_hidden_layers >= 3


@pytest.mark.parametrize(
    ("budget", "wanted", "needs"),
    [
        ({"max_parameters": 100}, {}, ("100 parameters", "The nearest", "Raise the budget")),
        ({"max_parameters": 90_000}, {"at_least": {"num_hidden_layers": 7}}, ("`num_hidden_layers`", "`at_least` 7")),
        ({"max_parameters": 90_000}, {"tensor_parallel": 16}, ("`num_attention_heads`", "`tensor_parallel` 16")),
        ({"max_parameters": 90_000}, {"accepts": lambda shape: "vLLM: refused"}, ("refused by a filter", "vLLM")),
    ],
)
def test_a_budget_that_nothing_keeps_and_filters_that_leave_nothing_say_why(budget, wanted, needs):
    with pytest.raises(UsageError) as caught:
        shapes_within(CONFIG, ShapeBudget(**budget), ShapeFilter(**wanted))
    assert all(text in str(caught.value) for text in needs)


@pytest.mark.parametrize(
    "arguments", [{}, {"max_parameters": 0}, {"max_flops": -1.0}, {"max_latency": 1, "context": 0}]
)
def test_a_budget_without_a_limit_or_with_a_wrong_one_is_refused(arguments):
    with pytest.raises(UsageError):
        ShapeBudget(**arguments)


def test_the_forecast_goes_through_what_was_measured_and_never_falls():
    shapes = shapes_within(CONFIG, ShapeBudget(max_parameters=120_000))
    cuts = single_cuts(CONFIG, shapes)
    assert set(cuts) == {"hidden_size", "num_hidden_layers", "heads", "intermediate_size"}
    for found in cuts.values():
        for shape in found:
            changed = {name for name, size in shape.sizes().items() if size != getattr(shape.source, name)}
            assert len(changed) == 1 or changed == {"num_attention_heads", "num_key_value_heads"}
    measured = {part: [(shape, 1.0 + number) for number, shape in enumerate(found)] for part, found in cuts.items()}
    forecast = RiseForecast(shapes[0].source, measured)
    assert forecast(shapes[0].source) == pytest.approx(0, abs=1e-9)
    for part, pairs in measured.items():
        assert forecast.parts(pairs[-1][0])[part] == pytest.approx(pairs[-1][1])
        lowest, highest = pairs[0][0], pairs[-1][0]  # noise said that fewer units are better
        assert forecast.parts(lowest)[part] >= forecast.parts(highest)[part]
    assert all(forecast.knows(shape) for shape in shapes)


def test_widths_that_all_heads_do_not_divide_are_cut_with_fewer_and_the_heads_rise_is_taken_off():
    config = LlamaConfig(
        hidden_size=288, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3, intermediate_size=160,
        vocab_size=50, head_dim=8,
    )  # fmt: skip
    shapes = shapes_within(config, ShapeBudget(max_parameters=0.8 * count_parameters(config)))
    cuts = single_cuts(config, shapes)
    assert all(shape.num_attention_heads < 9 and shape.hidden_size % 9 for shape in cuts["hidden_size"])
    measured = {part: [(shape, 1.0) for shape in found] for part, found in cuts.items()}
    measured["hidden_size"] = [(shape, 1.5) for shape in cuts["hidden_size"]]
    forecast = RiseForecast(shapes[0].source, measured)
    for shape in cuts["hidden_size"]:
        of_heads = forecast.parts(shape)["heads"]
        assert 0 < of_heads <= 1 and forecast.parts(shape)["hidden_size"] == pytest.approx(1.5 - of_heads)
        assert forecast(shape) == pytest.approx(1.5)
    assert all(forecast.knows(shape) for shape in shapes)


def planted(build_llama):
    """Two of four layers add nothing, so that depth costs nothing."""
    model = build_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64)
    with torch.no_grad():
        for index in (1, 2):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                model.model.layers[index].get_submodule(name).weight.zero_()
    return model


def test_a_planted_best_shape_is_found(build_llama):
    model = planted(build_llama)
    text = written_by(model)  # whatever is cut of it but the two layers makes it a worse model of this text
    two_layers = TargetShape.from_source(model.config, num_hidden_layers=2)
    budget = ShapeBudget(max_parameters=count_parameters(model.config, two_layers))
    best, *others = search_shapes(model, *text, budget, config=CHEAP)
    assert best.sizes == two_layers.sizes()
    assert best.predicted_rise == pytest.approx(0, abs=1e-3) and best.rise == pytest.approx(0, abs=1e-3)
    assert min(other.predicted_rise for other in others) > 0.05
    assert sum(other.unsearched for other in others) == 1 and all(
        other.rise > 0 for other in others if other.unsearched
    )


def test_shapes_that_were_cut_come_first_in_the_order_of_their_own_rise_times_their_distance(build_llama, text):
    model = planted(build_llama)
    found = search_shapes(model, *text, ShapeBudget(max_parameters=20_000), config=CHEAP)
    cut = [one for one in found if one.rise is not None]
    assert 1 < len(cut) < len(found) and found[: len(cut)] == cut
    source = ModelShape.from_config(model.config)
    for one in found:
        rise = one.predicted_rise if one.rise is None else one.rise
        assert one.score == pytest.approx(rise * weighted_distance(source, one.sizes))
    assert [one.score for one in cut] == sorted(one.score for one in cut)


def test_an_interrupted_search_equals_a_whole_one(build_llama, text, tmp_path, monkeypatch):
    model, budget = planted(build_llama), ShapeBudget(max_parameters=20_000)
    whole = search_shapes(model, *text, budget, config=CHEAP, output_dir=tmp_path / "whole")
    cut, done = search_module.RankedSource.cut, []

    def interrupted(self, shape):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(shape)
        return cut(self, shape)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search_module.RankedSource, "cut", interrupted)
        search_shapes(model, *text, budget, config=CHEAP, output_dir=tmp_path / "part")
    with pytest.raises(UsageError, match="is not finished"):
        read_candidates(tmp_path / "part")
    with pytest.raises(UsageError, match="holds a search"):
        search_shapes(model, *text, budget, config=CHEAP, output_dir=tmp_path / "part")
    with pytest.raises(UsageError, match="other settings \\(budget\\)"):
        search_shapes(
            model, *text, ShapeBudget(max_parameters=19_000), config=CHEAP, output_dir=tmp_path / "part", resume=True
        )
    again = []

    def counted(self, shape):
        again.append(shape)
        return cut(self, shape)

    monkeypatch.setattr(search_module.RankedSource, "cut", counted)
    assert search_shapes(model, *text, budget, config=CHEAP, output_dir=tmp_path / "part", resume=True) == whole
    assert not set(again) & set(done)
    assert read_candidates(tmp_path / "part") == read_candidates(tmp_path / "whole") == whole


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda content: content.update(version=1),
            "is a search of another version of hf_shear \\(1; this one reads 2\\)",
        ),
        (lambda content: content.update(candidates=3), "`candidates` in .* must be a list. Search again"),
        (lambda content: content["candidates"].append(None), "search.json'?: A shape of the search lacks sizes, costs"),
        (lambda content: content["candidates"][0].pop("score"), "A shape of the search lacks score. Search again"),
    ],
)
def test_a_damaged_search_is_refused_by_one_sentence(tmp_path, damage, said):
    shape = ShapeCandidate(sizes={}, costs={}, predicted_rise=0.1, score=0.2, predicted_by_part={}).to_dict()
    content = {"version": 2, "candidates": [shape]}
    (tmp_path / "search.json").write_text(json.dumps(content))
    assert len(read_candidates(tmp_path)) == 1
    damage(content)
    (tmp_path / "search.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        read_candidates(tmp_path)


def test_a_search_that_lacks_a_part_is_not_gone_on_with(build_llama, text, tmp_path):
    (tmp_path / "search.json").write_text('{"version": 2, "settings": {}}')
    with pytest.raises(UsageError, match="lacks measured, flops, seconds. Search again"):
        search_shapes(
            planted(build_llama),
            *text,
            ShapeBudget(max_parameters=20_000),
            config=CHEAP,
            output_dir=tmp_path,
            resume=True,
        )


def test_finalists_are_trained_and_then_lead(build_llama, text):
    model, budget = planted(build_llama), ShapeBudget(max_parameters=20_000)
    losses = iter((0.3, 0.2, 0.1, 0.4))

    def recover(trained, flops):
        assert flops == 1e6
        with torch.no_grad():
            trained.lm_head.weight.mul_(next(losses))
        return trained, 77

    found = search_shapes(model, *text, budget, config=CHEAP, num_finalists=3, recover=recover, finalist_flops=1e6)
    trained = [one for one in found if one.recovered_rise is not None]
    assert trained == found[: len(trained)] and len(trained) in (3, 4)
    assert [one.recovered_rise for one in trained] == sorted(one.recovered_rise for one in trained)
    assert {one.recovery_tokens for one in trained} == {77}
    assert any(one.unsearched for one in trained)
    with pytest.raises(UsageError, match="finalist_flops"):
        search_shapes(model, *text, budget, config=CHEAP, recover=recover)


def linear_latency(self, shape):
    """As the model of latencies says, exactly."""

    def ms(sizes):
        return 3 + sizes.num_hidden_layers * (1 + sizes.hidden_size * sizes.intermediate_size / 1000)

    self._source_rounds = [ms(self.model.config)]
    return Latency(ms(shape), 0.9 * ms(shape), 1.1 * ms(shape))


def test_latencies_are_told_from_sizes_and_limit_them(build_llama, text, monkeypatch):
    model = planted(build_llama)
    monkeypatch.setattr(LatencyModel, "measure", linear_latency)
    budget = ShapeBudget(max_latency=8.0, context=8)
    latency = LatencyModel(model, budget, shapes_to_time(model.config))
    for shape in shapes_within(model.config, ShapeBudget(max_parameters=20_000)):
        assert latency(shape) == pytest.approx(latency.measure(shape).median, rel=0.02)
    found = search_shapes(model, *text, budget, config=CHEAP)
    assert all(one.costs["latency_ms"] <= 8.0 * 1.01 for one in found)
    measured = [one for one in found if one.latency is not None]
    assert measured and all(one.latency["low"] <= 8.0 for one in measured)
    assert all(one.within_noise == (8.0 < one.latency["high"]) for one in measured)


def test_latencies_that_noise_hides_are_refused(build_llama, monkeypatch):
    model, noise = planted(build_llama), iter([1.0, 9.0] * 20)

    def measure(self, shape):
        self._source_rounds = [5.0]
        ms = next(noise)
        return Latency(ms, ms, ms)

    monkeypatch.setattr(LatencyModel, "measure", measure)
    with pytest.raises(FailedError, match="Other processes"):
        LatencyModel(model, ShapeBudget(max_latency=8.0, context=8), shapes_to_time(model.config))


def test_a_latency_is_measured_against_the_source(build_llama, monkeypatch):
    model = planted(build_llama)
    record = {"source": {"decode_tokens_per_second": 50.0}, "decode_ratio": {"median": 2.0, "low": 1.0, "high": 4.0}}
    monkeypatch.setattr(latency_module, "measure_speed", lambda source, other, protocol: record)
    latency = LatencyModel.__new__(LatencyModel)
    latency.model, latency.protocol = model, latency_module.SpeedProtocol(batch_size=1)
    shape = TargetShape.from_source(model.config, num_hidden_layers=2)
    assert latency.measure(shape) == Latency(10.0, 5.0, 20.0)  # 20 ms of the source over the ratio
    assert latency.source_ms == 20.0


def test_only_a_uniform_allocation_is_searched(build_llama, text):
    with pytest.raises(UsageError, match="`allocation` must be 'uniform'"):
        search_shapes(
            planted(build_llama), *text, ShapeBudget(max_parameters=20_000), config=PruneConfig(allocation="global")
        )


def test_the_command_searches_and_prune_takes_what_it_found(tmp_path, shared_data, capsys):
    model, text = str(shared_data / "models" / "stories260K"), str(shared_data / "data" / "tinystories")
    words = [
        "search",
        model,
        "--data_dir",
        text,
        "--max_parameters",
        "230000",
        "--calibration_batches",
        "1",
        "--batch_size",
    ]
    words += ["2", "--max_length", "64", "--criterion", "activation", "layer=block_influence", "--compensation", "none"]
    assert main([*words, "--output_dir", str(tmp_path / "found"), "--engines", "llama.cpp"]) == 0
    shown = capsys.readouterr().out
    candidates = read_candidates(tmp_path / "found")
    assert (tmp_path / "found" / "search.png").stat().st_size > 10_000
    assert "unsearched" in shown and f"{len(candidates)} shapes fill the budget" in shown
    pruned = ["prune", model, "--data_dir", text, "--from_search", str(tmp_path / "found"), "--search_rank", "2"]
    pruned += [
        "--max_length",
        "64",
        "--calibration_batches",
        "1",
        "--eval_tokens",
        "64",
        "--criterion",
        "magnitude",
        "--compensation",
        "none",
    ]
    assert main([*pruned, "--output_dir", str(tmp_path / "pruned")]) == 0
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert {name: config[name] for name in candidates[1].sizes} == candidates[1].sizes
    too_many = [*pruned, "--output_dir", str(tmp_path / "more"), "--search_rank", "999"]
    assert main(too_many) == 2 and f"at most {len(candidates)}" in capsys.readouterr().err
    assert main([*words, "--output_dir", str(tmp_path / "found")]) == 2
    assert "--resume" in capsys.readouterr().err
