"""The report on what was cut: the shape, the units that were kept, and how the masks came to the target's sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .html_charts import UNITS, Series, area_legend, bars, figure, line_chart, line_legend, linear_ticks
from .html_page import note, panels, section, table, text
from .plots import GAP_OF_GROUPS, SHAPE_LABELS, is_reduced, kept_per_layer, mlp_units

MAX_STRIPES = 512  # hidden dimensions drawn one by one; beyond, averages of this many neighbours' share:
NUM_BINS = 128
MAX_LABELLED_LAYERS = 48  # beyond, a row is lower than its number
_CELL, _GAP = 100, 10  # units of a head in a drawing of its own size, and of the gap behind it
_CHOICES = {
    "compensation": "update of the weights that stay", "num_shots": "shots", "allocation": "allocation over layers",
    "protect": "protected layers",
}  # fmt: skip


def shape_section(results: Mapping[str, Any]) -> str:
    """The sizes before and after."""
    source, target = _shape(results, "source"), results.get("target_shape") or _shape(results, "recovered")
    if not source or not target:
        return section(
            "Shape", note("These results hold no shapes of both source and target, so there is no comparison.")
        )
    rows = []
    for key, label in SHAPE_LABELS.items():
        if key in source and key in target:
            before, after = source[key], target[key]
            number = f"{before:,} → <b>{after:,}</b>" if before != after else f"{before:,}, as it was"
            rows.append((text(label), after / before, "", number))
    return section("Shape", note("What is left of each size of the source (full bars)."), bars(rows))


def kept_section(results: Mapping[str, Any], title: str = "What was kept", remark: str = "") -> str:
    """Layers x heads, layers x MLP share, and the hidden dimension; ``remark`` is HTML."""
    kept, shape = results.get("kept"), _shape(results, "source")
    if not kept or not shape:
        missing = "which units were kept" if not kept else "the source's shape"
        return section(title, note(f"These results do not say {missing}, so there is no map."))
    units = kept_per_layer(kept, shape)
    num_layers, num_heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    removed = sorted(set(range(num_layers)) - set(units["layers"]))
    has_groups = shape["num_key_value_heads"] < num_heads
    legend = [("kept", "kept"), *([("group", "head cut, its KV group kept")] if has_groups else []), ("cut", "cut")]
    legend += [("removed", "layer removed")] if removed else []
    which = f" Layer{'s' if len(removed) > 1 else ''} {_spans(removed)} went as a whole." if removed else ""
    first = f"{len(units['layers'])} of {num_layers} layers, numbered as in the source.{which}{remark}"
    return section(
        title,
        note(first),
        area_legend(legend),
        f'<div class="pair">{_heads_map(units, shape, removed)}{_mlp_map(units, shape, removed)}</div>\n',
        _hidden_strip(units["hidden"], shape["hidden_size"]),
        _kept_table(units, shape),
    )


def _heads_map(units: Mapping[str, Any], shape: Mapping[str, int], removed: Sequence[int]) -> str:
    num_layers, num_heads, num_groups = (
        shape[name] for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    per_group = num_heads // num_groups
    gap = round(_CELL * max(GAP_OF_GROUPS, num_heads / 160)) if per_group > 1 else 0
    left = [_CELL * head + gap * (head // per_group) for head in range(num_heads)]
    width, row = left[-1] + _CELL - _GAP, UNITS / num_layers
    scale = UNITS / width
    cells: dict[str, list[str]] = {"cut": [], "group": [], "kept": []}
    for layer in units["layers"]:
        heads, groups = set(units["heads"][layer]), set(units["key_value_heads"][layer])
        for head, x in enumerate(left):
            kind = "kept" if head in heads else "group" if head // per_group in groups and per_group > 1 else "cut"
            size = f"h{scale * (_CELL - _GAP):.1f}v{row * 0.9:.1f}H{scale * x:.1f}z"
            cells[kind].append(f"M{scale * x:.1f} {row * (layer + 0.05):.1f}{size}")
    drawn = [f'<path class="{kind}" d="{"".join(paths)}"/>' for kind, paths in cells.items() if paths]
    middles = [100 * (x + (_CELL - _GAP) / 2) / width for x in left]
    labels = [f'<span class="x" style="left:{middles[head]:.2f}%">{head}</span>' for head in _ticks(num_heads)]
    gaps = f" (gaps part the {num_groups} KV groups)" if gap and num_groups > 1 else ""
    labels.append(f'<span class="xl">query head{gaps}</span>')
    counts = f"{_range(units['heads'])} of {num_heads} in each layer"
    groups = f" <small>KV groups: {_range(units['key_value_heads'])} of {num_groups}</small>" if per_group > 1 else ""
    description = f"Attention heads kept by layer: {counts} that was kept. The table below lists them."
    return _layer_figure(f"Heads: {counts}{groups}", drawn, labels, description, num_layers, removed)


def _mlp_map(units: Mapping[str, Any], shape: Mapping[str, int], removed: Sequence[int]) -> str:
    (name, total), num_layers = mlp_units(shape), shape["num_hidden_layers"]
    row, whole, kept, labels = UNITS / num_layers, [], [], []
    for layer in units["layers"]:
        count = len(units[name][layer])
        top = f"M0 {row * (layer + 0.05):.1f}"
        whole.append(f"{top}h{UNITS}v{row * 0.9:.1f}H0z")
        kept.append(f"{top}h{UNITS * count / total:.1f}v{row * 0.9:.1f}H0z")
        if num_layers <= MAX_LABELLED_LAYERS and count / total > 0.25:
            place = 100 * (layer + 0.5) / num_layers
            labels.append(f'<span class="in" style="top:{place:.2f}%">{count:,}</span>')
    drawn = [f'<path class="cut" d="{"".join(whole)}"/><path class="kept" d="{"".join(kept)}"/>']
    labels += [f'<span class="x" style="left:{share}%">{share} %</span>' for share in (0, 25, 50, 75, 100)]
    labels.append('<span class="xl">share of the MLP kept</span>')
    counts = f"{_range(units[name])} of {total:,} {'experts' if name == 'experts' else 'units'} in each layer"
    description = f"MLP units kept by layer: {counts} that was kept. The table below lists them."
    return _layer_figure(f"MLP: {counts}", drawn, labels, description, num_layers, removed)


def _layer_figure(
    caption: str, drawn: list[str], labels: list[str], description: str, num_layers: int, removed: Sequence[int]
) -> str:
    """A drawing whose rows are the source's layers."""
    height = num_layers * max(7.0, min(30.0, 560 / num_layers))
    labels += [
        f'<span class="y" style="top:{100 * (layer + 0.5) / num_layers:.2f}%">{layer}</span>'
        for layer in _ticks(num_layers)
    ]
    labels += [
        f'<b class="gone" style="top:{100 * (layer + 0.05) / num_layers:.2f}%;height:{90 / num_layers:.2f}%"></b>'
        for layer in removed
    ]
    drawing = figure(caption, drawn, labels, description, height)
    return drawing.replace('class="canvas"', 'class="canvas rows"')


def _hidden_strip(indices: Sequence[int], size: int) -> str:
    """Filled where a dimension was kept; of many dimensions, the share of neighbours."""
    width = 1 if size <= MAX_STRIPES else math.ceil(size / NUM_BINS)
    counts = [0] * math.ceil(size / width)
    for index in indices:
        counts[index // width] += 1
    unit, path = UNITS / size, []
    for number, count in enumerate(counts):
        start, end = number * width, min(size, (number + 1) * width)
        if count:
            height = UNITS * count / (end - start)
            path.append(f"M{unit * start:.1f} {UNITS}v-{height:.0f}H{unit * end:.1f}V{UNITS}z")
    drawn = [f'<path class="cut" d="M0 0H{UNITS}V{UNITS}H0z"/><path class="kept" d="{"".join(path)}"/>']
    ticks = [tick for tick in linear_ticks(0, size, 5) if tick < size]
    labels = [f'<span class="x" style="left:{100 * tick / size:.2f}%">{tick:,.0f}</span>' for tick in ticks]
    stripes = f" <small>height: share kept of {width} neighbours</small>" if width > 1 else ""
    labels.append('<span class="xl">hidden dimension of the source</span>')
    counts_text = f"{len(indices):,} of {size:,} dimensions"
    return figure(f"Hidden: {counts_text}{stripes}", drawn, labels, f"Hidden dimensions kept: {counts_text}.", 64)


def _kept_table(units: Mapping[str, Any], shape: Mapping[str, int]) -> str:
    rows, (name, _) = [], mlp_units(shape)
    for layer in sorted(units["layers"]):
        heads, groups = units["heads"][layer], units["key_value_heads"][layer]
        rows.append((str(layer), _spans(heads), _spans(groups), f"{len(units[name][layer]):,}"))
    headings = ("layer", "heads", "key-value heads", "experts" if name == "experts" else "MLP units")
    whole = table("Units kept in each layer", headings, rows, "all numbered as in the source, from 0")
    return f"<details><summary>The same as a table</summary>{whole}</details>\n"


def sizes_section(results: Mapping[str, Any], is_whole: bool = True) -> str:
    """Expected sizes against the targets of the time, and how clean the choice was at the end; or how units were scored.

    ``is_whole``: of a run that has ended, whose missing record of masks is said to be missing.
    """
    config = results.get("prune_config")
    if config:
        return section("How units were chosen", _choices_table(config, results.get("tokens") or {}))
    title = "Expected and target sizes"
    rows = results.get("sizes") or [row for row in results.get("history") or [] if row.get("expected_shape")]
    masks, source, final = results.get("masks"), _shape(results, "source"), results.get("target_shape") or {}
    parts = []
    if rows and source:
        parts.append(_sizes_charts(rows, source, final))
    else:
        parts.append(note("No step of mask learning was recorded, so there are no curves of the sizes."))
    if masks:
        parts.append(_masks_table(masks, final))
    elif is_whole:
        parts.append(note("These results hold no record of the learned masks."))
    return section(title, *parts)


def _choices_table(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> str:
    """The choices of a ``PruneConfig``, and the text behind them."""
    criterion = config.get("criterion")
    by_kind = criterion if isinstance(criterion, Mapping) else {"default": criterion}
    rows = [
        ("scores" if kind == "default" else f"scores of {kind} units", text(name)) for kind, name in by_kind.items()
    ]
    rows += [(label, text(config[key])) for key, label in _CHOICES.items() if config.get(key)]
    if tokens.get("calibration"):
        rows.append(("calibration text", f"{tokens['calibration']:,} tokens"))
    return table("At once, before training", ("choice", "value"), rows)


def _sizes_charts(rows: Sequence[Mapping[str, Any]], source: Mapping[str, int], final: Mapping[str, int]) -> str:
    figures, last = [], rows[-1]["num_tokens"]
    changed = {
        key: label for key, label in SHAPE_LABELS.items() if key in source and is_reduced(rows, key, source, final)
    }
    for key, label in (changed or SHAPE_LABELS).items():
        series = [
            Series(_shares(rows, "expected_shape", key, source), "c0"),
            Series(_shares(rows, "target_shape", key, source), "c2 dash"),
            Series([(0, 100 * final[key] / source[key]), (last, 100 * final[key] / source[key])], "cn dotted")
            if key in final
            else Series([], "cn"),
        ]
        expected = rows[-1]["expected_shape"].get(key)
        if expected is None:
            continue
        goal = f" <small>to {final[key]:,} of {source[key]:,}</small>" if key in final else ""
        description = f"Expected {label} in mask learning; {expected:,.2f} at the last logged step."
        figures.append(
            line_chart(
                text(label) + goal, series, description=description, y_limits=(0, 104), y_format="{:.0f} %".format
            )
        )
    looks = [("c0", "expected size"), ("c2 dash", "target at that step"), ("cn dotted", "final target")]
    count = "one logged step, so one point" if len(rows) == 1 else f"{len(rows):,} logged steps"
    intro = f"While masks are learned: the size they expect to keep, as a share of the source’s ({count})."
    return note(intro) + line_legend(looks) + panels(figures)


def _shares(
    rows: Sequence[Mapping[str, Any]], kind: str, key: str, source: Mapping[str, int]
) -> list[tuple[float, float]]:
    return [(row["num_tokens"], 100 * row[kind][key] / source[key]) for row in rows if key in (row.get(kind) or {})]


def _masks_table(masks: Mapping[str, Any], final: Mapping[str, int]) -> str:
    expected, below, gap = (masks.get(name) or {} for name in ("expected_shape", "kept_below_half", "gap"))
    rows = []
    for key, label in SHAPE_LABELS.items():
        if key in expected:
            away = _apart(gap[key]) if key in gap else "–"
            goal = f"{final[key]:,}" if key in final else "–"
            rows.append((text(label), f"{expected[key]:,.2f}", goal, away, f"{below[key]:,}" if key in below else "–"))
    headings = ("size", "expected", "target", "apart by", "kept below one half")
    return table(
        "At the cut", headings, rows, "kept below one half: units that were kept though their mask leaned to cut"
    )


def _apart(gap: float) -> str:
    return f"{100 * gap:.2f} %" if gap == 0 or gap >= 5e-5 else "under 0.01 %"


def _shape(results: Mapping[str, Any], model: str) -> Mapping[str, int]:
    return (results.get(model) or {}).get("shape") or {}


def _range(by_layer: Mapping[int, Sequence[int]]) -> str:
    counts = [len(indices) for indices in by_layer.values()] or [0]
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _spans(indices: Sequence[int]) -> str:
    """'0–3, 6': runs of neighbours as one."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}–{b}" for a, b in runs)


def _ticks(number: int) -> list[int]:
    return [int(tick) for tick in linear_ticks(0, number - 1, 8 if number > 10 else number) if tick == int(tick)]
