"""The benchmark of curvature in a tiny form, and the page that shows its numbers."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from examples.research.benchmarks import curvature
from examples.research.benchmarks.curvature_parts import memory_rows
from examples.research.benchmarks.curvature_parts import page as page_maker
from hf_shear.shapes import count_parameters

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "research" / "benchmarks"
PAGE = ROOT / "examples" / "docs" / "calibration_cost.md"
REPORT = FOLDER / "reports" / "curvature.json"


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
def test_predicted_memory_is_within_a_tenth_of_the_measured_peak(changes):
    config = memory_rows.config_of((96, 2, 4, 2, 256, 128))
    setup = replace(memory_rows.Setup(2, 96, 4), **changes)
    _, predicted = memory_rows.peak(config, setup)
    measured = memory_rows.peak_bytes(lambda: memory_rows.score(config, setup), "cpu")
    assert measured > 2**20
    assert abs(predicted / measured - 1) < 0.1


def test_a_window_keeps_memory_from_growing_with_depth():
    """Beyond weights: of a model of twice the layers, streamed one by one, only checkpointed hidden states are new."""

    def beyond_weights(layers):
        config = memory_rows.config_of((64, layers, 4, 2, 192, 128))
        setup = replace(memory_rows.WINDOW, sequence_length=64, num_samples=4)
        return memory_rows.peak_bytes(lambda: memory_rows.score(config, setup), "cpu") - 4 * count_parameters(config)

    one_state = 2 * 64 * 64 * 4
    assert abs(beyond_weights(4) - beyond_weights(2)) <= 2 * one_state * 1.1


def test_the_command_prints_tables_and_json_and_fills_a_page(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(memory_rows.SMALL_MODELS, "d 64, L 4", (32, 1, 4, 2, 48, 64))
    monkeypatch.setattr(memory_rows, "SMALL_SETUPS", {"one pass": memory_rows.Setup(1, 16, 4)})
    page, report = tmp_path / "page.md", tmp_path / "r.json"
    marks = ["curvature time", "curvature memory", "curvature calculated"]
    page.write_text("".join(f"<!-- {name}: from r.json -->\nold\n<!-- end -->\n" for name in marks))
    files = ["--report", str(report), "--page", str(page)]
    small = ["--models", "1m", "--rounds", "1", "--batches", "1", "--batch_size", "6", "--max_length", "64"]
    more = ["--device", "cpu", "--criteria", "kobd:gradients=false", "--memory_models", "d 64, L 4"]
    curvature.main([*small, *more, *files])
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
    curvature.main(["--from_report", str(report), "--page", str(page)])  # the marks are still there
    assert page.read_text() == text.replace("r.json", report.name)
    with pytest.raises(ValueError, match="no line '<!-- curvature time: from x.json -->'"):
        page_maker.fill("", result, "x.json")


def test_numbers_of_the_page_are_those_of_the_report():
    result, text = json.loads(REPORT.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert set(result) >= {"time", "memory", "calculated"}
    assert page_maker.fill(text, result, REPORT.name) == text
    assert max(abs(row["error"]) for row in result["memory"]) < 0.1
    fits = {(row["model"], row["way"]): row["fits"] for row in result["calculated"]}
    for way in ("1 layer per pass, checkpointing", "8 layers per pass, checkpointing"):  # what the text says
        assert fits["Llama-2-7B", way]
    assert not any(fit for (model, _), fit in fits.items() if model == "Llama-2-13B")
    assert result["calculated"] == memory_rows.calculate()  # the formulas are still these


def test_commands_of_the_docs_are_understood():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m examples.research.benchmarks.curvature .*$", text, flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        curvature.parse_arguments(shlex.split(line, comments=True)[3:])
