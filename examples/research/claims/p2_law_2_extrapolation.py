"""What the P2 law says of tokens, sizes and fractions that it has not seen, against guesses without a law.

python -m examples.research.claims.p2_law_2_extrapolation --data_dir SEVEN_DOMAINS
"""

import sys
import warnings
from statistics import fmean

from hf_shear.scaling_law import TEST_NAMES, ScalingLawWarning, generalisation_errors

from ..shared import percent, spread_of, state_of
from .claim_command import main
from .claim_results import Check, Claim, SourceResults, markdown_table
from .p2_runs import recovery_runs
from .study import Study

CLAIM = Claim(
    name="p2_law_2_extrapolation",
    statement="The law predicts later tokens, a larger source and a larger fraction, better than guesses without a law",
    section="section 5",
    note="The runs of claim 1, which takes the time. Errors are mean |predicted - measured loss| over mean (L - L0) of a "
    "run, and the mean over the runs that were held out. `carried` keeps the last L - L0 that was seen, `power_law` "
    "is one fitted to that run alone; for sizes and fractions both see the first 20 % of the held-out run, which "
    "the law does not, and `neighbour` takes L - L0 of the nearest run that was fitted. Why it may not hold: in the "
    "last fifth of a run L - L0 is nearly flat here, so that the last value is hard to beat, by a law that misses "
    "single runs by as much as claim 1 says; and four sizes within one decade leave the part of the size open, "
    "while a neighbour is close. A guess that scatters as much over the seeds as a power law fitted to a fifth of "
    "one run makes even a large gap a tie.",
)
LAW = "p2"
COLOURS = {LAW: "C1", "carried": "0.75", "power_law": "C9", "neighbour": "C0"}
WORDS = {LAW: "P2 law", "carried": "last value", "power_law": "power law", "neighbour": "nearest run"}
TITLES = {"tokens": "last 20 % of the tokens", "size": "largest source", "fraction": "largest fraction"}


def runs(study: Study) -> None:
    for seed in study.seeds:
        found, _ = recovery_runs(study, seed)
        for test in TEST_NAMES:
            study.run({"test": test, "seed": seed}, lambda test=test, found=found: errors(found, test))


def errors(found, test: str) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)
        rows = generalisation_errors(found, test, (LAW,))
    return {"errors": {row["method"]: row["relative_error"] for row in rows}, "tokens": 0}


def errors_of(source: SourceResults, test: str) -> dict[str, list[float]]:
    """By method, of each seed."""
    found = [run["errors"] for run in source.select(test=test)]
    return {method: [errors[method] for errors in found] for method in found[0]}


def checks(source: SourceResults) -> list:
    result = []
    for test in TEST_NAMES:
        errors = errors_of(source, test)
        own = errors.pop(LAW)
        best = min(errors, key=lambda method: fmean(errors[method]))
        text = f"{TITLES[test]}, error of the law below the best guess' ({best}): {percent(own)} against"
        result.append(Check(f"{text} {percent(errors[best])}", state_of(own, errors[best])))
    return result


def table(source: SourceResults) -> str:
    by_test = {test: errors_of(source, test) for test in TEST_NAMES}
    methods = list(dict.fromkeys(method for errors in by_test.values() for method in errors))
    rows = [
        (method, *(percent(errors[method]) if method in errors else "" for errors in by_test.values()))
        for method in methods
    ]
    return markdown_table(("method", *TITLES.values()), rows)


def draw(source: SourceResults, axes) -> None:
    for place, test in enumerate(TEST_NAMES):
        for number, (method, errors) in enumerate(errors_of(source, test).items()):
            left, height, spread = place + 0.2 * number, 100 * fmean(errors), 100 * spread_of(errors)
            axes.bar(left, height, yerr=spread, width=0.18, color=COLOURS[method], ecolor="0.3", capsize=2)
            axes.text(left, height + spread, f" {WORDS[method]}", rotation=90, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(
        [place + 0.3 for place in range(len(TEST_NAMES))], [TITLES[test] for test in TEST_NAMES], fontsize=8
    )
    axes.set_ylabel("error (% of mean L - L0)")
    axes.margins(y=0.35)


if __name__ == "__main__":
    main(sys.modules[__name__])
