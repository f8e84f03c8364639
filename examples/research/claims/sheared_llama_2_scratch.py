"""Sheared and continued against the same shape from random weights.

python -m examples.research.claims.sheared_llama_2_scratch --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import math
import sys
from statistics import fmean

from ..shared import HELD, LOST, mean_and_spread, spread_of
from .claim_command import main
from .claim_results import Check, Claim, SourceResults, compare, draw_means, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_2_scratch",
    statement="Sheared and continued, a model is better than its shape trained from scratch on as many tokens",
    section="section 3.2",
    note="Sheared: masks, then recovery, both counted. Scratch is given 1, 4 and more times the tokens, each with a "
    "cosine schedule. Learning rates are swept for each arm and budget on the first seed; the rate that is best there "
    "and the best of the budget before run on all seeds, and the better one counts. The tokens that the source itself was "
    "trained on are not charged: shearing pays where the source is there already, as the paper's is.",
)
SHEARED, SCRATCH = "sheared", "scratch"


def runs(study: Study) -> None:
    study.tune({"arm": SHEARED, "multiple": 1}, lambda *drawn: sheared(study, *drawn), study.learning_rate)
    rate = study.scratch_learning_rate
    for multiple in study.multiples:
        key = {"arm": SCRATCH, "multiple": multiple}
        rate = study.tune(key, lambda *drawn, multiple=multiple: scratch(study, multiple, *drawn), rate)


def sheared(study: Study, rate: float, seed: int) -> dict:
    mask_tokens = round(study.mask_share * study.num_tokens)
    model, learned = study.learn(study.target(), mask_tokens, seed, learning_rate=rate)
    model, recovery = study.train(model, study.num_tokens - learned["tokens"], seed, learning_rate=rate)
    return recovery | study.judged(model) | {"tokens": learned["tokens"] + recovery["tokens"]}


def scratch(study: Study, multiple: float, rate: float, seed: int) -> dict:
    model = study.scratch(study.target(), seed)
    model, facts = study.train(model, round(multiple * study.num_tokens), seed, learning_rate=rate)
    return facts | study.judged(model)


def scratch_losses(source: SourceResults) -> dict[float, list[float]]:
    """Losses of scratch, of each seed, by multiple of the tokens."""
    found = sorted({run["multiple"] for run in source.select(arm=SCRATCH)})
    return {multiple: source.losses(arm=SCRATCH, multiple=multiple) for multiple in found}


def catches_up(source: SourceResults) -> float | None:
    """Times the tokens at which scratch reaches the sheared loss, between measured points; None: at none of them.

    Where it is there at the fewest, these are taken.
    """
    goal = fmean(source.losses(arm=SHEARED))
    points = [(multiple, fmean(losses)) for multiple, losses in scratch_losses(source).items()]
    if points[0][1] <= goal:
        return points[0][0]
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        if before > goal >= after:
            share = (before - goal) / (before - after)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def checks(source: SourceResults) -> list:
    own, by_multiple = source.losses(arm=SHEARED), scratch_losses(source)
    found = [compare("loss at equal tokens, sheared below scratch", own, by_multiple[1])]
    ratio, largest = catches_up(source), max(by_multiple)
    text = f"scratch needs {ratio:.1f} times" if ratio else f"scratch needs more than {largest:g} times"
    found.append(Check(f"{text} the tokens to reach the sheared loss", HELD if ratio is None or ratio > 1 else LOST))
    return found


def table(source: SourceResults) -> str:
    rows = []
    for arm, multiple in ((SHEARED, 1), *((SCRATCH, multiple) for multiple in scratch_losses(source))):
        chosen = source.tuned(arm=arm, multiple=multiple)
        loss = mean_and_spread([run["mean"] for run in chosen])
        rates = ", ".join(f"{rate:g}" for rate in sorted(source.sweep(arm=arm, multiple=multiple)))
        rows.append((arm, f"{multiple:g}", f"{chosen[0]['tokens']:,}", f"{chosen[0]['rate']:g}", rates, loss))
    headings = ("arm", "times the tokens", "tokens", "learning rate", "rates tried", "held-out loss")
    return markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    losses, own = scratch_losses(source), source.losses(arm=SHEARED)
    draw_means(axes, list(losses), list(losses.values()), label=SCRATCH)
    axes.axhline(fmean(own), color="C1", label=f"{SHEARED}, once the tokens")
    axes.axhspan(fmean(own) - spread_of(own), fmean(own) + spread_of(own), color="C1", alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(list(losses), [f"{multiple:g}" for multiple in losses])
    axes.minorticks_off()
    axes.set_xlabel("training tokens, in multiples of the sheared model's")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
