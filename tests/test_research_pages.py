"""Pages of model_cards, and what README and docs take from them, say what the results say; sweeps of rates end."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from training_helpers import tiny_source_and_text

from examples.research import bench_page, recovery, shared
from examples.research.claims.claim_results import EMBEDDED, STORIES, SourceResults, confirm_results, results_of
from examples.research.claims.study import settings_of
from hf_shear.runs.bench_method import BenchMethod

ROOT = Path(__file__).resolve().parent.parent


# model_cards/recovery.md


SMALL = {
    "seeds": [0, 1], "max_length": 16, "batch_size": 2, "calibration_batches": 2, "eval_tokens": 64,
    "held_out_fraction": 0.3, "learning_rate": 1e-2, "budgets": [256], "sweep_rates": False,
    "target": {"intermediate_size": 16},
}  # fmt: skip


def test_the_recovery_pages_are_built_from_the_results():
    sources = results_of(recovery.RESULTS)
    assert [source.name for source in sources] == [EMBEDDED, STORIES]
    assert recovery.PAGE.read_text(encoding="utf-8") == recovery.page(sources)
    assert recovery.DOCS.read_text(encoding="utf-8") == recovery.documented(sources)


@pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:Even one held-out sample", "ignore:.*calibration"
)
def test_ways_of_recovery_have_equal_tokens_and_equal_flops_and_a_page(tmp_path, capsys):
    source, text = tiny_source_and_text(tmp_path)
    settings = settings_of(recovery.CONFIG, EMBEDDED) | SMALL
    arm = "lora_distilled"
    settings["arms"] = {name: settings["arms"][name] for name in ("full", arm)}
    path = tmp_path / "recovery.json"
    recovery.Recovery(recovery.CLAIM, "tiny", source, text, settings, path).compare()
    (found,) = results_of(path)
    assert len(found.tuned(arm="full", budget=256, equal=recovery.TOKENS)) == 2
    assert not found.select(arm="full", equal=recovery.FLOPS)
    full, taught, paid = (
        found.tuned(arm=name, budget=256, equal=equal)[0]
        for name, equal in (("full", recovery.TOKENS), (arm, recovery.TOKENS), (arm, recovery.FLOPS))
    )
    assert full["tokens"] == taught["tokens"] == 256 > paid["tokens"] and full["flops"] < taught["flops"]
    step = settings["batch_size"] * settings["max_length"] * taught["flops"] / 256
    assert abs(paid["flops"] - full["flops"]) <= step
    assert full["num_parameters"] == taught["num_parameters"]  # adapters were merged
    page = recovery.page([found])
    assert page.count("Behind it: ") == page.count("| lora_distilled | ") == 2 and "that these numbers" not in page
    assert "- adapters with a teacher (`lora_distilled`): at equal tokens " in recovery.advice([found])
    given = {"tiny": (source, text)}
    confirm_results(path, recovery.todays_code(), recovery.made_again(path, given), given)
    assert "tiny, lora_distilled: " in capsys.readouterr().out
    assert results_of(path)[0].code[0]["confirmed"]["digest"] == recovery.todays_code()


def test_a_way_is_beside_full_by_its_interval():
    runs = [
        {"arm": arm, "budget": 10, "equal": "tokens", "rate": 1.0, "seed": seed, "mean": mean}
        for arm, means in {"full": [2.0, 2.5], "better": [1.8, 2.29], "worse": [2.2, 2.71], "like": [2.1, 2.4]}.items()
        for seed, mean in enumerate(means)
    ]
    settings = {"seeds": [0, 1], "arms": {"full": {}, "better": {}, "worse": {}, "like": {}}}
    text = recovery.verdict(SourceResults("known", settings, runs), 10, recovery.TOKENS)
    assert text == "Ahead of `full`: `better`. Ties with it: `like`. Behind it: `worse`."


# model_cards/bench.md


def test_the_bench_page_is_built_from_the_results():
    assert bench_page.PAGE.read_text(encoding="utf-8") == bench_page.page()
    benches = yaml.safe_load(bench_page.CONFIG.read_text(encoding="utf-8"))["benches"]
    assert {path.stem for path in bench_page.RESULTS.glob("*.json")} == set(benches)
    for name, own in benches.items():
        words = bench_page.flags(name, ["MODEL", "TEXT"], Path("out"), seeds=[7])
        assert words[words.index("--seeds") + 1] == "7" and words[words.index("--source") + 1] == "MODEL"
        assert all(BenchMethod.parse(text).text == text and text in words for text in own["methods"])


# Sweeps of learning rates


@pytest.mark.parametrize("best", [0.0625, 1.0, 8.0])
def test_a_sweep_goes_on_until_the_best_rate_lies_between_two_others(best):
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: None if rate > 4 * best else abs(rate - best) for rate in wanted}
        wanted = shared.next_rates(found)
    assert shared.best_rate(found) == best
    assert {best / 2, best * 2} <= set(found) and len(found) <= shared.MAX_RATES


def test_a_sweep_ends():
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: 1 / rate for rate in wanted}  # the larger the better, for ever
        wanted = shared.next_rates(found)
    assert len(found) <= shared.MAX_RATES


def test_neighbours_of_another_rate_than_the_best():
    assert shared.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}) == []
    assert shared.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, around=4.0) == [8.0]
