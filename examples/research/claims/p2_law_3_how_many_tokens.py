"""How many tokens recovery needs, by the fraction removed and by the size of the source: measured, not fitted.

python -m examples.research.claims.p2_law_3_how_many_tokens --data_dir SEVEN_DOMAINS
"""

import sys
from statistics import fmean

import numpy as np

from ..shared import HELD, LOST, TIE, UNKNOWN, mean_and_spread, state_of
from .claim_command import main
from .claim_results import Check, Claim, SourceResults, draw_means, markdown_table
from .p2_runs import recovery_runs
from .study import Study

CLAIM = Claim(
    name="p2_law_3_how_many_tokens",
    statement="A larger fraction removed needs more recovery tokens, a larger source fewer",
    section="section 4",
    note="The runs of claim 1, which takes the time. "
    "Measured: the tokens at which L - L0 has come down to the same height in every run, "
    "between checkpoints by interpolation. The height is the highest last L - L0 of all runs, so that every run gets "
    "there. A run that is below it at its first checkpoint counts as that checkpoint (at most), so the mildest cuts of "
    "64, 128 and 192 cannot be told apart. The second part depends on how well the sources were trained, which here saw "
    "as many tokens as each other, and on how much a one-shot cut happens to hit: the source of 96 lost more at the "
    "smallest fraction than its neighbours.",
)


def runs(study: Study) -> None:
    found = {seed: recovery_runs(study, seed)[0] for seed in study.seeds}
    height = max(last(run) for own in found.values() for run in own)
    for seed, own in found.items():
        for run in own:
            size, _, fraction = run.name.partition(" -")
            key = {"size": int(size), "fraction": fraction, "seed": seed}
            study.run(key, lambda run=run, height=height: reached(run, height))


def last(run) -> float:
    """Mean of the last checkpoints: single ones scatter."""
    return float(np.mean(run.rises[-3:]))


def reached(run, height: float) -> dict:
    """Tokens at which L - L0, made monotonic from the start, is down to ``height``."""
    rises = np.minimum.accumulate(run.rises)
    below = int(np.argmax(rises <= height))
    if below == 0:  # before the first checkpoint
        return {"needed": float(run.tokens[0]), "at_most": True, "height": height, "tokens": 0}
    share = (rises[below - 1] - height) / (rises[below - 1] - rises[below])
    low, high = np.log(run.tokens[below - 1]), np.log(run.tokens[below])
    return {"needed": float(np.exp(low + share * (high - low))), "at_most": False, "height": height, "tokens": 0}


def needed(source: SourceResults, size: int, fraction: str) -> list[float]:
    """Of each seed."""
    return source.values("needed", size=size, fraction=fraction)


def axes_of(source: SourceResults) -> tuple[list[int], list[str]]:
    """Sizes and fractions, rising."""
    sizes = sorted({run["size"] for run in source.runs})
    return sizes, sorted({run["fraction"] for run in source.runs}, key=lambda text: int(text.rstrip("%")))


def checks(source: SourceResults) -> list:
    sizes, fractions = axes_of(source)
    found = []
    for size in sizes:
        values = [needed(source, size, fraction) for fraction in fractions]
        cells = ", ".join(cell(source, size, fraction) for fraction in fractions)
        text = f"source {size}: more tokens for each larger fraction ({cells} thousand)"
        found.append(Check(text, rising(values)))
    for fraction in fractions:
        values = [needed(source, size, fraction) for size in sizes]
        cells = ", ".join(cell(source, size, fraction) for size in sizes)
        text = f"{fraction} removed: fewer tokens for each larger source ({cells} thousand)"
        found.append(Check(text, rising(values[::-1])))
    return found


def rising(values: list[list[float]]) -> str:
    """HELD if each is above the one before, LOST if one is below, by the intervals of their paired differences."""
    states = {state_of(lower, higher) for lower, higher in zip(values, values[1:], strict=False)}
    return next(state for state in (LOST, UNKNOWN, TIE, HELD) if state in states)


def thousands(values: list[float]) -> str:
    return mean_and_spread([value / 1000 for value in values], 0)


def at_most(source: SourceResults, size: int, fraction: str) -> bool:
    """Whether a seed was there before its first checkpoint."""
    return any(source.values("at_most", size=size, fraction=fraction))


def cell(source: SourceResults, size: int, fraction: str) -> str:
    return ("at most " if at_most(source, size, fraction) else "") + thousands(needed(source, size, fraction))


def table(source: SourceResults) -> str:
    sizes, fractions = axes_of(source)
    height = source.runs[0]["height"]
    rows = [(size, *(cell(source, size, fraction) for fraction in fractions)) for size in sizes]
    headings = ("source, hidden size", *(f"{fraction} removed" for fraction in fractions))
    return f"Thousands of tokens until L - L0 is {height:.3f} nats:\n\n" + markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    sizes, fractions = axes_of(source)
    for number, size in enumerate(sizes):
        values = [needed(source, size, fraction) for fraction in fractions]
        width = 3.0 - 0.6 * number  # of two lines in one place both are seen
        draw_means(axes, fractions, values, color=f"C{number}", label=str(size), linewidth=width)
        for fraction, found in zip(fractions, values, strict=True):
            if at_most(source, size, fraction):
                axes.plot(fraction, fmean(found), "o", color=f"C{number}", markerfacecolor="w", zorder=3)
    axes.plot([], [], "o", color="0.3", markerfacecolor="w", label="at most: before\nthe first checkpoint")
    axes.set_yscale("log")
    axes.set_xlabel("share of the parameters removed")
    axes.set_ylabel(f"recovery tokens until L - L0 is {source.runs[0]['height']:.3f} nats per token")
    axes.legend(frameon=False, title="hidden size of the source", fontsize=8)


if __name__ == "__main__":
    main(sys.modules[__name__])
