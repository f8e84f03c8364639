"""``hf-shear plan``: how many recovery tokens, and to which size, from the law of earlier runs, yours or ours."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core import FINITE, UsageError, check_output_file, check_ranges, json_object, read_json_object, read_results
from ..core.defaults import GAIN, MASK_SHARE

if TYPE_CHECKING:
    from ..scaling_law import BudgetPlan, Candidate, LawFit
    from ..scaling_law.forecast import Forecast

SUMMARY = "Say how many recovery tokens are enough, and which size fits a budget, from earlier runs."
EXAMPLE = "hf-shear plan runs.csv --num_parameters 1.2e9 --source_loss 2.41 --fractions .15 .25 .35 --flops 1e19"
POSITIONAL = ("runs",)

NUM_POINTS = 60  # of a curve in the picture
OF_A_FIT = ("form", "loss", "weighting", "fixed", "drop_start", "bootstrap", "allow_different_tokens")
PLOTTED_BEYOND = 4.0  # times the largest tokens fitted or asked for


@dataclass
class Arguments:
    """Which runs, and what is asked."""

    runs: str | None = field(
        default=None,
        metadata={
            "help": "A CSV, a results.json or a folder of them, a JSON list of trainer states, or a law from --save;"
            " without it the law of our own small runs, which for a larger model is an extrapolation."
        },
    )
    form: str = field(
        default="auto",
        metadata={
            "help": "neighbour (auto), p2, p2_five, damage, chinchilla, average_parameters, compute; power_law: one run."
        },
    )
    loss: Literal["linear", "soft_l1", "huber", "cauchy"] = field(
        default="linear", metadata={"help": "Of the fit; all but linear bound the weight of outliers."}
    )
    weighting: str | None = field(
        default=None,
        metadata={"help": "absolute (nats) or relative (to each run's mean L - L0); default the form's own."},
    )
    fixed: str | None = field(default=None, metadata={"help": """Constants to borrow, as JSON: '{"beta": 0.4}'."""})
    drop_start: float = field(default=0.1, metadata={"help": "Share of each run's tokens left out at its start."})
    bootstrap: int = field(default=100, metadata={"help": "Fits behind the intervals; 0: none."})
    allow_different_tokens: bool = field(default=False, metadata={"help": "Runs of constant rates, of any length."})
    checkpoint: str | None = field(default=None, metadata={"help": "The source, for exact shapes and FLOPs."})
    num_parameters: float | None = field(default=None, metadata={"help": "Of the source, without --checkpoint."})
    source_loss: float | None = field(default=None, metadata={"help": "Of the source, in nats per token."})
    source_tokens: float | None = field(default=None, metadata={"help": "That it saw; for --own_run and two forms."})
    fractions: list[float] = field(
        default_factory=lambda: [0.15, 0.25, 0.35], metadata={"help": "Shares of the parameters to remove."}
    )
    own_run: str | None = field(
        default=None,
        metadata={"help": "The trainer_state.json of your run so far, at one of --fractions: its forecast."},
    )
    tokens_per_step: float | None = field(default=None, metadata={"help": "Of --own_run, if its log counts none."})
    target_loss: float | None = field(default=None, metadata={"help": "Largest loss of the pruned model."})
    gain: float = field(default=GAIN, metadata={"help": "Nats of a doubling, below which a run is saturated."})
    price: float | None = field(default=None, metadata={"help": "Nats that a FLOP must gain to be worth it."})
    flops: float | None = field(default=None, metadata={"help": "Budget of mask learning and recovery."})
    mask_share: float = field(
        default=MASK_SHARE, metadata={"help": "Mask learning's share of the tokens; 0: pruned at once."}
    )
    sequence_length: int = field(default=4096, metadata={"help": "Tokens of a sample, for FLOPs of --checkpoint."})
    plot: str | None = field(default=None, metadata={"help": "File for the curves with their bands, such as plan.png."})
    save: str | None = field(
        default=None, metadata={"help": "File for the fitted law, for a callback or another plan."}
    )
    json: bool = field(default=False, metadata={"help": "Write one JSON object in place of the table."})

    def __post_init__(self):
        check_ranges(self)
        if self.runs is not None and not Path(self.runs).exists():
            raise UsageError(f"`runs` {self.runs!r} is neither a file nor a folder. Name one that holds recovery runs.")
        for name in ("save", "plot"):
            if getattr(self, name) is not None:
                check_output_file(name, getattr(self, name), [] if self.runs is None else [self.runs])
        if self.plot is not None:
            from ..report import check_picture

            check_picture("plot", self.plot)
        if self.checkpoint is not None and self.num_parameters is not None:
            raise UsageError("`checkpoint` and `num_parameters` say the same; give one of them.")
        for constant, value in (self.fixed_constants or {}).items():
            FINITE.check(f"fixed[{constant!r}]", value)
        asked = [
            name for name in ("own_run", "target_loss", "price", "flops", "plot") if getattr(self, name) is not None
        ]
        if not self.names_a_source and asked:
            raise UsageError(
                f"`{asked[0]}` needs a source to plan for: give `--checkpoint`, or `--num_parameters`, and `--source_loss`."
            )
        if self.names_a_source and self.source_loss is None:
            raise UsageError(
                "`source_loss` is needed, but it was not given. Give the held-out loss of the source, where the law starts."
            )

        if self.runs is None and not self.names_a_source:
            raise UsageError(
                "`runs` is needed, but it was not given, and no source to plan for either. Name a file of runs, or give"
                " `--checkpoint`, or `--num_parameters`, and `--source_loss`, for the law of our own runs."
            )
        if self.own_run is not None and len(self.fractions) != 1:
            raise UsageError(
                f"`own_run` is one run, but `fractions` has {len(self.fractions)}. Give the one that was removed from it."
            )

    @property
    def names_a_source(self) -> bool:
        """Whether there is a model to plan for; else the fit alone is shown."""
        return self.checkpoint is not None or self.num_parameters is not None

    @property
    def fixed_constants(self) -> dict | None:
        """``fixed`` as a dict."""
        return None if self.fixed is None else json_object(self.fixed, "`fixed`")

    def check_no_fit(self) -> None:
        """Refuse what says how to fit, where the law is fitted already."""
        for one in fields(self):
            if one.name in OF_A_FIT and getattr(self, one.name) != one.default:
                raise UsageError(
                    f"`{one.name}` says how to fit a law, but this one is fitted already. Leave it out, or name runs."
                )


def run(arguments: Arguments) -> None:
    """Fit or load the law, ask it about each candidate, print."""
    from ..scaling_law import plan_budget
    from ..scaling_law.forecast import forecast, law_after

    candidates = make_candidates(arguments) if arguments.names_a_source else []  # refused before a fit that takes long
    fit = load_law(arguments)
    if arguments.save is not None:
        fit.save(arguments.save)
    facts = {"form": fit.form.name, "constants": fit.constants}
    facts["report"] = None if fit.report is None else fit.report.to_dict()
    parts = [_law_text(fit, arguments)]
    if arguments.names_a_source:
        own = None if arguments.own_run is None else own_checkpoints(arguments)
        found = None if own is None else forecast(fit, candidates[0].case, *own)
        fit = fit if own is None else law_after(fit, candidates[0].case, *own)
        rows = [candidate_facts(fit, candidate, arguments) for candidate in candidates]
        plan = None
        if arguments.flops is not None:
            plan = plan_budget(
                fit, candidates, arguments.flops, max_loss=arguments.target_loss, mask_share=arguments.mask_share,
                gain=arguments.gain,
            )  # fmt: skip
        facts["candidates"] = [{name: _plain(value) for name, value in row.items()} for row in rows]
        facts["plan"] = None if plan is None else _plan_facts(plan)
        parts += [_candidates_text(rows, arguments)] + ([] if plan is None else [_plan_text(plan)])
        if found is not None:
            facts["own_run"] = _forecast_facts(found, candidates[0], arguments)
            parts.append(_forecast_text(found, candidates[0], arguments))
        if arguments.plot is not None:
            draw(fit, candidates, plan, arguments)
            parts.append(f"Drawn: {arguments.plot}")
    print(json.dumps(facts, indent=1) if arguments.json else "\n\n".join(parts))


def load_law(arguments: Arguments) -> LawFit:
    """The law of the runs, the saved one, or the one that ships."""
    from ..scaling_law import LawFit, ScalingLawWarning, fit_law, read_runs
    from ..scaling_law.callback import PRIOR

    path = PRIOR if arguments.runs is None else Path(arguments.runs)
    if arguments.runs is None or (path.suffix == ".json" and path.is_file() and b'"theta"' in path.read_bytes()):
        arguments.check_no_fit()
        return LawFit.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)  # they are part of the report
        return fit_law(
            read_runs(path), arguments.form, loss=arguments.loss, weighting=arguments.weighting,
            fixed=arguments.fixed_constants, drop_start=arguments.drop_start, num_bootstrap=arguments.bootstrap,
            allow_different_tokens=arguments.allow_different_tokens,
        )  # fmt: skip


def make_candidates(arguments: Arguments) -> list[Candidate]:
    """One candidate per fraction: a shape of the checkpoint, or a number of parameters."""
    from ..scaling_law import Candidate, Case
    from ..shapes import (
        check_supported_source,
        config_for_shape,
        count_parameters,
        shape_for_budget,
        training_flops_per_token,
    )
    from ..sources import open_source

    assert arguments.source_loss is not None, "checked with the other arguments"
    if arguments.checkpoint is None:
        assert arguments.num_parameters is not None, "checked with the other arguments"
        return [
            Candidate(f"-{fraction:.0%}", Case(arguments.num_parameters, fraction, arguments.source_loss,
                                              source_tokens=arguments.source_tokens))
            for fraction in arguments.fractions
        ]  # fmt: skip
    config = open_source("checkpoint", arguments.checkpoint, fetch=False).config
    check_supported_source(config)
    length = min(arguments.sequence_length, config.max_position_embeddings)
    source_flops, size = training_flops_per_token(config, length), count_parameters(config)
    candidates = []
    for fraction in arguments.fractions:
        choice = shape_for_budget(config, fraction_kept=1 - fraction)
        case = Case(size, 1 - choice.num_parameters / size, arguments.source_loss, choice.num_parameters,
                    arguments.source_tokens)  # fmt: skip
        sizes = choice.shape.sizes()
        pruned = config_for_shape(config, choice.shape)
        name = f"-{case.fraction_removed:.0%}: " + "/".join(str(value) for value in sizes.values())
        candidates.append(Candidate(name, case, training_flops_per_token(pruned, length), source_flops))
    return candidates


def candidate_facts(fit: LawFit, candidate: Candidate, arguments: Arguments) -> dict:
    """What the law says of one candidate, as estimates by name."""
    case, cost = candidate.case, candidate.recovery_cost
    facts = {"name": candidate.name, "num_parameters": case.pruned_size, "floor": fit.floor(case)}
    facts["saturation"] = fit.saturation_tokens(case, arguments.gain)
    facts["extrapolation"] = fit.extrapolation(case, facts["saturation"].value)
    if arguments.target_loss is not None:
        facts["target"] = fit.tokens_for(case, arguments.target_loss)
    if arguments.price is not None:
        facts["price"] = fit.tokens_at_price(case, arguments.price, cost)
    if arguments.flops is not None:
        facts["flops"] = fit.tokens_for_flops(case, arguments.flops, cost)
    return facts


def own_checkpoints(arguments: Arguments) -> tuple[list[float], list[float]]:
    """Tokens and losses of the run so far."""
    from ..scaling_law.read_runs import checkpoints_of_log

    assert arguments.own_run is not None, "asked by the caller"
    state = read_json_object(arguments.own_run, "`own_run`")
    if "log_history" not in state:
        raise UsageError(
            f"`own_run` {arguments.own_run!r} has no `log_history`. Name the trainer_state.json of a checkpoint."
        )
    tokens, losses = checkpoints_of_log(state["log_history"], arguments.tokens_per_step)
    if not tokens:
        raise UsageError(
            f"`own_run` {arguments.own_run!r} has no evaluation yet. Evaluate during the run (`eval_strategy`)."
        )
    return tokens, losses


def _forecast_facts(found: Forecast, candidate: Candidate, arguments: Arguments) -> dict:
    facts = {"tokens": found.seen, "at_twice_the_tokens": found.loss(2 * found.seen).to_dict()}
    facts["gain_per_flop"] = found.gain_per_flop(candidate.recovery_cost).value
    if arguments.target_loss is not None:
        facts["more_tokens"] = found.tokens_to(arguments.target_loss).to_dict()
    return facts


def _forecast_text(found: Forecast, candidate: Candidate, arguments: Arguments) -> str:
    from ..scaling_law.callback import reach_text
    from ..scaling_law.estimates import LEVEL, number_text

    lines = [f"Your run, at {number_text(found.seen)} tokens ({LEVEL:.0%} intervals)"]
    lines.append(f"  {'loss at twice the tokens':<46}{found.loss(2 * found.seen)}")
    gain = found.gain_per_flop(candidate.recovery_cost)
    lines.append(f"  {'the next FLOP gains, in nats':<46}{gain}")
    if arguments.target_loss is not None:
        lines.append(f"  {reach_text(arguments.target_loss, found.tokens_to(arguments.target_loss))}")
    assert gain.value is not None, "a curve has a slope"
    if arguments.price is not None and gain.value < arguments.price:
        lines.append(f"  proposal: stop here, because a FLOP must gain {arguments.price:g} nats")
    return "\n".join([*lines, *(f"  careful: {note}" for note in found.notes)])


def draw(fit: LawFit, candidates: list[Candidate], plan: BudgetPlan | None, arguments: Arguments) -> None:
    """The candidates' curves with their bands."""
    import numpy as np

    from ..report import plot_law_curves
    from ..scaling_law.estimates import LEVEL

    plans = {row.candidate.name: row for row in plan.plans} if plan is not None else {}
    low, high = fit.fitted["tokens"]
    asked = [high, *(row.recovery_tokens for row in plans.values())]
    tokens = np.geomspace(min(low, *asked), PLOTTED_BEYOND * max(asked), NUM_POINTS)
    curves = []
    for candidate in candidates:
        found = [fit.predict(candidate.case, value) for value in tokens]
        row = {"name": candidate.name, "tokens": tokens, "loss": np.array([one.value for one in found])}
        if found[0].low is not None:
            row |= {"low": np.array([one.low for one in found]), "high": np.array([one.high for one in found])}
        if candidate.name in plans:
            planned = plans[candidate.name]
            row["budget"] = (planned.recovery_tokens, planned.loss.value)
        row["saturation"] = fit.saturation_tokens(candidate.case, arguments.gain).value
        curves.append(row | {"fitted": fit.fitted["tokens"]})
    title = f"Law {fit.form.name}; solid where fitted, band {LEVEL:.0%}, bar: saturation" + (
        "; dot: budget" if plans else ""
    )
    plot_law_curves(curves, arguments.plot, target_loss=arguments.target_loss, title=title)


def _law_text(fit: LawFit, arguments: Arguments) -> str:
    from ..scaling_law.callback import PRIOR

    ours = (
        f"No runs were given, so this is our law: {read_results(PRIOR)['provenance']}\n"
        if arguments.runs is None
        else ""
    )
    constants = ", ".join(f"{name} {value:.4g}" for name, value in fit.constants.items())
    schedule = "Of runs at a constant rate."
    if fit.decay_correction is not None:
        schedule += f" A linear decay over the last 30 % changed their last loss by {fit.decay_correction:+.3f} nats."
    return (
        ours
        + f"Law: {fit.form.source}\n{schedule}\n{constants}"
        + ("" if fit.report is None else f"\n\n{fit.report.table()}")
    )


def _candidates_text(rows: list[dict], arguments: Arguments) -> str:
    from ..scaling_law.estimates import number_text

    columns = {
        "floor": "floor", "saturation": f"tokens until a doubling gains < {arguments.gain:g}",
        "target": f"tokens to {arguments.target_loss}", "price": f"tokens at {arguments.price} nats/FLOP",
        "flops": f"tokens that {arguments.flops} FLOPs pay for",
    }  # fmt: skip
    lines = []
    for row in rows:
        lines.append(f"{row['name']} ({number_text(row['num_parameters'])} parameters)")
        lines += [f"  {text:<46}{row[name]}" for name, text in columns.items() if name in row]
        factors = ", ".join(f"{name} {factor:.2g} x" for name, factor in row["extrapolation"].items())
        lines.append(f"  {'beyond the fitted, at saturation':<46}{factors}")
        stretched: dict[str, list[str]] = {}
        for name in columns:
            for note in row[name].notes if name in row else ():
                stretched.setdefault(note, []).append(name)
        lines += [f"  careful ({', '.join(names)}): {note}" for note, names in stretched.items()]
    return "\n".join(lines)


def _plan_text(plan: BudgetPlan) -> str:
    from ..scaling_law.estimates import number_text

    width = max(len(row.candidate.name) for row in plan.plans) + 2
    lines = [f"Budget {plan.total_flops:.3g} FLOPs", f"{'':<{width}}{'mask tokens':>12}{'recovery tokens':>17}  loss"]
    for row in plan.plans:
        chosen = " <-" if row is plan.choice else ""
        lines.append(
            f"{row.candidate.name:<{width}}{number_text(row.mask_tokens):>12}{number_text(row.recovery_tokens):>17}"
            f"  {row.loss}{chosen}"
        )
    masks = []
    if any(row.mask_tokens for row in plan.plans):
        costs = [row.candidate.mask_cost / row.candidate.recovery_cost for row in plan.plans]
        masks.append(
            f"A token of mask learning costs as much as {min(costs):.1f} to {max(costs):.1f} of recovery. At equal"
            " FLOPs that did not pay in the runs that were measured: compare with --mask_share 0."
        )
    return "\n".join([*lines, plan.reason, *masks])


def _plan_facts(plan: BudgetPlan) -> dict:
    rows = [
        {
            "name": row.candidate.name, "mask_tokens": row.mask_tokens, "recovery_tokens": row.recovery_tokens,
            "loss": row.loss.to_dict(), "within_reach": row.within_reach,
        }
        for row in plan.plans
    ]  # fmt: skip
    choice = None if plan.choice is None else plan.choice.candidate.name
    return {"total_flops": plan.total_flops, "candidates": rows, "choice": choice, "reason": plan.reason}


def _plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value
