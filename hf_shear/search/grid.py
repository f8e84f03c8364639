"""The shapes that fill a budget: every hidden size, number of heads and depth, each with the widest MLP that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from ..core import SHAPE_NAMES, UsageError
from ..shapes import ModelShape, ShapeAcceptance, TargetShape
from .budget import ShapeBudget, cost_text

FILLED = 0.97
"""Of the budget at least; what uses less has a larger neighbour that fits, unless no shape comes so far."""

ROUNDING = 1e-9  # costs are whole numbers below 1e15, or measured
Accepts = Callable[[TargetShape], str | None]
"""Why a shape is not wanted; None if it is."""


@dataclass(frozen=True, kw_only=True)
class ShapeFilter:
    """What shapes are looked at.

    Attributes:
        multiple_of: by name, of what number a size is a multiple unless it is the source's own.
        tensor_parallel: devices that heads, key/value heads and the MLP are split over evenly.
        at_least: by name, the smallest size.
        accepts: a further condition, such as that of an engine.
    """

    multiple_of: Mapping[str, int] = field(default_factory=dict)
    tensor_parallel: int = 1
    at_least: Mapping[str, int] = field(default_factory=dict)
    accepts: Accepts | None = None

    def __post_init__(self):
        for name in ("multiple_of", "at_least"):
            for size, value in getattr(self, name).items():
                if size not in SHAPE_NAMES or isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise UsageError(
                        f"`{name}` must give sizes ({', '.join(SHAPE_NAMES)}) a whole number of at least 1, but it has"
                        f" {size!r}: {value!r}."
                    )
        if self.tensor_parallel < 1:
            raise UsageError(f"`tensor_parallel` must be at least 1, but it is {self.tensor_parallel}.")

    def refusal(self, shape: TargetShape) -> str | None:
        """Why a shape, such as one that was not listed here, is not wanted; None if it is."""
        for name, size in shape.sizes().items():
            if size not in self.sizes(shape.source, name):
                return f"`{name}` {size} is none of the sizes that filters leave."
        return None if self.accepts is None else self.accepts(shape)

    def sizes(self, source: ModelShape, name: str, multiple: int = 1) -> list[int]:
        """The sizes of one name to choose from, rising: multiples of all that is asked for, and the source's own.

        Raises:
            UsageError: none is left, and why.
        """
        whole, least = getattr(source, name), self.at_least.get(name, 1)
        step = self.multiple_of.get(name, multiple)
        split = self.tensor_parallel if name not in ("hidden_size", "num_hidden_layers") else 1
        found = [size for size in (*range(step, whole, step), whole) if size >= least and size % split == 0]
        if not found:
            asked = [f"`at_least` {least}"] * (least > 1) + [f"`tensor_parallel` {split}"] * (split > 1)
            asked += [f"`multiple_of` {step}"] * (name in self.multiple_of)
            raise UsageError(
                f"No `{name}` up to the source's {whole} satisfies {' and '.join(asked)} together. Relax one of them."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own = {"multiple_of": dict(self.multiple_of), "at_least": dict(self.at_least)}
        return own | {"tensor_parallel": self.tensor_parallel}


def shapes_within(
    config: PretrainedConfig,
    budget: ShapeBudget,
    wanted: ShapeFilter | None = None,
    latency: Callable[[ModelShape], float] | None = None,
) -> list[TargetShape]:
    """Every shape that keeps the budget and fills it, in the order of its sizes.

    Args:
        config: of the source, a dense model.
        latency: milliseconds per token of a shape, where the budget limits them.

    Raises:
        UsageError: no shape keeps the budget (the text names the nearest), or filters exclude each other.
    """
    wanted = wanted or ShapeFilter()
    source = ModelShape.from_config(config)
    if source.num_experts is not None:
        raise UsageError("Shapes of a mixture of experts are not searched: its MLPs keep their width. Name a target.")

    found, refusals, nearest = [], [], None
    for sizes, share in _widest(config, source, wanted, budget, latency):
        if share > 1 + ROUNDING:
            nearest = min(nearest or (share, sizes), (share, sizes), key=lambda one: one[0])
        else:
            found.append((share, sizes))
    fullest = max((share for share, _ in found), default=0.0)
    shapes = []
    for _, sizes in (one for one in found if one[0] >= min(FILLED, fullest)):
        shape = TargetShape.from_source(config, **sizes)
        refused = None if wanted.accepts is None else wanted.accepts(shape)
        if refused is None:
            shapes.append(shape)
        else:
            refusals.append(refused)
    if refusals and not shapes:
        raise UsageError(f"All {len(refusals)} shapes that fill the budget are refused by a filter: {refusals[0]}")
    if nearest is not None and not found:
        raise UsageError(_none_fits(config, budget, source, nearest))
    return shapes


def _widest(
    config: PretrainedConfig,
    source: ModelShape,
    wanted: ShapeFilter,
    budget: ShapeBudget,
    latency: Callable[[ModelShape], float] | None,
) -> Iterator[tuple[dict[str, int], float]]:
    """Sizes with the widest MLP within the budget, or the narrowest one if none is; and the share of the budget used.

    All costs are a + L (b + c w) in the layers L and the MLP's width w, for given heads and a given hidden size.
    """
    accepted = ShapeAcceptance(config)
    step = {name: step_of(getattr(source, name)) for name in ("hidden_size", "intermediate_size")}
    of = {name: wanted.sizes(source, name, step.get(name, 1)) for name in SHAPE_NAMES}
    layers, widths = np.array(of["num_hidden_layers"])[:, None], np.array(of["intermediate_size"])
    heads_and_groups = [
        (heads, groups)
        for groups in of["num_key_value_heads"]
        for heads in of["num_attention_heads"]
        if heads % groups == 0 and heads // groups <= source.queries_per_group
    ]
    for hidden in of["hidden_size"]:
        for heads, groups in heads_and_groups:
            if accepted.refusal(hidden, heads, groups) is not None:
                continue
            own = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups}

            def costs(depth: int, width: int, own: dict = own) -> np.ndarray:
                sizes = own | {"num_hidden_layers": depth, "intermediate_size": width}
                shape = ModelShape(**sizes, head_dim=source.head_dim)
                known = budget.costs(config, shape) | ({} if latency is None else {"latency_ms": latency(shape)})
                return np.array([known[name] / limit for name, limit in budget.limits.items()])

            one, deeper, wider = costs(1, 1), costs(2, 1), costs(1, 2)
            outside, layer, unit = 2 * one - deeper, deeper - wider, wider - one  # a, b, c
            used = outside[:, None, None] + layers * (layer[:, None, None] + unit[:, None, None] * widths)
            share = used.max(axis=0)  # [layers, widths]
            for row, depth in enumerate(of["num_hidden_layers"]):
                fits = int((share[row] <= 1 + ROUNDING).sum())
                column = max(fits - 1, 0)
                sizes = own | {"num_hidden_layers": depth, "intermediate_size": int(widths[column])}
                yield {name: sizes[name] for name in SHAPE_NAMES}, float(share[row, column])


def step_of(size: int) -> int:
    """A multiple that gives sizes from 16 to 32 values, 8 at least."""
    step = 8
    while size // (2 * step) >= 16 and size % (2 * step) == 0:
        step *= 2
    return step


def _none_fits(config: PretrainedConfig, budget: ShapeBudget, source: ModelShape, nearest) -> str:
    share, sizes = nearest
    costs = budget.costs(config, ModelShape(**sizes, head_dim=source.head_dim))
    wanted = " and ".join(f"{cost_text(name, limit)}" for name, limit in budget.limits.items())
    needs = (
        ", ".join(cost_text(name, costs[name]) for name in budget.limits if name in costs) or f"{share:.2f} times that"
    )
    shape = ", ".join(f"{name} {size}" for name, size in sizes.items())
    fix = "Raise the budget, or relax filters."
    return f"No shape keeps the budget of {wanted}. The nearest ({shape}) needs {needs}. {fix}"
