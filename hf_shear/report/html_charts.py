"""Charts that keep the size of their letters at every width: drawings stretch, labels are text beside them.

A drawing is an SVG of 1000 x 1000 units that fills its place; lines do not scale with it, and labels are placed in
per cent. So one page is right for a phone and for a wide screen, without a script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .html_page import short_count, text

UNITS = 1000
CHART_HEIGHT = 170  # CSS pixels
MAX_POINTS = 240  # of one line; beyond that, evenly chosen ones are drawn
MAX_DOTTED_POINTS = 24  # more dots than this would hide their line
LOG_RATIO = 3.0  # losses that span more than this get a logarithmic axis
_LOG_STEPS = (1, 1.5, 2, 3, 5, 7)


class Series(NamedTuple):
    """One line of a chart: points (x, y), and how it looks (``c0`` .. ``c5``, ``cn``, ``cs``; ``dash``, ``dotted``)."""

    points: Sequence[tuple[float, float]]
    look: str
    is_step: bool = False  # a value holds until the next
    is_filled: bool = False


def line_chart(
    caption: str,
    series: Sequence[Series],
    *,
    description: str,
    y_limits: tuple[float, float] | None = None,
    y_format: Callable[[float], str] = "{:.4g}".format,
    x_label: str = "training tokens",
    marks: Sequence[float] = (),
    x_max: float | None = None,
    height: int = CHART_HEIGHT,
) -> str:
    """A figure with lines over tokens, from zero tokens on.

    Args:
        caption: HTML above the chart.
        series: lines; those without points are left out.
        description: plain text, for those who hear the page.
        y_limits: the axis; without it, the values' own range, logarithmic if that is wide.
        marks: x of vertical lines.
        x_max: the right end, so that several charts share an axis.
    """
    series = [line._replace(points=_thinned(line.points)) for line in series if line.points]
    xs = [x for line in series for x, _ in line.points]
    right = max([*xs, x_max or 0]) or 1.0
    scale, y_ticks = _y_scale([y for line in series for _, y in line.points], y_limits)
    drawn = [_grid([scale(tick) for tick in y_ticks])]
    drawn += [f'<path class="mark" d="M{UNITS * x / right:.0f} 0V{UNITS}"/>' for x in marks]
    for line in series:
        drawn += _line(line, [(UNITS * x / right, scale(y)) for x, y in line.points])
    labels = [f'<span class="y" style="top:{scale(tick) / 10:.1f}%">{text(y_format(tick))}</span>' for tick in y_ticks]
    ticks = [tick for tick in linear_ticks(0, right, 4) if tick <= right * 0.97]
    labels += [
        f'<span class="x" style="left:{100 * x / right:.1f}%">{short_count(x, trimmed=True)}</span>' for x in ticks
    ]
    labels.append(f'<span class="xl">{text(x_label)}</span>')
    return figure(caption, drawn, labels, description, height)


def figure(caption: str, drawn: Sequence[str], labels: Sequence[str], description: str, height: float) -> str:
    """A drawing of 1000 x 1000 units with labels around it; ``caption`` is HTML, ``description`` plain text."""
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<div class="canvas" style="height:{height:.0f}px">'
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" role="img" aria-label="{text(description)}">'
        f'{"".join(drawn)}</svg><div aria-hidden="true">{"".join(labels)}</div></div></figure>\n'
    )


def line_legend(entries: Sequence[tuple[str, str]]) -> str:
    """(look, plain text) of each kind of line."""
    items = [
        f'<li><svg viewBox="0 0 26 12" aria-hidden="true"><path class="{look}" d="M0 6H26"/></svg>{text(label)}</li>'
        for look, label in entries
    ]
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def area_legend(entries: Sequence[tuple[str, str]]) -> str:
    """(kind, plain text) of each kind of area."""
    items = "".join(f'<li><i class="{kind}"></i>{text(label)}</li>' for kind, label in entries)
    return f'<ul class="legend">{items}</ul>\n'


def bars(rows: Sequence[tuple[str, float, str, str]]) -> str:
    """(HTML, share 0 .. 1, look, HTML of the number) of each bar."""
    filled = [
        f'<div>{label}</div><div class="track"><b class="{look}" style="left:0;width:{100 * share:.2f}%"></b></div>'
        f"<div>{number}</div>\n"
        for label, share, look, number in rows
    ]
    return f'<div class="bars">\n{"".join(filled)}</div>\n'


def dot_rows(rows: Sequence[tuple[str, tuple[float, float, float], str, str]], line_at: float | None = None) -> str:
    """Dots with intervals on one common scale: (HTML, (low, middle, high), look, HTML of the number).

    ``line_at`` is where a dashed line crosses all rows.
    """
    values = [value for _, interval, _, _ in rows for value in interval] + ([] if line_at is None else [line_at])
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    line = "" if line_at is None else f'<s style="left:{place(line_at):.2f}%"></s>'
    filled = []
    for label, (start, middle, end), look, number in rows:
        span = f'<b class="{look}" style="left:{place(start):.2f}%;width:{place(end) - place(start):.2f}%"></b>'
        dot = f'<u class="{look}" style="left:{place(middle):.2f}%"></u>'
        filled.append(f'<div>{label}</div><div class="track">{line}{span}{dot}</div><div>{number}</div>\n')
    return f'<div class="bars axis">\n{"".join(filled)}</div>\n'


def linear_ticks(low: float, high: float, number: int) -> list[float]:
    """About ``number`` round values between ``low`` and ``high``, both included where they are round."""
    raw = (high - low) / number
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(base * power for base in (1, 2, 2.5, 5, 10) if base * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _y_scale(
    values: Sequence[float], limits: tuple[float, float] | None
) -> tuple[Callable[[float], float], list[float]]:
    """From a value to units from the top, and the ticks."""
    low, high = limits or (min(values), max(values))
    if limits is None and low > 0 and high > LOG_RATIO * low:
        bottom, top = math.log(low) - 0.05, math.log(high) + 0.05
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [base * 10.0**power for power in powers for base in _LOG_STEPS]
        ticks = [tick for tick in ticks if bottom <= math.log(tick) <= top]
        ticks = ticks[:: math.ceil(len(ticks) / 6)]
        return (lambda value: UNITS * (top - math.log(value)) / (top - bottom)), ticks
    if limits is None:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - margin, high + margin
    return (lambda value: UNITS * (high - value) / (high - low)), linear_ticks(low, high, 5 if limits is None else 4)


def _grid(heights: Sequence[float]) -> str:
    return f'<path class="grid" d="{"".join(f"M0 {height:.0f}H{UNITS}" for height in heights)}"/>'


def _line(line: Series, points: Sequence[tuple[float, float]]) -> list[str]:
    (x, y), rest = points[0], points[1:]
    way = f"M{x:.0f} {y:.0f}"
    way += "".join(f"H{x:.0f}V{y:.0f}" if line.is_step else f"L{x:.0f} {y:.0f}" for x, y in rest)
    found = []
    if line.is_filled and rest:
        area = f"{way}V{UNITS}H{points[0][0]:.0f}z"
        found.append(f'<path class="area {line.look}" d="{area}"/>')
    found.append(f'<path class="{line.look}" d="{way}"/>')
    if len(points) <= MAX_DOTTED_POINTS and " " not in line.look or not rest:
        dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
        found.append(f'<path class="dots {line.look.split()[0]}" d="{dots}"/>')
    return found


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(index * (len(points) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]
