"""How many tokens recovery needs, by the fraction removed and by the size of the source: measured, not fitted.

python examples/claims/p2_law_3_how_many_tokens.py --data_dir SEVEN_DOMAINS
"""

import sys
from statistics import fmean

import numpy as np
from p2_runs import recovery_runs
from study import HELD, LOST, Check, Claim, SourceResults, Study, main, markdown_table

CLAIM = Claim(
    name="p2_law_3_how_many_tokens",
    statement="A larger fraction removed needs more recovery tokens, a larger source fewer",
    section="section 4",
    note="The runs of claim 1, which takes the time. "
    "Measured: the tokens at which L - L0 has come down to the same height in every run, "
    "between checkpoints by interpolation. The height is the highest last L - L0 of all runs, so that every run gets "
    "there. The second part depends on how well the sources were trained, which here saw as many tokens as each other.",
)


def runs(study: Study) -> None:
    for seed in study.seeds:
        found = recovery_runs(study, seed)
        height = max(last(run) for run in found)
        for run in found:
            size, _, fraction = run.name.partition(" -")
            key = {"size": int(size), "fraction": fraction, "seed": seed}
            study.run(key, lambda run=run, height=height: reached(run, height))


def last(run) -> float:
    """Mean of the last checkpoints: single ones scatter."""
    return float(np.mean(run.rises[-3:]))


def reached(run, height: float) -> dict:
    """Tokens at which L - L0, made monotonic from the end, is down to ``height``."""
    rises = np.minimum.accumulate(run.rises)
    below = int(np.argmax(rises <= height))
    if below == 0:  # before the first checkpoint
        return {"needed": float(run.tokens[0]), "height": height, "tokens": 0}
    share = (rises[below - 1] - height) / (rises[below - 1] - rises[below])
    low, high = np.log(run.tokens[below - 1]), np.log(run.tokens[below])
    return {"needed": float(np.exp(low + share * (high - low))), "height": height, "tokens": 0}


def needed(source: SourceResults, size: int, fraction: str) -> float:
    return fmean(source.values("needed", size=size, fraction=fraction))


def axes_of(source: SourceResults) -> tuple[list[int], list[str]]:
    """Sizes and fractions, rising."""
    sizes = sorted({run["size"] for run in source.runs})
    return sizes, sorted({run["fraction"] for run in source.runs}, key=lambda text: int(text.rstrip("%")))


def checks(source: SourceResults) -> list:
    sizes, fractions = axes_of(source)
    found = []
    for size in sizes:
        values = [needed(source, size, fraction) for fraction in fractions]
        text = f"source {size}: more tokens for each larger fraction ({', '.join(f'{v:,.0f}' for v in values)})"
        found.append(Check(text, HELD if values == sorted(values) else LOST))
    for fraction in fractions:
        values = [needed(source, size, fraction) for size in sizes]
        text = f"{fraction} removed: fewer tokens for each larger source ({', '.join(f'{v:,.0f}' for v in values)})"
        found.append(Check(text, HELD if values == sorted(values, reverse=True) else LOST))
    return found


def table(source: SourceResults) -> str:
    sizes, fractions = axes_of(source)
    height = source.runs[0]["height"]
    rows = [(size, *(f"{needed(source, size, fraction):,.0f}" for fraction in fractions)) for size in sizes]
    headings = ("source, hidden size", *(f"{fraction} removed" for fraction in fractions))
    return f"Tokens until L - L0 is {height:.3f} nats:\n\n" + markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    sizes, fractions = axes_of(source)
    for number, size in enumerate(sizes):
        values = [needed(source, size, fraction) for fraction in fractions]
        axes.plot(fractions, values, "o-", color=f"C{number}", label=str(size))
    axes.set_yscale("log")
    axes.set_xlabel("fraction removed")
    axes.set_ylabel(f"tokens until L - L0 is {source.runs[0]['height']:.3f}")
    axes.legend(frameon=False, title="hidden size of the source", fontsize=8)


if __name__ == "__main__":
    main(sys.modules[__name__])
