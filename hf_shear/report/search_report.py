"""A search of shapes: its table, and its picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plots import COLOURS, LINE, MARKERS, _new_figure, _save, _title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT = {
    "hidden_size": "hidden", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "num_key_value_heads": "KV", "intermediate_size": "MLP",
}  # fmt: skip
COSTS = {
    "num_parameters": ("parameters", 1.0, "{:,.0f}"),
    "flops_per_token": ("MFLOPs/token", 1e6, "{:,.1f}"),
    "memory_bytes": ("MiB", 2.0**20, "{:,.1f}"),
    "latency_ms": ("ms/token", 1.0, "{:.2f}"),
}
PARTS = {
    "hidden_size": "hidden size", "num_hidden_layers": "layers", "heads": "heads and KV heads", "intermediate_size": "MLP",
}  # fmt: skip
"""What is cut alone, as ``hf_shear.search`` names it."""


def search_table(candidates: Sequence[Mapping[str, Any]], limits: Sequence[str], most: int = 10) -> str:
    """The first shapes, one a line.

    Args:
        candidates: ``ShapeCandidate.to_dict()``, the best first.
        limits: names of the costs that the budget limits.
        most: rows; finalists and the unsearched shape are shown in any case.
    """
    costs = [*limits, *(["num_parameters"] if "num_parameters" not in limits else [])]
    trained = any(one["recovered_rise"] is not None for one in candidates)
    head = [
        "",
        *SHORT.values(),
        *(COSTS[name][0] for name in costs),
        "score",
        "predicted",
        "at the cut",
        *["trained"] * trained,
    ]
    rows = []
    for rank, one in enumerate(candidates, 1):
        if rank > most and one["rise"] is None and not one["unsearched"]:
            continue
        row = [str(rank), *(str(one["sizes"][name]) for name in SHORT)]
        row += [COSTS[name][2].format(_cost(one, name) / COSTS[name][1]) for name in costs]
        row += [f"{one['score']:.3f}", f"+{one['predicted_rise']:.3f}", _rise(one["rise"])]
        row += [_rise(one["recovered_rise"])] * trained
        row.append("unsearched" if one["unsearched"] else "")
        row[-1] += " latency within noise" if one["within_noise"] else ""
        row[-1] += "layers differ: the largest sizes" if one.get("layers") else ""
        rows.append(row)
    rows = [[*head, ""], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)) for row in rows]
    return "\n".join(f"{line}  {row[-1]}".rstrip() for line, row in zip(lines, rows, strict=True))


def _cost(candidate: Mapping[str, Any], name: str) -> float:
    """A latency is the measured one where there is one."""
    if name == "latency_ms" and candidate["latency"] is not None:
        return candidate["latency"]["median"]
    return candidate["costs"][name]


def _rise(value: float | None) -> str:
    return "" if value is None else f"+{value:.3f}"


def plot_search(
    candidates: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    single_cuts: Mapping[str, Sequence[tuple[float, float]]],
    limits: Mapping[str, float],
    path: str | os.PathLike | None = None,
) -> Figure:
    """The rises of shapes against the budget, with the front; and what each size costs alone.

    Args:
        candidates: ``ShapeCandidate.to_dict()``, the best first.
        front: the best predicted shape of this budget and of larger ones (``sizes``, ``costs``, ``predicted_rise``).
        single_cuts: by part, pairs of the share that is kept and the rise.
        limits: of the budget, by cost; the first one is drawn.
        path: where to save the picture, if anywhere.
    """
    from matplotlib.ticker import MaxNLocator

    name, limit = next(iter(limits.items()))
    unit, scale, _ = COSTS[name]
    figure = _new_figure(4.2)
    shapes, parts = figure.subplots(1, 2)
    points = sorted((one["costs"][name] / scale, one["predicted_rise"]) for one in front)
    others = [one for one in candidates if one["rise"] is None]
    shapes.scatter(
        [one["costs"][name] / scale for one in others], [one["predicted_rise"] for one in others], s=8, color=LINE,
        label="other shapes, predicted", zorder=1,
    )  # fmt: skip
    shapes.plot(*zip(*points, strict=True), color=COLOURS[0], marker=".", label="best score (front)", zorder=2)
    for index, one in enumerate([one for one in candidates if one["rise"] is not None][:6]):
        text = " ".join(str(one["sizes"][key]) for key in SHORT) + (" (unsearched)" if one["unsearched"] else "")
        rise = one["rise"] if one["recovered_rise"] is None else one["recovered_rise"]
        style: dict[str, Any] = {"color": COLOURS[(index + 1) % len(COLOURS)], "marker": MARKERS[index + 1]}
        shapes.scatter([_cost(one, name) / scale], [rise], s=30, label=text, zorder=3, **style)
    shapes.axvline(limit / scale, color="black", linewidth=0.8, linestyle=":")
    shapes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    shapes.xaxis.set_major_locator(MaxNLocator(5))
    shapes.set_xlabel(unit)
    shapes.set_ylabel("rise of the held-out loss\n(nats per token)")
    shapes.set_ylim(bottom=0)
    shapes.grid(alpha=0.3)
    shapes.legend(fontsize=6.5, title="dots: judged; hidden layers heads KV MLP", title_fontsize=6.5)
    _title(shapes, "Shapes within the budget, and the front above it")
    for index, (part, pairs) in enumerate(single_cuts.items()):
        shares, rises = zip(*sorted(pairs), strict=True)
        parts.plot(shares, rises, color=COLOURS[index], marker=MARKERS[index], markersize=4, label=PARTS[part])
    parts.set_xlabel("share of the source's units that is kept")
    parts.grid(alpha=0.3)
    parts.set_ylim(bottom=0)
    parts.legend(fontsize=7)
    _title(parts, "Each size cut alone")
    return _save(figure, path)
