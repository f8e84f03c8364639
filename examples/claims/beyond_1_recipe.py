"""This library's recipe against the paper's at equal FLOPs: what the same loss costs.

python examples/claims/beyond_1_recipe.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import math
import sys
from statistics import fmean

from study import HELD, LOST, Check, Claim, SourceResults, Study, compare, main, markdown_table, summary
from transformers import AutoConfig

from hf_shear.recovery.flops import training_flops_per_token

CLAIM = Claim(
    name="beyond_1_recipe",
    statement="This library's recipe reaches the loss of Sheared LLaMA's recipe with a fraction of the FLOPs",
    note="The paper's recipe: hard-concrete masks with its multipliers, schedules and uniform start (`--paper`), then "
    "continued pre-training; the share of tokens for masks is the better one of those tried. It is also given several "
    "times the FLOPs, to see when it gets to the same loss. Ours are listed in the config: how units are chosen, and what "
    "recovery adds. All arms use the same learning rate, cosine schedule and dynamic batches. FLOPs count mask learning "
    "on the whole source, calibration (forward and backward for each shot), a teacher's forward passes, and recovery.",
)
PAPER = "paper"


def runs(study: Study) -> None:
    for seed in study.seeds:
        for share in study.paper_shares:
            key = {"arm": PAPER, "share": share, "multiple": 1, "seed": seed}
            study.run(key, lambda key=key: by_paper(study, key["share"], 1, key["seed"]))
        for name, recipe in study.ours.items():
            key = {"arm": name, "share": None, "multiple": 1, "seed": seed}
            study.run(key, lambda recipe=recipe, seed=seed: by_us(study, recipe, seed))
    share = best_share(SourceResults(study.name, study.settings, study.runs))
    for seed in study.seeds:
        for multiple in study.paper_multiples:
            key = {"arm": PAPER, "share": share, "multiple": multiple, "seed": seed}
            study.run(key, lambda key=key: by_paper(study, key["share"], key["multiple"], key["seed"]))


def by_paper(study: Study, share: float, multiple: float, seed: int) -> dict:
    tokens = multiple * study.num_tokens
    model, learned = study.learn(study.target(), round(share * tokens), seed, options={"masks": "paper"})
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, round(tokens - learned["tokens"]), seed)
    flops = learned["tokens"] * source_flops(study) + recovery["tokens"] * own_flops(study, model)
    tokens = {"tokens": learned["tokens"] + recovery["tokens"], "mask_tokens": learned["tokens"], "flops": flops}
    return recovery | study.judged(model) | {"before": before} | tokens


def by_us(study: Study, recipe: dict, seed: int) -> dict:
    """A recipe of ours on the FLOPs of the paper's, at the first of its shares."""
    calibration = study.calibration_batches * study.batch_size * study.max_length
    paper_masks = study.paper_shares[0] * study.num_tokens
    if "one_shot" in recipe:
        model = study.prune(study.target(), seed, **recipe["one_shot"])
        mask_tokens, spent = 0, recipe["one_shot"].get("num_shots", 1) * calibration * source_flops(study)
    else:
        model, learned = study.learn(study.target(), round(recipe["share"] * study.num_tokens), seed)
        mask_tokens, spent = learned["tokens"], (learned["tokens"] + calibration) * source_flops(study)
    before = study.judged(model)["mean"]
    budget = paper_masks * source_flops(study) + (study.num_tokens - paper_masks) * own_flops(study, model)
    distilled = recipe.get("training", {}).get("distillation", "none") != "none"
    per_token = own_flops(study, model, study.source().config if distilled else None)
    teacher = study.source() if distilled else None
    model, recovery = study.train(
        model, int((budget - spent) / per_token), seed, teacher=teacher, **recipe.get("training", {})
    )
    tokens = {"tokens": mask_tokens + recovery["tokens"], "mask_tokens": mask_tokens}
    return recovery | study.judged(model) | {"before": before, "flops": spent + recovery["tokens"] * per_token} | tokens


def source_flops(study: Study) -> float:
    """Of a training token of the whole source."""
    return training_flops_per_token(AutoConfig.from_pretrained(study.path), study.max_length)


def own_flops(study: Study, model, teacher=None) -> float:
    """Of a training token of the pruned model, and of its teacher."""
    return training_flops_per_token(model.config, study.max_length, teacher=teacher)


def best_share(source: SourceResults) -> float:
    """The share of tokens for masks that suits the paper's recipe best."""
    losses = {
        share: fmean(source.values("mean", arm=PAPER, share=share, multiple=1))
        for share in source.settings["paper_shares"]
    }
    return min(losses, key=losses.get)


def best_of_ours(source: SourceResults) -> str:
    return min(source.settings["ours"], key=lambda name: fmean(source.values("mean", arm=name)))


def paper_curve(source: SourceResults) -> list[tuple[float, float]]:
    """(FLOPs, mean loss) of the paper's recipe, by rising FLOPs."""
    share, points = best_share(source), []
    for multiple in (1, *source.settings["paper_multiples"]):
        chosen = source.select(arm=PAPER, share=share, multiple=multiple)
        points.append((fmean(run["flops"] for run in chosen), fmean(run["mean"] for run in chosen)))
    return points


def flops_ratio(source: SourceResults) -> tuple[float, bool]:
    """FLOPs that the paper's recipe needs for the loss of ours, over ours; and whether it got there at all."""
    chosen = source.select(arm=best_of_ours(source))
    goal, own = fmean(run["mean"] for run in chosen), fmean(run["flops"] for run in chosen)
    points = paper_curve(source)
    if points[0][1] <= goal:
        return points[0][0] / own, True
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        if before > goal >= after:
            share = (before - goal) / (before - after)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low))) / own, True
    return points[-1][0] / own, False


def headline(source: SourceResults) -> str:
    """The number that stands first in the README."""
    ratio, reached = flops_ratio(source)
    more = "" if reached else "more than "
    return f"the paper's recipe needs {more}{ratio:.1f} times the FLOPs of ours for the same loss"


def checks(source: SourceResults) -> list:
    best, share = best_of_ours(source), best_share(source)
    own = source.values("mean", arm=best)
    rival = source.values("mean", arm=PAPER, share=share, multiple=1)
    ratio, _ = flops_ratio(source)
    return [
        compare(f"loss at equal FLOPs, {best} below the paper's recipe (masks: {share:.0%} of the tokens)", own, rival),
        Check(f"{headline(source)} ({best})", HELD if ratio > 1 else LOST),
    ]


def table(source: SourceResults) -> str:
    arms = [(PAPER, share, 1) for share in source.settings["paper_shares"]]
    arms += [(PAPER, best_share(source), multiple) for multiple in source.settings["paper_multiples"]]
    arms += [(name, None, 1) for name in source.settings["ours"]]
    rows = []
    for arm, share, multiple in arms:
        chosen = source.select(arm=arm, share=share, multiple=multiple)
        flops = fmean(run["flops"] for run in chosen)
        losses = (summary([run[name] for run in chosen]) for name in ("before", "mean"))
        rows.append((arm, f"{chosen[0]['mask_tokens']:,}", f"{chosen[0]['tokens']:,}", f"{flops:.3g}", *losses))
    headings = ("recipe", "tokens for masks", "tokens in all", "FLOPs", "loss at the cut", "loss at the end")
    return markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    points = paper_curve(source)
    axes.plot(*zip(*points, strict=True), "o-", label="the paper's recipe")
    for number, name in enumerate(source.settings["ours"], start=1):
        chosen = source.select(arm=name)
        axes.plot(
            [run["flops"] for run in chosen], [run["mean"] for run in chosen], "s", color=f"C{number}", label=name
        )
    axes.axhline(fmean(source.values("mean", arm=best_of_ours(source))), color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs of pruning and training")
    axes.set_ylabel("held-out loss at the end (nats per token)")
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main(sys.modules[__name__])
