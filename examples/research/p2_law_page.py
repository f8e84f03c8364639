"""Fit the runs of examples/research/p2_law.py, test what the law predicts, and build model_cards/scaling_law.md.

    python -m examples.research.p2_law_page  # fit model_cards/scaling_law/*.json anew, draw, and write the page
    python -m examples.research.p2_law_page --page  # the page alone, from the fits that are there

A fit is kept beside its runs as NAME.fit.json, and every number on the page comes from there; a test rebuilds the page
and compares, and a slow one fits anew.
"""

import argparse
import json
import warnings
from pathlib import Path
from statistics import fmean

import numpy as np

from hf_shear.core import write_results
from hf_shear.report import plot_law_curves
from hf_shear.scaling_law import TEST_NAMES, LawFit, ScalingLawWarning, fit_law, generalisation_errors
from hf_shear.scaling_law.estimates import interval

from .p2_law import law_runs, todays_code
from .provenance import BEFORE, noted, stale_note
from .shared import HELD, LOST, ROOT, TIE, UNKNOWN, few_colours, percent, state_of

RESULTS = ROOT / "model_cards" / "scaling_law"
PAGE = ROOT / "model_cards" / "scaling_law.md"
FIT_SUFFIX = ".fit.json"
LAWS = ("p2", "p2_five", "chinchilla")
RELATIVE = "p2, relative"
SEED_MARK = "-seed-"
"""NAME.json holds the runs of a family's first seed, NAME-seed-N.json those of another one."""
NUM_BOOTSTRAP = 200
GAIN = 0.01  # nats per doubling

INTRODUCTION = """# The P2 law, measured

Recovery runs of `examples/research/p2_law.py`: every member of a family of sources
(`examples/research/family/train_family.py`) pruned in one shot to three fractions and trained on at a constant learning
rate, with its control (the same source, unpruned, on the same tokens in the same order). A seed stands for another
calibration draw and another order of the text. Fitted by `hf_shear.scaling_law`; how to read and use it:
[scaling_law.md](../examples/docs/scaling_law.md).

Errors are mean |predicted - measured loss| / mean (L - L0) over the checkpoints of a run, and the mean over runs. The three
tests are those of arXiv 2411.10272: the last 20 % of the tokens, the largest source, the largest fraction; each is fitted
without what it is asked for. `carried` keeps the last L - L0 that was seen; `power_law` is one fitted to the run alone. In
the tests of size and fraction both see the first 20 % of the run, which the law does not; `neighbour` takes L - L0 of the
nearest run that was fitted. `p2` and `p2_five` are told the control's loss at each checkpoint;
`p2, relative` is fitted to residuals relative to the mean L - L0 of their run. The verdicts are on `p2`, as in
the paper: the law wins, or loses, if the 95 % interval of the differences over the seeds does not hold 0."""

VERDICTS = {
    HELD: "wins",
    TIE: "is level with the best baseline",
    LOST: "does not win",
    UNKNOWN: "has no verdict, from one seed",
}
TEST_TITLES = {"tokens": "last 20 % of tokens", "size": "largest source", "fraction": "largest fraction"}


def analyse(path: Path) -> dict:
    """Fits and tests of one file of runs, JSON-ready."""
    results = json.loads(path.read_text(encoding="utf-8"))
    analysis = {"settings": results["settings"], "versions": results["versions"]}
    for name, controls in (("controlled", True), ("uncontrolled", False)):
        runs = law_runs(results, controls)
        analysis[name] = {"tests": {test: all_errors(runs, test) for test in tests_of(runs)}}
    analysis["controlled"] |= fit_facts(law_runs(results))
    return analysis


def all_errors(runs, test: str) -> list[dict]:
    """Laws, the first of them with relative residuals as well, and baselines."""
    rows = generalisation_errors(runs, test, LAWS)
    relative = generalisation_errors(runs, test, LAWS[:1], baselines=False, weighting="relative")[0]
    return [*rows, relative | {"method": RELATIVE}]


def tests_of(runs) -> list[str]:
    """The tests that there are enough sizes and fractions for."""
    sizes = [run.case.num_parameters for run in runs]
    enough = {"tokens": True, "size": len(set(sizes)) >= 3, "fraction": min(map(sizes.count, sizes)) >= 3}
    return [test for test in TEST_NAMES if enough[test]]


def fit_facts(runs) -> dict:
    """The pooled fit of all runs: constants with intervals, report, and what it says of each model."""
    fit = quiet_fit(runs)
    spread = {}
    for index, name in enumerate(fit.form.constants):
        low, high = interval(fit.samples[:, index])
        value = float(fit.theta[index])
        spread[name] = {"value": value, "low": low, "high": high, "is_log": name in fit.form.scales}
    saturation = {run.name: fit.saturation_tokens(run.case, GAIN).to_dict() for run in runs}
    facts = {"form": fit.form.name, "constants": spread, "report": fit.report.to_dict(), "saturation": saturation}
    return facts | {"num_runs": len(runs), "num_checkpoints": min(len(run.tokens) for run in runs)}


def quiet_fit(runs) -> LawFit:
    """A fit whose warnings go to the page and not to the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)
        return fit_law(runs, num_bootstrap=NUM_BOOTSTRAP)


def draw(path: Path) -> None:
    """L - L0 of every run and of the law, a picture for each fraction."""
    results = json.loads(path.read_text(encoding="utf-8"))
    runs = law_runs(results)
    fit = quiet_fit(runs)
    for fraction in results["settings"]["fractions"]:
        curves, points = [], []
        for run in (run for run in runs if run.name.endswith(f"-{fraction:.0%}")):
            tokens = np.geomspace(run.tokens[0], 4 * run.tokens[-1], 200)
            base = run.case.source_loss
            samples = np.array([curve.predict(tokens) - base for curve in fit.sample_curves(run.case)])
            size = f"hidden size {run.name.partition(' ')[0]}"
            row = {"name": size, "tokens": tokens, "loss": fit.curve(run.case).predict(tokens) - base}
            if len(samples):
                row |= dict(zip(("low", "high"), np.array([interval(column) for column in samples.T]).T, strict=True))
            curves.append(row | {"fitted": fit.fitted["tokens"]})
            points.append({"name": size, "tokens": run.tokens, "loss": run.rises})
        title = f"{fraction:.0%} removed: dots measured, lines the law (solid where fitted), bands 90 %"
        picture = RESULTS / f"{path.stem}-{100 * fraction:.0f}.png"
        plot_law_curves(curves, picture, points=points, title=title, y_label="L - L0 (nats per token)")
        few_colours(picture)


def page() -> str:
    """The page from the fits."""
    parts = [INTRODUCTION]
    if note := stale_note(codes(), todays_code(), "python -m examples.research.p2_law ..., for each seed"):
        parts[0] = noted(note, INTRODUCTION)
    families: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob(f"*{FIT_SUFFIX}")):
        family = path.name.removesuffix(FIT_SUFFIX).partition(SEED_MARK)[0]
        families.setdefault(family, []).append(json.loads(path.read_text(encoding="utf-8")))
    for family, analyses in families.items():
        parts += section(family, sorted(analyses, key=lambda analysis: analysis["settings"]["seed"]))
    return "\n\n".join(parts) + "\n"


def codes() -> list[dict]:
    """Of the code that made the runs of all families and seeds."""
    paths = [path for path in sorted(RESULTS.glob("*.json")) if not path.name.endswith(FIT_SUFFIX)]
    found = [one for path in paths for one in json.loads(path.read_text(encoding="utf-8")).get("code", [BEFORE])]
    return list({one["digest"]: one for one in found}.values())


def section(name: str, analyses: list[dict]) -> list[str]:
    """One family, the analyses by seed."""
    settings, mains = analyses[0]["settings"], [analysis["controlled"] for analysis in analyses]
    main, seeds = mains[0], [analysis["settings"]["seed"] for analysis in analyses]
    of_seeds = (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}, mean ± standard deviation"
    )
    text = (
        f"{main['num_runs']} runs of {settings['num_tokens']:,} tokens with {main['num_checkpoints']} checkpoints each,"
        f" {settings['criterion']}, learning rate {settings['learning_rate']:g} x 128 / hidden size,"
        f" {of_seeds}."
    )
    tests = errors_by_test([main["tests"] for main in mains])
    uncontrolled = errors_by_test([analysis["uncontrolled"]["tests"] for analysis in analyses])
    parts = [f"## {name}", text, "### Does it predict?", tests_table(tests), verdicts(tests)]
    parts += ["Without controls (L0 is the source as it was), the same:", tests_table(uncontrolled)]
    for seed, own in zip(seeds, mains, strict=True):
        parts += [f"### The fit of all runs, seed {seed}", constants_text(own)]
    parts += [f"The runs of seed {seeds[0]}:", runs_table(main)]
    pictures = sorted(RESULTS.glob(f"{name}-*.png"))
    return parts + [f"![L - L0 of {picture.stem}](scaling_law/{picture.name})" for picture in pictures]


def errors_by_test(analyses: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Relative errors by test and method, one of each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for tests in analyses:
        for test, rows in tests.items():
            for row in rows:
                found.setdefault(test, {}).setdefault(row["method"], []).append(row["relative_error"])
    return found


def tests_table(tests: dict[str, dict[str, list[float]]]) -> str:
    """Error of each method in each test; the lowest of a column is bold."""
    methods = list(dict.fromkeys(method for rows in tests.values() for method in rows))
    lines = ["| method | " + " | ".join(TEST_TITLES[test] for test in tests) + " |", "|---" * (len(tests) + 1) + "|"]
    for method in methods:
        cells = []
        for rows in tests.values():
            text = "" if method not in rows else percent(rows[method])
            best = min(rows, key=lambda name, rows=rows: fmean(rows[name]))
            cells.append(f"**{text}**" if method == best else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(tests: dict[str, dict[str, list[float]]]) -> str:
    """For each test, whether the P2 law beats every baseline."""
    lines = []
    for test, rows in tests.items():
        baseline = min((name for name in rows if name not in (*LAWS, RELATIVE)), key=lambda name: fmean(rows[name]))
        own, rival = rows["p2"], rows[baseline]
        won = VERDICTS[state_of(own, rival)]
        best = f"the best baseline is `{baseline}` at {percent(rival)}"
        lines.append(f"- {TEST_TITLES[test]}: the P2 law {won}: {percent(own)}; {best}.")
    return "\n".join(lines)


def constants_text(facts: dict) -> str:
    """Constants with their intervals, scales as natural logarithms, and what to be careful about."""
    cells = []
    for name, row in facts["constants"].items():
        label = f"ln {name}" if row["is_log"] else name
        span = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
        cells.append(f"{label} {row['value']:.2f}{span}")
    report = facts["report"]
    state = report["identifiability"]
    condition = "infinite" if state["condition"] is None else f"{state['condition']:.1e}"
    lines = [f"Form `{facts['form']}`, natural units, 90 % intervals over runs drawn anew: " + ", ".join(cells) + ".",
             f"Condition number {condition}; not identified: {', '.join(state['unidentified']) or 'none'}."]  # fmt: skip
    return "\n".join(lines + [f"- Careful: {text}" for text in report["warnings"]])


def runs_table(facts: dict) -> str:
    """Quality of each run, and its saturation tokens."""
    lines = [
        f"| run | parameters | removed | R² | error of L - L0 | ASD (nats per million tokens) | tokens until a doubling"
        f" gains < {GAIN:g} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["report"]["runs"]:
        tokens = facts["saturation"][row["name"]]["value"]
        r_squared = "" if row["r_squared"] is None else f"{row['r_squared']:.2f}"
        lines.append(
            f"| {row['name']} | {row['num_parameters']:,} | {row['fraction_removed']:.1%} | {r_squared} |"
            f" {row['relative_error']:.1%} | {1e6 * row['slope_difference']:.4f} | {tokens:,.2g} |"
        )
    mean = fmean(row["relative_error"] for row in facts["report"]["runs"])
    return "\n".join([*lines, "", f"Mean error of L - L0 over the runs: {mean:.1%}."])


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", action="store_true", help="build the page from the fits that are there")
    if not parser.parse_args(command_line).page:
        for path in sorted(RESULTS.glob("*.json")):
            if not path.name.endswith(FIT_SUFFIX):
                write_results(path.with_name(path.stem + FIT_SUFFIX), analyse(path))
                if SEED_MARK not in path.name:
                    draw(path)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
