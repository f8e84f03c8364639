"""The shapes that fill a budget: every hidden size, number of heads and depth, each with the widest MLP that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from ..core import SHAPE_NAMES, UsageError
from ..shapes import ModelShape, ShapeAcceptance, TargetShape
from .budget import ShapeBudget, cost_text

FILLED = 0.97
"""Of the budget at least; what uses less has a larger neighbour that fits, unless no shape comes so far."""

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
        latency: seconds per token of a shape, where the budget limits them.

    Raises:
        UsageError: no shape keeps the budget (the text names the nearest), or filters exclude each other.
    """
    wanted = wanted or ShapeFilter()
    source = ModelShape.from_config(config)
    if source.num_experts is not None:
        raise UsageError("Shapes of a mixture of experts are not searched: its MLPs keep their width. Name a target.")

    def used(sizes: Mapping[str, int]) -> float:
        shape = ModelShape(**sizes, head_dim=source.head_dim)
        costs = budget.costs(config, shape)
        if latency is not None:
            costs["latency_seconds"] = latency(shape)
        return budget.used(costs)

    found, refusals, smallest = [], [], None
    for sizes, share in _widest(config, source, wanted, used):
        if share > 1:
            smallest = min(smallest or (share, sizes), (share, sizes), key=lambda one: one[0])
            continue
        shape = TargetShape.from_source(config, **sizes)
        refused = wanted.refusal(shape)
        if refused is None:
            found.append((share, shape))
        else:
            refusals.append(refused)
    if not found and refusals:
        raise UsageError(f"All {len(refusals)} shapes within the budget are refused by a filter: {refusals[0]}")
    if not found:
        assert smallest is not None, "the source's own sizes are among the shapes"
        raise UsageError(_none_fits(config, budget, source, smallest))
    filled = [shape for share, shape in found if share >= FILLED]
    if filled:
        return filled
    fullest = max(share for share, _ in found)
    return [shape for share, shape in found if share == fullest]


def _widest(
    config: PretrainedConfig, source: ModelShape, wanted: ShapeFilter, used: Callable[[Mapping[str, int]], float]
) -> Iterator[tuple[dict[str, int], float]]:
    """Sizes with the widest MLP within the budget, or the narrowest one if none is; and the share of the budget used."""
    accepted = ShapeAcceptance(config)
    step = {"hidden_size": _step(source.hidden_size), "intermediate_size": _step(source.intermediate_size)}
    of = {name: wanted.sizes(source, name, step.get(name, 1)) for name in SHAPE_NAMES}
    widths = of["intermediate_size"]
    for hidden in of["hidden_size"]:
        for kv_heads in of["num_key_value_heads"]:
            for heads in of["num_attention_heads"]:
                if heads % kv_heads or heads // kv_heads > source.queries_per_group:
                    continue
                if accepted.refusal(hidden, heads, kv_heads) is not None:
                    continue
                for layers in of["num_hidden_layers"]:
                    sizes = {
                        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                        "num_key_value_heads": kv_heads,
                    }  # fmt: skip
                    low, high = 0, len(widths) - 1  # widths[low] fits, or is the narrowest
                    while low < high:
                        middle = (low + high + 1) // 2
                        if used(sizes | {"intermediate_size": widths[middle]}) <= 1:
                            low = middle
                        else:
                            high = middle - 1
                    sizes["intermediate_size"] = widths[low]
                    share = used(sizes)
                    yield sizes, share
                    if share > 1:
                        break  # deeper ones cost more


def _step(size: int) -> int:
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
    return f"No shape keeps the budget of {wanted}. The nearest ({shape}) needs {needs}. Raise the budget, or relax filters."
