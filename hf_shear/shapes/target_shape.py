"""The shape that a source model is sheared to, checked against the source before any weight is loaded.

g = query heads per key/value head. Key/value heads are removed, never merged, so that a target with g'
queries in each of KV' groups must have KV' <= KV and g' <= g: then it can be cut out of the source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from transformers import PretrainedConfig

from ..core import SHAPE_NAMES, TARGET_NAMES, UsageError
from .model_shape import NUM_EXPERTS, ModelShape, check_size
from .nearest_shape import nearest_shape
from .shape_config import ShapeAcceptance

SMALLER_RULE = "A target shape can only be smaller than the source model, and not empty."
REMOVED_RULE = "Key/value heads are removed, not merged."
WHOLE_RULE = "Experts are removed whole, with all their neurons."


@dataclass(frozen=True)
class TargetShape(ModelShape):
    """A shape that can be cut out of `source`. Build it with `from_source`: it asks the config class too."""

    source: ModelShape

    def __post_init__(self):
        super().__post_init__()
        if self.head_dim != self.source.head_dim:
            raise UsageError(_other_head_dim(self.source.head_dim, self.head_dim, f"Give {self.source.head_dim}."))
        problem = _broken_rule(self.sizes(), SHAPE_NAMES, self.source) or _broken_expert_rule(
            self.num_experts, self.intermediate_size, self.source
        )
        if problem is not None:
            raise UsageError(problem)

    @classmethod
    def from_source(
        cls,
        source_config: PretrainedConfig,
        *,
        hidden_size: int | None = None,
        num_hidden_layers: int | None = None,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        num_experts: int | None = None,
    ) -> TargetShape:
        """The shape with the given sizes and the source's for the rest; head_dim and vocabulary never change.

        A mixture of experts takes `num_experts`, at least as many as a token is routed to, in place of
        `intermediate_size`.

        Where heads are given without key/value heads, multi-head attention stays multi-head, and
        grouped-query attention keeps the source's key/value heads.

        Raises:
            ValueError: the source is malformed or of an unsupported family, or the target is not allowed. The
                text names the argument, its value, the rule and the nearest shape that would do.
        """
        source = ModelShape.from_config(source_config)
        acceptance = ShapeAcceptance(source_config)
        _check_source_accepted(source, acceptance)
        given = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": intermediate_size,
        }
        named = {name: _plain(value) for name, value in given.items() if value is not None}
        requested = _complete(named, source)
        num_experts = source.num_experts if num_experts is None else num_experts
        fewest = source_config.num_experts_per_tok if source.num_experts is not None else 1
        problem = _broken_expert_rule(num_experts, named.get("intermediate_size"), source, fewest)
        if problem is not None:
            raise UsageError(problem)
        problem = _broken_rule(requested, named, source) or _refused_by_class(requested, acceptance)
        if problem is not None:
            raise UsageError(f"{problem} {_advice(requested, named, source, acceptance)}")
        return cls(**requested, num_experts=_plain(num_experts), head_dim=source.head_dim, source=source)

    @classmethod
    def from_dict(cls, source_config: PretrainedConfig, sizes: Mapping[str, Any]) -> TargetShape:
        """The shape that `to_dict` wrote, or any subset of its entries, checked as in `from_source`.

        Raises:
            ValueError: a key is not one of the source's names of sizes or head_dim, head_dim is not the source's, or the
                target is not allowed.
        """
        if not isinstance(sizes, Mapping):
            raise UsageError(
                f"`target_shape` must be a dict of sizes by name, but it is a {type(sizes).__name__}. Give a dict."
            )
        source = ModelShape.from_config(source_config)
        unknown = sorted(str(key) for key in sizes if key not in (*source.size_names, "head_dim"))
        if unknown:
            raise UsageError(
                f"A target shape has no size named {', '.join(map(repr, unknown))}. "
                f"Use its names: {', '.join(source.size_names)} (and head_dim, which must be the source's)."
            )
        head_dim = sizes.get("head_dim")
        if head_dim is not None and check_size("head_dim", head_dim) != source.head_dim:
            raise UsageError(_other_head_dim(source.head_dim, head_dim, f"Leave it out: it is {source.head_dim}."))
        return cls.from_source(source_config, **{name: sizes[name] for name in TARGET_NAMES if name in sizes})

    def __str__(self) -> str:
        changes = [
            f"{name} {was} -> {size}" if size != was else f"{name} {size}"
            for (name, size), was in zip(self.sizes().items(), self.source.sizes().values(), strict=True)
        ]
        return ", ".join([*changes, f"head_dim {self.head_dim}"])


def _other_head_dim(source_head_dim: int, head_dim: int, fix: str) -> str:
    return f"`head_dim` must stay at the source's {source_head_dim}, but it is {head_dim}. {fix}"


def _plain(value: Any) -> Any:
    """A plain int for any kind of integer (numpy's, say), which config classes would refuse; else `value`."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _complete(named: Mapping[str, Any], source: ModelShape) -> dict[str, Any]:
    """The five sizes that all models have: those named, and the source's for the rest, except that MHA stays MHA."""
    sizes = {**{name: getattr(source, name) for name in SHAPE_NAMES}, **named}
    heads_alone = "num_attention_heads" in named and "num_key_value_heads" not in named
    if heads_alone and source.queries_per_group == 1:
        sizes["num_key_value_heads"] = named["num_attention_heads"]
    return sizes


def _broken_rule(requested: Mapping[str, Any], named: Collection[str], source: ModelShape) -> str | None:
    """The first rule that the sizes break, in words; None if they can be cut out of the source."""
    for name in SHAPE_NAMES:
        try:
            size = check_size(name, requested[name])
        except ValueError as error:
            return str(error)
        largest = getattr(source, name)
        if size > largest:
            return f"`{name}` must be between 1 and the source's {largest}, but it is {size}. {SMALLER_RULE}"
    heads, kv_heads = requested["num_attention_heads"], requested["num_key_value_heads"]
    both = " and ".join(
        f"`{name}` {requested[name]}" + ("" if name in named else " (the source's)")
        for name in ("num_attention_heads", "num_key_value_heads")
    )
    if heads % kv_heads != 0:
        return f"The heads must be a multiple of the key/value heads, but {both} are not."
    if heads // kv_heads > source.queries_per_group:
        return (
            f"A key/value head must not serve more query heads than the source's {source.queries_per_group}, "
            f"but {both} make it {heads // kv_heads}. {REMOVED_RULE}"
        )
    return None


def _broken_expert_rule(num_experts: Any, intermediate_size: Any, source: ModelShape, fewest: int = 1) -> str | None:
    """The first rule of mixtures of experts that a target breaks, in words; None for another kind of model, and if it
    breaks none. A token is routed to `fewest` experts; an `intermediate_size` of None is the source's."""
    if source.num_experts is None:
        if num_experts is None:
            return None
        return (
            f"`{NUM_EXPERTS}` must be left out, but it is {num_experts!r}: the source is no mixture of experts. Name other"
            " sizes."
        )
    if intermediate_size not in (None, source.intermediate_size):
        return (
            f"`intermediate_size` must stay at the source's {source.intermediate_size} in a mixture of experts, but it is"
            f" {intermediate_size!r}. {WHOLE_RULE} Give `{NUM_EXPERTS}` in its place."
        )
    try:
        size = check_size(NUM_EXPERTS, num_experts)
    except ValueError as error:
        return str(error)
    if fewest <= size <= source.num_experts:
        return None
    least = f"{fewest}, to which each token is routed (`num_experts_per_tok`)," if fewest > 1 else "1"
    return f"`{NUM_EXPERTS}` must be between {least} and the source's {source.num_experts}, but it is {size}."


def _refused_by_class(requested: Mapping[str, int], acceptance: ShapeAcceptance) -> str | None:
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    reason = acceptance.refusal(*(requested[name] for name in names))
    if reason is None:
        return None
    sizes = ", ".join(f"`{name}` {requested[name]}" for name in names)
    return f"{acceptance.class_name} refuses {sizes}: {reason.rstrip('.')}."


def _check_source_accepted(source: ModelShape, acceptance: ShapeAcceptance) -> None:
    reason = acceptance.refusal(source.hidden_size, source.num_attention_heads, source.num_key_value_heads)
    if reason is not None:
        raise UsageError(
            f"The source config is malformed: {acceptance.class_name} itself refuses it ({source}): {reason}"
        )


def _advice(
    requested: Mapping[str, Any], named: Collection[str], source: ModelShape, acceptance: ShapeAcceptance
) -> str:
    """Names the nearest shape that would do, and another where that changes a named size that could stay."""
    nearest = nearest_shape(requested, named, source, acceptance)
    assert nearest is not None, f"the source itself must be an allowed shape: {source}"
    advice = f"The nearest shape that would do: {_written(nearest)}."
    if all(size == getattr(source, name) for name, size in nearest.items()):
        advice += " That is the source itself, with nothing removed."
    for name in ("hidden_size", "num_attention_heads"):
        if name in named and nearest[name] != requested[name]:
            other = nearest_shape(requested, named, source, acceptance, keep=(name,))
            if other is not None and other[name] == requested[name]:
                changes = {key: size for key, size in other.items() if size != requested[key]}
                advice += f" To keep {name}={requested[name]}: {_written(changes)}."
    return advice


def _written(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
