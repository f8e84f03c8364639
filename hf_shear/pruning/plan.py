"""What a target, an allocation and a form ask for, checked before any weight is read or any forward runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

from transformers import PretrainedConfig

from ..compensation import check_compensation, config_with_biases, resolve_compensation
from ..core import UsageError, check_ranges, keyword_options, options_from_text
from ..criteria import CriterionChoice, Scores, criteria_by_kind
from ..data import Calibration
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, SUB_LAYERS, unit_kinds
from ..modeling import ShearingMixin
from ..shapes import TargetShape, count_parameters, family_of, parameter_budget, shape_for_budget
from ..slicing import FORMS, NEMOTRON_NAS, check_nemotron_nas
from .adaptive_allocation import ADAPTIVE_KINDS, close_by_influence
from .allocation import uniform_gates
from .global_allocation import GLOBAL_KINDS, close_cheapest, smallest_count, too_small
from .open_units import OpenUnits, Unit
from .protected_layers import protected_layers

Target = TargetShape | dict[str, int] | int | float

UNIFORM, GLOBAL, ADAPTIVE = "uniform", "global", "adaptive"
ALLOCATIONS = (UNIFORM, GLOBAL, ADAPTIVE)

DEFAULT_UNITS = (KEY_VALUE_HEAD, INTERMEDIATE)


@dataclass(frozen=True)
class Plan:
    """How a model is brought to its target.

    Attributes:
        config: of the source, with the biases that compensation adds: its parameters are counted.
        shape: the target of a uniform allocation; the source's own shape for the others.
        budget: parameters, embeddings included and tied weights counted once; None where a shape is the target.
        kinds: of units that are removed.
        allocation: its name.
        options: of the allocation.
        protected_layers: indices of layers that stay; of an uneven allocation with both of their sub-layers.
        protected: units that stay for the form's sake.
    """

    config: PretrainedConfig
    shape: TargetShape
    budget: int | None
    kinds: tuple[str, ...]
    allocation: str
    options: dict
    protected_layers: list[int]
    protected: frozenset[Unit] = frozenset()

    @property
    def uneven(self) -> bool:
        """Whether layers may end with different widths."""
        return self.allocation != UNIFORM

    def allocate(
        self,
        model: ShearingMixin,
        calibration: Calibration,
        scores: Scores,
        criterion: CriterionChoice,
        progress: float,
    ):
        """Gates of 0 and 1 by kind, when ``progress`` of the way is gone; what the gates in use close stays closed."""
        gates = model.gates_in_use
        if not self.uneven:
            return uniform_gates(scores, model.masks.kinds, gates, progress)
        num_source = count_parameters(self.config, self.shape.source)
        budget = self.budget + round((num_source - self.budget) * (1 - progress))
        units = OpenUnits(self.config, self.shape.source, gates, self.protected)
        if self.allocation == GLOBAL:
            comparable = not _not_comparable(criterion, self.kinds)
            close_cheapest(units, scores, budget, comparable, **self.options)
        else:
            close_by_influence(model, calibration, units, scores, budget, **self.options)
        return units.gates(model.device)


def make_plan(
    config: PretrainedConfig,
    target: Target,
    criterion: CriterionChoice,
    allocation: str = UNIFORM,
    units: Collection[str] | None = None,
    form: str = FORMS[0],
    protect: str | Sequence[int] = (),
    compensation: str = "none",
) -> Plan:
    """Check what is asked for.

    Args:
        config: of the source.
        target, allocation, units, form, protect, compensation: as in ``prune_one_shot``.
        criterion: must rank the units that are removed.

    Raises:
        ValueError: the target does not fit the allocation or the source, or the form cannot hold the result.
    """
    check_compensation(compensation, config)
    chosen = resolve_compensation(compensation)
    own, config = config, config_with_biases(config) if chosen is not None and chosen.needs_bias else config
    name, _, text = allocation.partition(":")
    if name not in ALLOCATIONS:
        raise UsageError(f"`allocation` must be one of {', '.join(ALLOCATIONS)}, but it is {name!r}.")
    if form not in FORMS:
        raise UsageError(f"`form` must be one of {', '.join(FORMS)}, but it is {form!r}.")
    whole = TargetShape.from_source(config)
    if name != UNIFORM and whole.num_experts is not None:
        raise UsageError(
            f"`allocation` must be {UNIFORM!r} for a mixture of experts, but it is {name!r}: its config has one number of"
            " experts for all layers."
        )
    if name == UNIFORM:
        plan = _uniform_plan(own, config, target, text, units, protect)
    else:
        budget = _budget(target, own, whole, name)
        kinds = _kinds(units, name)
        _check_heads(config, kinds)
        options = _options(name, text, count_parameters(config, whole.source), budget)
        num_layers = whole.source.num_hidden_layers
        layers = protected_layers(protect, num_layers, num_layers)
        protected = {Unit(kind, layer, 0) for layer in layers for kind in (LAYER, *SUB_LAYERS)}
        protected |= {Unit(LAYER, 0, 0), Unit(ATTENTION, 0, 0)} if form == NEMOTRON_NAS else set()
        plan = Plan(config, whole, budget, kinds, name, options, layers, frozenset(protected))
        smallest = OpenUnits(config, whole.source, protected=plan.protected)
        if smallest_count(smallest, kinds) > budget:
            raise UsageError(too_small(smallest, budget, kinds))
    if form == NEMOTRON_NAS:
        check_nemotron_nas(config, plan.shape, plan.kinds if plan.uneven else ())
    chosen = criteria_by_kind(criterion, plan.kinds, family_of(config))
    shaped = sorted({found.name for found in chosen.values() if found.needs_target_shape})
    if plan.uneven and shaped:
        raise UsageError(
            f"`criterion` {', '.join(shaped)} learns towards the numbers of a target shape, which a budget shared by"
            f" {name!r} allocation does not have. Name another criterion, or a target shape."
        )
    if plan.uneven and (strange := _not_comparable(criterion, plan.kinds)):
        wholes = [kind for kind in plan.kinds if kind in (LAYER, *SUB_LAYERS)]
        if wholes:
            raise UsageError(
                f"Scores of `criterion` {', '.join(strange)} do not compare between layers, so {', '.join(wholes)} cannot"
                " stand in one list with them. Leave those out of `units`, or name criteria whose scores compare, such as"
                " taylor, with loss_rise or sub_layer_rise for whole layers and sub-layers."
            )
    return plan


def _uniform_plan(
    own: PretrainedConfig,
    config: PretrainedConfig,
    target: Target,
    text: str,
    units: Collection[str] | None,
    protect: str | Sequence[int],
) -> Plan:
    if text:
        raise UsageError(f"`allocation` 'uniform' has no options, but it is 'uniform:{text}'.")
    if units is not None:
        raise UsageError(
            f"`units` {list(units)} goes with `allocation` global or adaptive: a uniform one removes what the target"
            " shape says. Leave `units` out, or name such an allocation."
        )
    budget = None
    if isinstance(target, TargetShape):
        shape = target
    elif isinstance(target, dict):
        shape = TargetShape.from_dict(config, target)
    else:
        budget = parameter_budget(count_parameters(own), **_budget_argument(target))
        shape = shape_for_budget(config, num_parameters=budget).shape
    kinds = tuple(kind.name for kind in unit_kinds(shape.source, shape).values() if not kind.frozen)
    layers = protected_layers(protect, shape.source.num_hidden_layers, shape.num_hidden_layers)
    return Plan(config, shape, budget, kinds, UNIFORM, {}, layers)


def _budget_argument(target: int | float) -> dict:
    if isinstance(target, Integral):
        return {"num_parameters": target}
    if isinstance(target, Real):
        return {"fraction_kept": target}
    raise UsageError(
        f"`target` must be a shape (TargetShape or a dict of sizes), a number of parameters (int) or the share of the"
        f" source's to keep (float), but it is {target!r}. Give one of them."
    )


def _budget(target: Target, config: PretrainedConfig, whole: TargetShape, allocation: str) -> int:
    if isinstance(target, (TargetShape, dict)):
        raise UsageError(
            f"`target` is a shape, which every layer has alike, but `allocation` is {allocation!r}. Give a parameter budget"
            " (an int, or the share to keep as a float), or allocate 'uniform'."
        )
    return parameter_budget(count_parameters(config, whole.source), **_budget_argument(target))


def _kinds(units: Collection[str] | None, allocation: str) -> tuple[str, ...]:
    able = GLOBAL_KINDS if allocation == GLOBAL else ADAPTIVE_KINDS
    kinds = DEFAULT_UNITS if units is None else units
    unable = [kind for kind in kinds if kind not in able]
    if unable or not kinds:
        raise UsageError(
            f"`units` must name some of {', '.join(able)} for the allocation {allocation!r}, but it is {list(kinds)}."
            " (hidden dimensions are the same in all layers: remove them by a target shape.)"
        )
    return tuple(kind for kind in able if kind in kinds)


def _check_heads(config: PretrainedConfig, kinds: Collection[str]) -> None:
    heads = [kind for kind in kinds if kind in (KEY_VALUE_HEAD, QUERY_HEAD)]
    if heads and family_of(config).fixed_sizes:
        raise UsageError(
            f"`units` {list(kinds)} has {', '.join(heads)}, but a {config.model_type} normalises its queries, and its keys,"
            " over all heads together, so that none can be removed without changing the others. Name other units, such as"
            " ['intermediate']."
        )


def global_options(*, per_parameter: bool = True) -> dict:
    """Options of the global allocation; see ``close_cheapest``."""
    return {"per_parameter": per_parameter}


def adaptive_options(removed: float, *, num_steps: int = 50, amplitude: float = 0.5, num_batches: int = 1) -> dict:
    """Options of the adaptive allocation, to remove the share ``removed`` of the units in about ``num_steps`` steps."""
    check_ranges({"num_steps": num_steps, "num_batches": num_batches, "amplitude": amplitude})
    return {"delta": removed / num_steps, "amplitude": amplitude, "num_batches": num_batches}


def _options(allocation: str, text: str, num_source: int, budget: int) -> dict:
    # At the source's size nothing is to be removed, and no step is taken.
    removed = max(1 - budget / num_source, 1 / num_source)
    function = global_options if allocation == GLOBAL else partial(adaptive_options, removed)
    named = options_from_text(text, keyword_options(function), f"Allocation {allocation!r}") if text else {}
    return function(**named)


def _not_comparable(criterion: CriterionChoice, kinds: Collection[str]) -> list[str]:
    """Names of the criteria whose scores do not compare between layers."""
    chosen = criteria_by_kind(criterion, kinds).values()
    return sorted({found.name for found in chosen if not found.comparable_across_layers})
