"""Learned masks against what is decided at once, at equal tokens and at equal FLOPs.

python -m examples.research.claims.sheared_llama_3_one_shot --stories STORIES260K TINYSTORIES
"""

import sys
from statistics import fmean

from ..shared import mean_and_spread
from .claim_command import main
from .claim_results import Claim, SourceResults, calibration_tokens, compare, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_3_one_shot",
    statement="Learned masks beat the best one-shot criterion, with and without compensation",
    section="section 4",
    note="All arms have the same shape, and their recovery the same schedule. At equal FLOPs everything is charged: mask "
    "learning on the whole source, and the passes of every choice over its calibration text (forward and backward; the "
    "losses without each layer for the Surgeon's choice of layers). Choices at once are frugal there, one shot on two "
    "batches, and train on what they save, in tokens of the small model. The masks are this library's default (relaxed "
    "top-k, from a Taylor start). Learning rates are swept for each arm at equal tokens and kept at equal FLOPs. At "
    "equal tokens all choices at once but the Surgeon's without compensation have caught up after this much recovery; "
    "at equal FLOPs all four are ahead, because learned masks pay for their stage: a token of mask learning costs "
    "about as much as two of the small model.",
)
LEARNED = "learned"
BUDGETS = ("equal tokens", "equal FLOPs")


def runs(study: Study) -> None:
    study.tune(key_of(LEARNED, BUDGETS[0]), lambda *drawn: learned(study, *drawn), study.learning_rate)
    for arm in study.one_shot:
        equal_tokens, equal_flops = (key_of(arm, budget) for budget in BUDGETS)
        rate = study.tune(equal_tokens, lambda *drawn, arm=arm: at_once(study, arm, *drawn), study.learning_rate)
        for seed in study.seeds:
            study.run(
                equal_flops | {"rate": rate, "seed": seed},
                lambda arm=arm, rate=rate, seed=seed: at_once(study, arm, rate, seed, frugal=True),
            )


def key_of(arm: str, budget: str) -> dict:
    return {"arm": arm, "budget": budget}


def learned(study: Study, rate: float, seed: int) -> dict:
    model, facts = study.learn(study.target(), mask_tokens(study), seed, learning_rate=rate)
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, study.num_tokens - facts["tokens"], seed, learning_rate=rate)
    spent = flops(study, model, facts["tokens"] + START_PASSES * calibration_tokens(study.settings), recovery["tokens"])
    tokens = {"tokens": facts["tokens"] + recovery["tokens"], "flops": spent}
    return recovery | study.judged(model) | {"before": before} | tokens


def at_once(study: Study, arm: str, rate: float, seed: int, frugal: bool = False) -> dict:
    """Pruned at once and trained: on all tokens, or, frugally chosen, on the FLOPs of learned masks."""
    how = study.one_shot[arm] | ({"num_shots": 1, "num_batches": study.frugal_batches} if frugal else {})
    model = study.prune(study.target(), seed, **how)
    before = study.judged(model)["mean"]
    chosen_on = passes(study, how) * calibration_tokens(study.settings, how.get("num_batches"))
    tokens = study.num_tokens
    if frugal:
        spent = START_PASSES * calibration_tokens(study.settings) + mask_tokens(study) - chosen_on
        own_tokens = spent * study.flops_per_token() / study.flops_per_token(model)
        tokens = round(study.num_tokens - mask_tokens(study) + own_tokens)
    model, facts = study.train(model, tokens, seed, learning_rate=rate)
    return facts | study.judged(model) | {"before": before, "flops": flops(study, model, chosen_on, facts["tokens"])}


def mask_tokens(study: Study) -> int:
    return round(study.mask_share * study.num_tokens)


START_PASSES = 1
"""Over the calibration text, forward and backward, for the Taylor scores that learned masks start from."""


def passes(study: Study, how: dict) -> float:
    """Passes over the calibration text of one way to choose, as many times forward and backward (three forwards)."""
    more = (how["compensation"] != "none") if how["criterion"] == "taylor" else 1 + study.config.num_hidden_layers
    return how["num_shots"] * (3 + more) / 3  # inputs or activations; each layer left out


def flops(study: Study, model, source_tokens: float, own_tokens: float) -> float:
    """Of training tokens of the source and of the pruned model."""
    return source_tokens * study.flops_per_token() + own_tokens * study.flops_per_token(model)


def checks(source: SourceResults) -> list:
    """Against the best choice at once of each budget, without compensation and with it."""
    own, found = source.losses(arm=LEARNED, budget=BUDGETS[0]), []
    for budget in BUDGETS:
        for kind in ("without", "with"):
            rivals = {
                arm: source.losses(arm=arm, budget=budget)
                for arm, how in source.settings["one_shot"].items()
                if (how["compensation"] == "none") == (kind == "without")
            }
            best = min(rivals, key=lambda arm: fmean(rivals[arm]))
            text = f"{budget}: loss of learned masks below the best choice at once {kind} compensation ({best})"
            found.append(compare(text, own, rivals[best]))
    return found


def table(source: SourceResults) -> str:
    rows = []
    for arm in (LEARNED, *source.settings["one_shot"]):
        for budget in BUDGETS:
            if source.select(arm=arm, budget=budget):
                chosen = source.tuned(arm=arm, budget=budget)
                losses = (mean_and_spread([run[name] for run in chosen]) for name in ("before", "mean"))
                numbers = (f"{chosen[0][name]:,}" for name in ("tokens", "num_parameters"))
                tried = ", ".join(f"{rate:g}" for rate in sorted(source.sweep(arm=arm, budget=budget)))
                rows.append(
                    (arm, budget, *numbers, f"{chosen[0]['flops']:.3g}", f"{chosen[0]['rate']:g}", tried, *losses)
                )
    headings = ("arm", "budget", "tokens", "parameters", "FLOPs", "learning rate", "rates tried", "loss at the cut",
                "loss at the end")  # fmt: skip
    return markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    arms = [(LEARNED, BUDGETS[0]), *((arm, budget) for arm in source.settings["one_shot"] for budget in BUDGETS)]
    for place, (arm, budget) in enumerate(arms):
        values = source.losses(arm=arm, budget=budget)
        axes.plot(values, [place] * len(values), "o", color="C1" if arm == LEARNED else "C0", alpha=0.7)
    axes.set_yticks(range(len(arms)), [arm if arm == LEARNED else f"{arm}, {budget}" for arm, budget in arms])
    axes.invert_yaxis()
    axes.set_xlabel("held-out loss at the end (nats per token)")


if __name__ == "__main__":
    main(sys.modules[__name__])
