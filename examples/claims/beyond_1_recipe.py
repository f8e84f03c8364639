"""This library's recipe against the paper's at equal FLOPs: what the same loss costs.

python examples/claims/beyond_1_recipe.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from statistics import fmean
from typing import NamedTuple

from study import (
    HELD,
    LOST,
    Check,
    Claim,
    SourceResults,
    Study,
    compare,
    main,
    markdown_table,
    mean_and_spread,
    spread_of,
)
from transformers import AutoConfig

from hf_shear.recovery.flops import training_flops_per_token

CLAIM = Claim(
    name="beyond_1_recipe",
    statement="This library's recipe reaches the loss of Sheared LLaMA's recipe with a fraction of the FLOPs",
    note="The paper's recipe: hard-concrete masks with its multipliers, schedules and uniform start (`--paper`), then "
    "continued pre-training on a cosine schedule to zero. Ours: one shot of the LLM Surgeon, least squares for what "
    'remains, then training on a schedule that stays high for longer, (1 - t) ** 0.5 of the peak ("late decay"). '
    "Each arm gets the learning rate that suits it best on the first seed, and the paper's the share of tokens for "
    "masks and the samples per step that do best over all seeds; ours has one batch for each source. Both then get "
    "several times the FLOPs, to see when the paper's gets to the loss of ours. FLOPs count mask learning on the "
    "whole source, calibration (forward and backward), a teacher's forward passes, and recovery; not sweeps, "
    "evaluations that steer domains, and the sums and solves of the update. Calibration is short, because at these "
    "budgets every batch of it is paid with training. The other arms show what the ratio is made of: the paper's "
    "masks and random units on our schedule. What to make of it: on this little training masks are hardly learned. "
    "The largest gap between the expected shape and the target, just before the cut, is in the table where it was "
    "recorded (the worst seed): smaller steps bring it down. Random units are about as hard a rival as the paper's "
    "recipe. The ratio says nothing of the paper's own 3,200 steps of mask learning. The target removes heads and "
    "neurons, which is where compensation can act.",
)
PAPER, RANDOM = "paper", "random units, late decay"


class Arm(NamedTuple):
    """A recipe, or the paper's with a share of the tokens for masks, and samples per step."""

    name: str
    share: float | None
    batch: int


def paper_arms(settings: dict) -> list[Arm]:
    return [Arm(PAPER, share, batch) for batch in settings["paper_batches"] for share in settings["paper_shares"]]


def own_arm(settings: dict, name: str) -> Arm:
    return Arm(name, None, settings["batch_size"])


def all_arms(settings: dict) -> list[Arm]:
    return paper_arms(settings) + [own_arm(settings, name) for name in settings["arms"]]


def multiples_of(settings: dict, arm: Arm) -> list[float]:
    """Of the fewest FLOPs: how often as much an arm gets."""
    return settings["paper_multiples" if arm.name == PAPER else "multiples"]


def runs(study: Study) -> None:
    """The first seed tries every rate at the fewest FLOPs; the others, and more FLOPs, take the best."""
    found = SourceResults(study.name, study.settings, study.runs)
    for arm in all_arms(study.settings):
        for rate in study.rates:
            make(study, arm, rate, 1, study.seeds[0])
    for seed in study.seeds:
        for arm in all_arms(study.settings):
            for multiple in multiples_of(study.settings, arm):
                make(study, arm, best_rate(found, arm), multiple, seed)


def make(study: Study, arm: Arm, rate: float, multiple: float, seed: int) -> None:
    """One arm, if it is not there yet."""
    key = key_of(arm) | {"rate": rate, "multiple": multiple, "seed": seed}
    study.run(key, lambda: (by_paper if arm.name == PAPER else by_us)(study, arm, rate, multiple, seed))


def key_of(arm: Arm) -> dict:
    return {"arm": arm.name, "share": arm.share, "batch": arm.batch}


def best_rate(source: SourceResults, arm: Arm) -> float:
    """The rate that suits an arm best on the first seed, at the fewest FLOPs."""
    chosen = source.select(**key_of(arm), multiple=1, seed=source.settings["seeds"][0])
    return min(chosen, key=lambda run: run["mean"])["rate"]


def arm_runs(source: SourceResults, arm: Arm, multiple: float) -> list[dict]:
    """The runs of all seeds at the arm's best rate."""
    return source.select(**key_of(arm), rate=best_rate(source, arm), multiple=multiple)


def best_of_paper(source: SourceResults, multiple: float) -> list[dict]:
    """The paper's runs at the share and the batch that have the lowest mean loss over the seeds."""
    found = (arm_runs(source, arm, multiple) for arm in paper_arms(source.settings))
    return min(found, key=lambda runs: mean_of(runs, "mean"))


def recipe_runs(source: SourceResults, multiple: float) -> list[dict]:
    """The runs of our recipe."""
    return arm_runs(source, own_arm(source.settings, source.settings["recipe"]), multiple)


def mean_of(runs: list[dict], field: str) -> float:
    return fmean(run[field] for run in runs)


def by_paper(study: Study, arm: Arm, rate: float, multiple: float, seed: int) -> dict:
    tokens = multiple * study.num_tokens
    options = {"learning_rate": rate, "per_device_train_batch_size": arm.batch}
    masks = {"masks": PAPER}
    model, learned = study.learn(study.target(), round(arm.share * tokens), seed, options=masks, **options)
    before = study.judged(model)["mean"]
    model, recovery = study.train(model, round(tokens - learned["tokens"]), seed, **options)
    flops = learned["tokens"] * source_flops(study) + recovery["tokens"] * own_flops(study, model)
    tokens = {"tokens": learned["tokens"] + recovery["tokens"], "mask_tokens": learned["tokens"], "flops": flops}
    return recovery | study.judged(model) | {"before": before, "gap": largest_gap(learned)} | tokens


def by_us(study: Study, arm: Arm, rate: float, multiple: float, seed: int) -> dict:
    """Another recipe on the FLOPs of the paper's, at the lowest of its shares."""
    recipe, all_tokens, found = study.arms[arm.name], multiple * study.num_tokens, {}
    training = recipe.get("training", {})
    options = {"learning_rate": rate, "per_device_train_batch_size": arm.batch}
    if "one_shot" in recipe:
        model = study.prune(study.target(), seed, **recipe["one_shot"])
        calibration = study.calibration_batches * study.batch_size * study.max_length
        shots = 0 if recipe["one_shot"]["criterion"] == "random" else recipe["one_shot"]["num_shots"]
        mask_tokens, spent = 0, shots * calibration * source_flops(study)
    else:
        masks = {"masks": recipe["masks"]}
        tokens = round(recipe["share"] * all_tokens)
        model, learned = study.learn(study.target(), tokens, seed, options=masks, **options)
        mask_tokens, spent = learned["tokens"], learned["tokens"] * source_flops(study)
        found["gap"] = largest_gap(learned)
    before = study.judged(model)["mean"]
    share = min(study.paper_shares)
    budget = all_tokens * (share * source_flops(study) + (1 - share) * own_flops(study, model))
    teacher = study.source() if training.get("distillation", "none") != "none" else None
    per_token = own_flops(study, model, teacher.config if teacher else None)
    model, recovery = study.train(model, int((budget - spent) / per_token), seed, teacher, **options, **training)
    found |= {"before": before, "flops": spent + recovery["tokens"] * per_token}
    tokens = {"tokens": mask_tokens + recovery["tokens"], "mask_tokens": mask_tokens}
    return recovery | study.judged(model) | found | tokens


def largest_gap(learned: dict) -> float:
    """How far from the target the expected shape was before the cut, at the worst of its sizes."""
    return max(learned["mask_report"]["gap"].values())


def source_flops(study: Study) -> float:
    """Of a training token of the whole source."""
    return training_flops_per_token(AutoConfig.from_pretrained(study.path), study.max_length)


def own_flops(study: Study, model, teacher=None) -> float:
    """Of a training token of the pruned model, and of its teacher."""
    return training_flops_per_token(model.config, study.max_length, teacher=teacher)


def curve(source: SourceResults, arm: Arm, seed: int | None = None) -> list[tuple[float, float]]:
    """(FLOPs, mean loss over the seeds, or of one) of an arm, by rising FLOPs."""
    found = (arm_runs(source, arm, multiple) for multiple in multiples_of(source.settings, arm))
    found = ([run for run in runs if seed in (None, run["seed"])] for runs in found)
    return [(mean_of(runs, "flops"), mean_of(runs, "mean")) for runs in found]


def flops_ratio(source: SourceResults, multiple: float, seed: int | None = None) -> tuple[float, bool]:
    """FLOPs that the paper's recipe needs for the loss of ours, over ours; and whether it got there at all.

    The paper's has the share of tokens for masks and the batch that get there with the fewest FLOPs. Where it is below
    that loss at its fewest, these are taken: it needs no more.
    """
    chosen = [run for run in recipe_runs(source, multiple) if seed in (None, run["seed"])]
    goal, own = mean_of(chosen, "mean"), mean_of(chosen, "flops")
    curves = [curve(source, arm, seed) for arm in paper_arms(source.settings)]
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


def times(source: SourceResults, multiple: float, seed: int | None = None) -> str:
    """The ratio of FLOPs in words."""
    ratio, reached = flops_ratio(source, multiple, seed)
    return f"{'' if reached else 'more than '}{ratio:.1f}"


def checks(source: SourceResults) -> list:
    name, seeds, found = source.settings["recipe"], source.settings["seeds"], []
    for multiple in source.settings["multiples"]:
        chosen, rival = recipe_runs(source, multiple), best_of_paper(source, multiple)
        where = f"at {mean_of(chosen, 'flops'):.2g} FLOPs"
        losses = [run["mean"] for run in chosen], [run["mean"] for run in rival]
        found.append(compare(f"{where}, the loss of our recipe ({name}) below that of the paper's", *losses))
        single = ", ".join(times(source, multiple, seed) for seed in seeds)
        text = (
            f"{where}, the paper's needs more FLOPs for that loss: {times(source, multiple)} times ({single} by seed)"
        )
        lowest = min(flops_ratio(source, multiple, seed)[0] for seed in seeds)
        found.append(Check(text, HELD if lowest > 1 else LOST))
        random = [run["mean"] for run in arm_runs(source, own_arm(source.settings, RANDOM), multiple)]
        found.append(
            compare(f"{where}, the loss of our recipe below that of random units on its schedule", losses[0], random)
        )
    return found


def table(source: SourceResults) -> str:
    rows = []
    for arm in all_arms(source.settings):
        for multiple in multiples_of(source.settings, arm):
            chosen = arm_runs(source, arm, multiple)
            losses = (mean_and_spread([run[name] for run in chosen]) for name in ("before", "mean"))
            tokens = (f"{chosen[0][name]:,}" for name in ("mask_tokens", "tokens"))
            gap = f"{max(run['gap'] for run in chosen):.0%}" if "gap" in chosen[0] else ""
            flops = f"{mean_of(chosen, 'flops'):.3g}"
            rows.append((arm.name, arm.batch, f"{chosen[0]['rate']:g}", *tokens, gap, flops, *losses))
    headings = (
        "recipe",
        "samples per step",
        "learning rate",
        "tokens for masks",
        "tokens in all",
        "largest gap before the cut",
        "FLOPs",
        "loss at the cut",
        "loss at the end",
    )
    loss = source.values("mean", arm="source")
    before = f"Loss of the source: {loss[0]:.3f}.\n\n" if loss else ""
    return before + markdown_table(headings, rows) + "\n\nThe first seed at every rate:\n\n" + sweep_table(source)


def sweep_table(source: SourceResults) -> str:
    rates, seed = source.settings["rates"], source.settings["seeds"][0]
    rows = []
    for arm in all_arms(source.settings):
        losses = [source.values("mean", **key_of(arm), rate=rate, multiple=1, seed=seed)[0] for rate in rates]
        cells = (f"**{loss:.3f}**" if loss == min(losses) else f"{loss:.3f}" for loss in losses)
        rows.append((label_of(arm), *cells))
    return markdown_table(("recipe", *(f"{rate:g}" for rate in rates)), rows)


def label_of(arm: Arm) -> str:
    if arm.name != PAPER:
        return arm.name
    return f"paper, {arm.share:.0%} of the tokens for masks, {arm.batch} samples per step"


def headline(sources: list[SourceResults]) -> str:
    """The sentence that stands first in the README: both sources, at every budget."""

    def at(multiple: float) -> str:
        return " and ".join(f"{times(source, multiple)} times on {source.name}" for source in sources)

    settings = sources[0].settings
    first, *more = settings["multiples"]
    later = "".join(f"; with {multiple:g} times the training, {at(multiple)}" for multiple in more)
    recipe = f"Sheared LLaMA's own recipe needs more FLOPs than ours ({settings['recipe']})"
    return f"To reach the same loss, {recipe}: {at(first)}, both at small budgets{later}"


def draw(source: SourceResults, axes) -> None:
    for number, arm in enumerate(all_arms(source.settings)):
        found = [arm_runs(source, arm, multiple) for multiple in multiples_of(source.settings, arm)]
        points = curve(source, arm)
        spreads = [spread_of([run["mean"] for run in runs]) for runs in found]
        ours = arm.name == source.settings["recipe"]
        style = {"linestyle": "-" if arm.name == PAPER or ours else "--", "color": "k" if ours else f"C{number}"}
        axes.errorbar(
            *zip(*points, strict=True), spreads, marker="o", markersize=4, capsize=2, label=label_of(arm), **style
        )
    axes.set_xscale("log")
    ticks = [flops for flops, _ in curve(source, paper_arms(source.settings)[-1])]
    axes.set_xticks(ticks, [f"{flops:.2g}" for flops in ticks])
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of pruning and training")
    axes.set_ylabel("held-out loss at the end (nats per token)")
    axes.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    main(sys.modules[__name__])
