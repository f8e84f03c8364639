"""Whether another shape would be the better use of the FLOPs that are left: on runs whose law is known."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scaling_law_helpers import FRACTIONS, draw_runs, source_loss, true_rise
from transformers import TrainerControl, TrainerState

from hf_shear.scaling_law import Case, ScalingLawCallback, fit_law
from hf_shear.scaling_law.better_use import FRACTIONS as COMPARED
from hf_shear.scaling_law.better_use import better_use, other_fractions, predicted_ends, searched_shapes
from hf_shear.scaling_law.callback import BETTER_USE
from hf_shear.scaling_law.estimates import Estimate

SIZE, STEP_TOKENS, MAX_STEPS = 1e9, 1_000_000, 1_000
END = MAX_STEPS * STEP_TOKENS


@pytest.fixture(scope="module")
def law():
    return fit_law(draw_runs(noise=0.0005), "p2_five", num_bootstrap=24)


def loss_at(fraction: float, tokens: float) -> float:
    return source_loss(SIZE) + float(true_rise(SIZE, fraction, tokens))


def case_of(fraction: float) -> Case:
    return Case(SIZE, fraction, source_loss(SIZE))


def follow(law, fraction, steps, history=(), **options) -> list[dict]:
    """The log of a run of the known law, from the callback."""
    state = TrainerState(max_steps=MAX_STEPS, log_history=list(history))
    trainer = SimpleNamespace(log=lambda entries: state.log_history.append(entries | {"step": state.global_step}))
    callback = ScalingLawCallback(trainer, law=law, case=case_of(fraction), tokens_per_step=STEP_TOKENS, **options)
    for step in steps:
        state.global_step = step
        trainer.log({"eval_loss": loss_at(fraction, step * STEP_TOKENS)})
        callback.on_evaluate(None, state, TrainerControl())
    return state.log_history


def said_of(history: list[dict]) -> list[tuple[int, float]]:
    return [(entry["step"], entry[BETTER_USE]) for entry in history if BETTER_USE in entry]


def test_a_larger_shape_is_said_once_and_truly_ends_lower(law, capsys):
    history = follow(law, 0.35, (50, 100, 150))
    ((step, number),) = said_of(history)
    text = capsys.readouterr().out
    assert step < 150 and text.count("another shape would be the better use of what is left: -") == 1
    assert "(larger, 850 M parameters), cut anew, ends at" in text and number == pytest.approx(0.85 * SIZE)
    tokens = (END - step * STEP_TOKENS) * 0.65 / 0.85
    assert loss_at(0.15, tokens) < loss_at(0.35, END)
    assert len(said_of(follow(law, 0.35, (200,), history))) == 1  # of the run before it was resumed


def test_nothing_is_said_where_too_little_is_left_or_nothing_is_better(law):
    assert said_of(follow(law, 0.35, (990, 995, 1000))) == []
    assert said_of(follow(law, 0.15, range(50, 1001, 100))) == []  # smaller shapes end higher


def test_nothing_is_said_where_intervals_overlap():
    """Runs that lie at levels of their own, by half, tell little of another shape."""
    factors = np.exp(0.5 * np.random.default_rng(0).standard_normal(12))
    runs = [replace(run, losses=run.case.source_loss + factor * run.rises)
            for run, factor in zip(draw_runs(), factors, strict=True)]  # fmt: skip
    wide = fit_law(runs, "p2_five", num_bootstrap=24)
    assert said_of(follow(wide, 0.25, (50, 100, 150))) == []


def test_with_a_target_the_smallest_shape_that_reaches_it_is_said(law):
    target = loss_at(0.35, 0.9 * END)
    ((step, number),) = said_of(follow(law, 0.15, range(50, 1001, 50), target_loss=target))
    fraction = 1 - number / SIZE
    assert fraction > 0.25 and loss_at(fraction, (END - step * STEP_TOKENS) * 0.85 / (1 - fraction)) <= target
    low = loss_at(0.15, 0.6 * END)  # which the run misses, and a larger shape reaches
    ((step, number),) = said_of(follow(law, 0.35, range(50, 1001, 50), target_loss=low))
    assert number > 0.65 * SIZE and loss_at(0.35, END) > low
    assert said_of(follow(law, 0.35, (50, 100), target_loss=source_loss(SIZE) + 1)) == []  # it reaches that itself


def test_compared_are_fractions_that_the_law_was_fitted_to(law):
    found = other_fractions(law, case_of(0.25))
    fractions = [one.candidate.case.fraction_removed for one in found]
    assert fractions == [one for one in COMPARED if FRACTIONS[0] <= one <= FRACTIONS[-1]]
    assert all(
        one.candidate.case.pruned_size == pytest.approx((1 - f) * SIZE) for one, f in zip(found, fractions, strict=True)
    )


# ---- shapes of a search ---------------------------------------------------------------------------------------


def write_search(folder, *rows) -> str:
    shapes = [
        {"sizes": {"hidden_size": 8 * number, "num_hidden_layers": 2}, "costs": {"num_parameters": size},
         "recovered_rise": rise, "recovery_tokens": tokens}
        for number, (size, rise, tokens) in enumerate(rows, start=1)
    ]  # fmt: skip
    (folder / "search.json").write_text(json.dumps({"candidates": shapes}))
    return str(folder)


def test_shapes_of_a_search_are_at_the_level_that_they_had_after_training(law, tmp_path):
    size, trained = 850_000_000, 50_000_000
    rise = float(true_rise(SIZE, 0.15, trained))
    folder = write_search(tmp_path, (size, 0.8 * rise, trained), (size, rise, trained), (size, None, 0))
    case = case_of(0.35)
    low, at, plain = searched_shapes(folder, law, case)
    assert low.candidate.name == "8/2" and at.candidate.case.fraction_removed == pytest.approx(0.15)
    ends = [one.law.predict(one.candidate.case, END).value - case.source_loss for one in (low, at, plain)]
    assert ends[0] / ends[1] == pytest.approx(0.8, rel=1e-6) and ends[1] == pytest.approx(ends[2], rel=0.02)
    end = Estimate(3.0, 2.9, 3.1)
    flops = 6 * size * END
    found = better_use(predicted_ends([low, at, plain], flops), case, end)
    assert found.candidate.name == "8/2" and found.size == "larger"
    ((_, number),) = said_of(follow(law, 0.35, (50, 100, 150), search=folder))
    assert number == size


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"measured": {}}, "lacks candidates. Name the search.json of a finished"),
        ({"candidates": [{"sizes": {}, "costs": {}}]}, "lacks recovered_rise, recovery_tokens"),
        ({"candidates": [{"sizes": {}, "costs": {"num_parameters": 2_000_000_000}, "recovered_rise": None,
                          "recovery_tokens": 0}]}, "has a shape of 2,000,000,000 parameters, but the source has"),
    ],
)  # fmt: skip
def test_a_search_that_does_not_fit_is_refused(law, tmp_path, content, text):
    (tmp_path / "search.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        searched_shapes(tmp_path, law, case_of(0.25))


def test_a_search_needs_a_case_and_a_law_of_its_size(law, tmp_path, monkeypatch):
    from hf_shear.scaling_law import callback as module

    with pytest.raises(ValueError, match="`search` needs `case`"):
        ScalingLawCallback(SimpleNamespace(), search=str(tmp_path))
    told = []
    monkeypatch.setattr(module.logger, "warning", told.append)
    folder = write_search(tmp_path, (8_000_000_000, None, 0))
    far = ScalingLawCallback(SimpleNamespace(), law=law, case=Case(2e10, 0.5, 2.0), search=folder)
    assert far.alternatives == [] and "are not compared with this run" in told[0]
