"""More tokens for the masks, with the same recovery after them, and at equal tokens in all.

python -m examples.research.claims.sheared_llama_5_mask_budget --stories STORIES260K TINYSTORIES
"""

import sys

from ..shared import mean_and_spread
from .claim_command import main
from .claim_results import Claim, SourceResults, compare, draw_means, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_5_mask_budget",
    statement="More tokens in mask learning give a better model at the cut, after the same recovery, and at equal tokens",
    section="section 4",
    note="Four budgets for the masks. The weights learn together with the masks, so that with the same recovery an arm "
    "with more tokens for masks has trained on more tokens in all. At equal tokens recovery gets what the masks leave "
    "of the largest arm's. There what masks gain, recovery loses: between the ends lies a best share, and the largest "
    "budget leaves recovery only a quarter of the tokens, which is too little here.",
)
SAME, REST = "same recovery", "equal tokens"


def runs(study: Study) -> None:
    for seed in study.seeds:
        for recovery, tokens in arms(study.settings):
            key = {"recovery": recovery, "mask_tokens": tokens, "seed": seed}
            study.run(key, lambda key=key: sheared(study, **key))


def arms(settings: dict) -> list[tuple[str, int]]:
    """Kind of recovery and tokens for the masks; the largest budget has the same recovery in both."""
    budgets = settings["mask_tokens"]
    return [(SAME, tokens) for tokens in budgets] + [(REST, tokens) for tokens in budgets[:-1]]


def sheared(study: Study, recovery: str, mask_tokens: int, seed: int) -> dict:
    model, learned = study.learn(study.target(), mask_tokens, seed)
    before = study.judged(model)["mean"]
    spare = 0 if recovery == SAME else max(study.mask_tokens) - learned["tokens"]
    model, recovered = study.train(model, study.num_tokens + spare, seed)
    return recovered | study.judged(model) | {"before": before, "tokens": learned["tokens"] + recovered["tokens"]}


def losses(source: SourceResults, recovery: str, tokens: int, field: str = "mean") -> list[float]:
    """Of each seed."""
    recovery = SAME if tokens == max(source.settings["mask_tokens"]) else recovery
    return source.values(field, recovery=recovery, mask_tokens=tokens)


MEASURES = (
    ("at the cut", SAME, "before"),
    ("after the same recovery", SAME, "mean"),
    ("at equal tokens", REST, "mean"),
)


def checks(source: SourceResults) -> list:
    budgets = source.settings["mask_tokens"]
    return [
        compare(f"loss {when}, {more:,} tokens of masks below {fewer:,}",
                losses(source, recovery, more, field), losses(source, recovery, fewer, field))
        for when, recovery, field in MEASURES
        for fewer, more in zip(budgets, budgets[1:], strict=False)
    ]  # fmt: skip


def table(source: SourceResults) -> str:
    rows = [
        (f"{tokens:,}", *(mean_and_spread(losses(source, recovery, tokens, field)) for _, recovery, field in MEASURES))
        for tokens in source.settings["mask_tokens"]
    ]
    return markdown_table(("tokens of mask learning", *(f"loss {when}" for when, _, _ in MEASURES)), rows)


def draw(source: SourceResults, axes) -> None:
    budgets = source.settings["mask_tokens"]
    for when, recovery, field in MEASURES:
        found = [losses(source, recovery, tokens, field) for tokens in budgets]
        draw_means(axes, budgets, found, label=when)
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{tokens / 1000:.0f}k" for tokens in budgets])
    axes.minorticks_off()
    axes.set_xlabel("tokens of mask learning")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
