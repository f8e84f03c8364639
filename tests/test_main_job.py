"""The study of the main job: arms, budgets, choices; and its page."""

from __future__ import annotations

import json

import pytest
from training_helpers import tiny_source_and_text

from examples.research import main_job
from examples.research.claims.claim_results import SourceResults, confirm_results, results_of
from examples.research.claims.study import settings_of, sources_of

QUIET = pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:Even one held-out sample", "ignore:.*calibration text has",
    "ignore:The learned masks", "ignore:Learned masks", "ignore:No unit", "ignore:Domain .* now gets", "ignore:.*mask",
)  # fmt: skip
SETTINGS = {
    "seeds": [0, 1], "max_length": 16, "batch_size": 2, "calibration_batch_size": 2, "eval_tokens": 64,
    "held_out_fraction": 0.3, "learning_rate": 1e-2, "num_tokens": 512, "sweep_rates": False, "training": {},
    "recovery": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0}},
    "target": {"intermediate_size": 16}, "default": "taylor",
    "arms": {
        "taylor": {"prune": {"criterion": "taylor", "compensation": "none", "num_shots": 1},
                   "tried": {"num_batches": [2, 1]}},
        "random": {"prune": {"criterion": "random", "compensation": "none", "num_shots": 1}},
        "paper": {"masks": {"masks": "paper"}, "tried": {"share": [0.1], "mask_rate": [1.0, 0.3]}},
        "scratch": {"scratch": True, "first_rate": 2},
    },
}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    """Of a tiny checkpoint on two domains of text."""
    return main_job.MainJob(
        main_job.CLAIM, "tiny", *tiny_source_and_text(tmp_path), SETTINGS, tmp_path / "main_job.json"
    )


@QUIET
def test_arms_have_equal_tokens_and_equal_flops_and_a_page(job, capsys):
    job.compare()
    path = job.output
    kept = json.loads(path.read_text())
    job.compare()  # nothing is left to do
    assert json.loads(path.read_text()) == kept
    assert [one["digest"] for one in kept["code"]] == [main_job.todays_code()]
    (source,) = main_job.sources_of_page(path)
    assert source.settings["seeds"] == [0, 1]
    step = SETTINGS["batch_size"] * SETTINGS["max_length"]
    free = main_job.arm_runs(source, "random")
    assert main_job.arm_runs(source, "random", main_job.EQUAL_FLOPS) == free and not free[0]["chosen_flops"]
    for arm in ("taylor", "paper"):
        equal, paid = (main_job.arm_runs(source, arm, budget) for budget in main_job.BUDGETS)
        assert {run["tokens"] for run in equal} == {SETTINGS["num_tokens"]}
        per_token = free[0]["flops"] / SETTINGS["num_tokens"]
        assert all(abs(run["flops"] - free[0]["flops"]) <= step * per_token for run in paid)
        assert all(
            run["chosen_flops"] > 0 and run["flops"] <= other["flops"] for run, other in zip(paid, equal, strict=True)
        )
    paper = main_job.arm_runs(source, "paper")[0]
    assert 0 < paper["mask_tokens"] <= 64 and paper["mask_rate"] in (1.0, 0.3)  # 10 %, in whole steps
    main_job.build(path)
    text = path.with_suffix(".md").read_text()
    assert text == main_job.page([source]) and path.with_suffix(".png").stat().st_size > 10_000
    assert "### tiny: equal FLOPs" in text and "| **taylor** (calibration batches" in text and "2 seeds" in text
    assert "that these numbers depend on" not in text  # the code is today's
    given = {"tiny": (job.path, job.data_dir)}
    confirm_results(path, main_job.todays_code(), main_job.made_again(path, given), given)
    assert "tiny, taylor: " in capsys.readouterr().out and results_of(path)[0].code[0]["confirmed"]
    assert json.loads(path.read_text())["sources"] == kept["sources"]


def runs_of(losses: dict[str, list[float]], chosen: float = 1.0) -> list[dict]:
    shape = {"num_parameters": 5, "tokens": 9, "flops": 10.0, "before": 4.0, "rate": 0.1, "run_seconds": 60.0}
    found = [{"arm": "source", "seed": 0, "mean": 1.5, "run_seconds": 1.0}]
    for arm, by_seed in losses.items():
        for budget in main_job.BUDGETS if arm != "random" else main_job.BUDGETS[:1]:
            cost = {"chosen_flops": 0.0 if arm == "random" else chosen}
            found += [{"arm": arm, "budget": budget, "seed": seed, "mean": loss, **shape, **cost}
                      for seed, loss in enumerate(by_seed)]  # fmt: skip
    return found


def test_the_verdict_follows_the_paired_intervals():
    own = [2.0, 2.5, 3.0]
    losses = {"ours": own, "worse": [2.2, 2.71, 3.19], "better": [1.8, 2.29, 2.81], "random": [3.0, 2.5, 2.1]}
    settings = {"seeds": [0, 1, 2], "arms": {name: {} for name in losses}, "default": "ours", "num_tokens": 9,
                "batch_size": 1, "max_length": 1, "target": {"hidden_size": 3}}  # fmt: skip
    source = SourceResults("known", settings, runs_of(losses))
    for budget in main_job.BUDGETS:
        text = main_job.verdict(source, budget)
        assert text.startswith(
            "**ours** (2.500 ± 0.500) is ahead of worse by 0.200 (0.175 to 0.225). It is behind better by"
        )
        assert "It is not to be told from random (0.033 (" in text
        rows = main_job.table(source, budget).splitlines()
        assert (
            rows[2].startswith("| better |")
            and "| **ours** | 0.1 | 9 | 10 | 10% | 4.000 ± 0.000 | 2.500 ± 0.500 |  |" in rows
        )
    assert "took 3 min" not in main_job.page([source]) and "results named their code" in main_job.page([source])


def test_only_seeds_that_all_arms_have_are_shown(tmp_path):
    losses = {"ours": [2.0, 2.5, 3.0], "random": [3.0, 2.5]}
    settings = {"seeds": [0, 1, 2], "arms": {name: {} for name in losses}, "default": "ours"}
    shown = main_job.with_whole_seeds(SourceResults("known", settings, runs_of(losses)))
    assert shown.settings["seeds"] == [0, 1] and {run["seed"] for run in shown.runs} == {0, 1}
    losses["random"] = []
    assert not main_job.with_whole_seeds(SourceResults("known", settings, runs_of(losses))).settings["seeds"]
    main_job.build(tmp_path / "none.json")
    assert not results_of(tmp_path / "none.json")


def test_settings_name_what_is_run():
    for name in sources_of(main_job.CONFIG, ("model", "text"), "domains"):
        settings, small = (settings_of(main_job.CONFIG, name, small) for small in (False, True))
        assert settings["default"] in settings["arms"] and len(settings["seeds"]) >= 5 and small["num_tokens"] < 30_000
        assert set(settings["target"]) >= {"hidden_size", "num_hidden_layers"}
        assert set(main_job.first_choices(settings, "paper's recipe")) == {"share", "mask_rate"}
