"""Learned masks against what is decided at once, at equal tokens and at equal FLOPs.

python examples/claims/sheared_llama_3_one_shot.py --stories STORIES260K TINYSTORIES
"""

import sys

from study import Claim, SourceResults, Study, compare, main, markdown_table, mean_and_spread
from transformers import AutoConfig

from hf_shear.recovery.flops import training_flops_per_token

CLAIM = Claim(
    name="sheared_llama_3_one_shot",
    statement="Learned masks beat the best one-shot criterion, with and without compensation",
    section="section 4",
    note="All arms have the same shape and the same recovery. At equal FLOPs, one-shot pruning trains on what mask "
    "learning costs, in tokens of the small model; its calibration passes are not charged. The masks are this "
    "library's default (relaxed top-k, from a Taylor start). One learning rate for all arms. At equal FLOPs learned "
    "masks lose part of what they gain, because a token of mask learning costs about as much as two of the small "
    "model, on which one-shot pruning trains instead; and at this length of recovery choices made at once have "
    "caught up most of the way.",
)
LEARNED = "learned"
BUDGETS = ("equal tokens", "equal FLOPs")


def runs(study: Study) -> None:
    for seed in study.seeds:
        study.run({"arm": LEARNED, "budget": BUDGETS[0], "seed": seed}, lambda seed=seed: learned(study, seed))
        for arm in study.one_shot:
            for budget in BUDGETS:
                key = {"arm": arm, "budget": budget, "seed": seed}
                study.run(key, lambda key=key: at_once(study, **key))


def learned(study: Study, seed: int) -> dict:
    model, facts = study.learn(study.target(), mask_tokens(study), seed)
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, study.num_tokens - facts["tokens"], seed)
    return recovery | study.judged(model) | {"before": before, "tokens": facts["tokens"] + recovery["tokens"]}


def at_once(study: Study, arm: str, budget: str, seed: int) -> dict:
    model = study.prune(study.target(), seed, **study.one_shot[arm])
    before = study.judged(model)["mean"]
    tokens = study.num_tokens
    if budget != BUDGETS[0]:
        source, pruned = AutoConfig.from_pretrained(study.path), model.config
        ratio = training_flops_per_token(source, study.max_length) / training_flops_per_token(pruned, study.max_length)
        tokens += round((ratio - 1) * mask_tokens(study))
    model, facts = study.train(model, tokens, seed)
    return facts | study.judged(model) | {"before": before}


def mask_tokens(study: Study) -> int:
    return round(study.mask_share * study.num_tokens)


def checks(source: SourceResults) -> list:
    own, found = source.values("mean", arm=LEARNED), []
    for budget in BUDGETS:
        for arm in source.settings["one_shot"]:
            rival = source.values("mean", arm=arm, budget=budget)
            found.append(compare(f"{budget}: loss of learned masks below {arm}", own, rival))
    return found


def table(source: SourceResults) -> str:
    rows = []
    for arm in (LEARNED, *source.settings["one_shot"]):
        for budget in BUDGETS:
            chosen = source.select(arm=arm, budget=budget)
            if chosen:
                losses = (mean_and_spread([run[name] for run in chosen]) for name in ("before", "mean"))
                rows.append((arm, budget, f"{chosen[0]['tokens']:,}", f"{chosen[0]['num_parameters']:,}", *losses))
    return markdown_table(("arm", "budget", "tokens", "parameters", "loss at the cut", "loss at the end"), rows)


def draw(source: SourceResults, axes) -> None:
    arms = [(LEARNED, BUDGETS[0]), *((arm, budget) for arm in source.settings["one_shot"] for budget in BUDGETS)]
    for place, (arm, budget) in enumerate(arms):
        values = source.values("mean", arm=arm, budget=budget)
        axes.plot(values, [place] * len(values), "o", color="C1" if arm == LEARNED else "C0", alpha=0.7)
    axes.set_yticks(range(len(arms)), [arm if arm == LEARNED else f"{arm}, {budget}" for arm, budget in arms])
    axes.invert_yaxis()
    axes.set_xlabel("loss at the end (nats per token)")


if __name__ == "__main__":
    main(sys.modules[__name__])
