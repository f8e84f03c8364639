"""Judge the predictors of hf_shear.scaling_law by the rule of model_cards/scaling_law/registered.md.

    python -m examples.research.p2_law_page

The kept runs (model_cards/scaling_law/family*.json) chose the forms; the fresh ones (fresh.json) judge them. Everything on
the page comes from what is returned here, kept as judged.json beside the runs.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from transformers import TrainerControl, TrainerState

from hf_shear.core import UsageError, read_results
from hf_shear.scaling_law import (
    TEST_NAMES,
    Candidate,
    LawFit,
    RecoveryRun,
    ScalingLawCallback,
    ScalingLawWarning,
    fit_law,
)
from hf_shear.scaling_law.better_use import Alternative, better_use, predicted_ends
from hf_shear.scaling_law.callback import GAIN_PER_FLOP, PATIENCE, PRIOR
from hf_shear.scaling_law.curves import FLOPS_PER_PARAMETER_AND_TOKEN
from hf_shear.scaling_law.estimates import Estimate
from hf_shear.scaling_law.forecast import forecast, late_checkpoints, own_forecast
from hf_shear.scaling_law.generalisation import (
    BLEND,
    GUESSES,
    SEEN_AT_START,
    SEEN_OF_TOKENS,
    Split,
    cut_runs,
    error_record,
    generalisation_errors,
    predict_split,
)
from hf_shear.scaling_law.recovery_run import Case, rising_slope, with_control

from .law_runs import CONSTANT, CONTROL, FAMILY, LATE_DECAY, LEARNED, ONE_SHOT, RATES, SMOLLM, STORIES
from .p2_law import law_runs
from .shared import ROOT

RESULTS = ROOT / "model_cards" / "scaling_law"
KEPT = ("family.json", "family-seed-1.json", "family-seed-2.json")
LAWS = ("p2", "p2_five", "p2_anchored", "compute", "average_parameters", "damage", "damage_anchored")
METHODS = (*LAWS, BLEND, *GUESSES)
NEEDS_SOURCE_TOKENS = ("compute", "average_parameters")
FAMILY_TOKENS = 2_998_272  # that each member of the family was trained on
DIRECTIONS = ("later tokens", "largest source", "largest fraction", "other source", "other rate")
EXTRA = ("learned masks", "SmolLM2")
WITHOUT_NEIGHBOUR = ("neighbour", "neighbour_anchored", "guess_mean")
NUM_BOOTSTRAP = 60
PRICES = (0.05, 0.1, 0.2)
"""Of a whole kept run, in nats: what its FLOPs must gain."""
MIDDLE_PRICE = PRICES[1]
MAX_REPLAYED = 15
"""Checkpoints of a run at which it is compared with other shapes."""
SEEN_UNDER_WAY = (0.2, 0.4, 0.8)
"""Shares of a run's tokens at which forecasts of it are judged."""


@contextmanager
def quietly() -> Iterator[None]:
    """Warnings of fits go to the page, not to the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)
        yield


def kept_runs() -> list[list[RecoveryRun]]:
    """Of each seed."""
    return [law_runs(json.loads((RESULTS / name).read_text(encoding="utf-8"))) for name in KEPT]


def fresh_runs(results: dict, schedule: str, cut: str) -> list[RecoveryRun]:
    """The runs of one schedule and cut, each with the control of its source, rate and schedule."""
    controls = {(r["source"], r["rate"], r["schedule"]): r for r in results["runs"] if r["cut"] == CONTROL}
    runs = []
    for run in results["runs"]:
        mine = controls.get((run["source"], run["rate"], schedule))
        if (run["schedule"], run["cut"]) != (schedule, cut) or mine is None:
            continue
        known = FAMILY_TOKENS if run["source"] in FAMILY else None
        case = Case(
            run["num_parameters"], run["fraction_removed"], mine["start_loss"], run["num_pruned_parameters"], known
        )
        name = f"{run['source']} {run['rate']:g} -{run['fraction']:.0%}"
        made = RecoveryRun(name, case, run["tokens"], run["losses"], learning_rate=run["rate"])
        runs.append(with_control(made, mine["tokens"], mine["losses"]))
    return runs


def source_of(run: RecoveryRun) -> str:
    return run.name.split()[0]


def splits(results: dict) -> dict[str, Split]:
    """The registered directions, as far as there are runs for them."""
    curves = [run for run in fresh_runs(results, CONSTANT, ONE_SHOT) if source_of(run) != SMOLLM]
    family = [run for run in curves if source_of(run) in FAMILY]
    largest = max(run.case.num_parameters for run in family)

    def held(name: str, fitted: Sequence[RecoveryRun], asked: Sequence[RecoveryRun]) -> Split | None:
        return Split(name, list(fitted), *cut_runs(asked, SEEN_AT_START)) if fitted and asked else None

    def parted(runs: Sequence[RecoveryRun], asks: Callable[[RecoveryRun], bool]):
        return [run for run in runs if not asks(run)], [run for run in runs if asks(run)]

    seen, judged = cut_runs(curves, SEEN_OF_TOKENS)
    found = {
        "later tokens": Split("tokens", seen, seen, judged),
        "largest source": held("size", *parted(family, lambda run: run.case.num_parameters == largest)),
        "largest fraction": held("fraction", *parted(curves, lambda run: run.name.endswith("-60%"))),
        "other source": held("source", *parted(curves, lambda run: source_of(run) == STORIES)),
        "other rate": held("rate", *parted(curves, lambda run: run.learning_rate == RATES[1])),
        "learned masks": held("masks", curves, fresh_runs(results, CONSTANT, LEARNED)),
        "SmolLM2": held("smollm", curves, [run for run in fresh_runs(results, CONSTANT, ONE_SHOT)
                                           if source_of(run) == SMOLLM]),
    }  # fmt: skip
    return {name: split for name, split in found.items() if split is not None}


def only_family(split: Split) -> Split | None:
    """For laws that count the source's tokens, which are known of the family alone."""
    fitted = [run for run in split.fitted if run.case.source_tokens is not None]
    pairs = [(s, j) for s, j in zip(split.seen, split.judged, strict=True) if j.case.source_tokens is not None]
    return Split(split.name, fitted, [s for s, _ in pairs], [j for _, j in pairs]) if pairs else None


def judged_directions(results: dict) -> dict[str, dict[str, dict[str, float]]]:
    """Error of each judged curve, by direction and predictor."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, split in splits(results).items():
        found[name] = {}
        for method in METHODS:
            part = only_family(split) if method in NEEDS_SOURCE_TOKENS else split
            if part is None or (split.name == "tokens" and method in WITHOUT_NEIGHBOUR):
                continue
            found[name][method] = error_record(method, part, predict_split(part, method))["runs"]
    return found


def verdict(directions: dict[str, dict[str, dict[str, float]]]) -> dict:
    """The registered rule: scores, what speaks against the best law, and the default.

    In the direction of later tokens, guesses that need a neighbour count as ``carried``: the run itself is the neighbour.
    """
    names = [name for name in DIRECTIONS if name in directions]
    scores = {
        method: fmean(fmean(directions[name].get(method, directions[name]["carried"]).values()) for name in names)
        for method in METHODS
        if method not in NEEDS_SOURCE_TOKENS
    }
    law = min((method for method in LAWS if method in scores), key=scores.__getitem__)
    guess = min((method for method in GUESSES if method in scores), key=scores.__getitem__)
    against = []
    for name in [*names, *(one for one in EXTRA[1:] if one in directions)]:
        for rival in GUESSES:
            if rival in directions[name] and better(directions[name][rival], directions[name][law]):
                against.append([rival, name])
    wins = not against and all(scores[law] < score for method, score in scores.items() if method in GUESSES)
    return {"scores": scores, "law": law, "guess": guess, "against": against, "default": law if wins else guess}


def better(rival: dict[str, float], law: dict[str, float]) -> bool:
    """Whether the rival's errors are lower beyond the spread: the 95 % interval of paired differences is above 0."""
    differences = np.array([law[name] - rival[name] for name in law])
    if len(differences) < 3:
        return False
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / math.sqrt(len(differences))
    return bool(differences.mean() - half > 0)


def ends(split: Split, law_of: Callable[[LawFit, RecoveryRun], LawFit] = LawFit.after) -> list[dict]:
    """The last loss of each judged run, and its 80 % interval by the library's default once the run's start was seen."""
    with quietly():
        fit = fit_law(split.fitted, num_bootstrap=NUM_BOOTSTRAP, allow_different_tokens=True)
    found = []
    for seen, run in zip(split.seen, split.judged, strict=True):
        case = replace(run.case, source_loss=float(run.reference[-1]))
        found.append(_end(run, law_of(fit, seen).predict(case, run.tokens[-1])))
    return found


def _end(run: RecoveryRun, said: Estimate) -> dict:
    assert said.low is not None and said.high is not None and said.value is not None
    return {"name": run.name, "measured": run.losses[-1], "predicted": said.value, "low": said.low, "high": said.high}


def inside(rows: Sequence[dict]) -> list[bool]:
    return [row["low"] <= row["measured"] <= row["high"] for row in rows]


def left_out(runs: Sequence[RecoveryRun], group_of: Callable[[RecoveryRun], str]) -> Iterator[tuple[list, list]]:
    """Of each group: the other runs, and the group's."""
    for group in dict.fromkeys(map(group_of, runs)):
        yield [run for run in runs if group_of(run) != group], [run for run in runs if group_of(run) == group]


def leave_out(runs: Sequence[RecoveryRun]) -> dict[str, list[bool]]:
    """Coverage with each source, each fraction and the last fifth of the tokens left out."""
    seen, judged = cut_runs(runs, SEEN_OF_TOKENS)
    found = {"later tokens": inside(ends(Split("tokens", seen, seen, judged)))}
    for name, group_of in (("source", source_of), ("fraction", lambda run: run.name.split()[-1])):
        parts = [Split(name, rest, *cut_runs(asked, SEEN_AT_START)) for rest, asked in left_out(runs, group_of)]
        found[name] = [one for part in parts for one in inside(ends(part))]
    return found | forecasts(runs)


def forecasts(runs: Sequence[RecoveryRun]) -> dict[str, list[bool]]:
    """Coverage of forecasts of runs under way, without a control: by a law of other sources, and by the run alone."""
    found: dict[str, list[bool]] = {}
    for rest, asked in left_out(runs, source_of):
        with quietly():
            law = fit_law(rest, num_bootstrap=NUM_BOOTSTRAP, allow_different_tokens=True)
        for run in asked:
            for share in SEEN_UNDER_WAY:
                part = run.between(high=share * run.tokens[-1])
                both = {
                    "callback": forecast(law, run.case, part.tokens, part.losses),
                    "callback, run alone": own_forecast(part.tokens, part.losses),
                }
                for name, said in both.items():
                    row = _end(run, said.loss(run.tokens[-1]))
                    found.setdefault(f"{name}, {share:.0%} of tokens seen", []).extend(inside([row]))
    return found


def binomial(inside: Sequence[bool]) -> dict:
    """Share inside, with its 95 % interval (Clopper-Pearson)."""
    from scipy.stats import binomtest

    span = binomtest(sum(inside), len(inside)).proportion_ci(0.95, "exact")
    return {"inside": sum(inside), "of": len(inside), "low": float(span.low), "high": float(span.high)}


# Stopping


class ReplayedTrainer:
    """What the callback needs of a trainer: its log."""

    def __init__(self, run: RecoveryRun):
        self.state = TrainerState(max_steps=int(run.tokens[-1]), is_world_process_zero=False)

    def log(self, entries: dict[str, float]) -> None:
        self.state.log_history.append({**entries, "step": float(self.state.global_step)})


def replay(run: RecoveryRun, law: LawFit | None) -> list[dict]:
    """What the callback logs at each checkpoint of a run, a step being a token; ``law`` None is the run alone."""
    trainer: Any = ReplayedTrainer(run)
    unread: Any = None
    callback = ScalingLawCallback(trainer, case=run.case, law=law, tokens_per_step=1.0)
    callback.law, callback.alternatives = law, []  # None is not the law that ships
    state, found = trainer.state, []
    for tokens, loss in zip(run.tokens, run.losses, strict=True):
        state.global_step, before = int(tokens), len(state.log_history)
        trainer.log({"eval_loss": loss})
        callback.on_evaluate(unread, state, TrainerControl())
        found.append({name: value for entry in state.log_history[before:] for name, value in entry.items()})
    return found


def gains_of(run: RecoveryRun, law: LawFit | None) -> list[float]:
    """At each checkpoint what the callback says that the next FLOP gains; infinite where it says nothing yet."""
    return [entries.get(GAIN_PER_FLOP, math.inf) for entries in replay(run, law)]


def stop_of(gains: Sequence[float], price: float, patience: int = PATIENCE) -> int:
    """The checkpoint at which the callback would stop, or the last."""
    below = [index for index in range(patience - 1, len(gains)) if max(gains[index - patience + 1 : index + 1]) < price]
    return below[0] if below else len(gains) - 1


def regrets(seeds: Sequence[Sequence[RecoveryRun]]) -> list[dict]:
    """FLOPs worse than the best stop in hindsight, as a share of the FLOPs of the whole run: a record for each seed.

    By price and policy. The run alone is of the first seed, because it takes a fit at each checkpoint.
    """
    found = []
    for number, runs in enumerate(seeds):
        policies = ("with the law", *(["the run alone"] if number == 0 else []), "no stop")
        found.append({f"{nats:g}": {policy: [] for policy in policies} for nats in PRICES})
        for size in sorted({run.case.num_parameters for run in runs}):
            rest = [run for run in runs if run.case.num_parameters != size]
            with quietly():
                law = fit_law(rest, num_bootstrap=8, allow_different_tokens=True)
            for run in (run for run in runs if run.case.num_parameters == size):
                gains = {"with the law": gains_of(run, law)}
                gains |= {"the run alone": gains_of(run, None)} if number == 0 else {}
                for price, row in stops(run, gains).items():
                    for policy, regret in row.items():
                        found[number][price][policy].append(regret)
    return found


def stops(run: RecoveryRun, gains: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The regret of one run, by price and policy, from what each policy says that the next FLOP gains."""
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * run.case.pruned_size * np.array(run.tokens)
    found = {}
    for nats in PRICES:
        worth = np.array(run.losses) + nats / flops[-1] * flops
        at = {policy: stop_of(values, nats / flops[-1]) for policy, values in gains.items()} | {
            "no stop": len(flops) - 1
        }
        found[f"{nats:g}"] = {policy: float((worth[stop] - worth.min()) / nats) for policy, stop in at.items()}
    return found


def margins(seeds: Sequence[Sequence[RecoveryRun]], price: float) -> list[float]:
    """Of each seed: by how much more than a price the measured loss falls in the second half of its runs, as a ratio."""
    found = []
    for runs in seeds:
        ratios = []
        for run in runs:
            half = run.between(low=run.tokens[-1] / 2)
            paid = price * (1 - half.tokens[0] / run.tokens[-1])
            ratios.append((half.losses[0] - half.losses[-1]) / paid)
        found.append(fmean(ratios))
    return found


# Another shape for the rest of the budget


def better_uses(seeds: Sequence[Sequence[RecoveryRun]]) -> dict[str, list[dict]]:
    """When it is said that another shape would be the better use of what a run has left, and whether it was.

    Each run is replayed by a law of the other sources. The shapes are the other fractions of its source, at its rate, whose
    runs were measured. "lowest loss" has no target. Under "target", a run is replayed with the last loss of each other run
    of its source as the target. "possible" counts a run for which a shape was better at one of the checkpoints.
    """
    found: dict[str, list[dict]] = {"lowest loss": [], "target": []}
    for runs in seeds:
        for rest, asked in left_out(runs, source_of):
            with quietly():
                law = fit_law(rest, num_bootstrap=NUM_BOOTSTRAP, allow_different_tokens=True)
            for run in asked:
                others = [one for one in asked if one is not run and one.learning_rate == run.learning_rate]
                ends = _ends_on_the_way(run, law, others)
                found["lowest loss"].append(better_use_of(run, others, ends, None))
                found["target"] += [better_use_of(run, others, ends, one.losses[-1]) for one in others]
    return found


def _ends_on_the_way(run: RecoveryRun, law: LawFit, others: Sequence[RecoveryRun]) -> list[tuple]:
    """At some checkpoints: tokens, where the run ends (None where its loss rises), and where other shapes do."""
    shapes, found = [Alternative(Candidate(one.name, one.case), law) for one in others], []
    for index in range(0, len(run.tokens) - 1, math.ceil(len(run.tokens) / MAX_REPLAYED)):
        tokens, losses = run.tokens[: index + 1], run.losses[: index + 1]
        left = (run.tokens[-1] - tokens[-1]) * FLOPS_PER_PARAMETER_AND_TOKEN * run.case.pruned_size
        rises = rising_slope(*late_checkpoints(tokens, losses)) > 0
        end = None if rises else forecast(law, run.case, tokens, losses).loss(run.tokens[-1])
        found.append((tokens[-1], end, [] if rises else predicted_ends(shapes, left)))
    return found


def better_use_of(run: RecoveryRun, others: Sequence[RecoveryRun], ends: Sequence[tuple], target: float | None) -> dict:
    """What is said of one run first, with or without a target, and what was measured."""
    better = {(tokens, one.name): is_better_use(run, one, tokens, target) for tokens, *_ in ends for one in others}
    facts = {"run": run.name, "target": target, "possible": any(better.values()), "said": None}
    for tokens, end, predicted in ends:
        said = None if end is None else better_use(predicted, run.case, end, target)
        if said is not None:
            name, share = said.candidate.name, tokens / run.tokens[-1]
            return facts | {"said": name, "share": share, "size": said.size, "right": better[tokens, name]}
    return facts


def is_better_use(run: RecoveryRun, other: RecoveryRun, tokens: float, target: float | None) -> bool:
    """Whether the measured run of another shape, begun anew, ends better with what ``run`` has left at ``tokens``.

    Beyond its own end a run counts as ending there; before its first checkpoint nothing is known, and it counts as worse.
    """
    paid = (run.tokens[-1] - tokens) * run.case.pruned_size / other.case.pruned_size
    if paid < other.tokens[0]:
        return False
    ends = float(np.interp(math.log(paid), np.log(other.tokens), other.losses))
    if target is None or run.losses[-1] > target:
        return ends < run.losses[-1]
    return ends <= target and other.case.pruned_size < run.case.pruned_size


# What the design tells apart


def size_and_rate(runs: Sequence[RecoveryRun]) -> dict:
    """ln of the last L - L0 on ln N, ln rate and rho, over the family: slopes with standard errors."""
    rows = [run for run in runs if source_of(run) in FAMILY and run.rises[-1] > 0]
    columns = np.array([[1, math.log(r.case.num_parameters), math.log(r.learning_rate or 1.0), r.case.fraction_removed]
                        for r in rows])  # fmt: skip
    target = np.log([run.rises[-1] for run in rows])
    solution, *_ = np.linalg.lstsq(columns, target, rcond=None)
    residual = target - columns @ solution
    freedom = len(rows) - columns.shape[1]
    errors = np.sqrt(np.diag(np.linalg.pinv(columns.T @ columns)) * (residual @ residual) / max(freedom, 1))
    names = ("constant", "ln size", "ln rate", "fraction")
    facts = {name: [float(a), float(b)] for name, a, b in zip(names, solution, errors, strict=True)}
    return facts | {"num_runs": len(rows)}


def late_decay(results: dict) -> list[dict]:
    """Pairs of a late decay and a constant rate, at the same tokens: differences of L, of the control's L, and of ln d."""
    constant = {(source_of(run), run.learning_rate, run.name): run for run in fresh_runs(results, CONSTANT, ONE_SHOT)}
    pairs = []
    for run in fresh_runs(results, LATE_DECAY, ONE_SHOT):
        other = constant.get((source_of(run), run.learning_rate, run.name))
        if other is None:
            continue
        pairs.append({
            "name": run.name, "loss": run.losses[-1] - other.losses[-1],
            "control": float(run.reference[-1] - other.reference[-1]),
            "log_damage": float(np.log(run.rises[-1] / other.rises[-1])),
        })  # fmt: skip
    return pairs


def law_facts(runs: Sequence[RecoveryRun], form: str) -> dict:
    """Constants of a form fitted to all runs, and whether they are identified."""
    with quietly():
        fit = fit_law(runs, form, num_bootstrap=0)
    assert fit.report is not None
    return {"constants": fit.constants, "identifiability": fit.report.to_dict()["identifiability"]}


def make_prior(runs: Sequence[RecoveryRun], provenance: str, decay: list[dict]) -> LawFit:
    """The law that ships: fitted to all small runs of a constant rate."""
    with quietly():
        fit = fit_law(runs, num_bootstrap=NUM_BOOTSTRAP, allow_different_tokens=True)
    fit = replace(fit, report=None, decay_correction=fmean(pair["loss"] for pair in decay) if decay else None)
    fit.save(PRIOR)
    PRIOR.write_text(json.dumps(read_results(PRIOR) | {"provenance": provenance}) + "\n", encoding="utf-8")  # one line
    return fit


def judge_kept() -> dict:
    """What the page says of the kept runs: errors, coverage, regret of stops, constants."""
    seeds, errors = kept_runs(), {}
    for test in TEST_NAMES:
        rows = [{row["method"]: row["relative_error"] for row in generalisation_errors(runs, test, (*LAWS, BLEND))}
                for runs in seeds]  # fmt: skip
        errors[test] = {method: [row[method] for row in rows] for method in rows[0]}
    found = [leave_out(runs) for runs in seeds]
    return {
        "errors": errors, "regret": regrets(seeds), "margins": margins(seeds, MIDDLE_PRICE),
        "better_uses": better_uses(seeds), "laws": {form: law_facts(seeds[0], form) for form in ("p2", "damage")},
        "coverage": {name: binomial([one for seed in found for one in seed[name]]) for name in found[0]},
    }  # fmt: skip


def judge_fresh(path: Path) -> dict:
    """What the page says of the fresh runs. Writes the law that ships, which is of all small runs."""
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is not there: make the runs with `python -m examples.research.law_runs`.")
    results = json.loads(path.read_text(encoding="utf-8"))
    curves = [run for run in fresh_runs(results, CONSTANT, ONE_SHOT) if source_of(run) != SMOLLM]
    directions, decay = judged_directions(results), late_decay(results)
    every = [replace(run, name=f"{run.name} seed {seed}") for seed, runs in enumerate(kept_runs()) for run in runs]
    provenance = (
        f"model_cards/scaling_law.md: {len(every)} kept and {len(curves)} fresh recovery runs at constant rates of sources"
        f" of {min(r.case.num_parameters for r in curves):,.0f} to"
        f" {max(r.case.num_parameters for r in every):,.0f} parameters; for 135 M and above an extrapolation."
    )
    make_prior([*every, *curves], provenance, decay)
    large = splits(results).get("SmolLM2")
    far = {} if large is None else {"default": ends(large), "nearest small run": ends(large, LawFit.anchored)}
    return {
        "num_runs": len(results["runs"]), "curves": [run.name for run in curves], "code": results["code"],
        "settings": results["settings"], "directions": directions, "verdict": verdict(directions),
        "coverage": {name: binomial(found) for name, found in leave_out(curves).items()}, "SmolLM2": far,
        "regret": regrets([curves]), "better_uses": better_uses([curves]), "size_and_rate": size_and_rate(curves),
        "late_decay": decay,
    }  # fmt: skip
