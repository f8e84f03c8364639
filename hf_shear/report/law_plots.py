"""Picture of scaling laws: predicted loss over tokens with its band, and the runs behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import UsageError
from .plots import (
    COLOURS,
    FONT_SIZE,
    LINE,
    MARKERS,
    _label,
    _new_figure,
    _save,
    _title,
    _token_unit,
    use_log_where_wide,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_HEIGHT = 4.6  # inches
BAND_ALPHA = 0.18
OUTSIDE = (0, (4, 2))  # dashes


def plot_law_curves(
    curves: Sequence[Mapping[str, Any]],
    path: str | os.PathLike | None = None,
    *,
    points: Sequence[Mapping[str, Any]] = (),
    target_loss: float | None = None,
    title: str = "",
    y_label: str = "held-out loss (nats per token)",
) -> Figure:
    """Loss over tokens, both as a law says and as measured.

    Args:
        curves: each with `name`, `tokens` and `loss`, perhaps `low` and `high` (the band), `fitted` (lowest and highest
            tokens that the law was fitted to; dashed outside), `budget` ([tokens, loss], a dot) and `saturation`
            (tokens, a tick on the curve).
        points: measured runs, each with `name`, `tokens` and `loss`; one with the name of a curve takes its colour.
        path: where to save the picture, if anywhere.
        target_loss: a horizontal line.
        title, y_label: above the picture, and beside its axis.

    Raises:
        ValueError: nothing to draw, or more curves than there are colours.
    """
    if not curves and not points:
        raise UsageError("`curves` and `points` are both empty: there is nothing to draw.")
    names = list(dict.fromkeys(row["name"] for row in (*curves, *points)))
    if len(names) > len(COLOURS):
        raise UsageError(f"`curves` and `points` must name at most {len(COLOURS)} models, but they name {len(names)}.")
    scale, unit = _token_unit(max(max(row["tokens"]) for row in (*curves, *points)))
    figure = _new_figure(FIGURE_HEIGHT)
    axes = figure.add_subplot()
    for row in points:
        index = names.index(row["name"])
        label = "_points" if any(curve["name"] == row["name"] for curve in curves) else _label(row["name"])
        axes.plot(np.array(row["tokens"]) / scale, row["loss"], linestyle="none", marker=MARKERS[index], markersize=3,
                  color=COLOURS[index], alpha=0.8, label=label, zorder=3)  # fmt: skip
    for row in curves:
        _draw_curve(axes, row, COLOURS[names.index(row["name"])], scale)
    if target_loss is not None:
        axes.axhline(target_loss, color="black", linewidth=0.9, linestyle=":", label=f"target {target_loss:g}")
    _log_tokens(axes)
    axes.set_xlabel(f"recovery tokens{unit}, log")
    axes.set_ylabel(y_label)
    use_log_where_wide(axes)
    if axes.get_yscale() == "log":  # a band that reaches 0 has no end on this axis: the lines decide what is shown
        drawn = [float(np.nanmin(row["loss"])) for row in (*curves, *points)]
        axes.set_ylim(bottom=0.8 * min(drawn))
    axes.grid(alpha=0.3, which="both")
    if title:
        _title(axes, title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=FONT_SIZE, handlelength=2.5)
    return _save(figure, path)


def _log_tokens(axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_curve(axes, row: Mapping[str, Any], colour: str, scale: float) -> None:
    tokens, loss = np.array(row["tokens"], dtype=float), np.array(row["loss"], dtype=float)
    low, high = row.get("fitted") or (tokens[0], tokens[-1])
    inside = (tokens >= low) & (tokens <= high)
    axes.plot(tokens / scale, loss, color=colour, linestyle=OUTSIDE, linewidth=1.2, label="_outside")
    solid = np.where(inside, loss, np.nan)
    axes.plot(tokens / scale, solid, color=colour, linewidth=1.8, label=_label(row["name"]))
    if row.get("low") is not None:
        axes.fill_between(tokens / scale, row["low"], row["high"], color=colour, alpha=BAND_ALPHA, linewidth=0)
    if row.get("budget") is not None:
        axes.plot(row["budget"][0] / scale, row["budget"][1], marker="o", markersize=7, color=colour,
                  markeredgecolor="black", label="_budget")  # fmt: skip
    if row.get("saturation") is not None and tokens[0] <= row["saturation"] <= tokens[-1]:
        at = float(np.interp(np.log(row["saturation"]), np.log(tokens), loss))
        axes.plot(row["saturation"] / scale, at, marker="|", markersize=14, markeredgewidth=2, color=LINE,
                  label="_saturation")  # fmt: skip
