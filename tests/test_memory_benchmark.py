"""The memory benchmark in a tiny form: its predictions are near its measurements, and it prints what it says."""

from __future__ import annotations

import json
import re
import shlex
from itertools import product
from pathlib import Path

import pytest
import torch

from examples.research.benchmarks import memory, memory_recovery

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "research" / "benchmarks"
TINY = (64, 3, 4, 2, 160, 256)


@pytest.fixture(autouse=True)
def smallest_model(monkeypatch):
    monkeypatch.setitem(memory.MODELS, "2m", TINY)


def ways():
    """Kind, dtype and checkpointing: all of them, half of them slow; each pair of values is in a fast one."""
    for values in product(("plain", "relaxed_topk"), ("float32", "mixed", "bfloat16"), (False, True)):
        kind, dtype, checkpointing = values
        fast = checkpointing == ((kind == "plain") == (dtype == "mixed"))
        yield pytest.param(*values, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("kind, dtype, checkpointing", list(ways()))
def test_prediction_is_within_a_tenth_of_the_measured_peak(kind, dtype, checkpointing):
    args = memory.parse_arguments(["--device", "cpu", "--batch_size", "2", "--max_length", "64"])
    row = memory.measured_row(args, "2m", dtype, checkpointing, kind)
    assert row["measured_bytes"] > 2**20
    assert abs(row["error"]) < 0.1, row
    assert row["predicted_bytes"] == sum(row["parts"].values())


@pytest.mark.parametrize(
    ("method", "teaching", "dtype", "checkpointing"),
    [
        ("lora", "none", "float32", False),
        ("lora", "none", "mixed", True),
        ("lora", "device", "mixed", False),
        ("norms_and_biases", "none", "float32", True),
        ("norms_and_biases", "stored", "mixed", False),
        ("full", "device", "float32", False),
        ("full", "stored", "mixed", True),
    ],
)
def test_prediction_of_a_way_of_recovery_is_within_a_tenth(method, teaching, dtype, checkpointing):
    args = memory_recovery.memory.parse_arguments(["--device", "cpu", "--batch_size", "2", "--max_length", "64"])
    row = memory_recovery.measured_row(args, "2m", dtype, checkpointing, method, teaching)
    assert row["measured_bytes"] > 2**19
    assert abs(row["error"]) < 0.1, row
    assert row["predicted_bytes"] == sum(row["parts"].values())


def test_the_table_of_recovery_is_the_reports():
    report = json.loads((FOLDER / "reports" / "memory-recovery-2026-11.json").read_text(encoding="utf-8"))
    text = (ROOT / "examples" / "docs" / "memory.md").read_text(encoding="utf-8")
    assert memory_recovery.report_table(report["measured"]) in text
    greatest = max(abs(row["error"]) for row in report["measured"])
    assert f"The greatest error is {100 * greatest:.1f} %, of {len(report['measured'])} ways." in text


def test_the_peak_is_of_one_call_and_counts_what_is_freed():
    def call():
        first = torch.zeros(1000, 1000)
        first = first + 1  # both are there for a moment
        del first
        torch.zeros(500, 1000)

    for _ in range(2):  # what an earlier call left does not count
        assert 8_000_000 <= memory.peak_bytes(call, "cpu") < 8_100_000


def test_the_command_prints_tables_and_json(capsys, monkeypatch):
    monkeypatch.setattr(memory, "MAX_MICRO_BATCH", 2)
    memory.main(["--device", "cpu", "--models", "2m", "--dtypes", "float32", "--max_length", "16"])
    *table, last = capsys.readouterr().out.splitlines()
    result, table = json.loads(last), "\n".join(table)
    assert list(result) == ["benchmark", "environment", "arguments", "measured", "calculated"]
    assert len(result["measured"]) == 4
    assert {row["model"] for row in result["calculated"]} == set(memory.LARGE_MODELS)
    for row in result["calculated"]:
        assert row["accumulating_bytes"] >= row["peak_bytes"] > 0
        fits = row["accumulating_bytes"] <= row["card_gb"] * 1e9
        assert (row["largest_micro_batch"] > 0) == fits
    assert "greatest error" in table and "Llama-2-7B (6.74B) on 8 x 80 GB, sequences of 4096" in table


def test_published_parameter_counts():
    """Of the models' own pages: 1.10, 1.24, 6.74, 13.02 and 68.98 billion."""
    counts = [
        memory.count_parameters(memory.build_config(sizes, "plain")) / 1e9 for sizes in memory.LARGE_MODELS.values()
    ]
    assert counts == pytest.approx([1.10, 1.24, 6.74, 13.02, 68.98], abs=0.005)


def test_commands_of_the_docs_are_understood():
    text = (ROOT / "examples" / "docs" / "memory.md").read_text(encoding="utf-8")
    text += (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m examples.research.benchmarks.memory .*$", text, flags=re.MULTILINE)
    assert lines
    for line in lines:
        memory.parse_arguments(shlex.split(line, comments=True)[3:])
