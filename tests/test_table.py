"""The tables: the numbers in them, that they fit, and that the verdict says what the numbers say."""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.core import SHAPE_NAMES, model_record
from hf_shear.report import comparison_table, markdown_table, spread_table

SOURCE = dict(zip(SHAPE_NAMES, (64, 5, 8, 4, 172), strict=True), head_dim=8)
TARGET = dict(zip(SHAPE_NAMES, (48, 4, 4, 2, 86), strict=True), head_dim=8)
SEVEN = ("cc", "c4-rp", "arxiv", "book", "github", "stackexchange", "wiki")


def record(mean, shape=TARGET, parameters=131_072, domains=("code", "docs", "tables")):
    """A model whose domains lie around `mean` at distances that sum to zero."""
    middle = (len(domains) - 1) / 2
    return model_record(shape, parameters, {d: mean + (i - middle) / 100 for i, d in enumerate(domains)}, 50_000)


def run(recovered=2.175, baselines=None, seed=0, tokens=1_024_000, source=1.7, pruned=3.0, **options):
    baselines = {"taylor": 2.195, "random": 2.4, "scratch": 2.6} if baselines is None else baselines
    return {
        "source": record(source, SOURCE, 262_144, **options),
        "pruned": record(pruned, **options),
        "recovered": record(recovered, **options),
        "tokens": {"mask_learning": 204_800, "recovery": 819_200, "evaluation": 50_000},
        "baselines": {
            name: {**record(mean, **options), "tokens": tokens, "learning_rate": 0.003}
            for name, mean in baselines.items()
        },
        "seed": seed,
    }


def verdict(results, **options):
    return " ".join(comparison_table(results, **options).split("\n\n")[-1].split())


def cells(text, name):
    """The cells of every line that begins with `name`, in one list."""
    lines = [line.split() for line in text.splitlines()]
    return [cell for line in lines if line and line[0] == name for cell in line[1:]]


def test_the_rows_hold_the_numbers_of_the_results():
    results = run()
    text = comparison_table(results, 100)
    assert cells(text, "source")[:5] == ["262,144", "100.0", "%", "1.700", f"{math.exp(1.7):.2f}"]
    assert cells(text, "pruned") == ["131,072", "50.0", "%", "3.000", "20.09", "204,800", "-", "-"]
    assert cells(text, "recovered") == ["131,072", "50.0", "%", "2.175", "8.80", "1,024,000", "-", "-"]
    assert cells(text, "taylor") == ["131,072", "50.0", "%", "2.195", "8.98", "1,024,000", "-", "0.003"]
    # source, pruned, recovered and the baselines in the order of the heading; the star at the best
    assert cells(text, "domain") == ["source", "pruned", "recovered", "taylor", "random", "scratch"]
    assert cells(text, "code") == ["1.690", "2.990", "2.165*", "2.185", "2.390", "2.590"]
    assert cells(text, "tables") == ["1.710", "3.010", "2.185*", "2.205", "2.410", "2.610"]


def test_the_star_marks_the_best_of_the_target_shape_in_each_domain():
    results = run(baselines={"taylor": 2.0})
    results["baselines"]["taylor"]["loss"]["docs"] = 9.0
    text = comparison_table(results, 80)
    assert cells(text, "code")[2:] == ["2.165", "1.990*"]
    assert cells(text, "docs")[2:] == ["2.175*", "9.000"]
    assert "*" not in comparison_table(run(baselines={}), 80)


@pytest.mark.parametrize("domains", [("code", "docs", "tables"), SEVEN])
@pytest.mark.parametrize("factor", [1, 51_000])
def test_it_fits_eighty_columns_in_ascii(domains, factor):
    results = run(domains=domains)
    for name in ("source", "pruned", "recovered"):
        results[name]["num_parameters"] *= factor
    text = comparison_table(results, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert text.count("Held-out loss") == 1
    assert text.count("learning") == 1, "nothing had to be continued below"
    for domain in domains:
        assert len(cells(text, domain)) == 6


def test_a_narrow_terminal_continues_below_with_the_names_repeated():
    results = run(domains=SEVEN)
    wide, narrow = comparison_table(results, 200), comparison_table(results, 44)
    assert max(map(len, narrow.splitlines())) <= 44
    for name in (*SEVEN, "recovered", "taylor"):
        assert cells(narrow, name) == cells(wide, name)
    assert narrow.count("stackexchange") > wide.count("stackexchange") == 1


def test_columns_are_aligned():
    block = comparison_table(run(domains=SEVEN), 80).split("\n\n")[1].splitlines()
    decimals = {tuple(match.start() for match in re.finditer(r"\.", line)) for line in block[3:]}
    assert len(decimals) == 1 and len(decimals.pop()) == 6


def test_the_width_is_the_terminals_by_default(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size((44, 24)))
    assert comparison_table(run()) == comparison_table(run(), 44) != comparison_table(run(), 80)


def test_long_and_foreign_names_stay_ascii_short_and_apart():
    names = ("caf\u00e9", "a_very_long_domain_name_number_1", "a_very_long_domain_name_number_2")
    text = comparison_table(run(domains=names), 80)
    assert text.isascii() and max(map(len, text.splitlines())) <= 80
    assert "caf\\xe9" in text and "..in_name_number_1"[-8:] in text and "number_2" in text


def test_win():
    assert verdict(run()).startswith(
        "Sheared and recovered (2.175) beats the best baseline, taylor (2.195), by 0.020 nats per token "
        "at equal tokens (1,024,000) and equal shape."
    )


def test_loss():
    assert verdict(run(recovered=2.25)).startswith(
        "Sheared and recovered (2.250) loses to the best baseline, taylor (2.195), by 0.055 nats per token "
        "at equal tokens (1,024,000) and equal shape."
    )


@pytest.mark.parametrize(("recovered", "side"), [(2.193, "ahead"), (2.198, "behind")])
def test_tie(recovered, side):
    text = verdict(run(recovered=recovered))
    assert "ties with the best baseline, taylor (2.195)," in text
    assert re.search(rf"it is 0\.00[23] nats per token {side}, and less than 0\.005 counts as a tie\.", text)
    assert "beats" not in text and "loses" not in text


def test_standard_errors_widen_the_tie_as_their_root_sum_of_squares():
    results = run()  # 0.020 ahead
    results["recovered"]["standard_error"] = 0.012
    results["baselines"]["taylor"]["standard_error"] = 0.014
    assert "beats" in verdict(results), "0.0184 is less than 0.020, though 0.012 + 0.014 is not"
    results["baselines"]["taylor"]["standard_error"] = 0.018
    assert "less than 0.022 counts as a tie" in verdict(results)


@pytest.mark.parametrize("tokens", [1_023_999, 1_024_001, 5_000_000])
def test_unequal_tokens_are_never_called_equal(tokens):
    text = verdict(run(tokens=tokens))
    assert f"at unequal tokens (1,024,000 against {tokens:,})" in text
    assert "equal tokens (1,024,000)" not in text


def test_unknown_tokens_are_not_called_equal():
    results = run()
    del results["tokens"]["recovery"]
    assert "at tokens that are not all known and equal shape" in verdict(results)
    assert cells(comparison_table(results, 80), "recovered")[5] == "-"


def test_unequal_shape_and_held_out_tokens_are_named():
    results = run()
    results["baselines"]["taylor"]["shape"] = {**TARGET, "hidden_size": 56}
    results["baselines"]["taylor"]["eval_tokens"] = 40_000
    text = verdict(results)
    assert "unequal shape (hidden_size 48 against 56)" in text
    assert "on unequal held-out sets (50,000 against 40,000 tokens)" in text
    assert "and equal shape" not in text


def test_what_choosing_units_cost_is_in_the_verdict():
    results = run(baselines={"taylor": 2.3})
    results["recovered"]["flops"], results["baselines"]["taylor"]["flops"] = 1.15e12, 1e12
    assert "at equal tokens (1,024,000), 1.15 times its FLOPs and equal shape" in verdict(results)
    assert cells(comparison_table(results, 100), "recovered")[6] == "1.15e+12"
    results["recovered"]["flops"] = 1.004e12
    assert "at equal tokens (1,024,000), equal FLOPs and equal shape" in verdict(results)


def test_billions_of_tokens_are_short_in_the_table_and_exact_in_the_verdict():
    results = run(tokens=50_000_204_801)
    results["tokens"]["recovery"] = 50_000_000_000
    text = comparison_table(results, 80)
    assert cells(text, "recovered")[5:7] == ["50.000", "B"] == cells(text, "taylor")[5:7]
    assert cells(text, "pruned")[5:7] == ["0.000", "B"]
    assert "at unequal tokens (50,000,204,800 against 50,000,204,801)" in verdict(results)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 9), st.floats(-0.02, 0.02))
def test_the_verb_follows_the_numbers(recovered, difference):
    results = run(recovered=recovered, baselines={"taylor": recovered + difference})
    text = verdict(results)
    ahead = results["baselines"]["taylor"]["mean"] - results["recovered"]["mean"]
    verb = "ties with" if abs(ahead) < 0.005 else "beats" if ahead > 0 else "loses to"
    assert f") {verb} the only baseline, taylor" in text
    assert f"{abs(ahead):.3f} nats per token" in text


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (
            {"source": 1.7, "pruned": 3.0, "recovered": 2.175},
            "Pruning raised the mean loss from 1.700 to 3.000 (by 1.300); recovery won back 63.5 % of that, "
            "and 0.475 remains.",
        ),
        (
            {"source": 1.7, "pruned": 3.0, "recovered": 3.2},
            "Pruning raised the mean loss from 1.700 to 3.000 (by 1.300), and recovery made it worse by another 0.200.",
        ),
        (
            {"source": 1.7, "pruned": 3.0, "recovered": 1.6},
            "(by 1.300); recovery won back all of it and ended 0.100 below the source.",
        ),
        (
            {"source": 1.7, "pruned": 1.69, "recovered": 1.65},
            "Pruning did no damage (source 1.700, pruned 1.690); after recovery the loss is 1.650.",
        ),
        (
            {"source": 1.7, "pruned": 1.6, "recovered": 1.75},
            "Pruning did no damage (source 1.700, pruned 1.600), but recovery made it worse: 1.750.",
        ),
    ],
)
def test_damage_and_recovery(models, text):
    assert verdict(run(**models)).endswith(text)


def test_parts_of_a_run():
    results = run()
    only_source = {"source": results["source"]}
    assert "There is no recovered model yet" in verdict(only_source)
    assert cells(comparison_table(only_source, 80), "code") == ["1.690"]
    results["baselines"] = {}
    assert verdict(results).startswith("No baselines were run, so nothing can be said against them. Pruning")
    del results["source"]
    assert cells(comparison_table(results, 80), "recovered")[1] == "-", "no share of an unknown source"


def test_no_verdict_across_different_domains():
    results = run()
    results["baselines"]["random"]["loss"] = {"code": 1.0}
    assert verdict(results).startswith("No verdict: the baseline random was measured on other domains.")
    assert cells(comparison_table(results, 80), "docs")[4] == "-"


def test_an_absurd_loss_has_a_perplexity_all_the_same():
    text = comparison_table(run(pruned=900.0), 80)
    assert cells(text, "pruned")[4] == f"{math.exp(700):.1e}"


def test_markdown_holds_the_same_cells_and_verdict():
    results = run(domains=("co_de", "a|b"))
    text = markdown_table(results)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [len(row) for row in rows] == [8] * 8 + [7] * 4
    assert [cell.strip() for cell in rows[4]] == [
        "recovered",
        "131,072",
        "50.0 %",
        "2.175",
        "8.80",
        "1,024,000",
        "-",
        "-",
    ]
    assert rows[0][4].strip() == "perplexity"
    assert [row[0].strip() for row in rows[-2:]] == [r"co\_de", r"a\|b"]
    assert text.rstrip().endswith(verdict(results))


def seeds(recovered, **baselines):
    return [
        run(recovered=own, baselines=dict(zip(baselines, others, strict=True)), seed=seed)
        for seed, (own, *others) in enumerate(zip(recovered, *baselines.values(), strict=True))
    ]


def spread_verdict(runs):
    return " ".join(spread_table(runs, 80).split("\n\n")[-1].split())


def test_spread_holds_means_sample_deviations_and_wins():
    text = spread_table(seeds([2.1, 2.2, 2.3], taylor=[2.3, 2.1, 2.5]), 80)
    first, second, _ = text.split("\n\n")
    assert cells(first, "recovered") == ["2.200", "+-", "0.100", "-", "-"]
    reach = 4.303 * statistics.stdev([0.2, -0.1, 0.2]) / 3**0.5  # Student's t, two degrees of freedom
    interval = f"+0.100 ({0.1 - reach:+.3f} to {0.1 + reach:+.3f})"
    assert cells(first, "taylor") == ["2.300", "+-", "0.200", *interval.split(), *"2 of 3".split()]
    assert cells(second, "0") == ["1.700", "3.000", "2.100*", "2.300"]
    assert cells(second, "1") == ["1.700", "3.000", "2.200", "2.100*"]
    assert max(map(len, text.splitlines())) <= 80 and text.isascii()


def test_spread_beats_all():
    text = spread_verdict(seeds([2.10, 2.11, 2.12], taylor=[2.20, 2.22, 2.24], random=[2.5, 2.5, 2.5]))
    assert text == (
        "Over 3 seeds, sheared and recovered (2.110 +- 0.010) beats all 2 baselines: taylor, the closest, is "
        "+0.110 (+0.085 to +0.135) nats per token behind (95 % interval of the differences by seed), at equal "
        "tokens (1,024,000) and equal shape."
    )


def test_spread_does_not_beat_all():
    text = spread_verdict(
        seeds([2.1, 2.2, 2.3], taylor=[2.23, 2.23, 2.23], scratch=[1.9, 1.9, 1.9], random=[3.0, 3.0, 3.0])
    )
    assert "does not beat all baselines, by the 95 % intervals of the differences by seed: it" in text
    assert "loses to scratch by -0.300 (-0.548 to -0.052)" in text
    assert "cannot be told from taylor, which is +0.030 (-0.218 to +0.278) above" in text
    assert "beats random by +0.800 (+0.552 to +1.048)" in text
    assert "beats all" not in text


def test_arms_are_compared_seed_by_seed():
    wide = [2.0, 2.5, 3.0]  # what moves both arms of a seed says nothing of their difference
    text = spread_verdict(seeds(wide, taylor=[2.1, 2.61, 3.09]))
    assert "beats the only baseline: taylor, the closest, is +0.100 (+0.075 to +0.125)" in text
    text = spread_verdict(seeds(wide, taylor=[3.09, 2.61, 2.1]))  # the same losses, of other seeds
    assert "cannot be told from taylor, which is +0.100" in text


def test_spread_does_not_claim_equal_tokens_for_all_if_one_differs():
    runs = seeds([2.1, 2.1, 2.1], taylor=[2.3, 2.3, 2.3])
    runs[1]["baselines"]["taylor"]["tokens"] = 2_048_000
    text = spread_verdict(runs)
    assert "not always on equal terms (taylor, seed 1: at unequal tokens (1,024,000 against 2,048,000)" in text
    assert "at equal tokens" not in text


def test_spread_of_runs_of_different_length():
    runs = seeds([2.1, 2.1], taylor=[2.3, 2.3])
    runs[1]["tokens"]["recovery"] += 5
    runs[1]["baselines"]["taylor"]["tokens"] += 5
    assert spread_verdict(runs).endswith("at equal tokens within each seed and equal shape.")


def test_one_seed_has_no_spread():
    text = spread_table(seeds([2.1], taylor=[2.3]), 80)
    assert "One seed says nothing of others, so there is no verdict" in text and "n/a" in text
    assert spread_verdict(seeds([2.1, 2.2])).endswith("has no baselines to be compared with.")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda runs: runs.clear(), "it is empty"),
        (
            lambda runs: runs[1].update(seed=0),
            "must each have a seed of their own, but their seeds are \\[0, 0\\]",
        ),
        (lambda runs: runs[1].pop("seed"), "must each have a seed"),
        (
            lambda runs: runs[1]["baselines"].clear(),
            "must hold the same models, but seed 0 has .*taylor and seed 1",
        ),
        (lambda runs: runs[0].pop("recovered"), "the first has no `recovered` model"),
        (lambda runs: runs[1]["recovered"].update(shape=SOURCE), "`recovered` of seed 1 differs"),
        (lambda runs: runs[1]["pruned"]["loss"].pop("code"), "`pruned` of seed 1 differs"),
    ],
)
def test_spread_refuses_what_is_no_repetition(change, text):
    runs = seeds([2.1, 2.2], taylor=[2.3, 2.3])
    change(runs)
    with pytest.raises(ValueError, match=text):
        spread_table(runs)
