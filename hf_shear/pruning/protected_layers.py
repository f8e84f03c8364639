"""Layers that stay whatever their scores say."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import UsageError
from ..criteria import Scores
from ..masks import LAYER

ENDS = ("first", "last")


def protected_layers(choice: str | Sequence[int], num_layers: int, num_kept: int) -> list[int]:
    """Indices of the layers that must stay.

    Args:
        choice: indices, or a text of them with "first:N" and "last:N", such as "first:4,last:2" or "0,7,last:1".
        num_layers, num_kept: of the source, and of the target.

    Raises:
        ValueError: a part that is neither, a layer that the source does not have, or more than the target keeps.
    """
    parts = [part.strip() for part in choice.split(",") if part.strip()] if isinstance(choice, str) else choice
    found: set[int] = set()
    for part in parts:
        found.update(_layers(part, num_layers))
    if len(found) > num_kept:
        raise UsageError(
            f"`protect` {choice!r} protects {len(found)} layers, but the target keeps {num_kept}. Protect"
            " fewer, or keep more."
        )
    return sorted(found)


def _layers(part: str | int, num_layers: int) -> range:
    end, separator, number = str(part).partition(":")
    if separator and end in ENDS and number.isdecimal() and int(number) <= num_layers:
        return range(int(number)) if end == "first" else range(num_layers - int(number), num_layers)
    if str(part).isdecimal() and int(part) < num_layers:
        return range(int(part), int(part) + 1)
    raise UsageError(
        f"`protect` has the part {part!r}, which must be the index of one of the source's {num_layers} layers,"
        " first:N or last:N, as in 'first:4,last:2'."
    )


def protect_layers(scores: Scores, layers: Sequence[int]) -> Scores:
    """``scores`` with an infinite score for these layers, where layers are scored."""
    if not layers or LAYER not in scores:
        return scores
    score = scores[LAYER].clone()
    score[list(layers)] = float("inf")
    return scores | {LAYER: score}
