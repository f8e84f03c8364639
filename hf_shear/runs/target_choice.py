"""The target of a run: named sizes, a shape of the paper, or a budget."""

from __future__ import annotations

from typing import Any, overload

from transformers import PretrainedConfig

from ..core import UsageError
from ..core.defaults import TARGET_BALANCES
from ..search import read_candidates
from ..shapes import (
    TARGET_NAMES,
    PerLayerShape,
    TargetShape,
    as_family,
    check_supported_source,
    family_named,
    preset_shape,
    shape_for_budget,
)

SEARCH_HINT = "`hf-shear search` looks for the shape of this size that loses least."
OTHER_WAYS = ("preset", "target_num_parameters", "from_search")


def target_flags(pipeline) -> list[str]:
    """Those of the flags that name a target which are given."""
    return [f"`--{name}`" for name in (*TARGET_NAMES, *OTHER_WAYS) if getattr(pipeline, name) is not None]


@overload
def choose_target(pipeline, config: PretrainedConfig) -> tuple[TargetShape, str | None]: ...


@overload
def choose_target(
    pipeline, config: PretrainedConfig, *, per_layer: bool
) -> tuple[TargetShape | PerLayerShape, str | None]: ...


def choose_target(pipeline, config: PretrainedConfig, *, per_layer: bool = False) -> tuple[Any, str | None]:
    """The target, checked before any weight is loaded.

    Args:
        pipeline: arguments with the five shape names, ``preset``, ``target_num_parameters`` and ``from_search``, each
            None if not given; ``target_balance``, ``search_rank`` and ``as_family``.
        config: of the source.
        per_layer: whether layers of the target may have widths of their own, as a search may find them.

    Returns:
        The target, and for a budget the reasons for its shape.

    Raises:
        ValueError: the source is of no supported family, the target is named in no or in several ways, or it does not
            fit the source.
    """
    check_supported_source(config)
    if pipeline.as_family is not None:
        config = as_family(config, family_named(pipeline.as_family, "`as_family`: "))
    named = {name: getattr(pipeline, name) for name in TARGET_NAMES if getattr(pipeline, name) is not None}
    others = [name for name in OTHER_WAYS if getattr(pipeline, name) is not None]
    if bool(named) + len(others) != 1:
        ways = ", ".join(f"`--{name}`" for name in OTHER_WAYS)
        given = ", ".join(target_flags(pipeline)) or "none"
        raise UsageError(f"Name a target one way: {', '.join(TARGET_NAMES)}; or one of {ways}; given: {given}.")
    if pipeline.target_balance != TARGET_BALANCES[0] and pipeline.target_num_parameters is None:
        raise UsageError(
            f"`target_balance` {pipeline.target_balance!r} picks the shape of `--target_num_parameters`, which is not"
            " given. Give that, or leave out `--target_balance`."
        )
    if pipeline.from_search is not None:
        return _found(pipeline.from_search, pipeline.search_rank, config, per_layer), None
    if pipeline.preset is not None:
        return preset_shape(pipeline.preset, config), None
    if pipeline.target_num_parameters is not None:
        try:
            choice = shape_for_budget(
                config, num_parameters=pipeline.target_num_parameters, balance=pipeline.target_balance
            )
        except UsageError as error:
            raise UsageError(f"`target_num_parameters`: {error}") from error
        return choice.shape, f"{choice.describe()}\n{SEARCH_HINT}"
    target = TargetShape.from_source(config, **named)
    is_new = pipeline.as_family is None and getattr(pipeline, "pruned", None) is None
    if is_new and target.sizes() == target.source.sizes():
        sizes = ", ".join(f"`--{name} {size}`" for name, size in named.items())
        raise UsageError(f"{sizes} is the source's own size, so nothing would be removed. Give a smaller one.")
    return target, None


def _found(folder: str, rank: int, config: PretrainedConfig, per_layer: bool) -> TargetShape | PerLayerShape:
    """A shape of a search."""
    candidates = read_candidates(folder)
    if rank > len(candidates):
        raise UsageError(
            f"`search_rank` must be at most {len(candidates)}, the shapes of {folder!r}, but it is {rank}."
        )
    found = candidates[rank - 1]
    if found.layers is not None and not per_layer:
        raise UsageError(
            f"`search_rank` {rank} of {folder!r} has layers of different widths, which `hf-shear prune` alone cuts. Take"
            " another rank, or prune to this one."
        )
    try:
        return found.target(config)
    except UsageError as error:
        raise UsageError(f"`from_search` {folder!r} is a search of another source: {error}") from error
