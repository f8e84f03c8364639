"""The scripts behind model_cards/claims: arms are kept, verdicts follow the numbers, pages show what was measured."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from training_helpers import letter_tokenizer, plain_model, random_documents

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = ROOT / "examples" / "claims"
NAMES = sorted(path.stem for path in (CLAIMS / "configs").glob("*.yaml"))
QUIET = pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:Even one held-out sample", "ignore:.*calibration text has"
)


@pytest.fixture
def load(monkeypatch):
    """Modules of examples/claims by name."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.fixture
def tiny(tmp_path):
    """A tiny checkpoint and two domains of text."""
    plain_model(attention_dropout=0.0).save_pretrained(tmp_path / "source")
    letter_tokenizer().save_pretrained(tmp_path / "source")
    for number, name in enumerate(("books", "code")):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(number, 60)))
    return tmp_path


SETTINGS = {
    "seeds": [0, 1], "max_length": 16, "batch_size": 4, "calibration_batches": 2, "eval_tokens": 64,
    "held_out_fraction": 0.3, "learning_rate": 1e-2, "num_tokens": 256, "mask_tokens": [128, 256],
    "target": {"intermediate_size": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_a_script_with_a_config(load, name):
    module = load(name)
    assert module.CLAIM.name == name and (CLAIMS / f"{name}.py").is_file()
    assert not module.CLAIM.statement.endswith(".")
    study = load("study")
    for source in study.yaml.safe_load((CLAIMS / "configs" / f"{name}.yaml").read_text())["sources"]:
        full, small = (study.read_settings(module.CLAIM, source, small) for small in (False, True))
        assert full.keys() <= small.keys() and full != small


def test_no_script_is_without_a_config():
    helpers = {"study", "claims_page", "p2_runs", "surgeon_arms"}
    assert {path.stem for path in CLAIMS.glob("*.py")} - helpers == set(NAMES)


def test_a_comparison_is_held_only_beyond_the_spread(load):
    study = load("study")
    assert study.compare("a", [1.0, 1.1], [2.0, 2.1]).state == study.HELD
    assert study.compare("a", [2.0, 2.1], [1.0, 1.1]).state == study.LOST
    assert study.compare("a", [1.0, 1.3], [1.1, 1.4]).state == study.TIE
    text = study.compare("low below high", [1.0, 1.1], [2.0, 2.1]).text
    assert text == "low below high: 1.050 ± 0.071 against 2.050 ± 0.071"


@pytest.mark.parametrize(
    "states, expected",
    [(["held", "held"], "held"), (["held", "tie"], "partly"), (["tie", "tie"], "not held"), (["not held"], "not held")],
)
def test_a_claim_is_held_when_all_its_comparisons_are(load, states, expected):
    study = load("study")
    assert study.verdict([study.Check("", state) for state in states]) == expected


@QUIET
def test_arms_are_kept_and_go_on(load, tiny, capsys):
    study, claim, page = load("study"), load("sheared_llama_5_mask_budget"), load("claims_page")
    output = tiny / "claims" / f"{claim.CLAIM.name}.json"

    def new(**changes):
        return study.Study(claim.CLAIM, "tiny", tiny / "source", str(tiny / "text"), SETTINGS | changes, output)

    claim.runs(new())
    kept = json.loads(output.read_text())
    assert len(kept["sources"]["tiny"]["runs"]) == 4
    claim.runs(new())  # nothing is left to do
    assert json.loads(output.read_text()) == kept
    with pytest.raises(ValueError, match="holds runs of 'tiny' with other settings .num_tokens."):
        new(num_tokens=512)
    with pytest.raises(ValueError, match="must not be named as the arm's key is: .'seed'."):
        new().run({"arm": "x", "seed": 0}, lambda: {"seed": 1})
    with pytest.raises(AttributeError, match="Neither a study nor the config has 'surprise'"):
        new().surprise  # noqa: B018
    (source,) = study.results_of(output)
    for run in source.runs:
        assert run["tokens"] == run["mask_tokens"] + SETTINGS["num_tokens"]
        assert run["shape"]["intermediate_size"] == 16 and run["loss"].keys() == {"books", "code"}
    study.draw(claim, output)
    assert output.with_suffix(".png").stat().st_size > 10_000
    text = page.claim_page(claim, [source])
    assert study.mean_and_spread(source.values("mean", mask_tokens=256)) in text
    assert f"# Sheared LLaMA 5: {study.verdict(claim.checks(source))}" in text


@QUIET
def test_a_study_compares_equal_shapes(load, tiny):
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


def test_flops_for_a_loss_lie_between_the_points_of_a_curve(load):
    flops_at = load("beyond_1_recipe").flops_at
    points = [(1e9, 3.0), (4e9, 2.0), (16e9, 1.0)]
    assert flops_at(points, 3.5) == 1e9  # it needs no more
    assert flops_at(points, 2.5) == pytest.approx(2e9)
    assert flops_at(points, 1.0) == pytest.approx(16e9)
    assert flops_at(points, 0.9) is None


def recipe_results(paper: dict[float, tuple[float, ...]], ours: dict[int, float]) -> dict:
    """Settings and runs of one source: losses of the paper's recipe by share, at 1, 2 and 4 times the FLOPs; and ours."""
    settings = {"seeds": [*ours], "multiples": [1], "paper_multiples": [1, 2, 4], "paper_shares": [*paper], "recipe": "us",
                "paper_batches": [8], "batch_size": 2, "arms": {"us": {}, "random units, late decay": {}}}  # fmt: skip
    runs = []
    for seed, own in ours.items():
        arms = [("us", None, 2, 1, own), ("random units, late decay", None, 2, 1, 9.0)]
        arms += [("paper", share, 8, m, loss) for share, losses in paper.items()
                 for m, loss in zip((1, 2, 4), losses, strict=True)]  # fmt: skip
        runs += [{"arm": arm, "share": share, "batch": batch, "rate": 0.1, "multiple": m, "seed": seed, "mean": loss,
                  "flops": 1e9 * m} for arm, share, batch, m, loss in arms]  # fmt: skip
    return {"name": "known", "settings": settings, "runs": runs}


def test_the_paper_gets_the_share_that_needs_the_fewest_flops(load):
    recipe, study = load("beyond_1_recipe"), load("study")
    slow, fast, ahead, never = (4.0, 3.0, 2.0), (3.0, 2.5, 2.0), (2.4, 2.0, 1.0), (9.0, 8.0, 7.0)
    for own, ratio, words in (
        ({0.1: slow}, 2 * 2**0.5, "2.8"),
        ({0.1: slow, 0.2: fast}, 2, "2.0"),
        ({0.1: slow, 0.2: ahead}, 1, "1.0"),
        ({0.1: never}, 4, "more than 4.0"),
    ):
        source = study.SourceResults(**recipe_results(own, {0: 2.5}))
        assert recipe.flops_ratio(source, 1)[0] == pytest.approx(ratio)
        assert recipe.times(source, 1) == words
    for own, losses, states in (
        ({0.1: ahead}, {0: 2.5}, ["not held", "not held", "held"]),
        ({0.1: slow}, {0: 2.5}, ["held"] * 3),
        ({0.1: slow}, {0: 2.5, 1: 5.0}, ["tie", "not held", "held"]),  # one seed that is not ahead
    ):
        checks = recipe.checks(study.SourceResults(**recipe_results(own, losses)))
        assert [check.state for check in checks] == states


def test_tokens_rise_only_beyond_the_spread(load):
    rising = load("p2_law_3_how_many_tokens").rising
    assert rising([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]]) == "held"
    assert rising([[1.0, 1.1], [1.0, 1.2], [3.0, 3.1]]) == "tie"
    assert rising([[1.0, 1.1], [1.0, 1.2], [0.5, 0.6]]) == "not held"


def test_pages_and_tables_show_what_was_measured(load):
    page, study = load("claims_page"), load("study")
    found = [module for module in page.modules() if page.is_finished(study.RESULTS / f"{module.CLAIM.name}.json")]
    for module in found:
        path = study.RESULTS / f"{module.CLAIM.name}.json"
        assert path.with_suffix(".md").read_text(encoding="utf-8") == page.claim_page(module, study.results_of(path))
    index = page.INDEX.read_text(encoding="utf-8")
    assert page.claims_table("claims") in index
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.short_table("model_cards/claims") in readme and page.headline("model_cards/claims") in readme
    assert len(re.findall(r"^\| \[", index, flags=re.M)) == len(found)


@QUIET
@pytest.mark.filterwarnings("ignore:The learned masks have not met the target")  # a step or two of mask learning
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_small_form_of_each_claim_runs(load, shared_data, tmp_path, name):
    study, module = load("study"), load(name)
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
    study.main(module, [str(word) for word in words])
    assert (tmp_path / f"{name}.md").is_file() and (tmp_path / f"{name}.png").is_file()
