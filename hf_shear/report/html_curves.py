"""The report on training: domain weights and losses over time, and the loss curves of all stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .html_charts import LOG_RATIO, MAX_POINTS, Series, line_chart, line_legend
from .html_page import NOT_KNOWN, name, note, panels, section, table, text
from .plots import BY_TURNS, MASK_LEARNING, RECOVERY

_LOOKS = {MASK_LEARNING: "c0", BY_TURNS: "c0", RECOVERY: "c1"}  # a run has one of the first two
_FURTHER_LOOKS = ("c2", "c3", "c4", "c5")  # of stages beside these, such as baselines


def stage_label(stage: str) -> str:
    """'mask learning' for ``mask_learning``."""
    return str(stage).replace("_", " ")


def first_training(results: Mapping[str, Any]) -> str:
    """Name of the training that results count as ``mask_learning``: where scores choose what to keep, it is another."""
    return BY_TURNS if results.get("prune_config") else MASK_LEARNING


def stage_looks(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The look of each stage's lines, in the order of the stages."""
    stages = dict.fromkeys(str(row.get("stage", "training")) for row in history)
    others = [stage for stage in stages if stage not in _LOOKS]
    further = {
        stage: _FURTHER_LOOKS[index % 4] + (" dash" if index // 4 % 2 else "") for index, stage in enumerate(others)
    }
    return {stage: (_LOOKS | further)[stage] for stage in stages}


def loss_curves_section(results: Mapping[str, Any]) -> str:
    """Mean held-out loss over tokens, one line per stage and baseline."""
    history = results.get("history") or []
    drawn = [*history, *_baseline_rows(results)]
    looks = stage_looks(drawn)
    by_stage = {
        stage: [(row["num_tokens"], _mean(row["loss"])) for row in _rows(drawn, stage) if row.get("loss")]
        for stage in looks
    }
    by_stage = {stage: points for stage, points in by_stage.items() if points}
    if not by_stage:
        return section("Loss curves", note("No evaluation during training was recorded, so there are no curves."))
    series = [Series(points, looks[stage]) for stage, points in by_stage.items()]
    legend = [(looks[stage], stage_label(stage)) for stage in by_stage]
    reference = next((row["reference_loss"] for row in history if row.get("reference_loss")), None)
    end = max(x for points in by_stage.values() for x, _ in points)
    if reference:
        series.insert(0, Series([(0, _mean(reference)), (end, _mean(reference))], "cs dash"))
        legend.append(("cs dash", "reference loss (where the domains are steered to)"))
    ends = ", ".join(
        f"{stage_label(stage)} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
        if len(points) > 1
        else f"{stage_label(stage)} {points[0][1]:.3f} at its one evaluation"
        for stage, points in by_stage.items()
    )
    tokens = sorted({row["eval_tokens"] for row in history if "eval_tokens" in row})
    held_out = f", on {tokens[0]:,} to {tokens[-1]:,} held-out tokens each" if len(tokens) > 1 else ""
    held_out = f", on {tokens[0]:,} held-out tokens each" if len(tokens) == 1 else held_out
    intro = (
        f"Mean held-out loss (nats per token, unweighted over the domains) at the evaluations during training{held_out}:"
        f" {ends}.{_judged_on(results)}"
    )
    chart = line_chart(
        "Mean held-out loss" + _log_remark([y for line in series for _, y in line.points]),
        series,
        description=f"Mean held-out loss over training tokens: {ends}.",
        marks=_cuts(history),
        height=260,
    )
    return section("Loss curves", note(text(intro)), line_legend(legend), chart)


def domains_section(results: Mapping[str, Any]) -> str:
    """For each domain its loss and its weight over time, and the first and last of each in a table."""
    history = results.get("history") or []
    keys = ("mixture_weights", "loss")
    domains = list(dict.fromkeys(domain for row in history for key in keys for domain in row.get(key) or {}))
    if not domains:
        return section("Domains", note("These results hold no history of the domains, so there are no curves."))
    heaviest = max((w for row in history for w in (row.get("mixture_weights") or {}).values()), default=1.0)
    limits = (0.0, min(104.0, 100 * heaviest * 1.12) or 100.0)
    figures = [part for domain in domains for part in _domain_panel(history, domain, limits)]
    looks = stage_looks(history)
    legend = [(look, stage_label(stage)) for stage, look in looks.items()] + [("cs dash", "reference loss")]
    most = max(sum(row.get("stage") == stage for row in history) for stage in looks)
    thinned = f" Lines are drawn through {MAX_POINTS} of up to {most:,} evaluations." if most > MAX_POINTS else ""
    intro = (
        "Above, the held-out loss in nats per token (each domain on a scale of its own); below, the domain’s share of the"
        f" batches from there on. Domains far above their reference get more.{thinned}"
    )
    return section("Domains", note(intro), line_legend(legend), panels(figures), _domain_table(results, domains))


def _domain_panel(history: Sequence[Mapping[str, Any]], domain: str, limits: tuple[float, float]) -> list[str]:
    """The two charts of one domain, in one grid cell, so that they stay together."""
    looks, end = stage_looks(history), max(row["num_tokens"] for row in history)
    losses = [Series(_points(_rows(history, stage), "loss", domain), look) for stage, look in looks.items()]
    losses.insert(0, Series(_points(history, "reference_loss", domain), "cs dash"))
    values = [y for line in losses for _, y in line.points]
    weights = [
        Series([(x, 100 * y) for x, y in _points(_rows(history, stage), "mixture_weights", domain)], look, True, True)
        for stage, look in looks.items()
    ]
    options: dict[str, Any] = {"marks": _cuts(history), "x_max": end}
    parts = []
    if values:
        last = next(line.points[-1][1] for line in reversed(losses) if line.points)
        caption = f"{name(domain)} <small>loss{_log_remark(values, small=False)}</small>"
        description = f"Held-out loss of {domain} over training tokens, {last:.3f} at the end."
        parts.append(line_chart(caption, losses, description=description, x_label="", **options, height=120))
    points = [point for line in weights for point in line.points]
    if points:
        caption = f"{'' if values else name(domain)} <small>share of the batches</small>"
        description = f"Share of {domain} in the batches over training tokens, {points[-1][1]:.1f} per cent at the end."
        parts.append(
            line_chart(
                caption,
                weights,
                description=description,
                y_limits=limits,
                y_format="{:.0f} %".format,
                **options,
                height=66,
            )  # fmt: skip
        )
    return [f"<div>{''.join(parts)}</div>\n"]


def _domain_table(results: Mapping[str, Any], domains: Sequence[str]) -> str:
    history = results["history"]
    passes = results.get("passes") or {}
    rows = []
    for domain in domains:
        weights = [y for _, y in _points(history, "mixture_weights", domain)]
        losses = [y for _, y in _points(history, "loss", domain)]
        reference = [y for _, y in _points(history, "reference_loss", domain)]
        seen = [passes[stage][domain] for stage in passes if domain in (passes[stage] or {})]
        rows.append(
            (
                name(domain),
                *([f"{100 * value:.1f} %" for value in (weights[0], weights[-1])] if weights else [NOT_KNOWN] * 2),
                *([f"{value:.3f}" for value in (losses[0], losses[-1])] if losses else [NOT_KNOWN] * 2),
                f"{reference[-1]:.3f}" if reference else NOT_KNOWN,
                f"{math.fsum(seen):.3g}" if seen else NOT_KNOWN,
            )
        )
    headings = ("domain", "first weight", "last weight", "first loss", "last loss", "reference loss", "passes")
    return table(
        "First and last evaluation of each domain", headings, rows, "passes: how often its training text was seen"
    )


def _rows(history: Sequence[Mapping[str, Any]], stage: str) -> list[Mapping[str, Any]]:
    return [row for row in history if str(row.get("stage", "training")) == stage]


def _baseline_rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of the baselines, which begin at no tokens: each is a training of its own, beside the stages of the run."""
    by_name = results.get("baseline_history") or {}
    return [{**row, "stage": stage} for stage, rows in by_name.items() for row in rows]


def _points(rows: Sequence[Mapping[str, Any]], key: str, domain: str) -> list[tuple[float, float]]:
    return [(row["num_tokens"], row[key][domain]) for row in rows if domain in (row.get(key) or {})]


def _cuts(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where mask learning ended and the model was cut, if recovery follows."""
    learning = [row["num_tokens"] for row in history if row.get("stage") == MASK_LEARNING]
    return [max(learning)] if learning and any(row.get("stage") == RECOVERY for row in history) else []


def _judged_on(results: Mapping[str, Any]) -> str:
    tokens = (results.get("recovered") or results.get("pruned") or {}).get("eval_tokens")
    return "" if tokens is None else f" The comparison judges the finished models on {tokens:,} tokens."


def _mean(by_domain: Mapping[str, float]) -> float:
    return math.fsum(by_domain.values()) / len(by_domain)


def _log_remark(values: Sequence[float], small: bool = True) -> str:
    if not values or min(values) <= 0 or max(values) <= LOG_RATIO * min(values):
        return ""
    return " <small>log scale</small>" if small else ", log scale"
