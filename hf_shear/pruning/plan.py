"""What a ``PruneConfig`` asks of one model and target, checked before any weight is read or any forward runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

from transformers import PretrainedConfig

from ..compensation import Compensation, config_with_biases, resolve_compensation
from ..core import UsageError
from ..criteria import Criterion, CriterionChoice, Scores, criteria_by_kind
from ..criteria.joint_rise import joint_rise
from ..masks import (
    ATTENTION,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    MLP,
    QUERY_HEAD,
    SUB_LAYERS,
    unit_kinds,
)
from ..shapes import (
    PerLayerShape,
    TargetShape,
    as_family,
    count_parameters,
    family_named,
    family_of,
    parameter_budget,
    shape_for_budget,
)
from ..slicing import NEMOTRON_NAS, check_nemotron_nas
from .allocation import GLOBAL_KINDS, Allocation, resolve_allocation, sized_layers, smallest_count, too_small
from .config import DEFAULT_UNITS, PruneConfig
from .open_units import OpenUnits, Unit

Target = TargetShape | PerLayerShape | dict[str, int] | int | float
ENDS = ("first", "last")


@dataclass(frozen=True)
class PruningPlan:
    """How one model is brought to one target: a ``PruneConfig``, resolved.

    Attributes:
        choices: as they were given.
        config: of the source, in the family of the result and with the biases that compensation adds: its parameters
            are counted.
        shape: the target of a uniform allocation; the source's own shape for the others.
        budget: parameters, embeddings included and tied weights counted once; None where a shape is the target.
        criteria: by kind of unit that is removed.
        compensation, allocation: with their options.
        protected_layers: indices of layers that stay; of an uneven allocation with both of their sub-layers.
        protected: units that stay for the form's sake, too.
    """

    choices: PruneConfig
    config: PretrainedConfig
    shape: TargetShape
    budget: int | None
    criteria: dict[str, Criterion]
    compensation: Compensation
    allocation: Allocation
    protected_layers: list[int]
    protected: frozenset[Unit] = frozenset()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of units that are removed."""
        return tuple(self.criteria)

    @property
    def uneven(self) -> bool:
        """Whether layers may end with different widths."""
        return self.allocation.uneven

    @property
    def layers_last(self) -> bool:
        """Whether whole layers are chosen once the units of layers are."""
        return (
            not self.uneven and len(self.kinds) > 1 and LAYER in self.criteria and self.criteria[LAYER].scores_the_cut
        )

    @property
    def comparable(self) -> bool:
        """Whether scores of different layers and kinds of units compare."""
        return not _not_comparable(self.criteria)


def make_plan(config: PretrainedConfig, target: Target, choices: PruneConfig) -> PruningPlan:
    """Check what is asked for.

    Args:
        config: of the source.
        target: as in ``prune_one_shot``.
        choices: how it is to be reached.

    Raises:
        UsageError: the target does not fit the allocation or the source, a criterion cannot rank what is removed, more
            layers are protected than the target keeps, the family does not admit the compensation, or the form cannot
            hold the result.
    """
    if choices.as_family is not None:
        config = as_family(config, family_named(choices.as_family, "`as_family`: "))
    compensation, allocation = resolve_compensation(choices.compensation), resolve_allocation(choices.allocation)
    compensation.check(config)
    own, config = config, config_with_biases(config) if compensation.needs_bias else config
    shape, budget, kinds, protected = TargetShape.from_source(config), None, (), frozenset()
    stream_changes = False
    if isinstance(target, PerLayerShape):
        layers, kinds = _check_per_layer(config, target, choices, allocation)
        budget = target.num_parameters(config)
        allocation = Allocation("per_layer", partial(sized_layers, shape=target), GLOBAL_KINDS)
        stream_changes = HIDDEN in kinds or len(target.kept_layers) < len(target.layers)
    elif not allocation.uneven:
        shape, budget = _even_target(own, config, target)
        kinds = tuple(kind.name for kind in unit_kinds(shape.source, shape).values() if not kind.frozen)
        layers = protected_layers(choices.protect, shape.source.num_hidden_layers, shape.num_hidden_layers)
    else:
        budget = _uneven_budget(own, shape, target, allocation.name)
        kinds = tuple(kind for kind in allocation.kinds if kind in (choices.units or DEFAULT_UNITS))
        _check_heads(config, kinds)
        num_layers = shape.source.num_hidden_layers
        layers = protected_layers(choices.protect, num_layers, num_layers)
        protected = frozenset(Unit(kind, layer, 0) for layer in layers for kind in (LAYER, *SUB_LAYERS))
        if choices.form == NEMOTRON_NAS:
            protected |= {Unit(LAYER, 0, 0), Unit(ATTENTION, 0, 0)}
        smallest = smallest_count(OpenUnits(config, shape.source, protected=protected), kinds)
        if smallest > budget:
            raise UsageError(too_small(smallest, budget, kinds))
    if choices.form == NEMOTRON_NAS and not isinstance(target, PerLayerShape):
        check_nemotron_nas(config, shape, kinds if allocation.uneven else ())
    # Between the stages of a training, weights are no longer the source's, and modules are fitted to what they give.
    if not allocation.uneven:
        stream_changes = choices.pruning_share is None and bool({HIDDEN, LAYER} & {*kinds})
    compensation = compensation.resolved(stream_changes, config)
    criteria = criteria_for(choices.criterion, kinds, config, compensation, layers)
    if allocation.uneven:
        _check_no_shape(criteria, allocation.name)
    if allocation.uneven and not isinstance(target, PerLayerShape):
        _check_uneven_criteria(criteria)
    return PruningPlan(choices, config, shape, budget, criteria, compensation, allocation, layers, protected)


def criteria_for(
    choice: CriterionChoice,
    kinds: Collection[str],
    config: PretrainedConfig,
    compensation: Compensation,
    protected: Sequence[int] = (),
) -> dict[str, Criterion]:
    """As ``criteria_by_kind``, and ``joint_rise`` is told what it has to know of the other choices.

    A layer's mean stands in its place where compensation can do that: a fit to the source's residual stream can, a fit of
    each module to its own outputs leaves the place of a layer empty. And protected layers stay while it searches.
    """
    criteria = criteria_by_kind(choice, kinds, family_of(config))
    of_layers = criteria.get(LAYER)
    if of_layers is not None and of_layers.score is joint_rise.score:
        told = {"mean": compensation.reads_source, "protected": " ".join(map(str, protected))}
        criteria[LAYER] = of_layers.with_options(**told | dict(of_layers.options))
    return criteria


def _even_target(
    own: PretrainedConfig, config: PretrainedConfig, target: TargetShape | dict[str, int] | int | float
) -> tuple[TargetShape, int | None]:
    if isinstance(target, TargetShape):
        return target, None
    if isinstance(target, dict):
        return TargetShape.from_dict(config, target), None
    budget = parameter_budget(count_parameters(own), **_budget_argument(target))
    return shape_for_budget(config, num_parameters=budget).shape, budget


def _uneven_budget(config: PretrainedConfig, whole: TargetShape, target: Target, name: str) -> int:
    if whole.num_experts is not None:
        raise UsageError(
            f"`allocation` must be 'uniform' for a mixture of experts, but it is {name!r}: its config has one number of"
            " experts for all layers."
        )
    if isinstance(target, (TargetShape, PerLayerShape, dict)):
        raise UsageError(
            f"`target` is a shape, but `allocation` is {name!r}. Give a parameter budget"
            " (an int, or the share to keep as a float), or allocate 'uniform'."
        )
    return parameter_budget(count_parameters(config, whole.source), **_budget_argument(target))


def _check_per_layer(
    config: PretrainedConfig, target: PerLayerShape, choices: PruneConfig, allocation: Allocation
) -> tuple[list[int], tuple[str, ...]]:
    """Layers that are protected, and the kinds of units of which the criterion chooses some."""
    if allocation.uneven:
        raise UsageError(
            f"`target` says what each layer keeps, but `allocation` is {allocation.name!r}. Leave it at 'uniform'."
        )
    if choices.num_shots != 1 or choices.pruning_share is not None:
        raise UsageError("`target` says what each layer keeps, which is cut at once. Leave `num_shots` at 1.")
    target.padded(config)  # or the config's class refuses
    source, layers = target.source, target.layers
    protected = protected_layers(choices.protect, source.num_hidden_layers, source.num_hidden_layers)
    lost = [index for index in protected if not (layers[index].num_heads and layers[index].num_neurons)]
    if lost:
        raise UsageError(
            f"`protect` {choices.protect!r} protects layer {lost[0]}, which `target` leaves without attention or MLP."
            " Protect others, or take another target."
        )
    attentions = [sizes for sizes in layers if sizes.num_heads]
    numbers = {
        HIDDEN: ({target.hidden_size}, source.hidden_size),
        KEY_VALUE_HEAD: ({sizes.num_key_value_heads for sizes in attentions}, source.num_key_value_heads),
        QUERY_HEAD: ({sizes.num_heads // sizes.num_key_value_heads for sizes in attentions}, source.queries_per_group),
        INTERMEDIATE: ({sizes.num_neurons for sizes in layers if sizes.num_neurons}, source.intermediate_size),
    }
    kinds = tuple(kind for kind, (found, whole) in numbers.items() if found != {whole})
    _check_heads(config, kinds)
    if choices.form == NEMOTRON_NAS:
        gone = {ATTENTION: len(attentions) < len(layers), MLP: not all(sizes.num_neurons for sizes in layers)}
        uneven = [kind for kind, (found, _) in numbers.items() if len(found) > 1]
        check_nemotron_nas(config, target.padded(config), [*uneven, *(kind for kind, some in gone.items() if some)])
        first = next(sizes for sizes in target.kept_layers)
        if not first.num_heads:
            raise UsageError(
                "`form` 'nemotron_nas' needs an attention in the first layer, which `target` leaves out. Save it padded"
                " (form='padded')."
            )
    return protected, kinds


def _budget_argument(target: int | float) -> dict:
    if isinstance(target, Integral):
        return {"num_parameters": target}
    if isinstance(target, Real):
        return {"fraction_kept": target}
    raise UsageError(
        f"`target` must be a shape (TargetShape or a dict of sizes), a number of parameters (int) or the share of the"
        f" source's to keep (float), but it is {target!r}. Give one of them."
    )


def _check_heads(config: PretrainedConfig, kinds: Sequence[str]) -> None:
    heads = [kind for kind in kinds if kind in (KEY_VALUE_HEAD, QUERY_HEAD)]
    if heads and family_of(config).fixed_sizes:
        raise UsageError(
            f"`units` {list(kinds)} has {', '.join(heads)}, but a {config.model_type} normalises its queries, and its keys,"
            " over all heads together, so that none can be removed without changing the others. Name other units, such as"
            " ['intermediate']."
        )


def _check_no_shape(criteria: dict[str, Criterion], allocation: str) -> None:
    shaped = sorted({found.name for found in criteria.values() if found.needs_target_shape})
    if shaped:
        raise UsageError(
            f"`criterion` {', '.join(shaped)} learns towards the numbers of a target shape, which a budget shared by"
            f" {allocation!r} allocation does not have. Name another criterion, or a target shape."
        )


def _check_uneven_criteria(criteria: dict[str, Criterion]) -> None:
    wholes = [kind for kind in criteria if kind in (LAYER, *SUB_LAYERS)]
    if wholes and (strange := _not_comparable(criteria)):
        raise UsageError(
            f"Scores of `criterion` {', '.join(strange)} do not compare between layers, so {', '.join(wholes)} cannot"
            " stand in one list with them. Leave those out of `units`, or name criteria whose scores compare, such as"
            " taylor, with loss_rise or sub_layer_rise for whole layers and sub-layers."
        )


def _not_comparable(criteria: dict[str, Criterion]) -> list[str]:
    """Names of the criteria whose scores do not compare between layers."""
    return sorted({found.name for found in criteria.values() if not found.comparable_across_layers})


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
