"""The scripts behind model_cards/scaling_law.md: real runs of a tiny member, and the page of runs that are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scaling_law_helpers import FRACTIONS, source_loss, true_rise
from training_helpers import letter_tokenizer, plain_model, random_documents

from examples.research import p2_law as make
from examples.research import p2_law_page as build

ROOT = Path(__file__).resolve().parent.parent


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


def known_results(exponent_noise: float = 2e-4, seed: int = 0) -> dict:
    """Results of four members whose runs follow the law, on controls that fall."""
    runs, random = [], np.random.default_rng(seed)
    tokens = np.linspace(1e8, 1e9, 20).round()
    for name, size in (("96", 1e8), ("128", 3e8), ("192", 1e9), ("256", 3e9)):
        control = source_loss(size) - 0.05 * np.linspace(0.1, 1, 20)
        for fraction in (0.0, *FRACTIONS):
            kept = round((1 - fraction) * size)
            rise = true_rise(size, fraction, tokens) + exponent_noise * random.standard_normal(20) if fraction else 0
            runs.append({
                "source": name, "fraction": fraction, "num_parameters": size, "num_pruned_parameters": kept,
                "fraction_removed": 1 - kept / size, "source_tokens": 2e9, "start_loss": source_loss(size),
                "tokens": tokens.tolist(), "losses": (control + rise).tolist(),
            })  # fmt: skip
    settings = {
        "num_tokens": 10**9,
        "criterion": "taylor",
        "learning_rate": 1e-3,
        "seed": seed,
        "fractions": [*FRACTIONS],
    }
    return {"settings": settings, "runs": runs, "versions": {}}


@pytest.mark.slow  # fits every form by bootstrap, half a minute
def test_the_page_says_who_wins(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(build, "RESULTS", tmp_path)
    monkeypatch.setattr(build, "PAGE", tmp_path / "page.md")
    for seed, name in ((0, "known"), (1, "known-seed-1")):
        known = known_results(seed=seed)
        (tmp_path / f"{name}.json").write_text(json.dumps(known))
    monkeypatch.setattr(build, "NUM_BOOTSTRAP", 6)
    build.main([])
    page = (tmp_path / "page.md").read_text()
    for test in build.TEST_TITLES.values():
        assert f"- {test}: the P2 law wins" in page
    assert "12 runs of 1,000,000,000 tokens with 20 checkpoints each" in page and "seeds 0, 1, mean" in page
    assert page.count("## known") == 1 and "The fit of all runs, seed 1" in page
    assert "not identified: none" in page and "![L - L0 of known-25](scaling_law/known-25.png)" in page
    fit = json.loads((tmp_path / "known.fit.json").read_text())
    rho = fit["controlled"]["constants"]["rho_exponent"]
    assert rho["low"] - 0.02 <= 1.5 <= rho["high"] + 0.02
    errors = {name: {row["method"]: row["relative_error"] for row in fit[name]["tests"]["tokens"]}
              for name in ("controlled", "uncontrolled")}  # fmt: skip
    assert errors["controlled"]["p2"] < 0.02 < errors["uncontrolled"]["p2"]
    build.main(["--page"])
    assert (tmp_path / "page.md").read_text() == page


def test_a_law_that_loses_is_said():
    rows = {"p2": [0.3, 0.3], "carried": [0.2, 0.2], "power_law": [0.25, 0.25]}
    text = build.verdicts({"size": rows})
    assert "the P2 law does not win: 30.0 ± 0.0 %; the best baseline is `carried` at 20.0 ± 0.0 %." in text
    text = build.verdicts({"size": {name: errors[:1] for name, errors in rows.items()}})
    assert "the P2 law has no verdict, from one seed: 30.0 %; the best baseline is `carried` at 20.0 %." in text


def test_a_lead_within_the_spread_over_the_seeds_is_no_win():
    tests = [{"size": [{"method": "p2", "relative_error": own}, {"method": "carried", "relative_error": 0.25}]}
             for own in (0.1, 0.3)]  # fmt: skip
    text = build.verdicts(build.errors_by_test(tests))
    assert text == (
        "- largest source: the P2 law is level with the best baseline: 20.0 ± 14.1 %; the best baseline is `carried` at"
        " 25.0 ± 0.0 %."
    )


def test_the_page_is_built_from_its_fits():
    if not build.PAGE.exists():
        assert not list(build.RESULTS.glob("*.json")), "runs without a page: call examples/research/p2_law_page.py"
        pytest.skip("no runs are kept yet")
    assert build.PAGE.read_text(encoding="utf-8") == build.page()


@pytest.mark.slow
def test_kept_runs_give_the_kept_fits_again():
    kept = sorted(build.RESULTS.glob(f"*{build.FIT_SUFFIX}"))
    assert kept
    for path in kept:
        expected = json.loads(path.read_text(encoding="utf-8"))
        found = build.analyse(path.with_name(path.name.replace(build.FIT_SUFFIX, ".json")))
        for name in ("controlled", "uncontrolled"):
            for test, rows in expected[name]["tests"].items():
                again = {row["method"]: row["relative_error"] for row in found[name]["tests"][test]}
                assert again == pytest.approx({row["method"]: row["relative_error"] for row in rows}, rel=1e-3)
        constants = {name: row["value"] for name, row in found["controlled"]["constants"].items()}
        assert constants == pytest.approx(
            {n: r["value"] for n, r in expected["controlled"]["constants"].items()}, rel=1e-2
        )
