"""Sheared and continued against the same shape from random weights.

python examples/claims/sheared_llama_2_scratch.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import json
import math
import sys
from pathlib import Path
from statistics import fmean

from study import HELD, LOST, Check, Claim, SourceResults, Study, compare, main, markdown_table, mean_and_spread

CLAIM = Claim(
    name="sheared_llama_2_scratch",
    statement="Sheared and continued, a model is better than its shape trained from scratch on as many tokens",
    section="section 3.2",
    note="Sheared: masks, then recovery, both counted. Scratch is given 1, 4 and more times the tokens, each with a "
    "cosine schedule and one learning rate for each source and arm, the same at all budgets; on stories260K the "
    "longer runs from scratch would like a lower one. Where the source's own training tokens are known, scratch "
    "also gets those on top: the whole pipeline's. Scratch at the whole pipeline's tokens has seen twenty times the "
    "text: shearing pays where the source is there already, as the paper's is.",
)
SHEARED, SCRATCH = "sheared", "scratch"


def runs(study: Study) -> None:
    for seed in study.seeds:
        study.run({"arm": SHEARED, "multiple": 1, "seed": seed}, lambda seed=seed: sheared(study, seed))
        for multiple in multiples(study):
            key = {"arm": SCRATCH, "multiple": multiple, "seed": seed}
            study.run(key, lambda seed=seed, multiple=multiple: scratch(study, seed, multiple))


def multiples(study: Study) -> list[float]:
    return [*study.multiples, *([pipeline_multiple(study)] if study.settings.get("pipeline") else [])]


def pipeline_multiple(study: Study) -> float:
    facts = json.loads((Path(study.path) / "source.json").read_text(encoding="utf-8"))
    return round(1 + facts["tokens"] / study.num_tokens, 2)


def sheared(study: Study, seed: int) -> dict:
    mask_tokens = round(study.mask_share * study.num_tokens)
    model, learned = study.learn(study.target(), mask_tokens, seed)
    model, recovery = study.train(model, study.num_tokens - learned["tokens"], seed)
    return recovery | study.judged(model) | {"tokens": learned["tokens"] + recovery["tokens"]}


def scratch(study: Study, seed: int, multiple: float) -> dict:
    model = study.scratch(study.target(), seed)
    tokens = round(multiple * study.num_tokens)
    model, facts = study.train(model, tokens, seed, learning_rate=study.scratch_learning_rate)
    return facts | study.judged(model)


def means(source: SourceResults) -> dict[float, float]:
    """Mean loss of scratch by multiple of the tokens, whole multiples and that of the pipeline."""
    found = sorted({run["multiple"] for run in source.select(arm=SCRATCH)})
    return {multiple: fmean(source.values("mean", arm=SCRATCH, multiple=multiple)) for multiple in found}


def catches_up(source: SourceResults) -> float | None:
    """Times the tokens at which scratch reaches the sheared loss, between measured points; None: at none of them."""
    goal, points = fmean(source.values("mean", arm=SHEARED)), list(means(source).items())
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        if before > goal >= after:
            share = (before - goal) / (before - after)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def checks(source: SourceResults) -> list:
    own = source.values("mean", arm=SHEARED)
    found = [
        compare("loss at equal tokens, sheared below scratch", own, source.values("mean", arm=SCRATCH, multiple=1))
    ]
    ratio, largest = catches_up(source), max(means(source))
    text = f"scratch needs {ratio:.1f} times" if ratio else f"scratch needs more than {largest:g} times"
    found.append(Check(f"{text} the tokens to reach the sheared loss", HELD if ratio is None or ratio > 1 else LOST))
    if source.settings.get("pipeline"):
        rival = source.values("mean", arm=SCRATCH, multiple=largest)
        found.append(
            compare(f"loss, sheared below scratch at the whole pipeline's tokens ({largest:g} times)", own, rival)
        )
    return found


def table(source: SourceResults) -> str:
    rows = []
    for arm, multiple in ((SHEARED, 1), *((SCRATCH, multiple) for multiple in means(source))):
        chosen = source.select(arm=arm, multiple=multiple)
        rows.append(
            (arm, f"{multiple:g}", f"{chosen[0]['tokens']:,}", mean_and_spread([run["mean"] for run in chosen]))
        )
    return markdown_table(("arm", "times the tokens", "tokens", "held-out loss"), rows)


def draw(source: SourceResults, axes) -> None:
    points = means(source)
    axes.plot(list(points), list(points.values()), "o-", label=SCRATCH)
    axes.axhline(fmean(source.values("mean", arm=SHEARED)), color="C1", label=f"{SHEARED}, 1 time")
    axes.set_xscale("log")
    axes.set_xticks(list(points), [f"{multiple:g}" for multiple in points])
    axes.minorticks_off()
    axes.set_xlabel("times the tokens")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
