"""A number with its interval, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.8
"""Share of the bootstrap's fits within an interval."""
LARGEST_LOG = 690.0
"""Of tokens, in the range of floats."""


@dataclass(frozen=True)
class Estimate:
    """What a law says.

    Attributes:
        value: of the fit; None where there is none.
        low, high: the interval over the bootstrap's fits; None without one. ``high`` is infinite where a part of the
            fits never gets there.
        reason: why there is no value.
        notes: how far the law is stretched, and the like.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return self.reason or "none"
        text = number_text(self.value)
        if self.low is None or self.high is None:
            return text
        return f"{text} ({number_text(self.low)} to {number_text(self.high) if math.isfinite(self.high) else 'never'})"

    def with_level(self) -> str:
        """The value, and its interval with the share that it holds."""
        return f"{number_text(self.value or 0.0)} ({self.span()})"

    def span(self) -> str:
        """The interval with the share that it holds; "" without one."""
        if self.low is None or self.high is None:
            return ""
        high = number_text(self.high) if math.isfinite(self.high) else "never"
        return f"{100 * LEVEL:.0f} %: {number_text(self.low)} to {high}"

    def to_dict(self) -> dict:
        """JSON-ready; an interval without an end has None there."""
        finite = [None if v is None or not math.isfinite(v) else v for v in (self.value, self.low, self.high)]
        return {
            "value": finite[0], "low": finite[1], "high": finite[2],
            "never_in_a_part": self.high is not None and math.isinf(self.high),
            "reason": self.reason, "notes": list(self.notes),
        }  # fmt: skip


def number_text(value: float) -> str:
    """Tokens and FLOPs with a unit word, losses with four digits."""
    if abs(value) < 1e4:
        return f"{value:.4g}"
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1e15 else f"{value:.2e}"
    return f"{value:.4g}"


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The middle ``LEVEL`` of values, some perhaps infinite; (None, None) for none."""
    if not len(values):
        return None, None
    ordered = np.sort(np.asarray(values, dtype=float))
    tail = (1 - LEVEL) / 2
    outside = math.floor(tail * (len(ordered) - 1) + 1e-9)  # on each side, rounded so that intervals are too wide
    low, high = ordered[outside], ordered[-1 - outside]
    return float(low), float(high)


def tokens_of(log_tokens: float) -> float:
    """Tokens from their logarithm: one at least, where a curve is flat from the start, and infinity if it is infinite."""
    return log_tokens if log_tokens == math.inf else math.exp(min(max(log_tokens, 0.0), LARGEST_LOG))


def tokens_estimate(log_tokens: float, log_samples: Sequence[float], notes: Sequence[str] = ()) -> Estimate:
    """Tokens from logarithms; the interval is one of logarithms."""
    low, high = interval(log_samples)
    return Estimate(
        tokens_of(log_tokens), None if low is None else tokens_of(low), None if high is None else tokens_of(high), None,
        tuple(notes),
    )  # fmt: skip
