"""model_cards/recovery.md says what its results say."""

from __future__ import annotations

import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_built_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("recovery_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def test_a_table_has_the_mean_the_spread_and_the_winner(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("recovery_page")
    rows = [{"arm": arm, "budget": 10, "equal": equal, "mean": mean} for arm, equal, mean in
            (("full", "tokens", 2.0), ("full", "tokens", 4.0), ("lora", "flops", 5.0), ("lora", "flops", 5.0),
             ("lora", "tokens", 1.0), ("lora", "tokens", 1.0))]  # fmt: skip
    assert "| full | **3.000 ± 1.414** |\n| lora | 5.000 ± 0.000 |" in module.table(rows, "flops")
    assert "| full | 3.000 ± 1.414 |\n| lora | **1.000 ± 0.000** |" in module.table(rows, "tokens")
