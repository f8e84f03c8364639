"""model_cards/recovery.md and the advice in the docs say what the results say; a sweep ends with a best rate inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.research import recovery_page as builder

ROOT = Path(__file__).resolve().parent.parent


def row(arm: str, equal: str, mean: float, budget: int = 10, run: int = 0, rate: float = 1.0) -> dict:
    return {"arm": arm, "equal": equal, "mean": mean, "budget": budget, "run": run, "learning_rate": rate}


def test_the_page_is_built_from_the_results():
    assert builder.PAGE.read_text(encoding="utf-8") == builder.page()
    assert builder.ADVISED.read_text(encoding="utf-8") == builder.advised()


def test_a_table_has_the_mean_the_spread_and_the_winner():
    rows = [row("full", "tokens", 2.0), row("full", "tokens", 4.0, run=1), row("lora", "flops", 5.0)]
    rows += [row("lora", "flops", 5.0, run=1), row("lora", "tokens", 1.0), row("lora", "tokens", 1.0, run=1)]
    assert "| full | **3.000 ± 1.414** |\n| lora | 5.000 ± 0.000 |" in builder.table(rows, "flops")
    assert "| full | 3.000 ± 1.414 |\n| lora | **1.000 ± 0.000** |" in builder.table(rows, "tokens")


def test_parts_are_put_together_and_budgets_without_all_runs_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "RESULTS", tmp_path)
    first = [row("full", "tokens", 2.0, budget, run) for budget in (10, 20) for run in (0, 1)]
    second = [
        row("lora", equal, 3.0, budget, run)
        for budget, run in ((10, 0), (10, 1), (20, 0))
        for equal in ("tokens", "flops")
    ]
    for name, runs in (("first", first), ("second", second)):
        content = {"setup": {"mask_tokens": 5}, "runs": runs, "sweep": [], "versions": {}}
        (tmp_path / name).write_text(json.dumps(content))
    builder.add("both", [tmp_path / "second", tmp_path / "first"])
    found = builder.results_by_source()["both"]
    assert len(json.loads((tmp_path / "both.json").read_text())["runs"]) == len(first) + len(second)
    assert builder.complete_budgets(found["runs"]) == [10]
    assert {(one["arm"], one["equal"], one["run"]) for one in found["runs"]} == {
        ("full", "tokens", 0), ("full", "tokens", 1), ("lora", "tokens", 0), ("lora", "tokens", 1),
        ("lora", "flops", 0), ("lora", "flops", 1),
    }  # fmt: skip
    (tmp_path / "second").write_text(json.dumps({"setup": {"mask_tokens": 6}, "runs": [], "sweep": [], "versions": {}}))
    with pytest.raises(ValueError, match="not of the same models and data"):
        builder.add("both", [tmp_path / "second", tmp_path / "first"])


def test_a_narrow_win_is_said():
    assert builder.winner({"full": [1.0, 1.2], "lora": [3.0, 3.1]}) == ("full", False)
    assert builder.winner({"full": [1.0, 1.2], "lora": [1.1, 1.3]}) == ("full", True)
    text = builder.counted([("full", False), ("full", True), ("lora", False)])
    assert text == "`full` in 2 of 3, 1 within the seeds' spread; `lora` in 1 of 3"


def test_rates_at_the_edge_of_the_sweep_are_said():
    swept = [row(arm, "tokens", 1.0, rate=rate) for arm in ("full", "lora") for rate in (1.0, 2.0, 4.0)]
    results = {"runs": [row("full", "tokens", 1.0, rate=2.0), row("lora", "tokens", 1.0, rate=4.0)], "sweep": swept}
    assert (
        builder.rates_text(results)
        == "Learning rates: full 2, lora 4. Those of lora lie at the edge of what was tried."
    )
    results["runs"][1]["learning_rate"] = 2.0
    assert builder.rates_text(results).endswith("Each lies between two others that were tried.")
