"""``hf-shear compare``: several runs on one text, in one table and on one page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_html_report import Page, complete

from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.evaluation import compare_runs
from hf_shear.evaluation.intervals import paired_difference, paired_mean_difference
from hf_shear.report import runs_table

TOKENS = 15


def write_run(folder, seed: int = 0, up: float = 0.0, domains=("code", "prose"), num_samples: int = 20, **changes):
    """A finished run whose recovered model has random losses, ``up`` nats per token above those of the same seed."""
    results, nats = complete(domains), {}
    for index, domain in enumerate(domains):
        drawn = np.random.default_rng(7 + index).normal(3.0, 0.5, num_samples) + up
        drawn += np.random.default_rng(100 + seed + index).normal(0.0, 0.01, num_samples)
        nats[domain] = [round(float(value), 5) for value in drawn * TOKENS]
    loss = {domain: sum(found) / (TOKENS * num_samples) for domain, found in nats.items()}
    results["recovered"] |= {"loss": loss, "mean": sum(loss.values()) / len(loss), "flops": 1.5e12}
    samples = {
        "digest": {domain: f"digest of {domain}" for domain in domains},
        "num_tokens": {domain: [TOKENS] * num_samples for domain in domains},
        "models": {"recovered": nats},
    } | changes  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results | {"seed": seed}), encoding="utf-8")
    (folder / "sample_losses.json").write_text(json.dumps(samples), encoding="utf-8")
    return results


def test_differences_are_those_of_the_losses_and_their_intervals_are_of_pairs(tmp_path):
    first, second, third = (
        write_run(tmp_path / name, seed, up) for name, seed, up in (("a", 0, 0.0), ("b", 1, 0.1), ("c", 2, 0.0))
    )
    record = compare_runs([tmp_path / name for name in "abc"])
    assert [row["name"] for row in record["runs"]] == ["a", "b", "c"]
    assert record["eval_tokens"] == 2 * 20 * TOKENS
    for name, other in (("b", second), ("c", third)):
        found = record["differences"][name]
        for domain in ("code", "prose"):
            expected = other["recovered"]["loss"][domain] - first["recovered"]["loss"][domain]
            assert found[domain]["loss"] == pytest.approx(expected, abs=1e-6)
        assert found["mean"]["loss"] == pytest.approx(other["recovered"]["mean"] - first["recovered"]["mean"], abs=1e-6)
    low, high = record["differences"]["b"]["mean"]["interval"]
    assert 0.09 < low < 0.1 < high < 0.11  # losses of samples spread by 0.5, their differences by 0.014
    low, high = record["differences"]["c"]["mean"]["interval"]
    assert low < 0 < high
    row = record["runs"][1]
    assert (row["model"], row["tokens"], row["flops"], row["seed"]) == ("recovered", 6333, 1.5e12, 1)
    assert row["seconds"] == pytest.approx(7384 - 99)


def test_a_run_against_a_copy_of_itself_has_no_difference(tmp_path):
    write_run(tmp_path / "one" / "run")
    write_run(tmp_path / "two" / "run")
    record = compare_runs([tmp_path / "one" / "run", tmp_path / "two" / "run"])
    assert record["differences"] == {
        "two/run": {name: {"loss": 0.0, "interval": [0.0, 0.0]} for name in ("code", "prose", "mean")}
    }


def test_the_mean_over_one_domain_is_its_difference():
    generator = np.random.default_rng(0)
    pair = tuple((generator.uniform(10, 20, 30), generator.integers(3, 9, 30)) for _ in range(2))
    alone, twice, once = paired_mean_difference([pair]), paired_mean_difference([pair, pair]), paired_difference(*pair)
    assert alone.value == pytest.approx(once.value) and alone.interval == pytest.approx(once.interval)
    width = lambda one: one.interval[1] - one.interval[0]  # noqa: E731
    assert twice.value == pytest.approx(once.value)
    assert width(twice) == pytest.approx(width(once) / 2**0.5, rel=0.15)  # drawn apart in each domain
    one = tuple((first[:1], second[:1]) for first, second in pair)
    assert paired_mean_difference([pair, one]).interval is None


def test_the_command_prints_a_table_and_writes_a_page(tmp_path, capsys):
    for name, up in (("a", 0.0), ("b", 0.1), ("c", -0.2)):
        write_run(tmp_path / name, up=up)
    runs, page = [str(tmp_path / name) for name in "abc"], tmp_path / "page.html"
    assert main(["compare", *runs, "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "+0.100 [+0.100, +0.100]" in shown and "against a: b is 0.100 above; c is 0.200 below." in " ".join(
        shown.split()
    )
    assert "1.50e+12" in shown and "6,333" in shown and "600 tokens" in " ".join(shown.split())
    text = Page(page.read_text(encoding="utf-8")).text
    assert (
        "3 runs, one text" in text and "against a: b is 0.100 above; c is 0.200 below." in text and "2 h 01 min" in text
    )
    assert main(["compare", *runs, "--output", str(page)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["compare", *runs, "--output", str(page), "--overwrite"]) == 0


def test_runs_that_cannot_be_told_apart_and_other_shapes_are_said(tmp_path):
    write_run(tmp_path / "a", 0)
    results = write_run(tmp_path / "b", 1)
    results["recovered"]["shape"] |= {"intermediate_size": 5}
    (tmp_path / "b" / "results.json").write_text(json.dumps(results | {"seed": 1}), encoding="utf-8")
    table = " ".join(runs_table(compare_runs([tmp_path / "a", tmp_path / "b"]), 100).split())
    assert "against a: b cannot be told from it." in table and "Not all have the shape of a: b." in table


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digest": {"code": "other", "prose": "digest of prose"}}, "on other text of 'code' than those"),
        ({"domains": ("code", "news")}, r"on other domains \(code, prose against code, news\)"),
        ({"models": {}}, "lacks the model `recovered`"),
        ({"models": {"recovered": {"code": [1.0], "prose": [2.0]}}}, "are not those of results.json"),
        ({"num_tokens": {"code": [0], "prose": [0]}}, "a whole number above 0"),
        ({"models": {"recovered": {"code": "text"}}}, "must be a list"),
    ],
)
def test_runs_that_do_not_compare_are_refused(tmp_path, changes, said):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **changes)
    with pytest.raises(UsageError, match=said):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_folders_that_hold_no_finished_run_are_refused(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    a, output = str(tmp_path / "a"), ["--output", str(tmp_path / "page.html")]
    for others, said in (
        ([], "at least two folders"),
        ([a], "is named twice"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path / "empty")], "holds no results.json: no run wrote there"),
    ):
        assert main(["compare", a, *others, *output]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "b" / "sample_losses.json").unlink()
    assert main(["compare", a, str(tmp_path / "b"), *output]) == 2
    assert "hf-shear evaluate MODEL MODEL --data_dir TEXT" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
