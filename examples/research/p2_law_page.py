"""Judge the predictors of the scaling law, draw, and build model_cards/scaling_law.md.

python -m examples.research.p2_law_page  # judge all runs anew, make the law that ships, write the page
python -m examples.research.p2_law_page --fresh  # the fresh runs alone; what is said of the kept ones stays
python -m examples.research.p2_law_page --page  # the page alone, from model_cards/scaling_law/judged.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from hf_shear.core import write_results
from hf_shear.report import plot_law_curves, require_matplotlib
from hf_shear.scaling_law import fit_law
from hf_shear.scaling_law.callback import PATIENCE
from hf_shear.scaling_law.curves import DRIFT_SPREAD
from hf_shear.scaling_law.forecast import GAIN_SPREAD
from hf_shear.scaling_law.law_fit import FAR_SIZE, OWN_CHECKPOINTS

from .claims.claim_results import markdown_table
from .law_judged import (
    DIRECTIONS,
    EXTRA,
    MAX_REPLAYED,
    METHODS,
    MIDDLE_PRICE,
    RESULTS,
    fresh_runs,
    judge_fresh,
    judge_kept,
    quietly,
    source_of,
)
from .law_runs import CONSTANT, FAMILY, ONE_SHOT, RATES, todays_code
from .provenance import noted, stale_note
from .shared import ROOT, few_colours, percent, save_picture

PAGE = ROOT / "model_cards" / "scaling_law.md"
FRESH, JUDGED = RESULTS / "fresh.json", RESULTS / "judged.json"
ERRORS, CURVES = RESULTS / "errors.png", RESULTS / "left_out.png"
COMMAND = "python -m examples.research.law_runs ..."
SHOWN = {"p2_anchored": "C1", "damage_anchored": "C3", "blend": "C4", "carried": "0.7", "power_law": "C5",
         "neighbour": "C9", "neighbour_anchored": "C0", "guess_mean": "C2"}  # fmt: skip
"""Predictors in the picture of errors."""
TESTS = {"tokens": "last 20 % of tokens", "size": "largest source", "fraction": "largest fraction"}

INTRODUCTION = """# Scaling laws of recovery, judged

How well can the loss of a recovery run be predicted: from its own start, from other runs, and by a law? Forms, splits, the
error and the rule for "better" were [registered](scaling_law/registered.md) before the fresh runs were read. The fresh runs
(`examples/research/law_runs.py`) train every source at the same two rates, and cut with the default criterion and
compensation. The kept runs (`examples/research/p2_law.py`) are older: rates that fall with the width, Taylor scores, no
compensation. They chose the forms. How to use the law: [scaling_law.md](../examples/docs/scaling_law.md).

An error is mean |predicted - measured loss| / mean (L - L0) over the judged checkpoints of a run, in %, and the mean over
the runs of a direction. L0 is the loss of the unpruned source, trained on the same tokens. `_anchored` is at the level of
the start of the run, which guesses see as well: 80 % of the tokens for "later tokens", 20 % in the other directions."""


def page() -> str:
    """The page from what was judged."""
    judged = json.loads(JUDGED.read_text(encoding="utf-8"))
    facts, kept = judged["fresh"], judged["kept"]
    coverage = {"kept": kept["coverage"], "fresh": facts["coverage"]}
    regret = {"kept, first seed": kept["regret"][:1], "kept, other seeds": kept["regret"][1:], "fresh": facts["regret"]}
    first = INTRODUCTION
    if note := stale_note(facts["code"], todays_code(), COMMAND):
        first = noted(note, INTRODUCTION)
    parts = [
        first,
        "## Fresh runs",
        fresh_text(facts),
        directions_table(facts["directions"], facts["verdict"]["scores"]),
    ]
    parts += [verdict_text(facts["verdict"]), large_text(facts["directions"], facts["verdict"]["default"])]
    parts += [f"![Errors by direction](scaling_law/{ERRORS.name})"]
    parts += ["## Kept runs", KEPT_TEXT, kept_table(kept["errors"])]
    parts += [
        "## Intervals",
        coverage_text(coverage, judged["before"]["forecasts"]),
        far_ends_text(facts["SmolLM2"]),
        f"![Sources left out](scaling_law/{CURVES.name})",
    ]
    parts += [
        "## When to stop",
        REGRET_TEXT,
        regret_table(regret),
        stops_text(kept["regret"], kept["margins"], judged["before"]["regret"]),
    ]
    parts += ["## Another shape for the rest of the budget", BETTER_USE_TEXT]
    parts += [better_use_table({"kept": kept["better_uses"], "fresh": facts["better_uses"]})]
    parts += ["## Size, rate, schedule", rate_text(facts["size_and_rate"]), decay_text(facts["late_decay"])]
    return "\n\n".join([*parts, "## Constants", laws_text(kept["laws"])]) + "\n"


KEPT_TEXT = (
    "12 runs of each of three seeds (4 sizes, 3 fractions), mean ± standard deviation over the seeds. `damage` was formed"
    " on these runs, so its errors here are no test."
)
REGRET_TEXT = (
    f"The callback, replayed, stops when {PATIENCE} forecasts in a row say that the next FLOP gains less than a price. The"
    " price is such that a whole run must gain so many nats. The callback sees the run's own losses, no control. Regret is"
    " how much worse its stop is than the best one in hindsight (loss + price x FLOPs), in % of the FLOPs of a whole run;"
    " the mean over 12 runs of each kept seed and the 25 fresh ones. `with the law`: fitted to the other sizes of the same"
    " seed. `the run alone`: a power law of this run (not replayed for the other seeds). `no stop`: without the callback."
    " That it takes 4 in a row was chosen on the first seed, of 1, 2, 3, 4 and 6."
)


def fresh_text(facts: dict) -> str:
    """What there is."""
    curves = facts["curves"]
    sources = ", ".join(dict.fromkeys(name.split()[0] for name in curves))
    tokens = sorted({setting["num_tokens"] for setting in facts["settings"].values()})
    missing = [name for name in (*DIRECTIONS, *EXTRA) if name not in facts["directions"]]
    text = (
        f"{facts['num_runs']} runs with their controls, of {' or '.join(f'{n:,}' for n in tokens)} tokens; {len(curves)} of"
        f" them are one-shot cuts at a constant rate, of {sources}, which is what laws are fitted to. One seed."
    )
    if missing:
        text += (
            f" There are no runs for: {', '.join(missing)}. The design holds them; `law_runs` goes on where it stopped."
        )
    return text


def directions_table(directions: Mapping[str, Mapping[str, Mapping[str, float]]], scores: Mapping[str, float]) -> str:
    """Errors of each predictor in each direction, the lowest in bold; the score is the mean over the registered ones."""
    names = [name for name in (*DIRECTIONS, *EXTRA) if name in directions]
    means = {name: _mean_errors(directions[name]) for name in names}
    rows = []
    for method in METHODS:
        cells = []
        for name in names:
            value = means[name].get(method)
            cells.append("" if value is None else _bold(f"{value:.1f}", value == min(means[name].values())))
        score = (
            "" if method not in scores else _bold(f"{100 * scores[method]:.1f}", scores[method] == min(scores.values()))
        )
        rows.append((f"`{method}`", *cells, score))
    headings = [f"{name} ({len(directions[name]['p2'])})" for name in names]
    return markdown_table(("predictor", *headings, "score"), rows) + (
        "\n\nIn brackets: judged runs. `compute` and `average_parameters` are of the family alone, whose training tokens"
        " are known, and have no score. For later tokens a run is its own neighbour: there the score counts guesses that"
        " need one as `carried`."
    )


def _mean_errors(direction: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """In %, by predictor."""
    return {method: 100 * fmean(row.values()) for method, row in direction.items()}


def large_text(directions: Mapping[str, Mapping[str, Mapping[str, float]]], default: str) -> str:
    """What the source that chose nothing says of the default; "" where it was not run."""
    if "SmolLM2" not in directions:
        return ""
    means = _mean_errors(directions["SmolLM2"])
    best, number = min(means, key=means.__getitem__), len(directions["SmolLM2"][default])
    return (
        f"SmolLM2-135M chose no form, and has 107 times the parameters of the largest source in this table. There"
        f" `{best}` has the lowest error ({means[best]:.1f} %) and `{default}` {means[default]:.1f} %. So for a source of"
        f" more than {FAR_SIZE:g} times the largest that a law was fitted to, `hf-shear plan`, the callback and"
        f" `LawFit.after` use the run's own power law, from {OWN_CHECKPOINTS} checkpoints on. Before that they say that the"
        f" law is an extrapolation. {number} runs are the whole evidence for this, too few for a spread. Between 2.6 and"
        " 107 times nothing was judged."
    )


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def verdict_text(verdict: dict) -> str:
    """The rule's outcome in words."""
    law, guess, scores = verdict["law"], verdict["guess"], verdict["scores"]
    text = (
        f"By the registered rule the default is **`{verdict['default']}`**. The best law is `{law}`"
        f" ({100 * scores[law]:.1f} %), the best guess `{guess}` ({100 * scores[guess]:.1f} %)."
    )
    for rival, name in verdict["against"]:
        text += f" Beyond the spread, `{rival}` is better than `{law}` in the direction {name}."
    blend = scores["blend"]
    return text + f" `blend`, which can not be the default, has {100 * blend:.1f} %."


def kept_table(kept: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Errors on the kept runs, by predictor and test."""
    rows = []
    for method in METHODS:
        cells = []
        for found in kept.values():
            best = min(map(fmean, found.values()))
            cells.append("" if method not in found else _bold(percent(found[method]), fmean(found[method]) == best))
        rows.append((f"`{method}`", *cells))
    return markdown_table(("predictor", *(TESTS[test] for test in kept)), rows)


def coverage_text(
    coverage: Mapping[str, Mapping[str, Mapping[str, float]]], before: Mapping[str, Mapping[str, float]]
) -> str:
    """How often intervals hold the last loss; ``before``: forecasts of fresh runs that had no drift."""
    rows, failed = [], []
    for runs, found in coverage.items():
        for name, one in found.items():
            share, holds = one["inside"] / one["of"], one["low"] <= 0.8 <= one["high"]
            span = f"{one['low']:.0%} to {one['high']:.0%}"
            counted = f"{one['inside']} of {one['of']}"
            rows.append((runs, name, counted, f"{share:.0%}", span, "yes" if holds else "no"))
            failed += [] if holds else [f"{runs}, {name}: too {'wide' if share > 0.8 else 'narrow'}"]
    text = (
        "80 % intervals of the last loss of a run. Left out are each source, each fraction, or the last fifth of the"
        " tokens: there the law is at the level of the run's start, with the control's last loss given. `callback` is the"
        " forecast of a run under way, without a control, by a law of the other sources or by the run alone. The binomial"
        " interval (95 %, Clopper-Pearson) takes runs as independent, which those of one source are not. Widths were"
        " chosen on the kept runs, so that the fresh ones are the test."
    )
    text += f" Not 80 %: {'; '.join(failed)}." if failed else " All hold 80 %."
    held = ", ".join(f"{name} {one['inside']} of {one['of']}" for name, one in before.items())
    text += (
        " On fresh runs, forecasts without a control miss what the source itself does: the family's controls"
        " end higher than they start, and on the kept runs lower. Therefore their intervals have room for a drift of the"
        f" source, with a standard deviation of {DRIFT_SPREAD:g} nats. Its size was chosen on the kept runs, but after the"
        " fresh ones had been seen, so that for forecasts these are no clean test. Before, the fresh ones held:"
        f" {held}."
    )
    headings = ("runs", "left out", "inside", "share", "binomial interval", "holds 80 %")
    return f"{text}\n\n{markdown_table(headings, rows)}"


def far_ends_text(far: Mapping[str, Sequence[Mapping]]) -> str:
    """Where the runs of the far larger source ended, and the intervals; "" where it was not run."""
    rows = []
    for law, found in far.items():
        for one in found:
            span, holds = f"{one['low']:.3f} to {one['high']:.3f}", one["low"] <= one["measured"] <= one["high"]
            figures = f"{one['measured']:.3f}", f"{one['predicted']:.3f}"
            rows.append((one["name"], law, *figures, span, "yes" if holds else "no"))
    headings = ("run", "predicted by", "last loss", "predicted", "80 % interval", "inside")
    text = "SmolLM2, a fifth of whose tokens was seen; the default is the run's own power law:"
    return f"{text}\n\n{markdown_table(headings, rows)}" if rows else ""


def regret_table(regret: Mapping[str, Sequence[Mapping[str, Mapping[str, Sequence[float]]]]]) -> str:
    """Mean regret by runs, price and policy."""
    policies, rows = ("with the law", "the run alone", "no stop"), []
    for runs, seeds in regret.items():
        prices = list(seeds[0])
        for name, taken in [*((f"{price} nats", [price]) for price in prices), ("mean", prices)]:
            found = [[one for seed in seeds for price in taken for one in seed[price].get(key, ())] for key in policies]
            rows.append((runs, name, *(f"{100 * fmean(values):.1f} %" if values else "" for values in found)))
    return markdown_table(("runs", "price of a whole run", *policies), rows)


def stops_text(
    regret: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], margins: Sequence[float], before: float
) -> str:
    """Why stops fail where the price is close to what a run gains, and what was done about losses that rise.

    Args:
        regret: of the kept seeds.
        margins: of the same, from ``law_judged.margins``.
        before: mean regret of the fresh runs when nothing was proposed where the loss rises.
    """
    rows = [seed[f"{MIDDLE_PRICE:g}"] for seed in regret]
    worse = [100 * (fmean(row["with the law"]) - fmean(row["no stop"])) for row in rows]
    return (
        f"At {MIDDLE_PRICE:g} nats no stop is better on the kept runs, by {', '.join(f'{one:.1f}' for one in worse)} % of"
        " the FLOPs in the three seeds. In the second half of these runs the measured loss falls"
        f" {', '.join(f'{one:.2f}' for one in margins)} times as fast as this price asks, so that a whole run is right."
        f" Forecasts of the gain scatter by {GAIN_SPREAD:.0%}, and many lie below the price there. The loss falls in spurts"
        " that all runs of a seed share, because they train on the same text in the same order. A stop only where the"
        " whole interval of the gain lies below the price mends this, but costs more at the higher price"
        " ([tried](scaling_law/registered.md)), so it was not taken. A price close to what a run gains decides little.\n\n"
        "Where the held-out loss rises, the gain counts as 0, so that a price stops the run. Before, there was no forecast"
        f" and no stop, and on the fresh runs the mean regret with the law was {100 * before:.1f} %. This was changed after"
        " that was seen. No kept run rises."
    )


BETTER_USE_TEXT = (
    "The callback compares a run with other shapes of its source, cut anew and trained with the FLOPs that the run has"
    " left. It speaks once, where the 80 % intervals make it certain that another shape ends lower. With a target loss it"
    " says so only where this run is certain to miss the target; otherwise it speaks where a smaller shape is certain to"
    f" reach it. Replayed are all runs, at up to {MAX_REPLAYED} checkpoints, each by a law of the other sources. The other"
    " shapes are the other fractions of its source, whose measured runs say whether it was right. Targets are the last"
    " losses of these. Where a run reaches its target after all, it counts as wrong that another shape ends lower."
    " `possible`: a shape was better at one of the checkpoints. That a larger shape ends lower is common, and says nothing"
    " of what it costs to use. The rule for a target was changed after its first results on the fresh runs"
    " ([registered](scaling_law/registered.md)), so that they are no clean test of it; the kept runs say nothing here."
)


def better_use_table(found: Mapping[str, Mapping[str, Sequence[Mapping]]]) -> str:
    """How often another shape was said to be better, and how often it was."""
    rows = []
    for runs, aims in found.items():
        for aim, replays in aims.items():
            said = [one for one in replays if one["said"] is not None]
            of_size = {size: [one for one in said if one["size"] == size] for size in ("smaller", "larger")}
            counts = [f"{sum(one['right'] for one in some)} of {len(some)}" for some in of_size.values()]
            possible = sum(one["possible"] for one in replays)
            rows.append((runs, aim, str(len(replays)), str(possible), str(len(said)), *counts))
    headings = ("runs", "aim", "replays", "possible", "said", "right of said: smaller", "right of said: larger")
    return markdown_table(headings, rows)


def rate_text(facts: dict) -> str:
    """What the crossed rates say."""
    (size, size_error), (rate, rate_error) = facts["ln size"], facts["ln rate"]
    return (
        f"At the last checkpoint, ln (L - L0) of {facts['num_runs']} runs of the family changes by {size:+.2f} ±"
        f" {size_error:.2f} for each e-fold of the size, and by {rate:+.2f} ± {rate_error:.2f} for each e-fold of the rate"
        " (one regression, with the fraction; standard errors take runs as independent). The rates are the same for all"
        " sizes, so the two are told apart; on the kept runs they were not."
    )


def decay_text(pairs: Sequence[dict]) -> str:
    """The measured correction for a late decay."""
    if not pairs:
        return "No pair of a late decay and a constant rate is there yet: the law speaks for constant rates alone."
    loss, control = fmean(pair["loss"] for pair in pairs), fmean(pair["control"] for pair in pairs)
    each = ", ".join(f"{pair['name']} {pair['loss']:+.3f}" for pair in pairs)
    return (
        "The law speaks for constant rates. With a linear decay to 0 over the last 30 % the last loss differed by"
        f" {loss:+.3f} nats at equal tokens ({each}), and the control's by {control:+.3f}. This is the correction that"
        " `plan` and the callback name."
    )


def laws_text(laws: Mapping[str, dict]) -> str:
    """Constants of the laws on the kept runs, and whether they are identified."""
    lines = ["Of the first kept seed, in natural units:", ""]
    for form, facts in laws.items():
        constants = ", ".join(f"{name} {value:.3g}" for name, value in facts["constants"].items())
        state = facts["identifiability"]
        condition = "infinite" if state["condition"] is None else f"{state['condition']:.1e}"
        loose = ", ".join(state["unidentified"]) or "none"
        lines.append(f"- `{form}`: {constants}. Condition number {condition}; not identified: {loose}.")
    return "\n".join(lines)


def draw_errors(facts: dict) -> None:
    """Errors of the predictors in each direction; a dot is a mean over judged runs."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in (*DIRECTIONS, *EXTRA) if name in facts["directions"]]
    for number, (method, colour) in enumerate(SHOWN.items()):
        found = [facts["directions"][name].get(method) for name in names]
        heights = [np.nan if row is None else 100 * fmean(row.values()) for row in found]
        places = np.arange(len(names)) + 0.09 * (number - len(SHOWN) / 2)
        axes.plot(places, heights, "o", color=colour, label=method, markersize=6)
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes.set_ylabel("error (% of mean L - L0)")
    axes.grid(axis="y", which="both", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save_picture(figure, ERRORS, 110)


def draw_curves(results: dict) -> None:
    """Runs of each member of the family, predicted from their start by a law fitted without it."""
    curves = [run for run in fresh_runs(results, CONSTANT, ONE_SHOT) if source_of(run) in FAMILY]
    asked = [run for run in curves if run.learning_rate == RATES[0] and run.name.split()[-1] in ("-25%", "-60%")]
    lines, points = [], []
    for run in asked:
        rest = [other for other in curves if source_of(other) != source_of(run)]
        with quietly():
            fit = fit_law(rest, num_bootstrap=40)
        seen = run.between(high=0.2 * run.tokens[-1])
        fit, level = fit.anchored(seen), run.case.source_loss
        tokens = np.geomspace(seen.tokens[-1], run.tokens[-1], 30)
        found = [fit.predict(run.case, value) for value in tokens]
        rows = {
            "loss": [one.value for one in found],
            "low": [one.low for one in found],
            "high": [one.high for one in found],
        }
        lines.append({"name": run.name, "tokens": tokens} | {key: np.array(row) - level for key, row in rows.items()})
        points.append({"name": run.name, "tokens": run.tokens, "loss": run.rises})
    title = "Sources left out of the fit, seen to the start of the line; dots measured, band 80 %"
    plot_law_curves(lines, CURVES, points=points, title=title, y_label="L - L0 (nats per token)")
    few_colours(CURVES)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="judge the fresh runs alone")
    parser.add_argument("--page", action="store_true", help="build the page from what was judged before")
    options = parser.parse_args(command_line)
    if not options.page:
        judged = json.loads(JUDGED.read_text(encoding="utf-8")) if JUDGED.is_file() else {}
        if not options.fresh or "kept" not in judged:
            judged["kept"] = judge_kept()
        judged["fresh"] = judge_fresh(FRESH)
        write_results(JUDGED, judged)
        draw_errors(judged["fresh"])
        draw_curves(json.loads(FRESH.read_text(encoding="utf-8")))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
