"""The tables of ../../docs/calibration_cost.md, out of the benchmark's JSON alone."""

from __future__ import annotations

import re
from pathlib import Path

MARK = "<!-- {name}: from {source} -->"
END = "<!-- end -->"


def tables(result: dict) -> dict[str, list[str]]:
    """Lines of Markdown by name of a table."""
    found = {}
    if "time" in result:
        found["curvature time"] = _time(result)
    if "memory" in result:
        found["curvature memory"] = _memory(result["memory"])
    if "calculated" in result:
        found["curvature calculated"] = _calculated(result["calculated"])
    return found


def _time(result: dict) -> list[str]:
    where, dtype = result["environment"], result["arguments"]["dtype"]
    key = "cpu_time_ratio" if where["gpu"] is None else "ratio"
    lines = [
        f"{where['gpu'] or where['cpu']}, {where['threads']} thread(s), {dtype}, {where['month']},"
        f" torch {where['versions']['torch']}; ratios are of {'processor' if key == 'cpu_time_ratio' else 'wall'} time.",
        "",
        "| model | what | against | ratio, median [quartiles] | limit |",
        "|---|---|---|---|---|",
    ]
    for times in result["time"].values():
        for arm, base in times["against"].items():
            ratio, limit = times[key][arm], times["targets"][arm]["limit"]
            spread = f"{ratio['median']:.2f} [{ratio['lower_quartile']:.2f}, {ratio['upper_quartile']:.2f}]"
            lines.append(f"| {times['num_parameters'] / 1e6:.1f} M | {arm} | {base} | {spread} | {limit} |")
    lines.append("")
    for times in result["time"].values():
        forward = times["seconds"]["forward"]["median"]
        solves = times["solves_seconds"]
        lines.append(
            f"Solves of the {times['num_parameters'] / 1e6:.1f} M model, all layers: costs of neurons"
            f" {solves['costs']:.2f} s, update for half of them {solves['update']:.2f} s; the {times['tokens']:,} tokens go"
            f" forward in {forward:.2f} s."
        )
    return lines


def _memory(rows: list[dict]) -> list[str]:
    lines = ["| model | way | predicted, MiB | measured, MiB | error |", "|---|---|---|---|---|"]
    for row in rows:
        predicted, measured = (row[key] / 2**20 for key in ("predicted_bytes", "measured_bytes"))
        lines.append(f"| {row['model']} | {row['way']} | {predicted:.2f} | {measured:.2f} | {row['error']:.1%} |")
    return lines


def _calculated(rows: list[dict]) -> list[str]:
    lines = ["| model | way | GB | on the host, GB | 24 GB | greatest at |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['way']} | {row['peak_bytes'] / 1e9:.1f} | {row['host_bytes'] / 1e9:.1f}"
            f" | {'fits' if row['fits'] else 'no'} | {row['moment']} |"
        )
    return lines


def fill(text: str, result: dict, source: str) -> str:
    """The page with its tables put between their marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    for name, lines in tables(result).items():
        start = MARK.format(name=name, source=source)
        if start not in text:
            raise ValueError(f"The page has no line {start!r} to put a table behind.")
        body = "\n".join([start, "", *lines, "", END])
        text = re.sub(re.escape(start) + r".*?" + re.escape(END), lambda _, body=body: body, text, flags=re.DOTALL)
    return text


def fill_page(page: Path, result: dict, source: str) -> None:
    """Write the tables into ``page``."""
    page.write_text(fill(page.read_text(encoding="utf-8"), result, source), encoding="utf-8")
