"""The scripts behind model_cards/claims: arms are kept, verdicts follow the numbers, pages show what was measured."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from training_helpers import tiny_source_and_text

from examples.research import shared

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "examples.research.claims"
CLAIMS = ROOT.joinpath(*PACKAGE.split("."))
NAMES = sorted(path.stem for path in (CLAIMS / "configs").glob("*.yaml"))
QUIET = pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:Even one held-out sample", "ignore:.*calibration text has"
)


def load(name: str):
    """A module of examples/research/claims."""
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.fixture
def tiny(tmp_path):
    """A tiny checkpoint and two domains of text."""
    tiny_source_and_text(tmp_path)
    return tmp_path


SETTINGS = {
    "seeds": [0, 1], "max_length": 16, "batch_size": 4, "calibration_batches": 2, "eval_tokens": 64,
    "held_out_fraction": 0.3, "learning_rate": 1e-2, "num_tokens": 256, "mask_tokens": [128, 256],
    "target": {"intermediate_size": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_a_script_with_a_config(name):
    study, module = load("study"), load(name)
    assert module.CLAIM.name == name and (CLAIMS / f"{name}.py").is_file()
    assert not module.CLAIM.statement.endswith(".")
    config = CLAIMS / "configs" / f"{name}.yaml"
    for source in study.sources_of(config, ("model", "text"), "domains"):
        full, small = (study.settings_of(config, source, small) for small in (False, True))
        assert full.keys() <= small.keys() and full != small


def test_no_script_is_without_a_config():
    helpers = {"claim_command", "claim_results", "study", "claims_page", "surgeon_arms"}
    assert {path.stem for path in CLAIMS.glob("*.py")} - helpers == set(NAMES)


def test_a_comparison_is_held_only_if_the_interval_of_paired_differences_is_beyond_0():
    results = load("claim_results")
    low, high = [1.0, 1.5, 2.0], [1.2, 1.71, 2.19]
    assert results.compare("a", low, high).state == shared.HELD
    assert results.compare("a", high, low).state == shared.LOST
    assert results.compare("a", low, high[::-1]).state == shared.TIE  # the same losses, of other seeds
    assert results.compare("a", [1.0, 1.1], [2.0, 2.3]).state == shared.TIE  # two seeds: 12.7 standard errors
    assert results.compare("a", [1.0], [2.0]).state == shared.UNKNOWN
    assert results.compare("a", low, [2.5]).state == shared.TIE  # a limit for all seeds
    assert results.compare("a", low, [9.0]).state == shared.HELD
    text = results.compare("low below high", low, high).text
    assert text == "low below high: 1.500 ± 0.500 against 1.700 ± 0.495; by seed 0.200 (0.175 to 0.225)"
    with pytest.raises(ValueError, match="seed by seed, but one has 3 seed.s. and the other 2"):
        results.compare("a", low, [1.0, 2.0])


@pytest.mark.parametrize(
    "states, expected",
    [
        (["held", "held"], "held"),
        (["held", "tie"], "partly"),
        (["tie", "tie"], "not held"),
        (["not held"], "not held"),
        (["no verdict"], "no verdict"),
        (["no verdict", "not held"], "not held"),
    ],
)
def test_a_claim_is_held_when_all_its_comparisons_are(states, expected):
    results = load("claim_results")
    assert results.verdict([results.Check("", state) for state in states]) == expected


@QUIET
def test_arms_are_kept_and_go_on(tiny, capsys):
    study, results, command = load("study"), load("claim_results"), load("claim_command")
    claim, page = load("sheared_llama_5_mask_budget"), load("claims_page")
    output = tiny / "claims" / f"{claim.CLAIM.name}.json"

    def new(**changes):
        return study.Study(claim.CLAIM, "tiny", tiny / "source", str(tiny / "text"), SETTINGS | changes, output)

    claim.runs(new())
    kept = json.loads(output.read_text())
    assert len(kept["sources"]["tiny"]["runs"]) == 6  # two budgets, and the smaller one at equal tokens; two seeds
    claim.runs(new())  # nothing is left to do
    assert json.loads(output.read_text()) == kept
    with pytest.raises(ValueError, match="holds runs of 'tiny' with other settings .num_tokens."):
        new(num_tokens=512)
    with pytest.raises(ValueError, match="holds runs of 'tiny' with other settings .seeds."):
        new(seeds=[1, 0, 2])
    assert len(new(seeds=[0, 1, 2]).runs) == 6  # one more seed may follow
    with pytest.raises(ValueError, match="must not be named as the arm's key is: .'seed'."):
        new().run({"arm": "x", "seed": 0}, lambda: {"seed": 1})
    with pytest.raises(AttributeError, match="Neither a study nor the config has 'surprise'"):
        new().surprise  # noqa: B018
    (source,) = results.results_of(output)
    for run in source.runs:
        masks = run["mask_tokens"] if run["recovery"] == claim.SAME else max(SETTINGS["mask_tokens"])
        assert run["tokens"] == masks + SETTINGS["num_tokens"]
        assert run["shape"]["intermediate_size"] == 16 and run["loss"].keys() == {"books", "code"}
    command.draw(claim, output)
    assert output.with_suffix(".png").stat().st_size > 10_000
    text = page.claim_page(claim, [source])
    assert results.mean_and_spread(source.values("mean", mask_tokens=128, recovery=claim.REST)) in text
    assert f"# Sheared LLaMA 5: {results.verdict(claim.checks(source))}" in text


@pytest.mark.parametrize(
    "sweep, second, tried, best",
    [
        (True, {2.0: 3.0, 4.0: 5.0}, {1.0, 2.0, 4.0, 8.0}, 2.0),  # the first seed alone would have said 4
        (True, {2.0: 5.0, 4.0: 3.0}, {1.0, 2.0, 4.0, 8.0}, 4.0),
        (False, {2.0: 3.0}, {2.0}, 2.0),
    ],
)
def test_an_arm_has_the_best_of_two_rates_over_all_seeds(tmp_path, sweep, second, tried, best):
    study, results = load("study"), load("claim_results")
    claim = load("sheared_llama_2_scratch").CLAIM
    settings = {"seeds": [0, 1], "sweep_rates": sweep}
    made = study.Study(claim, "known", "", "", settings, tmp_path / "out.json")
    first = {1.0: 4.0, 2.0: 2.1, 4.0: 2.0, 8.0: None}

    def make(rate, seed):
        loss = (first, second)[seed][rate]
        if loss is None:
            raise study.TrainingDivergedError("known")
        return {"mean": loss + 9 * rate, "mean_choice": loss, "tokens": 1}  # reported on other text than chosen by

    assert made.tune({"arm": "a"}, make, 2.0) == best
    with pytest.raises(ValueError, match="no learning rate of .* has a loss for each seed"):
        made.tune({"arm": "b"}, lambda rate, seed: {"mean": None}, 2.0)
    (source,) = results.results_of(made.output)
    assert set(source.sweep(arm="a")) == tried
    assert source.losses(arm="a") == [first[best] + 9 * best, second[best] + 9 * best]


def test_the_rate_that_counts_lies_between_two_others(tmp_path):
    study, claim = load("study"), load("sheared_llama_2_scratch").CLAIM
    made = study.Study(claim, "known", "", "", {"seeds": [0, 1], "sweep_rates": True}, tmp_path / "out.json")
    losses = {0: {1.0: 3.0, 2.0: 2.1, 4.0: 2.3, 8.0: 2.0, 16.0: 3.0}, 1: {2.0: 1.0, 8.0: 3.0}}

    def make(rate, seed):
        return {"mean": losses[seed][rate], "mean_choice": losses[seed][rate]}

    made.run({"arm": "a", "rate": 8.0, "seed": 0}, lambda: make(8.0, 0))  # kept, and the best of the first seed
    assert made.tune({"arm": "a"}, make, 2.0) == 2.0
    (source,) = load("claim_results").results_of(made.output)
    assert set(source.sweep(arm="a")) == {1.0, 2.0, 4.0, 8.0, 16.0}


def test_scratch_catches_up_between_two_budgets():
    results = load("claim_results")
    claim = load("sheared_llama_2_scratch")
    sheared = [{"arm": claim.SHEARED, "multiple": 1, "rate": 0.1, "seed": seed, "mean": 2.5} for seed in (0, 1)]
    runs = [*sheared]
    for multiple, loss in ((1, 4.0), (4, 3.0), (16, 2.0)):
        runs += [{"arm": claim.SCRATCH, "multiple": multiple, "rate": rate, "seed": seed, "mean": loss + rate}
                 for rate in (0.0, 0.2) for seed in (0, 1)]  # fmt: skip
    source = results.SourceResults("known", {"seeds": [0, 1]}, runs)
    assert claim.catches_up(source) == pytest.approx(8.0)
    assert [check.state for check in claim.checks(source)] == ["held", "held"]
    for run in sheared:
        run["mean"] = 1.9
    assert claim.catches_up(source) is None and "more than 16 times" in claim.checks(source)[1].text
    for run in sheared:
        run["mean"] = 5.0
    assert claim.catches_up(source) == 1 and claim.checks(source)[1].state == "not held"


@QUIET
def test_a_study_compares_equal_shapes(tiny):
    study = load("study")
    claim = load("sheared_llama_2_scratch").CLAIM
    made = study.Study(claim, "tiny", tiny / "source", str(tiny / "text"), SETTINGS, tiny / "out.json")
    target = made.target()
    models = [made.prune(target, 0, criterion="taylor", compensation="none", num_shots=1), made.scratch(target, 0)]
    models.append(made.learn(target, 128, 0, options={"masks": "paper"})[0])
    shapes = [made.judged(model)["shape"] for model in models]
    assert shapes[0] == shapes[1] == shapes[2] and shapes[0]["intermediate_size"] == 16
    weights = [model.state_dict()["model.embed_tokens.weight"] for model in models]
    assert not (weights[0] == weights[1]).all()


def test_rates_are_chosen_on_one_half_of_the_text_and_reported_on_the_other(tiny):
    study, claim = load("study"), load("sheared_llama_2_scratch").CLAIM

    def made(output, **changes):
        return study.Study(claim, "tiny", tiny / "source", str(tiny / "text"), SETTINGS | changes, tiny / output)

    swept = made("swept.json", sweep_rates=True)
    first, second = study.halves(swept.data.judged)
    for name, samples in swept.data.judged.items():
        ids = [*first[name]["input_ids"], *second[name]["input_ids"]]
        assert ids == list(samples["input_ids"]) and len(first[name]) == len(samples) // 2
    both, whole = swept.judged(swept.source()), made("whole.json").judged(swept.source())
    assert "mean_choice" not in whole and both["mean"] != both["mean_choice"]
    assert (both["mean"] + both["mean_choice"]) / 2 == pytest.approx(whole["mean"], rel=1e-5)
    with pytest.raises(ValueError, match="gives books, code a single sample"):
        study.halves({name: samples.select([0]) for name, samples in swept.data.judged.items()})
    swept.runs.append({"arm": "a", "rate": 1.0, "seed": 0, "mean": 2.0})  # kept from before
    with pytest.raises(ValueError, match="holds swept runs of 'tiny' that were judged in one piece"):
        swept.run({"arm": "a", "rate": 2.0, "seed": 0}, dict)


def test_pages_and_tables_show_what_was_measured():
    results = load("claim_results")
    page = load("claims_page")
    found = [module for module in page.modules() if page.is_finished(results.RESULTS / f"{module.CLAIM.name}.json")]
    for module in found:
        path = results.RESULTS / f"{module.CLAIM.name}.json"
        assert path.with_suffix(".md").read_text(encoding="utf-8") == page.claim_page(module, results.results_of(path))
    index = page.INDEX.read_text(encoding="utf-8")
    assert index == page.index()
    assert len(re.findall(r"^\| \[", index, flags=re.M)) == len(found)


@QUIET
@pytest.mark.filterwarnings("ignore:The learned masks have not met the target")  # a step or two of mask learning
@pytest.mark.filterwarnings("ignore:Domain .* now gets")  # an extreme target is far from the source in one domain
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_small_form_of_each_claim_runs(shared_data, tmp_path, name):
    command = load("claim_command")
    module = load(name)
    stories = shared_data / "models" / "stories260K", shared_data / "data" / "tinystories"
    words = [
        "--small",
        "--data_dir",
        shared_data / "data" / "redpajama_sample",
        "--stories",
        *stories,
        "--output",
        tmp_path,
    ]
    command.main(module, [str(word) for word in words])
    assert (tmp_path / f"{name}.md").is_file() and (tmp_path / f"{name}.png").is_file()
