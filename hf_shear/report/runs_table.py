"""Several runs side by side, as a text table and as a page: the record of ``hf_shear.evaluation.compare_runs``."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import write_text_atomically
from ..core.results import TARGET_NAMES
from .arms_table import MAX_TEXT_WIDTH, _Grid, _plain, _text_width, short_name
from .html_charts import dot_rows
from .html_page import NOT_KNOWN, Cell, duration, name, note, page, section, short_count, table, text, tiles
from .plots import SHAPE_LABELS

MEAN = "mean"
_UNKNOWN = "-"


def runs_table(record: Mapping[str, Any], width: int | None = None) -> str:
    """Cost and mean loss of each run, the loss of each domain, and what the intervals say, in plain ASCII.

    Args:
        record: of a comparison.
        width: of the text in characters; the terminal's, or 80, by default.
    """
    width = _text_width(width)
    rows, first = record["runs"], record["runs"][0]
    cost = [
        (
            short_name(row["name"]), row["model"], f"{row['num_parameters']:,}", f"{row['mean']:.3f}",
            _ascii_difference(record, row["name"], MEAN),
            _UNKNOWN if row["tokens"] is None else f"{row['tokens']:,}",
            _UNKNOWN if row["flops"] is None else f"{row['flops']:.2e}",
            _UNKNOWN if row["seconds"] is None else duration(row["seconds"]),
        )
        for row in rows
    ]  # fmt: skip
    headings = (
        "run", "model", "parameters", "mean\nloss", f"minus {short_name(first['name'])}\n[95 % interval]",
        "training\ntokens", "FLOPs", "time without\nbaselines",
    )  # fmt: skip
    grids = [_Grid("Runs (mean loss: nats per held-out token, unweighted over domains)", headings, cost)]
    domains = [(short_name(domain), *(f"{row['loss'][domain]:.3f}" for row in rows)) for domain in first["loss"]]
    grids.append(_Grid("Held-out loss by domain", ("domain", *(short_name(row["name"]) for row in rows)), domains))
    others = [
        (short_name(domain), *(_ascii_difference(record, row["name"], domain) for row in rows[1:]))
        for domain in first["loss"]
    ]
    title = f"Loss minus that of {short_name(first['name'])} [95 % interval]"
    grids.append(_Grid(title, ("domain", *(short_name(row["name"]) for row in rows[1:])), others))
    blocks = [_plain(grid, width) for grid in grids]
    said = textwrap.fill(comparison_verdict(record, short_name), min(width, MAX_TEXT_WIDTH), break_on_hyphens=False)
    return "\n\n".join([*blocks, said]) + "\n"


def comparison_verdict(record: Mapping[str, Any], shown: Callable[[str], str] = str) -> str:
    """Which runs are below the first and which above, by the intervals of their mean losses.

    Args:
        shown: makes a name printable.
    """
    first, phrases = shown(record["runs"][0]["name"]), []
    for other, found in record["differences"].items():
        loss, interval = found[MEAN]["loss"], found[MEAN]["interval"]
        if interval is None:
            phrases.append(f"{shown(other)} is {loss:+.3f} away, of too few samples for an interval")
        elif interval[0] > 0 or interval[1] < 0:
            side = "above" if loss > 0 else "below"
            phrases.append(f"{shown(other)} is {abs(loss):.3f} {side}")
        else:
            phrases.append(f"{shown(other)} cannot be told from it")
    differing = [row for row in record["runs"][1:] if row["shape"] != record["runs"][0]["shape"]]
    shapes = (
        f" Not all have the shape of {first}: {', '.join(shown(row['name']) for row in differing)}."
        if differing
        else ""
    )
    told = f"By mean loss in nats per token, against {first}: {'; '.join(phrases)}."
    told += f" All were judged on the same {record['eval_tokens']:,} tokens. Intervals are of a {record['interval']}:"
    return f"{told} they say what other text would change, and nothing of other seeds.{shapes}"


def write_comparison_page(record: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write the page of a comparison in one step, and return its path."""
    return write_text_atomically(path, comparison_page(record))


def comparison_page(record: Mapping[str, Any]) -> str:
    """The page of a comparison as one HTML document."""
    rows = record["runs"]
    best = min(rows, key=lambda row: row["mean"])
    head = '<p class="eyebrow">hf_shear comparison of runs</p>\n'
    head += f"<h1>{len(rows)} runs, one text</h1>\n"
    head += f'<p class="lead">{text(comparison_verdict(record))}</p>\n'
    facts = [
        ("Lowest mean loss", f"{best['mean']:.3f}", best["name"]),
        (
            "Judged on",
            short_count(record["eval_tokens"]),
            f"held-out tokens of {len(best['loss'])} domain{'s' * (len(best['loss']) != 1)}",
        ),
    ]
    sources = {row["source_mean"] for row in rows}
    if len(sources) == 1 and None not in sources:
        facts.append(("Source", f"{rows[0]['source_mean']:.3f}", "mean loss of the model that all were cut out of"))
    body = [_differences_section(record), _models_section(record), _domains_section(record), _shapes_section(rows)]
    return page("Comparison of runs – hf_shear", head + tiles(facts), "".join(body))


def _differences_section(record: Mapping[str, Any]) -> str:
    first = record["runs"][0]["name"]
    dots = [_dot(other, found[MEAN]) for other, found in record["differences"].items()]
    intro = (
        f"Mean held-out loss minus that of {name(first)} (dashed line), in nats per token, with intervals in pairs of the"
        " same samples. To the left is better."
    )
    return section("Differences", note(intro), dot_rows(dots, 0.0))


def _dot(label: str, found: Mapping[str, Any]) -> tuple[str, tuple[float, float, float], str, str]:
    loss, interval = found["loss"], found["interval"]
    low, high = interval or (loss, loss)
    look = "" if interval is None else "kept" if low > 0 else "c1" if high < 0 else ""
    return name(label), (low, loss, high), look, _html_difference(found)


def _models_section(record: Mapping[str, Any]) -> str:
    lowest = min(row["mean"] for row in record["runs"])
    rows = []
    for row in record["runs"]:
        found = record["differences"].get(row["name"])
        rows.append(
            (
                name(row["name"]),
                text(row["model"]),
                f"{row['num_parameters']:,}",
                Cell(f"{row['mean']:.3f}", "best" if row["mean"] == lowest else ""),
                NOT_KNOWN if found is None else _html_difference(found[MEAN]),
                NOT_KNOWN if row["tokens"] is None else f"{row['tokens']:,}",
                NOT_KNOWN if row["flops"] is None else f"{row['flops']:.2e}",
                NOT_KNOWN if row["seconds"] is None else duration(row["seconds"]),
                NOT_KNOWN if row["seed"] is None else f"{row['seed']}",
            )
        )
    headings = (
        "run", "model", "parameters", "mean loss", "minus the first", "training tokens", "FLOPs",
        "time without baselines", "seed",
    )  # fmt: skip
    return section("Models and cost", table("Runs", headings, rows, "loss in nats per token; bold: the lowest"))


def _domains_section(record: Mapping[str, Any]) -> str:
    runs, rows, minus = record["runs"], [], []
    for domain in runs[0]["loss"]:
        lowest = min(row["loss"][domain] for row in runs)
        cells = [Cell(f"{row['loss'][domain]:.3f}", "best" if row["loss"][domain] == lowest else "") for row in runs]
        rows.append((name(domain), *cells))
        minus.append((name(domain), *(_html_difference(found[domain]) for found in record["differences"].values())))
    return section(
        "Domains",
        table("Loss of each domain", ("domain", *(name(row["name"]) for row in runs)), rows, "bold: the lowest"),
        table(f"Minus {runs[0]['name']}", ("domain", *map(name, record["differences"])), minus, "with 95 % intervals"),
    )


def _shapes_section(rows: Sequence[Mapping[str, Any]]) -> str:
    sizes = [key for key in TARGET_NAMES if any(key in row["shape"] for row in rows)]
    cells = [(name(row["name"]), *(f"{row['shape'][key]:,}" if key in row["shape"] else NOT_KNOWN for key in sizes))
             for row in rows]  # fmt: skip
    return section("Shapes", table("Sizes of each model", ("run", *(text(SHAPE_LABELS[key]) for key in sizes)), cells))


def _html_difference(found: Mapping[str, Any]) -> str:
    interval = found["interval"]
    spread = "" if interval is None else f" <small>[{interval[0]:+.3f}, {interval[1]:+.3f}]</small>"
    return f"{found['loss']:+.3f}{spread}"


def _ascii_difference(record: Mapping[str, Any], run: str, domain: str) -> str:
    found = record["differences"].get(run)
    if found is None:
        return _UNKNOWN
    loss, interval = found[domain]["loss"], found[domain]["interval"]
    return f"{loss:+.3f}" if interval is None else f"{loss:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
