"""The page of a run that is under way: how far it is, what it has measured, and what it would keep if it were cut now.

    results   as in ``html_report``, as far as they are known
    live      ``state`` ("running", "finished" or "stopped"), ``said`` (a sentence), ``written`` (a time, text),
              ``refresh_seconds``, ``stage``, ``step``, ``max_steps``, ``seconds``, ``seconds_left`` (None: not known),
              ``stages`` (rows of ``name``, ``state``, ``share`` of the run's work, ``seconds``), ``tokens``, ``flops``,
              ``training`` (rows of ``num_tokens`` and ``loss`` of the present stage), ``swapped`` (units, by shape name),
              ``removes_units`` (whether the training removes more of them)

A browser loads the page again by itself while the state is "running"; it needs no server and no script for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import duration_text
from .html_charts import Series, bars, line_chart
from .html_curves import domains_section, loss_curves_section, stage_label
from .html_page import NOT_KNOWN, duration, name, note, page, section, short_count, text, tiles
from .html_pruning import kept_section, shape_section, sizes_section
from .html_quality import comparison_section
from .plots import SHAPE_LABELS

RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"


def live_report(results: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """The page as one HTML document; parts of which nothing is known yet are left out."""
    history = [*(results.get("history") or []), *sum((results.get("baseline_history") or {}).values(), [])]
    body = [
        _stages_section(live),
        loss_curves_section(results) if any(row.get("loss") for row in history) else "",
        domains_section(results) if results.get("history") else "",
        _training_section(live),
        sizes_section(results, is_whole=False) if results.get("sizes") or results.get("prune_config") else "",
        kept_section(results, *_kept_words(live)) if results.get("kept") else "",
        shape_section(results),
        comparison_section(results) if results.get("pruned") and "mean" in (results.get("source") or {}) else "",
    ]
    running = live["state"] == RUNNING
    title = f"{_progress_text(live)} – hf_shear" if running else f"{live['state']} – hf_shear"
    return page(title, _head(results, live), "".join(body), live["refresh_seconds"] if running else None)


def _head(results: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    state = {RUNNING: "under way", FINISHED: "finished its stages", STOPPED: "stopped"}[live["state"]]
    source = (results.get("source") or {}).get("name")
    eyebrow = f'<p class="eyebrow">hf_shear run, {state}{f" – {name(source)}" if source else ""}</p>\n'
    lead = f'<p class="lead">{text(live["said"])}</p>\n' if live.get("said") else ""
    when = f"Written {live['written']}."
    if live["state"] == RUNNING:
        when += (
            f" The page loads itself again every {live['refresh_seconds']} s while the run goes. If this time is long past,"
            " the run was killed: the same command goes on (with --resume, except hf-shear recover)."
        )
    done = sum(row["share"] for row in live["stages"] if row["state"] == FINISHED) + _share_of_stage(live)
    bar = f'<div class="track whole"><b style="left:0;width:{100 * min(done, 1):.1f}%"></b></div>\n'
    return (
        f"{eyebrow}<h1>{text(_progress_text(live))}</h1>\n{lead}{bar}{note(text(when))}{tiles(_facts(results, live))}"
    )


def _progress_text(live: Mapping[str, Any]) -> str:
    step = f", step {live['step']:,} of {live['max_steps']:,}" if live.get("max_steps") else ""
    return f"{stage_label(live['stage']).capitalize()}{step}"


def _share_of_stage(live: Mapping[str, Any]) -> float:
    """Of the run's work, what is done of the stage that goes."""
    share = sum(row["share"] for row in live["stages"] if row["state"] == RUNNING)
    return share * live["step"] / live["max_steps"] if live.get("max_steps") else 0.0


def _facts(results: Mapping[str, Any], live: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    left = live.get("seconds_left")
    facts = []
    if live["state"] == RUNNING:
        facts.append(("Time left", NOT_KNOWN if left is None else duration_text(left), "about, of the whole run"))
    facts.append(("Time so far", duration(live["seconds"]), _processes(live)))
    rows = [row for row in results.get("history") or [] if row.get("loss")]
    source = (results.get("source") or {}).get("mean")
    if rows:
        last = rows[-1]
        mean = math.fsum(last["loss"].values()) / len(last["loss"])
        told = stage_label(last["stage"]) + ("" if source is None else f"; source {source:.3f}, on more text")
        facts.append(("Last held-out loss", f"{mean:.3f}", told))
    facts.append(("Training tokens", short_count(live["tokens"]), "of all stages so far"))
    if live.get("flops"):
        facts.append(("Training cost", f"{live['flops']:.2e}", "FLOPs of all stages so far"))
    return facts


def _processes(live: Mapping[str, Any]) -> str:
    number = live.get("num_processes") or 1
    return "" if number == 1 else f"{number} processes: {duration(number * live['seconds'])} of devices"


def _stages_section(live: Mapping[str, Any]) -> str:
    """Each stage with its share of the work; the one that goes is filled as far as it is."""
    rows, most = [], max((row["share"] for row in live["stages"]), default=0) or 1.0
    for row in live["stages"]:
        look = {FINISHED: "c1", RUNNING: ""}.get(row["state"], "wait")
        took = {FINISHED: duration(row["seconds"] or 0), RUNNING: "now"}.get(row["state"], "to come")
        label = f"{text(stage_label(row['name']))}"
        rows.append((label, row["share"] / most, look, f"{100 * row['share']:.0f} % <small>{text(took)}</small>"))
    return section("Stages", note("Length of a bar: the stage’s share of the run’s planned FLOPs."), bars(rows))


def _training_section(live: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = live.get("training") or []
    points = [(row["num_tokens"], row["loss"]) for row in rows if math.isfinite(row["loss"])]
    if not points:
        return ""
    label = stage_label(live["stage"])
    chart = line_chart(
        f"{text(label).capitalize()} <small>nats per token, mean since the log before</small>",
        [Series(points, "c0")],
        description=f"Training loss of {label}, {points[-1][1]:.3f} at the last log.",
        x_label=f"training tokens of {label}",
    )
    return section("Training loss", chart)


def _kept_words(live: Mapping[str, Any]) -> tuple[str, str]:
    """Title and remark of the map of units."""
    if "swapped" not in live:
        return "What is kept so far" if live.get("removes_units") else "What was kept", ""
    swapped = ", ".join(f"{SHAPE_LABELS[key]} {number:,}" for key, number in live["swapped"].items() if number)
    return "What a cut would keep now", f" Swapped since the start of mask learning: {text(swapped or 'nothing yet')}."
