"""The picture of a bench: each method's held-out loss before and after recovery."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .bench_table import bench_rows
from .method_words import method_words
from .plots import COLOURS, FONT_SIZE, LINE, SMALL_FONT_SIZE, _new_figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_HEIGHT, ROW_GAP = 0.16, 0.1  # inches: of a line of a name, and between two names
NAME_WIDTH = 40  # characters, then a method's name is broken
UNEVEN = "* layers of different widths"


def plot_bench(results: Mapping[str, Any], path: str | os.PathLike | None = None) -> Figure:
    """Two panels, before and after recovery, a row per method, the best at the top; bars are the spread over seeds.

    A panel of which nothing was measured is left out: methods that train while they prune have no loss before.

    Args:
        results: of a bench (``bench_table``).
        path: where to save the picture, if anywhere.
    """
    rows = bench_rows(results)
    names = [_broken(method_words(row["method"])) + (" *" if row["uneven"] else "") for row in rows]
    most_lines = max(name.count("\n") + 1 for name in names)
    figure = _new_figure(1.4 + (LINE_HEIGHT * most_lines + ROW_GAP) * len(rows))
    parts = {"before": "before recovery", "after": "after recovery"}
    parts = {part: title for part, title in parts.items() if any(row[part] is not None for row in rows)}
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, (part, title) in zip(panels, parts.items(), strict=True):
        for place, row in enumerate(rows):
            if row[part] is None:
                continue
            mean, spread = row[part]
            runs = [run[part]["mean"] for run in results["runs"] if run["method"] == row["method"]]
            style: dict[str, Any] = {"color": COLOURS[3], "markersize": 4.5, "markeredgecolor": "black"}
            axes.plot(runs, [place] * len(runs), "o", **style, markeredgewidth=0.4, zorder=4)
            axes.errorbar(mean, place, xerr=spread, fmt="|", color=COLOURS[0], capsize=3, markersize=11, zorder=3)
        axes.set_title(title, fontsize=FONT_SIZE, loc="left")
        axes.grid(axis="x", alpha=0.3)
    _mark_source(panels[-1], results["source"]["mean"])
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    label = "held-out loss, nats per token (dots: seeds; bars: mean ± standard deviation)"
    label += f"\n{UNEVEN}" if any(row["uneven"] for row in rows) else ""
    figure.supxlabel(label, fontsize=FONT_SIZE)
    return _save(figure, path)


def _broken(name: str) -> str:
    """A method's name in lines of about the same length."""
    number = -(-len(name) // NAME_WIDTH)
    lines = textwrap.wrap(name, NAME_WIDTH, break_long_words=False)
    for width in range(-(-len(name) // number), NAME_WIDTH):  # the narrowest that takes no more lines
        if len(found := textwrap.wrap(name, width, break_long_words=False)) == len(lines):
            return "\n".join(found)
    return "\n".join(lines)


def _mark_source(axes, loss: float) -> None:
    low, high = axes.get_xlim()
    if low - loss < high - low:  # near enough to be shown
        axes.axvline(loss, color=LINE, linestyle=(0, (4, 2)), linewidth=0.9)
        axes.annotate("source", (loss, 1), (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points",
                      fontsize=SMALL_FONT_SIZE, color=LINE)  # fmt: skip
