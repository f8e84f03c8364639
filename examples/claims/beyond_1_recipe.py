"""This library's recipe against the paper's at equal FLOPs: what the same loss costs.

python examples/claims/beyond_1_recipe.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from statistics import fmean

from study import HELD, LOST, Check, Claim, SourceResults, Study, compare, main, markdown_table, mean_and_spread
from transformers import AutoConfig

from hf_shear.recovery.flops import training_flops_per_token

CLAIM = Claim(
    name="beyond_1_recipe",
    statement="This library's recipe reaches the loss of Sheared LLaMA's recipe with a fraction of the FLOPs",
    note="The paper's recipe: hard-concrete masks with its multipliers, schedules and uniform start (`--paper`), then "
    "continued pre-training on a cosine schedule to zero. Ours: how units are chosen, how what remains is updated, "
    "and what recovery adds, as the config lists; late decay is a schedule that stays high for longer ((1 - t) ** 0.5 "
    "of the peak), and the control shows what it gives the paper's masks. Each recipe gets the learning rate that "
    "suits it best on the first seed, and the paper's the share of tokens for masks that does best over all seeds; "
    "both use dynamic batches and as many samples per step. Then both are given several times the FLOPs, to see when "
    "the paper's gets to the loss of ours. FLOPs count mask learning on the whole source, every pass over calibration "
    "text (forward and backward for the scores, and where compensation looks at the source, three forward passes of "
    "either model), a teacher's forward passes, and recovery; sweeps, the sums that curvature takes on the way and "
    "solving for the update are not counted. One shot on few batches, because at these budgets every further batch is "
    "paid with training. The target removes heads and neurons, which is where compensation can act; claim 3 of "
    "Sheared LLaMA has a target that removes hidden dimensions and layers too, and there the recipes are much closer.",
)
PAPER = "paper"
SCORING_PASSES = 1
"""Forward and backward passes of a shot over its calibration text; compensation alone reads what they saw."""
SOURCE_PASSES = 2
"""What compensation towards the source's outputs adds: three forward passes of either model, in the same unit."""


def runs(study: Study) -> None:
    """The first seed tries every rate at the fewest FLOPs; the others, and more FLOPs, take the best."""
    arms = [(PAPER, share) for share in study.paper_shares] + [(name, None) for name in study.ours | study.controls]
    for arm, share in arms:
        for rate in study.rates:
            make(study, arm, share, rate, 1, study.seeds[0])
    found = SourceResults(study.name, study.settings, study.runs)
    for seed in study.seeds:
        for arm, share in arms:
            for multiple in study.paper_multiples if arm == PAPER else study.multiples:
                make(study, arm, share, best_rate(found, arm, share), multiple, seed)


def make(study: Study, arm: str, share: float | None, rate: float, multiple: float, seed: int) -> None:
    """One arm, if it is not there yet."""
    key = {"arm": arm, "share": share, "rate": rate, "multiple": multiple, "seed": seed}
    rest = rate, multiple, seed
    study.run(key, lambda: by_paper(study, share, *rest) if arm == PAPER else by_us(study, arm, *rest))


def best_rate(source: SourceResults, arm: str, share: float | None) -> float:
    """The rate that suits an arm best on the first seed, at the fewest FLOPs."""
    chosen = source.select(arm=arm, share=share, multiple=1, seed=source.settings["seeds"][0])
    return min(chosen, key=lambda run: run["mean"])["rate"]


def arm_runs(source: SourceResults, arm: str, multiple: float, share: float | None = None) -> list[dict]:
    """The runs of all seeds at the arm's best rate."""
    return source.select(arm=arm, share=share, rate=best_rate(source, arm, share), multiple=multiple)


def best_of_paper(source: SourceResults, multiple: float) -> list[dict]:
    """The paper's runs at the share of tokens for masks that has the lowest mean loss over the seeds."""
    shares = (arm_runs(source, PAPER, multiple, share) for share in source.settings["paper_shares"])
    return min(shares, key=lambda runs: mean_of(runs, "mean"))


def best_of_ours(source: SourceResults, multiple: float = 1) -> str:
    """The recipe of ours that has the lowest mean loss over the seeds."""
    return min(source.settings["ours"], key=lambda name: mean_of(arm_runs(source, name, multiple), "mean"))


def mean_of(runs: list[dict], field: str) -> float:
    return fmean(run[field] for run in runs)


def by_paper(study: Study, share: float, rate: float, multiple: float, seed: int) -> dict:
    tokens = multiple * study.num_tokens
    options = {"options": {"masks": PAPER}, "learning_rate": rate}
    model, learned = study.learn(study.target(), round(share * tokens), seed, **options)
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, round(tokens - learned["tokens"]), seed, learning_rate=rate)
    flops = learned["tokens"] * source_flops(study) + recovery["tokens"] * own_flops(study, model)
    tokens = {"tokens": learned["tokens"] + recovery["tokens"], "mask_tokens": learned["tokens"], "flops": flops}
    return recovery | study.judged(model) | {"before": before} | tokens


def by_us(study: Study, arm: str, rate: float, multiple: float, seed: int) -> dict:
    """A recipe of ours, or a control, on the FLOPs of the paper's, at the lowest of its shares."""
    all_tokens = multiple * study.num_tokens
    recipe = (study.ours | study.controls)[arm]
    training = recipe.get("training", {})
    calibration = study.calibration_batches * study.batch_size * study.max_length
    if "one_shot" in recipe:
        model = study.prune(study.target(), seed, **recipe["one_shot"])
        passes = SCORING_PASSES + ("towards=source" in recipe["one_shot"]["compensation"]) * SOURCE_PASSES
        mask_tokens, spent = 0, recipe["one_shot"]["num_shots"] * passes * calibration * source_flops(study)
    else:
        share, masks = round(recipe["share"] * all_tokens), recipe.get("masks")
        model, learned = study.learn(
            study.target(), share, seed, options=masks and {"masks": masks}, learning_rate=rate
        )
        scored = 0 if masks == PAPER else calibration  # the paper's masks start uniform
        mask_tokens, spent = learned["tokens"], (learned["tokens"] + scored) * source_flops(study)
    before = study.judged(model)["mean"]
    share = min(study.paper_shares)
    budget = all_tokens * (share * source_flops(study) + (1 - share) * own_flops(study, model))
    teacher = study.source() if training.get("distillation", "none") != "none" else None
    per_token = own_flops(study, model, teacher.config if teacher else None)
    tokens = int((budget - spent) / per_token)
    model, recovery = study.train(model, tokens, seed, teacher, learning_rate=rate, **training)
    tokens = {"tokens": mask_tokens + recovery["tokens"], "mask_tokens": mask_tokens}
    return recovery | study.judged(model) | {"before": before, "flops": spent + recovery["tokens"] * per_token} | tokens


def source_flops(study: Study) -> float:
    """Of a training token of the whole source."""
    return training_flops_per_token(AutoConfig.from_pretrained(study.path), study.max_length)


def own_flops(study: Study, model, teacher=None) -> float:
    """Of a training token of the pruned model, and of its teacher."""
    return training_flops_per_token(model.config, study.max_length, teacher=teacher)


def curve(source: SourceResults, arm: str, share: float | None = None) -> list[tuple[float, float]]:
    """(FLOPs, mean loss) of an arm, by rising FLOPs."""
    multiples = source.settings["multiples" if share is None else "paper_multiples"]
    found = (arm_runs(source, arm, multiple, share) for multiple in multiples)
    return [(mean_of(runs, "flops"), mean_of(runs, "mean")) for runs in found]


def flops_ratio(source: SourceResults, multiple: float = 1) -> tuple[float, bool]:
    """FLOPs that the paper's recipe needs for the loss of ours, over ours; and whether it got there at all.

    The paper's has the share of tokens for masks that gets there with the fewest FLOPs. Where it is below that loss at
    its fewest, these are taken: it needs no more.
    """
    chosen = arm_runs(source, best_of_ours(source, multiple), multiple)
    goal, own = mean_of(chosen, "mean"), mean_of(chosen, "flops")
    curves = [curve(source, PAPER, share) for share in source.settings["paper_shares"]]
    reached = [flops for points in curves if (flops := flops_at(points, goal)) is not None]
    return (min(reached) if reached else max(points[-1][0] for points in curves)) / own, bool(reached)


def flops_at(points: list[tuple[float, float]], goal: float) -> float | None:
    """FLOPs at which a curve comes down to a loss, between its points on their logarithms; None if it does not."""
    if points[0][1] <= goal:
        return points[0][0]
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        if before > goal >= after:
            return low * (high / low) ** ((before - goal) / (before - after))
    return None


def times(source: SourceResults, multiple: float = 1) -> str:
    """The ratio of FLOPs in words."""
    ratio, reached = flops_ratio(source, multiple)
    return f"{'' if reached else 'more than '}{ratio:.1f} times"


def headline(source: SourceResults) -> str:
    """The number that stands first in the README, and what becomes of it with more training."""
    first, *more = source.settings["multiples"]
    later = "".join(f"; {times(source, multiple)} with {multiple:g} times the training" for multiple in more)
    return f"{times(source, first)} (on {source.name}{later})"


def checks(source: SourceResults) -> list:
    found = []
    for multiple in source.settings["multiples"]:
        name = best_of_ours(source, multiple)
        chosen, rival = arm_runs(source, name, multiple), best_of_paper(source, multiple)
        where = f"at {mean_of(chosen, 'flops'):.2g} FLOPs"
        losses = [run["mean"] for run in chosen], [run["mean"] for run in rival]
        found.append(compare(f"{where}, the loss of {name} below that of the paper's recipe", *losses))
        text = f"{where}, the paper's recipe needs {times(source, multiple)} the FLOPs of {name} for the same loss"
        found.append(Check(text, HELD if flops_ratio(source, multiple)[0] > 1 else LOST))
    return found


def table(source: SourceResults) -> str:
    settings, rows = source.settings, []
    arms = [(PAPER, share, multiple) for share in settings["paper_shares"] for multiple in settings["paper_multiples"]]
    arms += [
        (name, None, multiple) for name in settings["ours"] | settings["controls"] for multiple in settings["multiples"]
    ]
    for arm, share, multiple in arms:
        chosen = arm_runs(source, arm, multiple, share)
        losses = (mean_and_spread([run[name] for run in chosen]) for name in ("before", "mean"))
        tokens = (f"{chosen[0][name]:,}" for name in ("mask_tokens", "tokens"))
        rows.append((arm, f"{chosen[0]['rate']:g}", *tokens, f"{mean_of(chosen, 'flops'):.3g}", *losses))
    headings = (
        "recipe",
        "learning rate",
        "tokens for masks",
        "tokens in all",
        "FLOPs",
        "loss at the cut",
        "loss at the end",
    )
    return markdown_table(headings, rows) + "\n\nThe first seed at every rate:\n\n" + sweep_table(source)


def sweep_table(source: SourceResults) -> str:
    rates, seed = source.settings["rates"], source.settings["seeds"][0]
    arms = [(PAPER, share) for share in source.settings["paper_shares"]]
    arms += [(name, None) for name in source.settings["ours"] | source.settings["controls"]]
    rows = []
    for arm, share in arms:
        losses = [source.values("mean", arm=arm, share=share, rate=rate, multiple=1, seed=seed)[0] for rate in rates]
        label = arm if share is None else f"{arm}, masks {share:.0%} of the tokens"
        rows.append((label, *(f"**{loss:.3f}**" if loss == min(losses) else f"{loss:.3f}" for loss in losses)))
    return markdown_table(("recipe", *(f"{rate:g}" for rate in rates)), rows)


def draw(source: SourceResults, axes) -> None:
    for share in source.settings["paper_shares"]:
        label = f"the paper's recipe, {share:.0%} of the tokens for masks"
        axes.plot(*zip(*curve(source, PAPER, share), strict=True), "o-", label=label)
    for name in source.settings["ours"] | source.settings["controls"]:
        axes.plot(*zip(*curve(source, name), strict=True), "s--", markersize=4, label=name)
    axes.axhline(mean_of(arm_runs(source, best_of_ours(source), 1), "mean"), color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(
        ticks := [flops for flops, _ in curve(source, PAPER, source.settings["paper_shares"][-1])],
        [f"{flops:.2g}" for flops in ticks],
    )
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of pruning and training")
    axes.set_ylabel("held-out loss at the end (nats per token)")
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main(sys.modules[__name__])
