"""A shape that a search looked at, and what it found of it."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from transformers import PretrainedConfig

from ..core import UsageError
from ..shapes import PerLayerShape, TargetShape

AGAIN = "Search again, in another folder."


@dataclass(frozen=True, kw_only=True)
class ShapeCandidate:
    """One shape. Rises are in nats per token above the source's loss, the mean over domains of held-out text.

    Attributes:
        sizes: by name; what ``TargetShape.from_dict`` takes.
        costs: ``num_parameters``, ``flops_per_token`` (forward), ``memory_bytes`` and, where it was limited,
            ``latency_ms`` as predicted.
        predicted_rise: at the cut, by ``RiseForecast``.
        score: ``rise``, or ``predicted_rise`` of a shape that was not cut, times the shape's ``weighted_distance`` from the
            source: what was measured on the source, and what the sizes cost in other sources that were cut and trained.
        predicted_by_part: what each size alone adds to it.
        rise: at the cut, measured; None of a shape that was not cut.
        recovered_rise: after ``recovery_tokens`` of training; None of a shape that was not trained.
        latency: measured milliseconds per token (``median``, ``low``, ``high``), where the budget limits them.
        within_noise: whether the limit of the latency lies between the fastest and the slowest round.
        layers: query heads, key/value heads and neurons of each layer of the source, where they differ: then ``sizes`` are
            those that they are padded to, and ``predicted_rise`` and ``score`` are those of the best shape before it, in
            the ratio of the rises at the cut.
        unsearched: whether ``shape_for_budget`` picks it.
    """

    sizes: dict[str, int]
    costs: dict[str, float]
    predicted_rise: float
    score: float
    predicted_by_part: dict[str, float]
    rise: float | None = None
    recovered_rise: float | None = None
    recovery_tokens: int = 0
    latency: dict[str, float] | None = None
    within_noise: bool = False
    unsearched: bool = False
    layers: list[list[int]] | None = None

    @property
    def order(self) -> tuple:
        """Sorts from the best to the worst: trained shapes by their loss then, behind them those that were cut by their
        score, then all others by theirs. Predictions are too low where several sizes shrink."""
        sizes = tuple(self.sizes.values())
        if self.recovered_rise is not None:
            return 0, self.recovered_rise, sizes
        return 1 if self.rise is not None else 2, self.score, sizes

    def target(self, config: PretrainedConfig) -> TargetShape | PerLayerShape:
        """What ``prune_one_shot`` takes; ``config`` is the source's.

        Raises:
            UsageError: it is no shape of that source.
        """
        if self.layers is not None:
            return PerLayerShape.from_list(config, self.sizes["hidden_size"], self.layers)
        return TargetShape.from_dict(config, self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ShapeCandidate:
        """What ``to_dict`` wrote; entries of a later version are left out.

        Raises:
            UsageError: an entry is missing.
        """
        needed = [one.name for one in fields(cls) if one.default is MISSING]
        missing = [name for name in needed if not isinstance(record, dict) or name not in record]
        if missing:
            raise UsageError(f"A shape of the search lacks {', '.join(missing)}. {AGAIN}")
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})
