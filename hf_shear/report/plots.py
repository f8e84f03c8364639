"""Pictures of a run: what was kept, the domains over time, the sizes over time.

Each function returns the matplotlib `Figure`, and saves it if given a path (its ending chooses the format).
Figures are built without pyplot, so that no global state, no display and no open-figure list is touched.
They are 8 inches wide and drawn for reading at 800 pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import MissingExtraError, UsageError
from ..core.results import TARGET_NAMES, write_file_atomically
from .arms_table import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_WIDTH = 8.0  # inches
DOTS_PER_INCH = 150
FONT_SIZE = 9  # points; 7 for numbers inside a panel
SMALL_FONT_SIZE = 7
MAX_TICKS = 12  # labelled layers, heads or positions on one axis
MAX_STRIPES = 384  # hidden dimensions drawn one by one; more would be thinner than two pixels,
NUM_BINS = 128  # so they are drawn as this many averages of neighbours
# Paul Tol's "muted" qualitative scheme, safe for colour-blind readers, in an order of high contrast between
# neighbours, then black, grey and orange for more than nine domains. Markers repeat the distinction.
COLOURS: tuple[str, ...] = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#999933",
    "#AA4499",
    "#44AA99",
    "#DDCC77",
)
COLOURS += ("#000000", "#888888", "#EE7733")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
KEPT, CUT, GROUP_CUT, LINE = "#332288", "#88CCEE", "#E4E4E4", "#999999"
REMOVED: dict[str, Any] = {"facecolor": "#F5F5F5", "edgecolor": LINE, "hatch": "////"}
GAP_OF_GROUPS = 0.3  # between KV groups, in widths of a head
MASK_LEARNING, BY_TURNS, RECOVERY = "mask_learning", "pruning_by_turns", "recovery"
STAGES = (MASK_LEARNING, BY_TURNS, RECOVERY)
SHAPE_LABELS: dict[str, str] = dict(
    zip(
        TARGET_NAMES,
        ("hidden size", "layers", "attention heads", "key-value heads", "MLP size", "experts"),
        strict=True,
    )
)


def plot_kept_units(
    kept: Mapping[str, Any], source_shape: Mapping[str, int], path: str | os.PathLike | None = None
) -> Figure:
    """What was kept: heads of each layer, share of each MLP, and the hidden dimension.

    Args:
        kept: indices in the source model: `layers` and `hidden` (lists), and for each kept layer, by its
            source number, `heads`, `key_value_heads` and `intermediate` (lists).
        source_shape: the source's five shape names.
        path: where to save the picture, if anywhere.

    Raises:
        ValueError: an index outside the source's shape, or a kept layer without entries.
    """
    units = kept_per_layer(kept, source_shape)
    num_layers = source_shape["num_hidden_layers"]
    height = min(7.0, max(0.9, 0.22 * num_layers))  # inches, of the layer panels
    figure = _new_figure(height + 2.9)
    grid = figure.add_gridspec(2, 2, height_ratios=(height, 0.7), width_ratios=(3, 2))
    heads, mlp = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _draw_heads(heads, units, source_shape)
    _draw_mlp(mlp, units, source_shape)
    _draw_hidden(figure.add_subplot(grid[1, :]), units["hidden"], source_shape["hidden_size"])
    removed = sorted(set(range(num_layers)) - set(units["layers"]))
    for axes in (heads, mlp):
        for layer in removed:
            axes.axhspan(layer - 0.5, layer + 0.5, **REMOVED, linewidth=0)
        axes.set_ylim(num_layers - 0.5, -0.5)
        axes.set_yticks(_integer_ticks(num_layers))
    has_groups = source_shape["num_key_value_heads"] < source_shape["num_attention_heads"]
    _kept_legend(figure, has_groups, bool(removed))
    return _save(figure, path)


def plot_domains(history: Sequence[Mapping[str, Any]], path: str | os.PathLike | None = None) -> Figure:
    """Mixture weights and held-out loss of each domain over the training tokens of both stages.

    Args:
        history: rows with `num_tokens` (counted on over both stages, never falling) and `stage`
            (one of `STAGES`); and by domain `mixture_weights`, `loss` (nats per token) and
            `reference_loss`, each where there is a value.
        path: where to save the picture, if anywhere.

    Raises:
        ValueError: no rows, an unknown stage, or tokens that fall.
    """
    _check_history(history)
    keys = ("mixture_weights", "loss")
    domains = list(dict.fromkeys(name for row in history for key in keys for name in row.get(key) or {}))
    scale, unit = _token_unit(history[-1]["num_tokens"])
    drawn = [key for key in keys if any(row.get(key) for row in history)]
    figure = _new_figure(1.0 + 2.5 * len(drawn))
    panels = dict(zip(drawn, figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    for index, domain in enumerate(domains):
        # Of lines in one place, such as weights that stay equal, each is seen beside the next.
        width = 1.4 + 1.2 * (len(domains) - 1 - index) / max(1, len(domains) - 1)
        again, number = divmod(index, len(COLOURS))
        # Each time that the colours begin again, each has the next marker.
        colour, marker = COLOURS[number], MARKERS[(number + again) % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": _label(domain)}
        for key, axes in panels.items():
            steps = {"drawstyle": "steps-post", "linewidth": 2 * width - 1.4} if key == "mixture_weights" else {}
            _draw_series(axes, history, key, domain, scale, style, **steps)
        if "loss" in panels:
            style = {"color": colour, "linestyle": (0, (4, 2)), "linewidth": 0.9, "label": "_reference"}
            _draw_series(panels["loss"], history, "reference_loss", domain, scale, style, drawstyle="steps-post")
    if "mixture_weights" in panels:
        heaviest = max(weight for row in history for weight in (row.get("mixture_weights") or {}).values())
        panels["mixture_weights"].set_ylabel("mixture weight\n(share of the batch)")
        panels["mixture_weights"].set_ylim(-0.04 * heaviest, 1.12 * heaviest or 1)
    if "loss" in panels:
        panels["loss"].set_ylabel("held-out loss\n(nats per token)")
        use_log_where_wide(panels["loss"])
    list(panels.values())[-1].set_xlabel(f"training tokens{unit}")
    _mark_cut(list(panels.values()), history, scale)
    _domain_legend(figure, list(panels.values()))
    return _save(figure, path)


def plot_sizes(
    history: Sequence[Mapping[str, Any]],
    target: Mapping[str, float],
    path: str | os.PathLike | None = None,
    *,
    source_shape: Mapping[str, float] | None = None,
) -> Figure:
    """Expected against target size of each mask during mask learning, as fractions of the source's sizes.

    Args:
        history: rows with `num_tokens`, `expected_shape`, and `target_shape` (the warmed-up target of that
            moment; may be missing), by shape name.
        target: the final target by shape name.
        path: where to save the picture, if anywhere.
        source_shape: the source's sizes, if `history` and `target` count units; without it they must be
            fractions of the source already.

    Raises:
        ValueError: no rows, tokens that fall, or sizes above the source's.
    """
    _check_history(history, stages=False)
    names = [name for name in TARGET_NAMES if any(name in row.get("expected_shape", {}) for row in history)]
    if not names:
        raise UsageError("`history` must hold rows with `expected_shape`, but none has it.")
    names = [name for name in names if name in target and is_reduced(history, name, source_shape, target)] or names
    scale, unit = _token_unit(history[-1]["num_tokens"])
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = _new_figure(0.8 + 2.1 * num_rows)
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    legend: dict[str, Any] = {}
    for axes, name in zip(panels.flat[: len(names)], names, strict=True):
        source = 1 if source_shape is None else source_shape[name]
        _draw_size(axes, history, name, target.get(name), source, scale)
        handles, labels = axes.get_legend_handles_labels()
        legend.update(zip(labels, handles, strict=True))
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("share of the source's size")
    for axes in panels.flat[max(0, len(names) - num_columns) : len(names)]:
        axes.set_xlabel(f"training tokens{unit}")
    style: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": FONT_SIZE}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", **style)
    return _save(figure, path)


def is_reduced(
    history: Sequence[Mapping[str, Any]],
    name: str,
    source: Mapping[str, float] | None,
    target: Mapping[str, float],
) -> bool:
    """Whether a size is to become smaller, or ever was: else its panel would show nothing."""
    whole = 1 if source is None else source[name]
    sizes = [row["expected_shape"][name] for row in history if name in (row.get("expected_shape") or {})]
    return any(abs(size - whole) > 1e-3 * whole for size in (target.get(name, whole), *sizes))


# --- what was kept -----------------------------------------------------------------------------------------


def kept_per_layer(kept: Mapping[str, Any], shape: Mapping[str, int]) -> dict[str, Any]:
    """`kept` with layer numbers as ints (JSON has them as strings), checked against the source's shape."""
    missing = [
        name for name in ("layers", "hidden", "heads", "key_value_heads", mlp_units(shape)[0]) if name not in kept
    ]
    if missing:
        raise UsageError(f"`kept` must name the units of each kind that were kept, but it lacks `{missing[0]}`.")
    units: dict[str, Any] = {
        "layers": _checked(kept["layers"], shape["num_hidden_layers"], "layers"),
        "hidden": _checked(kept["hidden"], shape["hidden_size"], "hidden"),
    }
    limits = {
        "heads": shape["num_attention_heads"],
        "key_value_heads": shape["num_key_value_heads"],
        "intermediate": shape["intermediate_size"],
    }
    limits |= dict([mlp_units(shape)])
    for name, limit in limits.items():
        by_layer = {int(layer): indices for layer, indices in kept[name].items()}
        if set(by_layer) != set(units["layers"]):
            raise UsageError(
                f"`kept['{name}']` must have one entry per kept layer {sorted(units['layers'])}, "
                f"but it has {sorted(by_layer)}."
            )
        units[name] = {i: _checked(indices, limit, f"{name}.{i}") for i, indices in by_layer.items()}
    per_group = limits["heads"] // limits["key_value_heads"]
    for layer, heads in units["heads"].items():
        orphans = [head for head in heads if head // per_group not in units["key_value_heads"][layer]]
        if orphans:
            raise UsageError(
                f"`kept` must keep the KV group of each kept head, but in layer {layer} it does not for "
                f"heads {orphans}. Number heads as in the source model."
            )
    return units


def _checked(indices: Sequence[int], limit: int, name: str) -> list[int]:
    indices = [int(index) for index in indices]
    if len(set(indices)) < len(indices) or any(not 0 <= index < limit for index in indices):
        raise UsageError(
            f"`kept` must hold each index of the source once, between 0 and {limit - 1} for `{name}`, "
            f"but it holds {indices}."
        )
    return indices


def _draw_heads(axes: Axes, units: Mapping[str, Any], shape: Mapping[str, int]) -> None:
    """Layers x heads as coloured cells [layers, heads and gaps]; gaps separate the KV groups."""
    from matplotlib.colors import ListedColormap

    num_layers, num_heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    num_groups = shape["num_key_value_heads"]
    per_group = num_heads // num_groups
    gap = max(GAP_OF_GROUPS, num_heads / 80) if per_group > 1 else 0.0  # in widths of a head
    states = np.zeros((num_layers, num_heads))  # 0: cut with its group; 1: cut, group kept; 2: kept
    for layer in units["layers"]:
        for group in units["key_value_heads"][layer]:
            states[layer, group * per_group : (group + 1) * per_group] = 1
        states[layer, units["heads"][layer]] = 2
    left = np.arange(num_heads) + gap * (np.arange(num_heads) // per_group)
    edges, columns = [left[0]], []
    for head in range(num_heads):
        if head and head % per_group == 0 and gap:
            columns.append(np.full(num_layers, np.nan))
            edges.append(left[head])
        columns.append(states[:, head])
        edges.append(left[head] + 1)
    cells = np.ma.masked_invalid(np.stack(columns, axis=1))
    axes.pcolormesh(
        np.array(edges),
        np.arange(num_layers + 1) - 0.5,
        cells,
        cmap=ListedColormap([GROUP_CUT, CUT, KEPT]),
        vmin=0,
        vmax=2,
        edgecolors="white",
        linewidth=0.6 if max(num_layers, num_heads) <= 40 else 0.2,
    )
    ticks = _integer_ticks(num_heads)
    axes.set_xticks([left[tick] + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    has_gaps = gap and num_groups > 1
    axes.set_xlabel("query head" + (f" (gaps part the {num_groups} KV groups)" if has_gaps else ""))
    axes.set_ylabel("layer of the source")
    title = f"Heads: {_range(units['heads'])} of {num_heads} in each layer"
    if per_group > 1:
        title += f"\nKV groups: {_range(units['key_value_heads'])} of {num_groups}"
    _title(axes, title)


def mlp_units(shape: Mapping[str, int]) -> tuple[str, int]:
    """What is removed of an MLP, by its name in `kept`, and how many the source has: experts where there are any."""
    if "num_experts" in shape:
        return "experts", shape["num_experts"]
    return "intermediate", shape["intermediate_size"]


def _draw_mlp(axes: Axes, units: Mapping[str, Any], shape: Mapping[str, int]) -> None:
    """Layers x share of the MLP as bars, with the number kept written into them."""
    (name, total), num_layers = mlp_units(shape), shape["num_hidden_layers"]
    layers = sorted(units["layers"])
    shares = [len(units[name][layer]) / total for layer in layers]
    axes.barh(layers, [1.0] * len(layers), height=0.8, color=GROUP_CUT)
    axes.barh(layers, shares, height=0.8, color=KEPT)
    if num_layers <= 48:  # beyond, a row is lower than the digits
        for layer, share in zip(layers, shares, strict=True):
            inside = share > 0.25
            axes.text(
                share - 0.02 if inside else share + 0.02,
                layer,
                f"{len(units[name][layer]):,}",
                color="white" if inside else "black",
                ha="right" if inside else "left",
                va="center",
                fontsize=SMALL_FONT_SIZE,
            )
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the MLP kept")
    _title(
        axes, f"MLP: {_range(units[name])} of {total:,}\n{'experts' if name == 'experts' else 'units'} in each layer"
    )


def _draw_hidden(axes: Axes, indices: Sequence[int], size: int) -> None:
    """The hidden dimension as a strip: filled where kept; beyond `MAX_STRIPES`, the share of neighbours."""
    per_bin = 1 if size <= MAX_STRIPES else math.ceil(size / NUM_BINS)
    is_kept = np.zeros(size)
    is_kept[list(indices)] = 1
    edges = np.append(np.arange(0, size, per_bin), size)
    shares = np.add.reduceat(is_kept, edges[:-1]) / np.diff(edges)
    axes.set_facecolor(GROUP_CUT)
    axes.stairs(shares, edges, fill=True, color=KEPT)
    axes.set_xlim(0, size)
    axes.set_ylim(0, 1)
    if per_bin == 1:
        axes.set_yticks([])
    else:
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("share kept")
    axes.set_xlabel("hidden dimension of the source" + (f" (stripes of {per_bin})" if per_bin > 1 else ""))
    _title(axes, f"Hidden: {len(indices):,} of {size:,}")


def _kept_legend(figure: Figure, has_groups: bool, has_removed: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=KEPT, label="kept")]
    handles += [Patch(facecolor=CUT, label="head cut, its KV group kept")] if has_groups else []
    handles += [Patch(facecolor=GROUP_CUT, label="cut")]
    handles += [Patch(**REMOVED, label="layer removed")] if has_removed else []
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=FONT_SIZE)


def _range(by_layer: Mapping[int, Sequence[int]]) -> str:
    """How many units a layer keeps: '86', or '80 to 92' where layers differ."""
    counts = [len(indices) for indices in by_layer.values()] or [0]
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# --- over time ---------------------------------------------------------------------------------------------


def _draw_series(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    key: str,
    domain: str,
    scale: float,
    style: Mapping[str, Any],
    **extra: Any,
) -> None:
    """One line per stage, since the cut in between is a jump and not a slope; only the first has a label."""
    label = style["label"]
    for stage in STAGES:
        rows = [row for row in history if row["stage"] == stage and domain in (row.get(key) or {})]
        if rows:
            x, y = [row["num_tokens"] / scale for row in rows], [row[key][domain] for row in rows]
            line = {"linewidth": 1.4, "markersize": 4, "markevery": max(1, len(rows) // 8), **style, **extra}
            axes.plot(x, y, **{**line, "label": label})
            label = "_again"  # matplotlib leaves labels with an underscore out of legends


def _draw_size(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    name: str,
    target: float | None,
    source: float,
    scale: float,
) -> None:
    lines: list[tuple[str, str, dict[str, Any]]] = [  # where they meet, the wide one is seen beside the narrow
        ("target_shape", "target of the step", {"color": COLOURS[1], "linewidth": 4.0, "alpha": 0.5}),
        ("expected_shape", "expected size", {"color": COLOURS[0], "linewidth": 1.6}),
    ]
    for key, label, style in lines:
        rows = [row for row in history if name in (row.get(key) or {})]
        if not rows:
            continue
        values = [row[key][name] / source for row in rows]
        if any(value > 1.001 for value in values):
            raise UsageError(
                f"`history` must hold fractions of the source for `{name}`, but the largest is "
                f"{max(values):g}. Give `source_shape` if it counts units."
            )
        axes.plot([row["num_tokens"] / scale for row in rows], values, label=label, **style)
    if target is not None:
        axes.axhline(target / source, color="black", linewidth=1.2, linestyle=":", label="final target", zorder=3)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    final = f": {target:,.4g} of {source:,}" if target is not None and source != 1 else ""
    _title(axes, SHAPE_LABELS[name] + final)


def use_log_where_wide(axes: Axes) -> None:
    """After a cut, losses can start several times above where they end; a log axis shows both."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = [float(value) for line in axes.get_lines() for value in np.asarray(line.get_ydata())]
    if not values or min(values) <= 0 or max(values) < 3 * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(axes.get_ylabel().replace("per token", "per token, log"))


def _mark_cut(panels: Sequence[Axes], history: Sequence[Mapping[str, Any]], scale: float) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
    stages = {row["stage"] for row in history}
    if len(stages) == 2:
        cut = max(row["num_tokens"] for row in history if row["stage"] == MASK_LEARNING) / scale
        for axes in panels:
            axes.axvline(cut, color="black", linewidth=1, label="_cut")
        style: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "fontsize": FONT_SIZE,
        }
        panels[0].annotate("mask learning ", (cut, 1), (-3, 4), ha="right", annotation_clip=False, **style)
        panels[0].annotate("recovery", (cut, 1), (3, 4), ha="left", annotation_clip=False, **style)
    else:
        _title(panels[0], stages.pop().replace("_", " ").capitalize())


def _domain_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    from matplotlib.lines import Line2D

    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if any(line.get_label() == "_reference" for axes in panels for line in axes.get_lines()):
        found["reference loss"] = Line2D([], [], color=LINE, linestyle=(0, (4, 2)), linewidth=0.9)
    style: dict[str, Any] = {"frameon": False, "fontsize": FONT_SIZE, "handlelength": 2.5}
    figure.legend(found.values(), found.keys(), loc="outside right upper", **style)


def _check_history(history: Sequence[Mapping[str, Any]], stages: bool = True) -> None:
    if not history:
        raise UsageError("`history` must have at least one row, but it is empty.")
    for index, row in enumerate(history):
        if stages and row.get("stage") not in STAGES:
            raise UsageError(
                f"`history[{index}]['stage']` must be one of {', '.join(STAGES)}, but it is {row.get('stage')!r}."
            )
        if index and row["num_tokens"] < history[index - 1]["num_tokens"]:
            raise UsageError(
                f"`history` must be in the order of `num_tokens`, but row {index} has {row['num_tokens']} "
                f"after {history[index - 1]['num_tokens']}. Count recovery on from mask learning."
            )


# --- figures -----------------------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """Raise ImportError where pictures can not be drawn: a run asks before it starts, not when it ends."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Pictures need matplotlib: pip install 'hf-shear[plots]'.") from error


def check_picture(argument: str, path: str | os.PathLike) -> None:
    """Refuse a file whose ending names no format of pictures, before what is drawn has been computed.

    Args:
        argument: that names it, for messages.
        path: of the file.
    """
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    ending, formats = os.path.splitext(path)[1].removeprefix("."), sorted(FigureCanvasBase.get_supported_filetypes())
    if ending and ending.lower() not in formats:
        raise UsageError(f"`{argument}` must end in one of {', '.join(formats)}, but it is {str(path)!r}.")


def _new_figure(height: float) -> Figure:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (FIGURE_WIDTH, height)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """Write the picture, and leave the figure's sizes of letters the same for every panel."""
    for axes in figure.axes:
        axes.tick_params(labelsize=FONT_SIZE - 1)
        axes.xaxis.label.set_fontsize(FONT_SIZE)
        axes.yaxis.label.set_fontsize(FONT_SIZE)
    if path is not None:
        kind = os.path.splitext(path)[1].removeprefix(".") or "png"
        write_file_atomically(path, partial(figure.savefig, format=kind))
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=FONT_SIZE, loc="left")


def _label(name: str) -> str:
    """A legend entry: a leading underscore would hide it, and a dollar sign would start a formula."""
    name = short_name(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _integer_ticks(number: int) -> list[int]:
    """At most `MAX_TICKS` of 0 .. number-1, at steps of 1, 2, 5, 10, ..."""
    for step in (base * 10**power for power in range(9) for base in (1, 2, 5)):
        if number / step <= MAX_TICKS:
            return list(range(0, number, step))
    return [0]


def _token_unit(largest: float) -> tuple[float, str]:
    for scale, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if largest >= scale:
            return scale, f" ({name})"
    return 1.0, ""
