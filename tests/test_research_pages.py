"""Pages of model_cards, and what README and docs take from them, say what the results say; sweeps of rates end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from examples.research import bench_page, recovery_page, shared
from hf_shear.runs.bench_method import BenchMethod

ROOT = Path(__file__).resolve().parent.parent


# model_cards/recovery.md


def row(arm: str, equal: str, mean: float, budget: int = 10, run: int = 0, rate: float = 1.0) -> dict:
    return {"arm": arm, "equal": equal, "mean": mean, "budget": budget, "run": run, "learning_rate": rate}


def test_the_recovery_page_is_built_from_the_results():
    assert recovery_page.PAGE.read_text(encoding="utf-8") == recovery_page.page()
    assert recovery_page.ADVISED.read_text(encoding="utf-8") == recovery_page.advised()


def test_a_table_has_the_mean_the_spread_and_the_winner():
    rows = [row("full", "tokens", 2.0), row("full", "tokens", 4.0, run=1), row("lora", "flops", 5.0)]
    rows += [row("lora", "flops", 5.0, run=1), row("lora", "tokens", 1.0), row("lora", "tokens", 1.0, run=1)]
    assert "| full | **3.000 ± 1.414** |\n| lora | 5.000 ± 0.000 |" in recovery_page.table(rows, "flops")
    assert "| full | 3.000 ± 1.414 |\n| lora | **1.000 ± 0.000** |" in recovery_page.table(rows, "tokens")


def test_parts_are_put_together_and_budgets_without_all_runs_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery_page, "RESULTS", tmp_path)
    first = [row("full", "tokens", 2.0, budget, run) for budget in (10, 20) for run in (0, 1)]
    second = [
        row("lora", equal, 3.0, budget, run)
        for budget, run in ((10, 0), (10, 1), (20, 0))
        for equal in ("tokens", "flops")
    ]
    for name, runs in (("first", first), ("second", second)):
        content = {"setup": {"mask_tokens": 5}, "runs": runs, "sweep": [], "versions": {}}
        (tmp_path / name).write_text(json.dumps(content))
    recovery_page.add("both", [tmp_path / "second", tmp_path / "first"])
    found = recovery_page.results_by_source()["both"]
    assert len(json.loads((tmp_path / "both.json").read_text())["runs"]) == len(first) + len(second)
    assert recovery_page.complete_budgets(found["runs"]) == [10]
    assert {(one["arm"], one["equal"], one["run"]) for one in found["runs"]} == {
        ("full", "tokens", 0), ("full", "tokens", 1), ("lora", "tokens", 0), ("lora", "tokens", 1),
        ("lora", "flops", 0), ("lora", "flops", 1),
    }  # fmt: skip
    (tmp_path / "second").write_text(json.dumps({"setup": {"mask_tokens": 6}, "runs": [], "sweep": [], "versions": {}}))
    with pytest.raises(ValueError, match="not of the same models and data"):
        recovery_page.add("both", [tmp_path / "second", tmp_path / "first"])


def test_a_narrow_win_is_said():
    assert recovery_page.winner({"full": [1.0, 1.2], "lora": [3.0, 3.21]}) == ("full", False)
    assert recovery_page.winner({"full": [1.0, 1.2], "lora": [1.3, 1.1]}) == ("full", True)
    text = recovery_page.counted([("full", False), ("full", True), ("lora", False)])
    assert text == "`full` in 2 of 3, 1 not beyond doubt; `lora` in 1 of 3"


def test_rates_at_the_edge_of_the_sweep_are_said():
    swept = [row(arm, "tokens", 1.0, rate=rate) for arm in ("full", "lora") for rate in (1.0, 2.0, 4.0)]
    results = {"runs": [row("full", "tokens", 1.0, rate=2.0), row("lora", "tokens", 1.0, rate=4.0)], "sweep": swept}
    assert (
        recovery_page.rates_text(results)
        == "Learning rates: full 2, lora 4. Those of lora lie at the edge of what was tried."
    )
    results["runs"][1]["learning_rate"] = 2.0
    assert recovery_page.rates_text(results).endswith("Each lies between two others that were tried.")


# model_cards/bench.md


def test_the_bench_page_is_built_from_the_results():
    assert bench_page.PAGE.read_text(encoding="utf-8") == bench_page.page()
    benches = yaml.safe_load(bench_page.CONFIG.read_text(encoding="utf-8"))["benches"]
    assert {path.stem for path in bench_page.RESULTS.glob("*.json")} == set(benches)
    for name, own in benches.items():
        words = bench_page.flags(name, ["MODEL", "TEXT"], Path("out"), seeds=[7])
        assert words[words.index("--seeds") + 1] == "7" and words[words.index("--source") + 1] == "MODEL"
        assert all(BenchMethod.parse(text).text == text and text in words for text in own["methods"])


# Sweeps of learning rates


@pytest.mark.parametrize("best", [0.0625, 1.0, 8.0])
def test_a_sweep_goes_on_until_the_best_rate_lies_between_two_others(best):
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: None if rate > 4 * best else abs(rate - best) for rate in wanted}
        wanted = shared.next_rates(found)
    assert shared.best_rate(found) == best
    assert {best / 2, best * 2} <= set(found) and len(found) <= shared.MAX_RATES


def test_a_sweep_ends():
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: 1 / rate for rate in wanted}  # the larger the better, for ever
        wanted = shared.next_rates(found)
    assert len(found) <= shared.MAX_RATES


def test_neighbours_of_another_rate_than_the_best():
    assert shared.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}) == []
    assert shared.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, around=4.0) == [8.0]
