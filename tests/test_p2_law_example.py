"""The scripts behind model_cards/scaling_law.md: real runs of a tiny member, and the page of runs that are known."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from scaling_law_helpers import source_loss, true_rise
from training_helpers import letter_tokenizer, plain_model, random_documents

from examples.research import law_judged, law_runs
from examples.research import p2_law as make
from examples.research import p2_law_page as build
from hf_shear.scaling_law import Case, LawFit, RecoveryRun
from hf_shear.scaling_law.callback import PRIOR


@pytest.fixture
def family(tmp_path):
    """One tiny member, and two domains of text."""
    folder = tmp_path / "family" / "18"
    plain_model(attention_dropout=0.0).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    facts = {"arguments": {"held_out_fraction": 0.3}, "tokens": 1_000_000}
    (folder / "source.json").write_text(json.dumps(facts))
    for number, name in enumerate(("books", "code")):
        (tmp_path / "text" / name).mkdir(parents=True)
        text = "\n<|endoftext|>\n".join(random_documents(number, 60))
        (tmp_path / "text" / name / "a.txt").write_text(text)
    return tmp_path


def words(folder, *more) -> list[str]:
    return [
        "--family", str(folder / "family"), "--data_dir", str(folder / "text"), "--output", str(folder / "runs.json"),
        "--num_tokens", "1024", "--num_checkpoints", "4", "--eval_tokens", "32", "--batch_size", "4", "--max_length", "16",
        "--calibration_samples", "4", *more,
    ]  # fmt: skip


def test_runs_have_their_control_and_go_on(family):
    make.main(words(family, "--fractions", "0.3"))
    results = json.loads((family / "runs.json").read_text())
    control, pruned = results["runs"]
    assert control["fraction"] == 0 and control["fraction_removed"] == 0
    assert 0.25 < pruned["fraction_removed"] < 0.5
    assert control["tokens"] == pruned["tokens"] == [256, 512, 768, 1024]
    assert control["learning_rate"] == pytest.approx(1e-3 * 128 / 18)
    assert pruned["start_loss"] != control["start_loss"] and len(pruned["losses"]) == 4
    (run,) = make.law_runs(results)
    assert np.allclose(run.rises, np.array(pruned["losses"]) - np.array(control["losses"]))
    assert (
        run.case.source_loss == control["start_loss"]
        and run.case.num_pruned_parameters == pruned["num_pruned_parameters"]
    )
    make.main(words(family, "--fractions", "0.3", "0.4"))
    again = json.loads((family / "runs.json").read_text())
    assert again["runs"][:2] == results["runs"] and len(again["runs"]) == 3
    assert again["settings"]["fractions"] == [0.3, 0.4]
    with pytest.raises(SystemExit, match="runs of other settings .num_tokens"):
        make.main([*words(family), "--num_tokens", "2048"])
    shutil.rmtree(family / "family")
    with pytest.raises(SystemExit, match="no finished member"):
        make.main(words(family))


def known_fresh(level_spread: float = 0.1) -> dict:
    """Results of a design of fresh runs that follow the law of arXiv 2411.10272, each at a level of its own."""
    runs, random = [], np.random.default_rng(0)
    tokens = np.geomspace(3e6, 1e8, 14).round()
    sizes = {"stories260K": 8e7, "64": 1e8, "96": 3e8, "128": 1e9}
    for arm in law_runs.design():
        if arm.source not in sizes:
            continue
        size = sizes[arm.source]
        losses = source_loss(size) - 0.05 * np.linspace(0.1, 1, 14)
        if arm.fraction:
            rise = true_rise(size, arm.fraction, tokens) * np.exp(level_spread * random.standard_normal())
            losses = losses + rise * (0.9 if arm.schedule == law_runs.LATE_DECAY else 1)
        runs.append(asdict(arm) | {
            "num_parameters": int(size), "num_pruned_parameters": int((1 - arm.fraction) * size),
            "fraction_removed": arm.fraction, "start_loss": source_loss(size), "tokens": tokens.tolist(),
            "losses": losses.tolist(), "seconds": 1.0,
        })  # fmt: skip
    return {"settings": {"64": asdict(law_runs.SMALL)}, "runs": runs, "code": [], "versions": {}}


def test_the_design_crosses_size_and_rate_and_stays_within_sixty_runs():
    arms = law_runs.design()
    assert len(arms) == len(set(arms)) <= 60
    curves = {(arm.source, arm.rate, arm.fraction) for arm in arms if arm.schedule == law_runs.CONSTANT}
    for source in (law_runs.STORIES, *law_runs.FAMILY):
        for rate in law_runs.RATES:
            assert {fraction for one, other, fraction in curves if (one, other) == (source, rate)} == {
                0,
                0.1,
                0.25,
                0.4,
                0.6,
            }
    controls = {(arm.source, arm.rate, arm.schedule) for arm in arms if arm.cut == law_runs.CONTROL}
    assert {(arm.source, arm.rate, arm.schedule) for arm in arms} == controls


@pytest.mark.filterwarnings("ignore:Both num_training_steps")
def test_a_fresh_run_is_cut_trained_and_judged_on_the_way(family, tmp_path):
    setting = law_runs.Setting(num_tokens=640, batch_size=4, max_length=16, eval_tokens=32, calibration_samples=4)
    source = law_runs.Source(family / "family" / "18", str(family / "text"), "text", setting)
    arms = [law_runs.Arm("64", 1e-3, schedule, cut, fraction)
            for schedule, cut, fraction in (("constant", "control", 0.0), ("late_decay", "control", 0.0),
                                            ("constant", "one_shot", 0.3))]  # fmt: skip
    law_runs.make_runs(arms, {"64": source}, tmp_path / "fresh.json")
    results = json.loads((tmp_path / "fresh.json").read_text())
    constant, decayed, pruned = results["runs"]
    assert constant["tokens"] == decayed["tokens"] == pruned["tokens"] and constant["tokens"][-1] == 640
    before = sum(tokens <= 448 for tokens in constant["tokens"])  # a decay of the last 30 % of ten steps
    assert constant["losses"][:before] == decayed["losses"][:before] and constant["losses"][-1] != decayed["losses"][-1]
    (run,) = law_judged.fresh_runs(results, "constant", "one_shot")
    assert np.allclose(run.rises, np.array(pruned["losses"]) - np.array(constant["losses"]))
    law_runs.make_runs(arms, {"64": source}, tmp_path / "fresh.json")
    assert json.loads((tmp_path / "fresh.json").read_text())["runs"] == results["runs"]


def test_directions_hide_what_they_judge():
    found = law_judged.splits(known_fresh())
    assert set(found) == {*law_judged.DIRECTIONS, "learned masks"}
    for name, split in found.items():
        limit = 0.8 if name == "later tokens" else 0.2
        assert all(run.tokens[-1] <= limit * 1e8 < other.tokens[0]
                   for run, other in zip(split.seen, split.judged, strict=True))  # fmt: skip
        if name != "later tokens":
            assert (
                not {run.name for run in split.fitted} & {run.name for run in split.judged} or name == "learned masks"
            )
    assert {run.name.split()[0] for run in found["largest source"].judged} == {"128"}
    assert {run.learning_rate for run in found["other rate"].fitted} == {law_runs.RATES[0]}


def table(**errors: float) -> dict:
    """Three judged runs in every direction; a predictor that is not named errs by .4."""
    row = {name: errors.get(name, 0.4) for name in law_judged.METHODS}
    return {name: {method: {run: value + 0.001 * k for k, run in enumerate("abc")} for method, value in row.items()}
            for name in law_judged.DIRECTIONS}  # fmt: skip


def test_the_rule_makes_a_law_the_default_or_a_guess():
    won = law_judged.verdict(table(damage_anchored=0.1))
    assert won["default"] == won["law"] == "damage_anchored" and won["against"] == []
    directions = table(damage_anchored=0.1)
    directions["other rate"]["carried"] = {"a": 0.01, "b": 0.012, "c": 0.011}
    vetoed = law_judged.verdict(directions)
    assert vetoed["against"] == [["carried", "other rate"]] and vetoed["default"] == vetoed["guess"] == "carried"
    assert "Beyond the spread, `carried` is better than `damage_anchored`" in build.verdict_text(vetoed)
    scattered = table(damage_anchored=0.1)
    scattered["other rate"]["carried"] = {"a": 0.01, "b": 0.4, "c": -0.3}
    assert law_judged.verdict(scattered)["against"] == []
    lost = law_judged.verdict(table(neighbour_anchored=0.1, blend=0.05))
    assert lost["default"] == lost["guess"] == "neighbour_anchored"
    assert "the default is **`neighbour_anchored`**" in build.verdict_text(lost)


def test_a_late_decay_is_a_difference_at_equal_tokens():
    pairs = law_judged.late_decay(known_fresh(level_spread=0.0))
    assert len(pairs) == 4 and all(pair["loss"] < 0 == pair["control"] for pair in pairs)
    assert all(pair["log_damage"] == pytest.approx(np.log(0.9)) for pair in pairs)


@pytest.mark.slow  # a forecast at each checkpoint of each run
def test_regret_is_never_below_the_best_stop():
    runs = [run for run in law_judged.fresh_runs(known_fresh(), "constant", "one_shot") if run.learning_rate == 1.5e-3]
    (found,) = law_judged.regrets([runs])
    assert all(min(values) >= 0 for policies in found.values() for values in policies.values())
    assert all(len(values) == len(runs) for policies in found.values() for values in policies.values())


def test_another_shape_is_judged_by_its_measured_run():
    """Begun anew with what is left: half of the tokens, where it has twice the parameters."""
    tokens = (1_000, 2_000, 4_000, 8_000)
    small = RecoveryRun("small", Case(100_000, 0.6, 2.0, 40_000), tokens, (4.0, 3.5, 3.2, 3.0))
    large = RecoveryRun("large", Case(100_000, 0.2, 2.0, 80_000), tokens, (3.1, 2.9, 2.8, 2.7))
    judge = law_judged.is_better_use
    assert judge(small, large, 2_000, None) and not judge(large, small, 2_000, None)
    assert judge(small, large, 4_000, None) and not judge(small, large, 6_500, None)  # 750 tokens: nothing is known
    assert judge(small, large, 2_000, 2.95) and not judge(small, large, 2_000, 3.1)  # it reaches 3.1 itself
    assert judge(large, small, 2_000, 3.1) and not judge(large, small, 7_000, 3.1)


def test_the_page_is_built_from_what_was_judged():
    assert build.PAGE.read_text(encoding="utf-8") == build.page()


def test_the_default_of_the_library_is_what_the_rule_says():
    """A guess won, and the nearest run is what of it needs no start of a run."""
    judged = json.loads(build.JUDGED.read_text(encoding="utf-8"))["fresh"]
    assert judged["verdict"] == law_judged.verdict(judged["directions"])
    assert judged["verdict"]["default"] == judged["verdict"]["guess"]
    law = LawFit.load(PRIOR)
    assert law.form.name == "neighbour" and law.spread is not None and len(law.cases) == 36 + len(judged["curves"])


@pytest.mark.slow
def test_kept_runs_are_judged_the_same_again():
    judged = json.loads(build.JUDGED.read_text(encoding="utf-8"))["fresh"]
    found = law_judged.judged_directions(json.loads(build.FRESH.read_text(encoding="utf-8")))
    for name, rows in judged["directions"].items():
        for method, errors in rows.items():
            assert found[name][method] == pytest.approx(errors, rel=0.02), (name, method)
