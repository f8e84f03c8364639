"""The picture of a bench: each method's held-out loss before and after recovery."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .bench_table import bench_rows
from .plots import COLOURS, FONT_SIZE, LINE, SMALL_FONT_SIZE, _new_figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.34  # inches
NAME_WIDTH = 44  # characters, then a method's name is broken


def plot_bench(results: Mapping[str, Any], path: str | os.PathLike | None = None) -> Figure:
    """Two panels, before and after recovery, a row per method, the best at the top; bars are the spread over seeds.

    Args:
        results: of a bench (``bench_table``).
        path: where to save the picture, if anywhere.
    """
    rows = bench_rows(results)
    figure = _new_figure(1.3 + ROW_HEIGHT * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    names = [_broken(row["method"]) + (" *" if row["uneven"] else "") for row in rows]
    for axes, part, title in zip(panels, ("before", "after"), ("before recovery", "after recovery"), strict=True):
        for place, row in enumerate(rows):
            if row[part] is None:
                continue
            mean, spread = row[part]
            runs = [run[part]["mean"] for run in results["runs"] if run["method"] == row["method"]]
            axes.plot(runs, [place] * len(runs), "o", color=COLOURS[3], markersize=3.5, zorder=2)
            axes.errorbar(mean, place, xerr=spread, fmt="|", color=COLOURS[0], capsize=2, markersize=9, zorder=3)
        axes.set_title(title, fontsize=FONT_SIZE, loc="left")
        axes.grid(axis="x", alpha=0.3)
    _mark_source(panels[1], results["source"]["mean"])
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel("held-out loss, nats per token (dots: seeds; bars: mean ± standard deviation)", fontsize=FONT_SIZE)
    if any(row["uneven"] for row in rows):
        figure.text(0.01, 0.005, "* layers of different widths", fontsize=SMALL_FONT_SIZE)
    return _save(figure, path)


def _broken(method: str) -> str:
    """A method's name in lines; one may end before a compensation."""
    return "\n".join(textwrap.wrap(method.replace("+", " +"), NAME_WIDTH, break_long_words=False)).replace(" +", "+")


def _mark_source(axes, loss: float) -> None:
    low, high = axes.get_xlim()
    if low - loss < high - low:  # near enough to be shown
        axes.axvline(loss, color=LINE, linestyle=(0, (4, 2)), linewidth=0.9)
        axes.annotate("source", (loss, 1), (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points",
                      fontsize=SMALL_FONT_SIZE, color=LINE)  # fmt: skip
