"""Inverses of the curves, estimates, and plans for a budget."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_law_helpers import draw_runs, source_loss, write_runs_csv
from transformers import LlamaConfig

from hf_shear.cli import main
from hf_shear.report import plot_law_curves
from hf_shear.scaling_law import Candidate, Case, LawFit, fit_law, plan_budget
from hf_shear.scaling_law.curves import NumericCurve, PowerCurve
from hf_shear.scaling_law.estimates import Estimate, interval
from hf_shear.shapes import count_parameters, training_flops_per_token

CURVES = st.builds(PowerCurve, st.floats(0.5, 5), st.floats(-2, 12), st.floats(0.05, 2))
TOKENS = st.floats(1e3, 1e13)


@pytest.fixture(scope="module")
def fit() -> LawFit:
    return fit_law(draw_runs(noise=0.003), "p2", num_bootstrap=20)


# ---- curves ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(CURVES, TOKENS)
def test_tokens_for_undoes_predict(curve, tokens):
    above = math.exp(curve.log_amplitude - curve.exponent * math.log(tokens))
    loss = float(curve.predict(tokens))
    if above < 1e-7 * curve.floor:  # rounding would decide
        return
    assert curve.log_tokens_for(loss) == pytest.approx(math.log(tokens), abs=1e-3)
    assert curve.log_tokens_for(curve.floor) == math.inf


@settings(max_examples=80, deadline=None)
@given(CURVES, st.floats(1e-4, 0.1))
def test_at_saturation_a_doubling_gains_exactly_that(curve, gain):
    log_tokens = curve.log_saturation_tokens(gain)
    if not -30 < log_tokens < 300:
        return
    tokens = math.exp(log_tokens)
    assert curve.doubling_gain(tokens) == pytest.approx(gain, rel=1e-6)
    assert curve.predict(tokens) - curve.predict(2 * tokens) == pytest.approx(gain, rel=1e-6, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(CURVES, st.floats(1e-24, 1e-18), st.floats(1e6, 1e12))
def test_at_the_price_one_more_flop_gains_exactly_that(curve, price, cost):
    tokens = math.exp(curve.log_tokens_at_price(price, cost))
    assert -curve.slope(tokens) / cost == pytest.approx(price, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(CURVES, st.floats(1e-3, 0.05))
def test_the_search_finds_what_the_closed_forms_give(curve, gain):
    numeric = NumericCurve(curve.predict, curve.floor)
    for name, arguments in (
        ("log_tokens_for", (curve.floor + gain,)),
        ("log_saturation_tokens", (gain,)),
        ("log_tokens_at_price", (1e-20, 6e9)),
    ):
        exact = getattr(curve, name)(*arguments)
        if 1 < exact < 40:
            assert getattr(numeric, name)(*arguments) == pytest.approx(exact, abs=1e-3), name
    assert numeric.log_tokens_for(curve.floor - 0.1) == math.inf


# ---- estimates ------------------------------------------------------------------------------------------------


def test_estimates_undo_each_other_and_have_intervals(fit):
    case = Case(1.2e9, 0.25, 2.41)
    loss = fit.predict(case, 5e8)
    tokens = fit.tokens_for(case, loss.value)
    assert tokens.value == pytest.approx(5e8, rel=1e-6) and tokens.low <= 5e8 <= tokens.high
    saturated = fit.saturation_tokens(case, 0.004)
    assert saturated.low <= saturated.value <= saturated.high
    assert fit.tokens_for_flops(case, 1e19).value == pytest.approx(1e19 / (6 * 0.75 * 1.2e9))
    assert fit.tokens_for_flops(case, 1e19, flops_per_token=1e9).value == pytest.approx(1e10)
    priced = fit.tokens_at_price(case, 1e-21).value
    assert -float(fit.curve(case).slope(priced)) / (6 * 0.75 * 1.2e9) == pytest.approx(1e-21)


def test_below_the_floor_is_unreachable(fit):
    case = Case(1.2e9, 0.25, 2.41)
    floor = fit.floor(case)
    found = fit.tokens_for(case, floor.value - 0.01)
    assert found.value is None and str(found) == f"unreachable: the floor is {floor.value:.4f}"
    barely = fit.tokens_for(case, floor.value + 1e-5)  # some fits of the bootstrap never get there
    assert barely.value > 1e12 and math.isinf(barely.high) and "to never" in str(barely)
    assert barely.to_dict()["high"] is None and barely.to_dict()["never_in_a_part"]


def test_stretching_the_law_is_noted(fit):
    assert fit.predict(Case(1e9, 0.25, 2.5), 1e9).notes == ()
    assert fit.predict(Case(1e9, 0.25, 2.5), 5e9).notes == ("extrapolation: 5.0 x outside the fitted tokens",)
    notes = fit.predict(Case(1.2e10, 0.5, 2.5), 1e9).notes
    assert notes[0] == "extrapolation: 4.0 x outside the fitted sizes" and notes[1].startswith(
        "fraction removed 0.50 outside"
    )
    assert fit.extrapolation(Case(1e7, 0.25, 2.5), 1e7)["num_parameters"] == pytest.approx(10)
    for name in ("predict", "tokens_for", "saturation_tokens", "tokens_at_price", "tokens_for_flops"):
        with pytest.raises(ValueError, match="must be above 0 and finite"):
            getattr(fit, name)(Case(1e9, 0.25, 2.5), 0)


def test_intervals_widen_outside_of_what_was_fitted(fit):
    case = Case(1e9, 0.25, 2.5)
    spans = []
    for asked, tokens in ((case, 1e9), (case, 8e9), (Case(3e10, 0.25, 2.5), 1e9), (Case(1e9, 0.7, 2.5), 1e9)):
        found = fit.predict(asked, tokens)
        spans.append(np.log((found.high - 2.5) / (found.low - 2.5)))
    assert min(spans[1:]) > 1.2 * spans[0] > 0


def test_an_interval_is_the_middle_eight_tenths():
    assert interval(np.arange(101.0)) == (10, 90)
    assert interval([1.0, math.inf, 2.0]) == (1.0, math.inf) and interval([]) == (None, None)
    assert str(Estimate(1.5e9, 1e9, 2e9)) == "1.5 B (1 B to 2 B)" and str(Estimate(2.5)) == "2.5"


# ---- plans ----------------------------------------------------------------------------------------------------


def candidates(*fractions) -> list[Candidate]:
    return [Candidate(f"-{fraction:.0%}", Case(1.2e9, fraction, 2.41)) for fraction in fractions]


def test_a_budget_is_spent_exactly(fit):
    plan = plan_budget(fit, candidates(0.15, 0.35), 1e19, mask_share=0.1)
    for row in plan.plans:
        case = row.candidate.case
        assert 6 * (1.2e9 * row.mask_tokens + case.pruned_size * row.recovery_tokens) == pytest.approx(1e19)
        assert row.mask_tokens == pytest.approx(0.1 * (row.mask_tokens + row.recovery_tokens))
        assert row.loss == fit.predict(case, row.recovery_tokens)
    free = plan_budget(fit, candidates(0.15), 1e19, mask_share=0.0).plans[0]
    assert free.mask_tokens == 0 and free.recovery_tokens == pytest.approx(1e19 / (6 * 0.85 * 1.2e9))


def test_the_choice_and_its_reason(fit):
    three = candidates(0.15, 0.25, 0.35)
    plan = plan_budget(fit, three, 1e19)
    assert plan.choice.candidate.name == "-15%" and "the lowest loss" in plan.reason
    plan = plan_budget(fit, three, 1e19, max_loss=2.44)
    assert [row.within_reach for row in plan.plans] == [True, True, False]
    assert plan.choice.candidate.name == "-25%" and "the smallest of 2 candidate(s) that reach 2.44" in plan.reason
    plan = plan_budget(fit, three, 1e19, max_loss=2.40)
    assert (
        plan.choice is None and "No candidate reaches 2.4 " in plan.reason and "unreachable: the floor" in plan.reason
    )
    plan = plan_budget(fit, three, 1e17, max_loss=2.43)
    assert plan.choice is None and "recovery tokens, and the budget pays for" in plan.reason


def test_a_saturated_choice_says_so(fit):
    plan = plan_budget(fit, candidates(0.15), 1e20, gain=0.005)
    assert "It is saturated at" in plan.reason
    assert "saturated" not in plan_budget(fit, candidates(0.35), 1e17, gain=0.005).reason


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        ([], {}, "`candidates` is empty"),
        (candidates(0.15, 0.15), {}, "must have different names"),
        (candidates(0.15), {"mask_share": 1.0}, "`mask_share` must be at least 0 and below 1"),
        (candidates(0.15), {"total_flops": 0}, "`total_flops` must be above 0"),
    ],
)
def test_bad_plans(fit, rows, options, text):
    with pytest.raises(ValueError, match=text):
        plan_budget(fit, rows, **({"total_flops": 1e19} | options))


# ---- the picture and the verb ---------------------------------------------------------------------------------


def test_the_picture_has_curves_bands_and_points(tmp_path):
    pytest.importorskip("matplotlib")
    tokens = np.geomspace(1e6, 1e9, 20)
    curve = {"name": "-15%", "tokens": tokens, "loss": 2 + tokens**-0.1, "low": 1.9 + tokens**-0.1,
             "high": 2.1 + tokens**-0.1, "fitted": (1e7, 1e8), "budget": (3e8, 2.1), "saturation": 5e7}  # fmt: skip
    figure = plot_law_curves([curve], tmp_path / "law.png", points=[curve | {"name": "other"}], target_loss=2.2)
    (axes,) = figure.axes
    assert (tmp_path / "law.png").stat().st_size > 10_000
    assert len(axes.collections) == 1 and axes.get_xscale() == "log"
    solid = next(line for line in axes.get_lines() if line.get_label() == "-15%")
    inside = (tokens >= 1e7) & (tokens <= 1e8)
    assert (np.isfinite(solid.get_ydata()) == inside).all()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"other", "-15%", "target 2.2"}
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_law_curves([])


def test_the_verb_plans_and_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_runs_csv(tmp_path / "runs.csv", draw_runs(noise=0.003, num_checkpoints=12))
    words = [
        "plan",
        str(tmp_path / "runs.csv"),
        "--form",
        "p2",
        "--bootstrap",
        "8",
        "--num_parameters",
        "1.2e9",
        "--source_loss",
        "2.41",
    ]
    law, picture = tmp_path / "law.json", tmp_path / "plan.png"
    more = ["--flops", "1e19", "--target_loss", "2.44", "--price", "1e-21"]
    assert main([*words, *more, "--save", str(law), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    for part in (
        "arXiv 2411.10272",
        "condition number",
        "-25% (900 M parameters)",
        "tokens to 2.44",
        "<-",
        "beyond the fitted",
    ):
        assert part in text, part
    assert "the smallest of 2 candidate(s) that reach 2.44" in text and picture.exists()
    assert main(["plan", str(law), *words[6:], *more, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plan"]["choice"] == "-25%" and len(facts["candidates"]) == 3
    assert facts["candidates"][0]["target"]["low"] < facts["candidates"][0]["target"]["value"]
    assert main([*words, "--target_loss", "2.0"]) == 0
    assert "unreachable: the floor is" in capsys.readouterr().out


def test_the_verb_plans_without_runs_and_goes_on_from_the_run_itself(tmp_path, capsys):
    words = ["plan", "--num_parameters", "135e6", "--source_loss", "3.0", "--fractions", "0.25", "--target_loss", "3.2"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in ("this is our law: model_cards/scaling_law.md", "constant rate", "outside the fitted sizes"):
        assert part in text, part
    history = [{"step": step, "eval_loss": 3.05 + 40 * (step * 1_000) ** -0.5} for step in (10, 20, 40, 80)]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history}))
    words += ["--own_run", str(state), "--price", "1e-12"]
    assert main(words) == 2 and "`tokens_per_step` is needed" in capsys.readouterr().err
    words += ["--tokens_per_step", "1000"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "Your run, at 80 k tokens" in text and "has reached 3.2" in text and "proposal: stop here" in text
    assert "careful: so large a source predicts itself better" in text and "own power law" not in text
    assert main([*words, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["own_run"]
    assert own["at_twice_the_tokens"]["low"] < 3.05 + 40 * 160_000**-0.5 < own["at_twice_the_tokens"]["high"]
    history += [{"step": step, "eval_loss": 3.05 + 40 * (step * 1_000) ** -0.5} for step in (120, 140, 160)]
    state.write_text(json.dumps({"log_history": history}))
    assert main([*words, "--plot", str(tmp_path / "own.png")]) == 0 and (tmp_path / "own.png").exists()
    text = capsys.readouterr().out
    assert "careful: by the run's own power law: its source is 41.9 x the largest" in text
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    end = facts["own_run"]["at_twice_the_tokens"]
    assert end["value"] == pytest.approx(3.05 + 40 * 320_000**-0.5, abs=1e-3)
    (candidate,) = facts["candidates"]
    assert candidate["floor"]["value"] == pytest.approx(3.05, abs=5e-3) and candidate["floor"]["low"] < 3.05


def test_the_verb_takes_shapes_of_a_checkpoint(tmp_path, capsys):
    write_runs_csv(tmp_path / "runs.csv", draw_runs(num_checkpoints=8))
    LlamaConfig(hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, intermediate_size=2816).save_pretrained(
        tmp_path / "model"
    )
    words = ["plan", str(tmp_path / "runs.csv"), "--bootstrap", "0", "--source_loss", str(source_loss(3e8))]
    assert (
        main([*words, "--checkpoint", str(tmp_path / "model"), "--fractions", "0.3", "--flops", "1e18", "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    (candidate,) = facts["candidates"]
    name, sizes = candidate["name"].split(": ")
    hidden, layers, heads, kv_heads, intermediate = map(int, sizes.split("/"))
    cut = LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                      intermediate_size=intermediate, head_dim=64)  # fmt: skip
    assert candidate["num_parameters"] == count_parameters(cut) and name in ("-30%", "-31%")
    assert candidate["flops"]["value"] == pytest.approx(1e18 / training_flops_per_token(cut, 2048))
    assert facts["plan"]["candidates"][0]["loss"]["low"] is None  # no bootstrap


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_flat_is_saturated_from_its_first_token(tmp_path, capsys, seed):
    noise = random.Random(seed)
    history = [{"step": 10 * step, "eval_loss": 3.4 + noise.uniform(-0.003, 0.003)} for step in range(1, 13)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    words = ["--num_parameters", "135e6", "--source_loss", "3.0", "--fractions", "0.25", "--tokens_per_step", "1000"]
    assert main(["plan", *words, "--own_run", str(tmp_path / "trainer_state.json")]) == 0
    assert "Your run, at 120 k tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere.csv"], "`runs` 'nowhere.csv' is neither"),
        (["RUNS", "--flops", "1e19"], "`flops` needs a source to plan for"),
        (["RUNS", "--num_parameters", "1e9"], "`source_loss` is needed"),
        (["--fractions", "0.2"], "`runs` is needed, but it was not given"),
        (
            ["--num_parameters", "1e9", "--source_loss", "2", "--own_run", "x"],
            "`own_run` is one run, but `fractions` has 3",
        ),
        (["RUNS", "--num_parameters", "1e9", "--checkpoint", "x", "--source_loss", "2"], "say the same"),
        (["RUNS", "--fixed", "{"], "`fixed` is not valid JSON"),
        (["RUNS", "--fixed", "[1]"], "`fixed` must hold one JSON object"),
        (["RUNS", "--form", "magic"], "`form` must be one of"),
        (
            ["--form", "p2", "--num_parameters", "1e9", "--source_loss", "2"],
            "`form` says how to fit a law, but",
        ),
        (
            ["--weighting", "magic", "--num_parameters", "1e9", "--source_loss", "2"],
            "`weighting` says how to fit a law",
        ),
    ],
)
def test_mistakes_in_the_verb(tmp_path, words, text, capsys):
    write_runs_csv(tmp_path / "runs.csv", draw_runs(num_checkpoints=4))
    words = [str(tmp_path / "runs.csv") if word == "RUNS" else word for word in words]
    assert main(["plan", *words]) == 2
    assert text in capsys.readouterr().err
