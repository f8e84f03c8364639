"""The bench: how methods are written, a whole tiny bench that stops and goes on, its table and its picture."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
import torch
from test_shear_example import inputs  # noqa: F401 a fixture: a tiny model and tiny texts

from examples.research import bench
from hf_shear import PruneConfig, ShearTrainingArguments
from hf_shear.report import bench_csv, bench_markdown, plot_bench
from hf_shear.report.bench_table import bench_rows
from hf_shear.runs import Bench, BenchArguments
from hf_shear.runs.bench_method import BenchMethod
from hf_shear.runs.peak_memory import peak_memory

STEP_TOKENS = 4 * 16
METHODS = ["taylor", "random layer=loss_rise+least_squares_bias:towards=source@2", "learned:share=0.5+least_squares",
           "interleaved:stages=2:taylor", "scratch"]  # fmt: skip


def test_methods_are_read():
    config = PruneConfig({"default": "taylor"}, "none", num_shots=1)
    assert BenchMethod.parse("taylor") == BenchMethod("taylor", config=config)
    method = BenchMethod.parse("taylor  layer=loss_rise+least_squares:damping=0.1,towards=source@5")
    assert method.config.criterion == {"default": "taylor", "layer": "loss_rise"}
    assert method.config.compensation == "least_squares:damping=0.1,towards=source" and method.config.num_shots == 5
    assert method.text == "taylor layer=loss_rise+least_squares:damping=0.1,towards=source@5"
    method = BenchMethod.parse("taylor allocation=global+bias")
    assert (method.config.allocation, method.is_uneven, method.config.compensation) == ("global", True, "bias")
    method = BenchMethod.parse("learned:share=0.2+least_squares")
    assert (method.kind, method.config.compensation) == ("learned", "least_squares")
    assert method.options == {"share": 0.2, "masks": "relaxed_topk", "start": "taylor", "weights": "trained"}
    method = BenchMethod.parse("interleaved:stages=3,share=0.5:taylor layer=loss_rise+bias")
    assert method.options == {"stages": 3, "share": 0.5, "restart": True}
    criterion = {"default": "taylor", "layer": "loss_rise"}
    assert method.config == PruneConfig(criterion, "bias", num_shots=3, pruning_share=0.5)
    assert BenchMethod.parse("interleaved:taylor").config.criterion == {"default": "taylor"}
    assert BenchMethod.parse("scratch").kind == "scratch"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no criterion"),
        ("+least_squares", "names no criterion"),
        ("interleaved:stages=5", "names no criterion, such as 'interleaved"),
        ("surprise", "`criterion` must be one of"),
        ("taylor+surprise", "`compensation` must be one of"),
        ("taylor@0", "@ is followed by a number of shots"),
        ("taylor@many", "@ is followed by a number of shots"),
        ("learned@2", "@ is followed by a number of shots, of one-shot pruning alone"),
        ("learned taylor", "'learned' takes nothing more"),
        ("scratch+bias", "'scratch' takes nothing more"),
        ("learned:share=2", "`share` of `.*` must be above 0 and at most 1, but it is 2"),
        ("learned:masks=soft", "masks must be one of relaxed_topk, hard_concrete, paper"),
        ("learned:tokens=2", "Method 'learned' has no option 'tokens=2'"),
        ("interleaved:taylor allocation=global", "one-shot pruning has one allocation"),
    ],
)
def test_methods_that_are_wrong_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        BenchMethod.parse(text)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):  # noqa: F811
    """A bench of two seeds, stopped after its first call and continued by a second."""
    folder = tmp_path_factory.mktemp("bench")
    shape = {name: inputs[name] for name in inputs if name.startswith(("hidden_size", "num_", "intermediate_size"))}
    flags = {
        "source": inputs["model_name_or_path"], "data_dir": inputs["data_dir"], **shape, "recovery_tokens": 4 * STEP_TOKENS,
        "max_length": 16, "eval_tokens": 64, "held_out_fraction": 0.3, "calibration_batches": 2,
        "calibration_batch_size": 4, "per_device_train_batch_size": 4, "eval_token_share": 0.9, "use_cpu": True,
        "report_to": "none", "output_dir": str(folder), "logging_steps": 4, "eval_steps": 2, "learning_rate": 1e-2,
        "shape_gap_tolerance": 1e9,
        "min_swapped_units": 0,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    written = []
    for more in (["--methods", *METHODS[:2], "--seeds", "0"], ["--methods", *METHODS, "--seeds", "0", "1"]):
        bench.main([*words, *more])
        written.append(json.loads((folder / "bench.json").read_text()))
    with pytest.raises(ValueError, match=r"holds a bench with other settings .*'max_length': \(16, 8\)"):
        bench.main([*words, "--methods", "taylor", "--seeds", "0", "--max_length", "8"])
    return folder, written


@pytest.mark.filterwarnings("ignore:These domains have fewer", "ignore:.*calibration text has")
def test_a_bench_goes_on_run_by_run(finished):
    _, (first, results) = finished
    assert [(run["method"], run["seed"]) for run in first["runs"]] == [(method, 0) for method in METHODS[:2]]
    assert results["runs"][:2] == first["runs"]  # not done again
    assert {(run["method"], run["seed"]) for run in results["runs"]} == {(m, s) for m in METHODS for s in (0, 1)}


@pytest.mark.filterwarnings("ignore:These domains have fewer", "ignore:.*calibration text has")
def test_every_method_has_the_same_budget_and_shape(finished):
    _, (_, results) = finished
    runs = {run["method"]: run for run in results["runs"] if run["seed"] == 0}
    for run in runs.values():
        assert run["tokens"]["pruning"] + run["tokens"]["recovery"] == 4 * STEP_TOKENS
        assert run["tokens"]["calibration"] == 2 * 4 * 16
        assert run["after"]["loss"].keys() == results["source"]["loss"].keys() == {"books", "code", "notes"}
    assert runs[METHODS[2]]["tokens"]["pruning"] == 2 * STEP_TOKENS  # charged to learned masks
    assert runs[METHODS[3]]["before"] is None and runs[METHODS[3]]["tokens"]["recovery"] == 0
    biased = runs[METHODS[1]]["num_parameters"]
    assert all(
        run["num_parameters"] == results["target_parameters"] for name, run in runs.items() if name != METHODS[1]
    )
    assert biased > results["target_parameters"]


@pytest.mark.filterwarnings("ignore:These domains have fewer", "ignore:.*calibration text has")
def test_table_and_picture_hold_the_numbers(finished):
    folder, (_, results) = finished
    table = (folder / "bench.md").read_text()
    assert table == bench_markdown(results)
    best = bench_rows(results)[0]
    mean, spread = best["after"]
    assert f"| `{best['method']}` | 2 |" in table and f"{mean:.3f} ± {spread:.3f} | best |" in table
    rows = list(csv.DictReader(io.StringIO((folder / "bench.csv").read_text())))
    assert {row["method"] for row in rows} == set(METHODS) and float(rows[0]["after_mean"]) == pytest.approx(mean)
    assert (folder / "bench.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:These domains have fewer", "ignore:.*calibration text has")
def test_uneven_methods_are_compared_at_equal_parameters(inputs, tmp_path):  # noqa: F811
    arguments = BenchArguments(
        source=inputs["model_name_or_path"], data_dir=inputs["data_dir"], intermediate_size=16, max_length=16,
        eval_tokens=64, held_out_fraction=0.3, methods=["taylor allocation=global+least_squares", "taylor"], seeds=[0],
        recovery_tokens=2 * STEP_TOKENS, calibration_batches=2, calibration_batch_size=4,
    )  # fmt: skip
    args = ShearTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none", eval_token_share=0.9,
        disable_tqdm=True,
    )  # fmt: skip
    results = Bench(arguments, args).run()
    uneven, even = results["runs"]
    assert (uneven["uneven"], even["uneven"]) == (True, False)
    assert even["num_parameters"] == results["target_parameters"]
    assert 0.95 * even["num_parameters"] < uneven["num_parameters"] <= even["num_parameters"]
    arguments.methods[0] = "taylor allocation=everywhere"
    with pytest.raises(ValueError, match="`allocation` must be one of uniform, global, adaptive"):
        Bench(arguments, args)


@pytest.mark.filterwarnings("ignore:These domains have fewer", "ignore:.*calibration text has", "ignore:Masks")
@pytest.mark.parametrize("masks", ["paper", "hard_concrete", "relaxed_topk"])
def test_frozen_weights_stay_the_source_s_while_masks_are_learned(inputs, tmp_path, masks):  # noqa: F811
    arguments = BenchArguments(
        source=inputs["model_name_or_path"], data_dir=inputs["data_dir"], intermediate_size=16, max_length=16,
        eval_tokens=64, held_out_fraction=0.3, methods=[f"learned:share=0.5,masks={masks},weights=frozen"], seeds=[0],
        recovery_tokens=8 * STEP_TOKENS, calibration_batches=2, calibration_batch_size=4,
    )  # fmt: skip
    args = ShearTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none", eval_strategy="no",
        disable_tqdm=True, shape_gap_tolerance=1e9, min_swapped_units=0,
    )  # fmt: skip
    bench = Bench(arguments, args)
    bench.results["source"] = {"loss": dict.fromkeys(bench.data.train, 1.0)}
    source = bench.load_source()
    for weights, same in (("frozen", True), ("trained", False)):
        method = BenchMethod.parse(f"learned:share=0.5,masks={masks},weights={weights}")
        pruned = bench._learned(method, source, bench.calibration(0), args)
        name = "model.embed_tokens.weight"  # no gate acts on it, and no hidden dimension is removed
        assert torch.equal(pruned.model.state_dict()[name], source.state_dict()[name]) == same
        assert pruned.tokens == 4 * STEP_TOKENS


def results_of(losses: dict[str, list[float]]) -> dict:
    runs = []
    for method, values in losses.items():
        for seed, value in enumerate(values):
            record = {"loss": {"a": value, "b": value}, "mean": value}
            runs.append({
                "method": method, "seed": seed, "uneven": "global" in method, "before": record, "after": record,
                "num_parameters": 100, "seconds": {"pruning": 1.0, "recovery": 2.0},
                "peak_bytes": {"pruning": None, "recovery": None},
                "tokens": {"pruning": 0, "recovery": 10, "calibration": 5},
            })  # fmt: skip
    settings = {
        "target_shape": {"hidden_size": 4},
        "recovery_tokens": 10,
        "calibration_tokens": 5,
        "learning_rate": 0.1,
    }
    return {
        "settings": settings,
        "source": {"mean": 1.0, "num_parameters": 200},
        "target_parameters": 100,
        "runs": runs,
    }


def test_ties_and_losses_are_told_as_they_are():
    results = results_of({"near": [2.0, 2.2], "best allocation=global": [2.0, 2.1], "far": [3.0, 3.1]})
    rows = {row["method"]: row for row in bench_rows(results)}
    assert list(rows) == ["best allocation=global", "near", "far"]
    assert (rows["near"]["tie"], rows["far"]["tie"]) == (True, False)
    table = bench_markdown(results)
    assert "+0.050 (tie)" in table and "+1.000 |" in table and "2.050 ± 0.071 | best |" in table
    assert "`best allocation=global` \\*" in table and "different widths" in table
    lone = bench_rows(results_of({"a": [2.0], "b": [2.0001]}))
    assert lone[0]["after"] == (2.0, None) and lone[1]["tie"]  # one seed says nothing of others
    figure = plot_bench(results)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "best (global allocation) *"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["before recovery", "after recovery"]
    bars = figure.axes[1].containers
    assert [bar.lines[0].get_xdata()[0] for bar in bars] == [pytest.approx(x) for x in (2.05, 2.1, 3.05)]
    assert "2.05" in bench_csv(results)


def test_settings_of_a_bench_are_checked():
    good = {"source": "x", "methods": ["taylor"]}
    for wrong, message in (({"seeds": [1, 1]}, "`seeds` must be different"), ({"methods": ["x"]}, "`criterion` must"),
                           ({"recovery_tokens": 0}, "`recovery_tokens` must be at least 1")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            BenchArguments(**(good | wrong))
    assert ShearTrainingArguments  # the flags beside them


def test_memory_that_an_earlier_block_left_to_the_allocator_is_not_used_unseen():
    pins, found = [], []
    for megabytes in (64, 32):
        with peak_memory(torch.device("cpu")) as peak:
            used = []
            for _ in range(4 * megabytes):
                used.append(torch.ones(64 * 1024))
                pins.append(torch.ones(64))  # so that what lies before it is not at the end of the heap
            del used
        found.append(peak.num_bytes)
    if None in found or sys.platform != "linux":
        pytest.skip("this system does not tell, or keeps what was freed")
    assert found[1] == pytest.approx(32 * 2**20, rel=0.1)


def test_peak_memory_is_what_a_block_needs():
    with peak_memory(torch.device("cpu")) as peak:
        values = torch.ones(64 * 2**20 // 4)
        del values
    if peak.num_bytes is None:
        pytest.skip("this system does not tell the peak of the resident memory")
    assert 60 * 2**20 < peak.num_bytes < 200 * 2**20
