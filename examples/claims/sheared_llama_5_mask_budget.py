"""More tokens for the masks, and the same recovery after them.

python examples/claims/sheared_llama_5_mask_budget.py --stories STORIES260K TINYSTORIES
"""

import sys
from statistics import fmean

from study import Claim, SourceResults, Study, compare, main, markdown_table, mean_and_spread

CLAIM = Claim(
    name="sheared_llama_5_mask_budget",
    statement="More tokens in mask learning give a better model at the cut and after the same recovery",
    section="section 4",
    note="Four budgets for the masks, each with the same recovery. The weights learn together with the masks, so that an "
    "arm with more tokens for masks has trained on more tokens in all: what is gained is not the masks' alone, and "
    "there is no arm here that spends the difference on recovery.",
)


def runs(study: Study) -> None:
    for seed in study.seeds:
        for tokens in study.mask_tokens:
            study.run(
                {"mask_tokens": tokens, "seed": seed}, lambda seed=seed, tokens=tokens: sheared(study, seed, tokens)
            )


def sheared(study: Study, seed: int, tokens: int) -> dict:
    model, learned = study.learn(study.target(), tokens, seed)
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, study.num_tokens, seed)
    return recovery | study.judged(model) | {"before": before, "tokens": learned["tokens"] + recovery["tokens"]}


def checks(source: SourceResults) -> list:
    budgets = source.settings["mask_tokens"]
    return [
        compare(f"loss {when}, {more:,} tokens of masks below {fewer:,}",
                source.values(field, mask_tokens=more), source.values(field, mask_tokens=fewer))
        for when, field in (("at the cut", "before"), ("after recovery", "mean"))
        for fewer, more in zip(budgets, budgets[1:], strict=False)
    ]  # fmt: skip


def table(source: SourceResults) -> str:
    rows = [
        (f"{tokens:,}", *(mean_and_spread(source.values(field, mask_tokens=tokens)) for field in ("before", "mean")))
        for tokens in source.settings["mask_tokens"]
    ]
    return markdown_table(("tokens of mask learning", "loss at the cut", "loss after recovery"), rows)


def draw(source: SourceResults, axes) -> None:
    budgets = source.settings["mask_tokens"]
    for field, label in (("before", "at the cut"), ("mean", "after recovery")):
        axes.plot(budgets, [fmean(source.values(field, mask_tokens=tokens)) for tokens in budgets], "o-", label=label)
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{tokens / 1000:.0f}k" for tokens in budgets])
    axes.minorticks_off()
    axes.set_xlabel("tokens of mask learning")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
