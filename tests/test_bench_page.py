"""model_cards/bench.md says what its results say."""

from __future__ import annotations

import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_built_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("bench_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
    assert list(module.RESULTS.glob("*.json"))
