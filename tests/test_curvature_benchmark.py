"""The benchmark of curvature in a tiny form, and the page that shows its numbers."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hf_shear.shapes import count_parameters

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
PAGE = FOLDER.parent / "docs" / "one_shot.md"
REPORT = FOLDER / "reports" / "curvature.json"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("curvature", "curvature_parts.memory_rows", "curvature_parts.timings", "curvature_parts.page")
    return {name.rpartition(".")[2]: importlib.import_module(name) for name in names}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_pass": 1},
        {"layers_per_pass": 2, "activation_checkpointing": True},
        {"layers_per_pass": 1, "activation_checkpointing": True, "weight_bytes": 2},
        {"gradients": False},
        {"update": False},
    ],
)
def test_predicted_memory_is_within_a_tenth_of_the_measured_peak(benchmark, changes):
    rows = benchmark["memory_rows"]
    config = rows.config_of((96, 2, 4, 2, 256, 128))
    setup = replace(rows.Setup(2, 96, 4), **changes)
    _, predicted = rows.peak(config, setup)
    measured = rows.peak_bytes(lambda: rows.score(config, setup), "cpu")
    assert measured > 2**20
    assert abs(predicted / measured - 1) < 0.1


def test_a_window_keeps_memory_from_growing_with_depth(benchmark):
    """Beyond weights: of a model of twice the layers, streamed one by one, only checkpointed hidden states are new."""
    rows = benchmark["memory_rows"]

    def beyond_weights(layers):
        config = rows.config_of((64, layers, 4, 2, 192, 128))
        setup = replace(rows.WINDOW, sequence_length=64, num_samples=4)
        return rows.peak_bytes(lambda: rows.score(config, setup), "cpu") - 4 * count_parameters(config)

    one_state = 2 * 64 * 64 * 4
    assert abs(beyond_weights(4) - beyond_weights(2)) <= 2 * one_state * 1.1


def test_the_command_prints_tables_and_json_and_fills_a_page(benchmark, capsys, tmp_path, monkeypatch):
    rows = benchmark["memory_rows"]
    monkeypatch.setitem(rows.SMALL_MODELS, "d 64, L 4", (32, 1, 4, 2, 48, 64))
    monkeypatch.setattr(rows, "SMALL_SETUPS", {"one pass": rows.Setup(1, 16, 4)})
    page, report = tmp_path / "page.md", tmp_path / "r.json"
    marks = ["curvature time", "curvature memory", "curvature calculated"]
    page.write_text("".join(f"<!-- {name}: from r.json -->\nold\n<!-- end -->\n" for name in marks))
    files = ["--report", str(report), "--page", str(page)]
    small = ["--models", "1m", "--rounds", "1", "--batches", "1", "--batch_size", "6", "--max_length", "64"]
    more = ["--device", "cpu", "--criteria", "kobd:gradients=false", "--memory_models", "d 64, L 4"]
    benchmark["curvature"].main([*small, *more, *files])
    *table, last = capsys.readouterr().out.splitlines()
    result, table = json.loads(last), "\n".join(table)
    assert json.loads(report.read_text()) == result
    times = result["time"]["1m"]
    assert set(times["ratio"]) == {"least-squares statistics", "LLM Surgeon statistics", "kobd:gradients=false"}
    assert all(values["median"] > 0.2 for values in times["ratio"].values())
    assert [row["way"] for row in result["memory"]] == ["one pass"]
    assert "Llama-2-7B" in table and "1,000,576 parameters" in table
    text = page.read_text()
    assert "old" not in text and "| 1.0 M | LLM Surgeon statistics | forward and backward |" in text
    benchmark["curvature"].main(["--from_report", str(report), "--page", str(page)])  # the marks are still there
    assert page.read_text() == text.replace("r.json", report.name)
    with pytest.raises(ValueError, match="no line '<!-- curvature time: from x.json -->'"):
        benchmark["page"].fill("", result, "x.json")


def test_numbers_of_the_page_are_those_of_the_report(benchmark):
    result, text = json.loads(REPORT.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert set(result) >= {"time", "memory", "calculated"}
    assert benchmark["page"].fill(text, result, REPORT.name) == text
    assert max(abs(row["error"]) for row in result["memory"]) < 0.1
    fits = {(row["model"], row["way"]): row["fits"] for row in result["calculated"]}
    for way in ("1 layer per pass, checkpointing", "8 layers per pass, checkpointing"):  # what the text says
        assert fits["Llama-2-7B", way]
    assert not any(fit for (model, _), fit in fits.items() if model == "Llama-2-13B")
    assert result["calculated"] == benchmark["memory_rows"].calculate()  # the formulas are still these


def test_commands_of_the_docs_are_understood(benchmark):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python examples/benchmarks/curvature.py.*$", text, flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        benchmark["curvature"].parse_arguments(shlex.split(line, comments=True)[2:])
