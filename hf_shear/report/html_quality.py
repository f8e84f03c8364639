"""The report on what came of it: the models of the run side by side, and the evaluation of source and pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .arms_table import Arm, lowest_of_rivals, perplexity_text, read_arms
from .html_charts import dot_rows
from .html_page import NOT_KNOWN, Cell, name, note, section, table, text

_LOOKS = {"recovered": "c1", "pruned": "kept"}


def comparison_section(results: Mapping[str, Any]) -> str:
    """The models of the run side by side; the verdict stands at the head of the page."""
    arms = read_arms(results)
    if not arms:
        return section("Comparison", note("These results hold no evaluated model, so there is nothing to compare."))
    dots = [(name(arm.name), _over_domains(arm), _LOOKS.get(arm.name, ""), f"{arm.record['mean']:.3f}") for arm in arms]
    source = results.get("source", {}).get("mean")
    line = "" if source is None else " The dashed line is the source."
    intro = f"Held-out loss in nats per token: the dot is the mean over the domains, the bar spans them.{line}"
    return section(
        "Comparison", note(intro), dot_rows(dots, source), _models(results, arms),
        _domains(arms),
    )  # fmt: skip


def _over_domains(arm: Arm) -> tuple[float, float, float]:
    losses = arm.record["loss"].values()
    return min(losses), arm.record["mean"], max(losses)


def _models(results: Mapping[str, Any], arms: list[Arm]) -> str:
    whole = results.get("source", {}).get("num_parameters")
    rows = []
    for arm in arms:
        parameters, mean, rate = arm.record["num_parameters"], arm.record["mean"], arm.record.get("learning_rate")
        rows.append(
            (
                name(arm.name),
                f"{parameters:,}",
                NOT_KNOWN if whole is None else f"{100 * parameters / whole:.1f} %",
                f"{mean:.3f}",
                perplexity_text(mean),
                NOT_KNOWN if arm.tokens is None else f"{arm.tokens:,}",
                NOT_KNOWN if rate is None else f"{rate:.3g}",
            )
        )
    headings = ("model", "parameters", "of source", "mean loss", "perplexity", "training tokens", "learning rate")
    return table("Models", headings, rows, "training tokens: mask learning and recovery together")


def _domains(arms: list[Arm]) -> str:
    domains = dict.fromkeys(domain for arm in arms for domain in arm.record["loss"])
    rows: list[tuple] = []
    for domain in domains:
        best = lowest_of_rivals(arms, domain)
        cells = []
        for arm in arms:
            loss = arm.record["loss"].get(domain)
            is_best = best is not None and arm.is_rival and loss == best
            cells.append(Cell(NOT_KNOWN if loss is None else f"{loss:.3f}", "best" if is_best else ""))
        rows.append((name(domain), *cells))
    marked = any(cell.kind for row in rows for cell in row[1:])
    return table(
        "Loss of each domain",
        ("domain", *(name(arm.name) for arm in arms)),
        rows,
        "bold: the lowest of the trained models of the target’s shape" if marked else "",
    )


def evaluation_section(evaluation: Mapping[str, Any] | None) -> str:
    """Perplexity with intervals, and tasks, of the source and the pruned model."""
    title = "Evaluation"
    if not evaluation:
        missing = (
            "The run’s folder holds no evaluation.json, so this page tells no intervals, tasks or inference speed."
        )
        return section(title, note(missing + " <code>hf-shear evaluate</code> writes it."))
    records = {side: evaluation[side] for side in ("source", "pruned") if evaluation.get(side)}
    names = "; ".join(f"{side}: {name(record['name'])}" for side, record in records.items() if record.get("name"))
    parts = [note(f"{names}.")] if names else []
    parts += [_perplexity(records, evaluation.get("differences") or {}), _tasks(records)]
    if not any(parts[-2:]):
        parts.append(note("It holds neither perplexities nor tasks."))
    return section(title, *parts)


def _perplexity(records: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any]) -> str:
    measured = {side: record["perplexity"] for side, record in records.items() if record.get("perplexity")}
    parts = []
    if differences:
        # Models with different tokenizers compare by bits per byte alone.
        compares = all("loss" in record for record in differences.values())
        value, interval = ("loss", "interval") if compares else ("bits_per_byte", "bits_per_byte_interval")
        parts.append(f"<h3>{'Loss' if compares else 'Bits per byte'}, pruned minus source</h3>\n")
        unit = "Nats per token" if compares else "The tokenizers differ, so these are bits per byte,"
        parts.append(note(f"{unit} with intervals; right of the dashed line, the pruned model is worse."))
        dots = [_difference(domain, record[value], record[interval]) for domain, record in differences.items()]
        parts.append(dot_rows(dots, 0.0))
    if measured:
        parts.append(_perplexity_table(measured))
        protocol = next((record["protocol"] for record in measured.values() if record.get("protocol")), None)
        if protocol:
            told = ", ".join(f"{text(key).replace('_', ' ')} {text(value)}" for key, value in protocol.items())
            parts.append(note(f"Protocol: {told}."))
    return "".join(parts)


def _perplexity_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    domains = dict.fromkeys(domain for record in measured.values() for domain in record.get("domains") or {})
    rows = []
    for domain in domains:
        found = [(record.get("domains") or {}).get(domain) or {} for record in measured.values()]
        counts = [f"{found[0][key]:,}" if key in found[0] else NOT_KNOWN for key in ("num_documents", "num_tokens")]
        rows.append(
            (
                name(domain),
                *(_with_interval(record, "loss", 3) for record in found),
                *(f"{record['perplexity']:,.2f}" if "perplexity" in record else NOT_KNOWN for record in found),
                *(_with_interval(record, "bits_per_byte", 3) for record in found),
                *counts,
            )
        )
    means = list(measured.values())
    if all("mean_loss" in record for record in means):
        bits = [
            f"{record['mean_bits_per_byte']:.3f}" if "mean_bits_per_byte" in record else NOT_KNOWN for record in means
        ]
        blank = [""] * len(means)
        rows.append(("<b>mean</b>", *(f"<b>{record['mean_loss']:.3f}</b>" for record in means), *blank, *bits, "", ""))
    headings = ["domain"]
    headings += [f"{what}, {side}" for what in ("loss", "perplexity", "bits per byte") for side in measured]
    return table(
        "Perplexity", (*headings, "documents", "tokens"), rows, "loss in nats per token; in brackets, intervals"
    )


def _with_interval(record: Mapping[str, Any], key: str, digits: int) -> str:
    if key not in record:
        return NOT_KNOWN
    shown = f"{record[key]:.{digits}f}"
    interval = record.get(f"{key}_interval")
    return shown if not interval else f"{shown} <small>[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]</small>"


def _difference(domain: str, value: float, interval: Sequence[float] | None) -> tuple:
    """A row of dots; a domain with one document has no interval."""
    low, high = interval or (value, value)
    look = "" if interval is None else "kept" if low > 0 else "c1" if high < 0 else ""
    spread = f" <small>[{low:+.3f}, {high:+.3f}]</small>" if interval else ""
    return name(domain), (low, value, high), look, f"{value:+.3f}{spread}"


def _tasks(records: Mapping[str, Mapping[str, Any]]) -> str:
    tasks = dict.fromkeys(task for record in records.values() for task in record.get("tasks") or {})
    rows = []
    for task in tasks:
        found = [(record.get("tasks") or {}).get(task) or {} for record in records.values()]
        first = next(record for record in found if record)
        items = first.get("num_items")
        rows.append(
            (
                name(task),
                text(first.get("metric", NOT_KNOWN)),
                *(_with_error(record) for record in found),
                NOT_KNOWN if items is None else f"{items:,}",
            )
        )
    return table("Tasks", ("task", "metric", *records, "items"), rows, "±: standard error") if rows else ""


def _with_error(record: Mapping[str, Any]) -> str:
    if record.get("value") is None:
        return NOT_KNOWN
    error = record.get("standard_error")
    return f"{record['value']:.3f}" + (f" <small>± {error:.3f}</small>" if error is not None else "")
