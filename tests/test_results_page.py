"""Every number in model_cards/shearing.md and in the README's table is rebuilt from the results files."""

from __future__ import annotations

from pathlib import Path

from examples.research import results_page as builder

ROOT = Path(__file__).resolve().parent.parent


def test_page_is_what_the_results_say():
    assert (ROOT / "model_cards" / "shearing.md").read_text(encoding="utf-8") == builder.page()


def test_readme_table_is_what_the_results_say():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == builder.readme()


def test_settings_have_three_seeds_and_equal_tokens():
    for name, runs in {**builder.settings(), **builder.settings(recipes=True)}.items():
        least = 1 if name.startswith(builder.FAMILY) else 3  # the first show that the job runs, and compare nothing
        assert len({run["seed"] for run in runs}) == len(runs) >= least, name
        for run in runs:
            tokens = run["tokens"]["mask_learning"] + run["tokens"]["recovery"]
            assert all(record["tokens"] == tokens for record in run["baselines"].values()), name
            assert run["recovered"]["shape"] | run["target_shape"] == run["recovered"]["shape"], name
