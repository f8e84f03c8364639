"""Recovery runs: what is refused, and how they are read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scaling_law_helpers import draw_run, draw_runs, write_runs_csv

from hf_shear.core import read_results
from hf_shear.scaling_law import Case, RecoveryRun, read_runs, with_control
from hf_shear.scaling_law.check_runs import check_runs
from hf_shear.scaling_law.read_runs import run_from_results, run_from_trainer_state
from hf_shear.scaling_law.recovery_run import rising_slope

ROOT = Path(__file__).resolve().parent.parent
CASE = Case(1e6, 0.25, 2.0)
TOKENS = [100_000, 200_000, 300_000, 400_000]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_parameters": 1300}, None),
        ({"num_parameters": 1.3}, "`num_parameters` must count parameters one by one"),
        ({"num_parameters": math.nan}, "`num_parameters` must be a finite number"),
        ({"fraction_removed": 15}, r"Give 0.15 for 15 %"),
        ({"fraction_removed": 0.0}, "above 0 and below 1, but it is 0"),
        ({"source_loss": -1.0}, "`source_loss` must be above 0"),
        ({"num_pruned_parameters": 1e6}, r"must be below `num_parameters`"),
    ],
)
def test_facts_of_a_case(fields, text):
    facts = {"num_parameters": 1e6, "fraction_removed": 0.25, "source_loss": 2.0} | fields
    if text is None:
        assert Case(**facts).pruned_size == 0.75 * fields["num_parameters"]
        return
    with pytest.raises(ValueError, match=text):
        Case(**facts)


@pytest.mark.parametrize(
    ("tokens", "losses", "text"),
    [
        (TOKENS, [2.4, math.nan, 2.2, 2.1], "`losses` of run `x` must be a finite number, but it is nan"),
        ([0.1, 0.2, 0.3, 0.4], [2.4, 2.3, 2.2, 2.1], "looks like tokens in millions or billions"),
        ([0, 1, 2, 3], [2.4, 2.3, 2.2, 2.1], "must be above 0"),
        (TOKENS[::-1], [2.4, 2.3, 2.2, 2.1], "must rise from checkpoint to checkpoint"),
        (TOKENS, [2.4, 2.3], r"one of `losses` per checkpoint \(4\), but it has 2"),
        ([], [], "has no checkpoints"),
    ],
)
def test_checkpoints_of_a_run(tokens, losses, text):
    with pytest.raises(ValueError, match=text):
        RecoveryRun("x", CASE, tokens, losses)


def test_tokens_in_millions_are_told_from_the_size_of_the_model():
    """500 million tokens of a model of a billion parameters, written as 500 or as 500,000 thousandths."""
    case = Case(1e9, 0.25, 2.0)
    assert RecoveryRun("x", case, [1e8, 5e8], [2.4, 2.3]).tokens[-1] == 5e8
    check_runs([RecoveryRun("x", case, [1e8, 5e8], [2.4, 2.3])])
    for tokens in ([100, 500], [10_000, 50_000]):
        with pytest.raises(
            ValueError, match="its source has 1,000,000,000 parameters: that looks like tokens in millions"
        ):
            check_runs([RecoveryRun("x", case, tokens, [2.4, 2.3])])
    with pytest.raises(ValueError, match="end at 600, and"):
        check_runs([RecoveryRun("x", Case(2e4, 0.25, 2.0), [300, 600], [2.4, 2.3])])


def test_noise_is_no_rise():
    flat = RecoveryRun("x", CASE, TOKENS, [2.1, 2.11, 2.09, 2.1])
    check_runs([flat])
    tokens = np.arange(1, 31) * 10_000
    wrong = 0  # of runs that neither rise nor fall, about one in a hundred
    for seed in range(200):
        losses = 2.1 + 0.01 * np.random.default_rng(seed).standard_normal(30)
        wrong += rising_slope(tokens, losses) > 0
    assert wrong <= 6  # expected 2, standard deviation 1.4
    rising = RecoveryRun("y", CASE, TOKENS, [2.4, 2.5, 2.61, 2.7])
    with pytest.raises(ValueError, match=r"losses of run 'y' rise: from 2.4 to 2.7, or \+0.1"):
        check_runs([flat, rising])


def test_the_control_is_what_rises_are_above():
    run = RecoveryRun("x", CASE, TOKENS, [2.4, 2.3, 2.2, 2.1])
    control = with_control(run, [50_000, *TOKENS], [9.0, 1.9, 1.8, 1.7, 1.6])
    assert np.allclose(control.rises, 0.5)
    late = control.without_start(0.5)
    assert late.tokens == (200_000, 300_000, 400_000) and late.control_losses == (1.8, 1.7, 1.6)
    with pytest.raises(ValueError, match="no checkpoint at 100,000 tokens"):
        with_control(run, TOKENS[1:], [1.9, 1.8, 1.7])
    with pytest.raises(ValueError, match="`drop_start` must be at least 0 and below 1"):
        run.without_start(1.0)


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([], "no runs"),
        ([draw_run(1e8, 0.15), draw_run(1e8, 0.15)], "there twice: 1e[+]08-0.15"),
        (
            [draw_run(1e8, 0.15, family="llama-3"), draw_run(1e9, 0.15, family="qwen-2.5")],
            "One law holds for one family, but the runs have llama-3, qwen-2.5",
        ),
        ([draw_run(1e8, 0.15, pruning="depth"), draw_run(1e9, 0.15)], "one pruning, but the runs have None, depth"),
        ([draw_run(1e8, 0.15, num_tokens=5e8), draw_run(1e9, 0.15)], "Runs of different token counts are mixed"),
        ([draw_run(1e8, 0.15, num_tokens=1e6), draw_run(1e9, 0.15)], "looks like thousands or millions of tokens"),
        (
            [draw_run(1e8, 0.15, control_losses=[2.0] * 30), draw_run(1e9, 0.15)],
            "a control and runs without are mixed; without: 1e[+]09-0.15",
        ),
    ],
)
def test_runs_that_do_not_go_together(runs, text):
    with pytest.raises(ValueError, match=text):
        check_runs(runs)


def test_different_lengths_are_allowed_when_asked():
    check_runs([draw_run(1e8, 0.15, num_tokens=5e8), draw_run(1e9, 0.15)], allow_different_tokens=True)


# ---- reading --------------------------------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path):
    control = draw_run(1e8, 0.25, control_losses=np.linspace(2, 1.9, 30).tolist(), family="f", pruning="p")
    write_runs_csv(tmp_path / "runs.csv", [control])
    assert read_runs(tmp_path / "runs.csv") == [control]
    runs = draw_runs(noise=0.01)
    write_runs_csv(tmp_path / "runs.csv", runs)
    assert read_runs(tmp_path / "runs.csv") == runs


HEADER = "run,num_parameters,fraction_removed,source_loss,tokens,loss"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,tokens,loss\n", "missing: num_parameters, fraction_removed, source_loss"),
        (f"{HEADER},colour\n", "unknown: colour"),
        (f"{HEADER}\na,1e6,.25,2,100000,nan\n", "line 2: `loss` must be a finite number, but it is 'nan'"),
        (f"{HEADER}\na,1e6,.25,2,100000,2.5\na,1e6,.25,2,,2.4\n", "line 3: `tokens` must be a finite number"),
        (f"{HEADER}\na,1e6,.25,2,100000,2.5\na,2e6,.25,2,200000,2.4\n", "`num_parameters` must be the same in every"),
        (f"{HEADER}\na,1e6,.25,2,.1,2.5\na,1e6,.25,2,.2,2.4\n", "looks like tokens in millions or billions"),
        (f"{HEADER},control_loss\na,1e6,.25,2,100000,2.5,2\na,1e6,.25,2,200000,2.4,\n", "in some rows only"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_runs(tmp_path / "runs.csv")


def test_a_results_file_of_this_library(tmp_path):
    results = read_results(ROOT / "model_cards" / "models" / "stories260k" / "results.json")
    del results["history"]
    (path := tmp_path / "results.json").write_text(json.dumps(results))
    run = run_from_results(path, "seed 0")
    path.unlink()
    assert run.case.num_parameters == 260_032 and run.case.num_pruned_parameters == 112_560
    assert run.case.fraction_removed == pytest.approx(1 - 112_560 / 260_032)
    assert run.tokens == (122_880,) and run.losses == (results["recovered"]["mean"],)  # it keeps no history

    row = {"stage": "recovery", "loss": {"a": 2.6, "b": 2.4}, "reference_loss": {"a": 1.9, "b": 1.7}}
    results["history"] = [
        {"stage": "mask_learning", "num_tokens": 20_480, "loss": {"a": 3.0, "b": 3.0}},
        row | {"num_tokens": 20_480 + 100_000},
        row | {"num_tokens": 20_480 + 200_000, "loss": {"a": 2.4, "b": 2.2}},
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.json").write_text(json.dumps(results))
    (run,) = read_runs(tmp_path)
    assert run.name == "one" and run.tokens == (100_000, 200_000) and run.losses == pytest.approx((2.5, 2.3))
    assert read_runs(tmp_path / "one")[0].name == "one"
    assert run.case.source_loss == pytest.approx(1.8)  # of the samples that the history is of

    results["history"][1]["reference_loss"] = {"a": 1.0, "b": 1.0}
    (tmp_path / "one" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"mean 1.000\) are not those of its source \(1.815\)"):
        read_runs(tmp_path)
    assert run_from_results(tmp_path / "one" / "results.json", source_loss=1.5).case.source_loss == 1.5
    del results["tokens"]
    (tmp_path / "one" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="lacks `tokens`"):
        read_runs(tmp_path)


def test_a_trainers_state(tmp_path):
    log = [{"step": 10, "loss": 3.0}, {"step": 10, "eval_loss": 2.6}, {"step": 20, "eval_loss": 2.4}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    with pytest.raises(ValueError, match="`tokens_per_step` is needed"):
        run_from_trainer_state(tmp_path / "trainer_state.json", CASE)
    run = run_from_trainer_state(tmp_path / "trainer_state.json", CASE, tokens_per_step=4096)
    assert run.tokens == (40_960, 81_920) and run.losses == (2.6, 2.4)
    with pytest.raises(ValueError, match="has no 'eval_accuracy'"):
        run_from_trainer_state(tmp_path / "trainer_state.json", CASE, loss_key="eval_accuracy")
    with pytest.raises(ValueError, match="does not say which model was pruned"):
        read_runs(tmp_path / "trainer_state.json")
    entry = {"path": "trainer_state.json", "name": "x", "num_parameters": 1e6, "fraction_removed": 0.25}
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="missing: source_loss"):
        read_runs(tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps([entry | {"source_loss": 2.0, "tokens_per_step": 4096}]))
    assert read_runs(tmp_path / "list.json")[0].losses == run.losses
    for entry in log:
        entry["num_input_tokens_seen"] = entry["step"] * 1000
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert run_from_trainer_state(tmp_path / "trainer_state.json", CASE).tokens == (10_000, 20_000)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="holds no results.json"):
        read_runs(tmp_path)
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        read_runs(tmp_path / "nowhere.csv")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_runs(tmp_path / "bad.json")
