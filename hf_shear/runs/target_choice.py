"""The target of a run: named sizes, a shape of the paper, or a budget."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..core import UsageError
from ..modeling import as_family
from ..shapes import TARGET_NAMES, TargetShape, check_supported_source, family_named, preset_shape, shape_for_budget


def choose_target(pipeline, config: PretrainedConfig) -> tuple[TargetShape, str | None]:
    """The target, checked before any weight is loaded.

    Args:
        pipeline: arguments with the five shape names, ``preset`` and ``target_num_parameters``, each None if not given;
            and ``as_family``.
        config: of the source.

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
    ways = [bool(named), pipeline.preset is not None, pipeline.target_num_parameters is not None]
    if sum(ways) != 1:
        given = [
            f"`--{name}`" for name in (*named, "preset", "target_num_parameters") if getattr(pipeline, name) is not None
        ]
        raise UsageError(
            f"Name a target one way: {', '.join(TARGET_NAMES)}, `--preset` or `--target_num_parameters`; given:"
            f" {', '.join(given) or 'none'}."
        )
    if pipeline.preset is not None:
        return preset_shape(pipeline.preset, config), None
    if pipeline.target_num_parameters is not None:
        try:
            choice = shape_for_budget(config, num_parameters=pipeline.target_num_parameters)
        except UsageError as error:
            raise UsageError(f"`target_num_parameters`: {error}") from error
        return choice.shape, choice.describe()
    return TargetShape.from_source(config, **named), None
