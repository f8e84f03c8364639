"""Pick a target shape for a budget: a number of parameters, or the fraction of the source's to keep.

Of the shapes in hardware-friendly multiples that fill the budget one is picked, by one of two rules:

``weighted`` (the default): the shape nearest to the source, by the sum over the five sizes of ``WEIGHTS`` times the squared
logarithm of the share that is kept. A share of the MLPs or of the query heads costs a trained model far less than the same
share of the layers, and hidden dimensions cost most; the weights are those under which the nearest shape was the best, or
nearly, of the shapes trained in model_cards/search.md (budgets of 75, 60 and 50 %).

``proportional``: as the paper's own 1.3B target shrinks (arXiv 2310.06694: half of Llama-2-7B's hidden size, heads and
intermediate size, three quarters of its layers): a share w of hidden size, heads, key/value heads and intermediate size, a
share w ** DEPTH_EXPONENT of the layers. The w that meets the budget gives an ideal shape with fractions in it; the shape
nearest to that is picked, by the sum of the squared differences of logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

from transformers import PretrainedConfig

from ..core import TARGET_NAMES, UsageError
from ..core.defaults import TARGET_BALANCES
from .model_shape import ModelShape
from .parameter_count import count_embedding_parameters, count_for_sizes, count_layer_parameters, count_parameters
from .target_shape import TargetShape

WEIGHTED, PROPORTIONAL = TARGET_BALANCES

WEIGHTS = {
    "hidden_size": 36.0,
    "num_hidden_layers": 16.0,
    "num_attention_heads": 0.25,
    "num_key_value_heads": 1.0,
    "intermediate_size": 1.0,
}
"""What the squared logarithm of a kept share counts, against that of the MLPs'."""

WHOLE_OR = ("hidden_size", "num_hidden_layers")
LEAST_CUT = 0.1
"""A weighted shape keeps these whole, or loses at least this share of them: the first layer or dimension that goes costs
more than the few parameters that it saves."""

TOLERANCE = 0.02
"""How far below the budget, as a share of it, a shape may stay before finer multiples are tried."""

DEPTH_EXPONENT = 0.4
"""log(24/32) / log(1/2) = 0.415 in the paper's 1.3B target: layers shrink more slowly than the width does."""

LARGEST_MULTIPLE = 128
"""Matrix sizes in multiples of 128 fill the tiles of current accelerators."""

SMALLEST_MULTIPLE = 8
"""Below 8 no hardware gains anything from a rounder size."""

MIN_STEPS = 16
"""Multiples are so small that a source size has at least so many of them, down to SMALLEST_MULTIPLE."""


MIN_HEADS_FOR_EVEN = 8
"""From so many heads on the count stays even where possible: tensor parallelism splits heads evenly."""


@dataclass(frozen=True)
class BudgetChoice:
    """The shape picked for a budget.

    Attributes:
        shape: the target shape.
        num_parameters: its exact parameter count, tied weights counted once.
        num_embedding_parameters: input embeddings and output head, a part of `num_parameters`.
        num_source_parameters: the source's count.
        budget: the largest count allowed.
        multiples: by name, of what number each size is a multiple unless it is the source's own. Layers are
            chosen freely.
        balance: the rule that picked it.
    """

    shape: TargetShape
    num_parameters: int
    num_embedding_parameters: int
    num_source_parameters: int
    budget: int
    multiples: dict[str, int]
    balance: str = WEIGHTED

    @property
    def embedding_share(self) -> float:
        """The embeddings' fraction of the picked shape's parameters."""
        return self.num_embedding_parameters / self.num_parameters

    @property
    def fraction_kept(self) -> float:
        """Parameters of the picked shape / parameters of the source."""
        return self.num_parameters / self.num_source_parameters

    def describe(self) -> str:
        """A few lines for people: the shape, its count against the budget, why it, the multiples, the embeddings."""
        multiples = ", ".join(
            f"{name} kept at the source's {getattr(self.shape, name)}"
            if getattr(self.shape, name) == getattr(self.shape.source, name)
            else f"{name} of {multiple}"
            for name, multiple in self.multiples.items()
        )
        return (
            f"Target shape: {self.shape}\n"
            f"Parameters: {self.num_parameters:,} of a budget of {self.budget:,} "
            f"({self.num_parameters / self.budget:.1%} of it; {self.fraction_kept:.1%} of the source)\n"
            f"Balance: {self.balance}. {_WHY[self.balance]}\n"
            f"Multiples: {multiples}\n"
            f"Embeddings: {self.num_embedding_parameters:,} parameters, {self.embedding_share:.1%} of the "
            "target (they shrink with hidden_size only, the vocabulary stays)"
        )


_WHY = {
    WEIGHTED: "MLPs and query heads shrink first, then layers, hidden dimensions last",
    PROPORTIONAL: "All widths shrink alike, layers more slowly",
}


def shape_for_budget(
    source_config: PretrainedConfig,
    *,
    num_parameters: int | None = None,
    fraction_kept: float | None = None,
    within: ModelShape | None = None,
    balance: str = WEIGHTED,
) -> BudgetChoice:
    """The target shape that a rule picks of those with at most `num_parameters`, or `fraction_kept` of the source's.

    The budget is never exceeded. The shape fills it but for `TOLERANCE` wherever some multiples allow, as
    they do for models of a billion parameters; a tiny source has few shapes and may leave more unused.

    Args:
        num_parameters: all parameters of the target, embeddings included, tied weights counted once.
        fraction_kept: the same as a fraction of the source's count, above 0 and at most 1.
        within: no size is larger than this shape's; None: than the source's.
        balance: "weighted" or "proportional", which parts shrink (see the module).

    Raises:
        ValueError: both or neither are given, the budget is out of range (the text names the range), or there is no such
            balance.
    """
    if balance not in TARGET_BALANCES:
        raise UsageError(f"`balance` must be one of {', '.join(TARGET_BALANCES)}, but it is {balance!r}.")
    source = TargetShape.from_source(source_config).source
    if source.num_experts is not None:
        raise UsageError(
            "A shape for a budget of parameters can not be picked for a mixture of experts. Name the sizes of the target:"
            f" any of {', '.join(name for name in TARGET_NAMES if name != 'intermediate_size')}."
        )
    num_source_parameters = count_parameters(source_config, source)
    budget = parameter_budget(num_source_parameters, num_parameters, fraction_kept)
    smallest = _smallest_shape(source_config, source)
    if budget < count_parameters(source_config, smallest):
        raise UsageError(_too_small(source_config, smallest, budget))
    sizes, multiples = _search(source_config, source, budget, source if within is None else within, balance)
    shape = TargetShape.from_source(source_config, **sizes)
    return BudgetChoice(
        shape=shape,
        num_parameters=count_parameters(source_config, shape),
        num_embedding_parameters=count_embedding_parameters(source_config, shape),
        num_source_parameters=num_source_parameters,
        budget=budget,
        multiples=multiples,
        balance=balance,
    )


def parameter_budget(num_source: int, num_parameters: int | None = None, fraction_kept: float | None = None) -> int:
    """The largest count allowed, from a number of parameters or the share of the source's ``num_source`` to keep.

    Raises:
        ValueError: both or neither are given, or the budget is out of range; the text names the range.
    """
    if (num_parameters is None) == (fraction_kept is None):
        raise UsageError(
            "Give exactly one of `num_parameters` and `fraction_kept`, but "
            f"they are {num_parameters!r} and {fraction_kept!r}."
        )
    if fraction_kept is not None:
        is_number = isinstance(fraction_kept, Real) and not isinstance(fraction_kept, bool)
        if not is_number or not 0 < fraction_kept <= 1:
            raise UsageError(
                f"`fraction_kept` must be above 0 and at most 1, but it is {fraction_kept!r}. "
                f"Give the share of the source's {num_source:,} parameters that the target may have, such as 0.5."
            )
        return math.floor(fraction_kept * num_source)
    if isinstance(num_parameters, bool) or not isinstance(num_parameters, Integral):
        raise UsageError(
            f"`num_parameters` must be an integer, but it is {num_parameters!r} "
            f"({type(num_parameters).__name__}). To keep a share of the source, give `fraction_kept`."
        )
    if not 1 <= num_parameters <= num_source:
        raise UsageError(
            f"`num_parameters` must be between 1 and the source's {num_source:,}, but it is "
            f"{num_parameters:,}. Shearing only removes parameters."
        )
    return int(num_parameters)


def _multiples_to_try(source: ModelShape) -> list[dict[str, int]]:
    """By name, of what number each size shall be a multiple: the coarsest first, the finest last."""

    def for_width(size: int) -> list[int]:
        multiple = LARGEST_MULTIPLE
        while multiple > SMALLEST_MULTIPLE and multiple * MIN_STEPS > size:
            multiple //= 2
        multiples = [multiple]
        while multiples[-1] > SMALLEST_MULTIPLE:
            multiples.append(multiples[-1] // 2)
        return multiples

    def for_heads(count: int) -> list[int]:
        return [2, 1] if count >= MIN_HEADS_FOR_EVEN and count % 2 == 0 else [1]

    multiples = {
        "hidden_size": for_width(source.hidden_size),
        "num_attention_heads": for_heads(source.num_attention_heads),
        "num_key_value_heads": for_heads(source.num_key_value_heads),
        "intermediate_size": for_width(source.intermediate_size),
    }
    num_steps = max(len(steps) for steps in multiples.values())
    return [{name: steps[min(step, len(steps) - 1)] for name, steps in multiples.items()} for step in range(num_steps)]


def _values(source_size: int, multiple: int) -> list[int]:
    """The sizes to choose from: the multiples below the source's size, and that size itself."""
    return [*range(multiple, source_size, multiple), source_size]


def _smallest_shape(config: PretrainedConfig, source: ModelShape) -> TargetShape:
    finest = _multiples_to_try(source)[-1]
    smallest = {name: _values(getattr(source, name), multiple)[0] for name, multiple in finest.items()}
    return TargetShape.from_source(config, num_hidden_layers=1, **smallest)


def _too_small(config: PretrainedConfig, smallest: TargetShape, budget: int) -> str:
    count = count_parameters(config, smallest)
    share = count_embedding_parameters(config, smallest) / count
    return (
        f"The budget `num_parameters` is {budget:,}, but the smallest shape of this source has {count:,} "
        f"({smallest}), {share:.1%} of them embeddings: the vocabulary stays at {config.vocab_size:,}. "
        f"Give a budget of at least {count:,}."
    )


def _ideal_sizes(config: PretrainedConfig, source: ModelShape, budget: int) -> dict[str, float]:
    """The sizes, with fractions, of the balanced shape of exactly `budget` parameters, by bisection."""

    def at_width(width: float) -> dict[str, float]:
        sizes = {name: width * size for name, size in source.sizes().items()}
        return {**sizes, "num_hidden_layers": width**DEPTH_EXPONENT * source.num_hidden_layers}

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if count_for_sizes(config, at_width(middle), source.head_dim) > budget:
            high = middle
        else:
            low = middle
    return at_width(high)


def weighted_distance(source: ModelShape, sizes: Mapping[str, int]) -> float:
    """How far sizes are from the source's: the sum of ``WEIGHTS`` times the squared logarithms of the shares kept."""
    return sum(WEIGHTS[name] * math.log(size / getattr(source, name)) ** 2 for name, size in sizes.items())


def _distance(
    config: PretrainedConfig, source: ModelShape, budget: int, balance: str
) -> Callable[[dict[str, int]], float]:
    """How far sizes are from what a balance aims at."""
    if balance == WEIGHTED:
        return partial(weighted_distance, source)
    aim = _ideal_sizes(config, source, budget)
    return lambda sizes: sum(math.log(size / aim[name]) ** 2 for name, size in sizes.items())


def _worth_cutting(source: ModelShape, sizes: dict[str, int]) -> bool:
    shares = [sizes[name] / getattr(source, name) for name in WHOLE_OR]
    return all(share == 1 or share <= 1 - LEAST_CUT for share in shares)


def _search(
    config: PretrainedConfig, source: ModelShape, budget: int, within: ModelShape, balance: str
) -> tuple[dict[str, int], dict[str, int]]:
    """The nearest sizes that fill the budget but for `TOLERANCE`, and their multiples.

    The coarsest multiples that reach so far are taken; where none do, the sizes that fill most of the budget.
    """
    distance = _distance(config, source, budget, balance)
    fullest: tuple[dict[str, int], dict[str, int]] | None = None
    fullest_count = -1
    for multiples in _multiples_to_try(source):
        filling = []
        for sizes, count in _candidates(config, within, budget, multiples):
            if count > fullest_count:
                fullest, fullest_count = (sizes, multiples), count
            if count >= (1 - TOLERANCE) * budget:
                filling.append(sizes)
        if balance == WEIGHTED:
            filling = [sizes for sizes in filling if _worth_cutting(source, sizes)] or filling
        if filling:
            return min(filling, key=distance), multiples
    assert fullest is not None, "some shape fits every budget that the caller lets through"
    return fullest


def _candidates(
    config: PretrainedConfig, source: ModelShape, budget: int, multiples: dict[str, int]
) -> Iterator[tuple[dict[str, int], int]]:
    """Every allowed shape at these multiples with the largest intermediate size that fits, and its count."""
    largest = source.intermediate_size
    multiple = multiples["intermediate_size"]
    for hidden_size in _values(source.hidden_size, multiples["hidden_size"]):
        no_layers = {**source.sizes(), "hidden_size": hidden_size, "num_hidden_layers": 0}
        outside_layers = int(count_for_sizes(config, no_layers, source.head_dim))
        for heads, kv_heads in _head_counts(hidden_size, source, multiples):
            query_size, key_size = heads * source.head_dim, kv_heads * source.head_dim
            without_mlp, one = (
                int(count_layer_parameters(config, hidden_size, query_size, key_size, width, source.head_dim))
                for width in (0, 1)
            )
            per_unit = one - without_mlp
            for num_layers in range(1, source.num_hidden_layers + 1):
                room = ((budget - outside_layers) // num_layers - without_mlp) // per_unit
                intermediate_size = largest if room >= largest else room // multiple * multiple
                if intermediate_size < min(multiple, largest):
                    break
                sizes = {
                    "hidden_size": hidden_size,
                    "num_hidden_layers": num_layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": kv_heads,
                    "intermediate_size": intermediate_size,
                }
                yield sizes, outside_layers + num_layers * (without_mlp + per_unit * intermediate_size)


def _head_counts(hidden_size: int, source: ModelShape, multiples: dict[str, int]) -> Iterator[tuple[int, int]]:
    """The (heads, key/value heads) that go with a hidden size: they divide it, and no group grows."""
    heads_allowed = set(_values(source.num_attention_heads, multiples["num_attention_heads"]))
    for kv_heads in _values(source.num_key_value_heads, multiples["num_key_value_heads"]):
        for heads in range(kv_heads, kv_heads * source.queries_per_group + 1, kv_heads):
            if heads in heads_allowed and hidden_size % heads == 0:
                yield heads, kv_heads
