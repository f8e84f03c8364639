"""``PruneConfig``: every choice of a pruning beside the model, the target and the text, as plain values.

Its defaults are the bench's choice (model_cards/bench.md): at equal training tokens over three seeds the LLM Surgeon's
costs with least squares lost least. The Surgeon ranks heads and neurons. Hidden dimensions, which it cannot rank, go by
the size of their activations, which needs no gradients and is level with Taylor scores there; whole layers, which are too
far from a small change for costs of second order, by the loss without them, one after another
(model_cards/real_models.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import hf_hub_download

from ..compensation import resolve_compensation
from ..core import UsageError, check_ranges, check_record, of_file, read_json_object, write_json_atomically
from ..core.defaults import ALLOCATION, COMPENSATION, CRITERION, FORMS, NUM_SHOTS
from ..criteria import DEFAULT_KIND, Criterion, CriterionChoice, criteria_by_kind, resolve_criterion
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD
from ..shapes import family_named
from ..slicing import PRUNE_CONFIG_NAME
from ..sources import find_place
from .allocation import ALLOCATIONS, resolve_allocation

DEFAULT_CRITERION: Mapping[str, str] = MappingProxyType(CRITERION)
DEFAULT_UNITS = (KEY_VALUE_HEAD, INTERMEDIATE)


@dataclass(frozen=True)
class PruneConfig:
    """What to remove, and how to make up for it. ``prune_config.json`` holds one beside every pruned checkpoint.

    Args:
        criterion: scores of units: a name with options (``"taylor"``, ``"flap"``), a function declared by
            ``hf_shear.criteria.criterion``, or a dict with one per kind of unit (and ``"default"``). Default: what lost
            least in model_cards/bench.md, the LLM Surgeon for heads and neurons, the size of activations for hidden
            dimensions, the rise of the loss by all that go for layers. A function is saved by its name.
        compensation: update of the weights that stay: a name with options (``"none"``, ``"least_squares"``,
            ``"least_squares_bias:towards=source"``; see ``hf_shear.compensation.compensate``). The default holds under any
            criterion, because it lowered the loss under each that was measured.
        num_shots: times that units are removed. Each scores and compensates anew what the ones before left, so that
            pruning takes that many times as long as in one. More than one pays under ``allocation="global"``, and where
            training follows each (``prune_interleaved``).
        allocation: how layers share what is removed. ``"uniform"``: all have the target's shape, which
            ``shape_for_budget`` picks if the target is a budget. Under a budget also ``"global"``, one list of the units of
            all layers, and ``"adaptive"``, layers by their influence. Options are written as in
            ``"global:per_parameter=false"``, ``"adaptive:num_steps=20,amplitude=0.5"``.
        units: kinds that the allocations global ("layer", "attention", "mlp", "key_value_head", "query_head",
            "intermediate") and adaptive ("key_value_head", "intermediate") remove; by default these last two.
        protect: layers that stay under any criterion: indices, or a text such as ``"first:4,last:2"``.
        form: how the result is saved: ``"padded"``, or ``"nemotron_nas"`` (``save_nemotron_nas``).
        as_family: model_type that the result shall have, as in ``AutoShearingModelForCausalLM.from_pretrained``.
        pruning_share: of ``prune_interleaved`` alone: the share of the training steps in which the shots are taken
            (default 0.5). None: all shots at once, without training.

    Raises:
        UsageError: a name, an option or a number is not allowed, or choices exclude each other. What depends on the model
            and the target is checked by ``make_plan``.
    """

    criterion: CriterionChoice = field(default_factory=lambda: dict(DEFAULT_CRITERION))
    compensation: str = COMPENSATION
    num_shots: int = NUM_SHOTS
    allocation: str = ALLOCATION
    units: Sequence[str] | None = None
    protect: str | Sequence[int] = ""
    form: str = FORMS[0]
    as_family: str | None = None
    pruning_share: float | None = None

    def __post_init__(self):
        for name, kind in (("units", list), ("protect", list), ("criterion", dict)):  # as JSON has them
            value = getattr(self, name)
            if isinstance(value, Mapping if kind is dict else Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, kind(value))
        check_ranges({"num_shots": self.num_shots})
        if self.pruning_share is not None:
            check_ranges({"pruning_share": self.pruning_share})
        resolve_compensation(self.compensation)
        self._check_criterion()
        allocation = resolve_allocation(self.allocation)
        if self.form not in FORMS:
            raise UsageError(f"`form` must be one of {', '.join(FORMS)}, but it is {self.form!r}.")
        if self.units is not None and not allocation.uneven:
            uneven = " or ".join(name for name, known in ALLOCATIONS.items() if known.uneven)
            raise UsageError(
                f"`units` {self.units} goes with `allocation` {uneven}: a uniform one removes what the target shape says."
                " Leave `units` out, or name such an allocation."
            )
        if self.units is not None and (not self.units or set(self.units) - set(allocation.kinds)):
            raise UsageError(
                f"`units` must name some of {', '.join(allocation.kinds)} for the allocation {allocation.name!r}, but it"
                f" is {self.units}. (hidden dimensions are the same in all layers: remove them by a target shape.)"
            )
        if self.as_family is not None:
            family_named(self.as_family, "`as_family`: ")

    def _check_criterion(self) -> None:
        choice = self.criterion
        named = dict(choice) if isinstance(choice, Mapping) else {DEFAULT_KIND: choice}
        criteria_by_kind(named, [kind for kind in named if kind != DEFAULT_KIND])
        if DEFAULT_KIND in named:
            resolve_criterion(named[DEFAULT_KIND])

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON has them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        choice = self.criterion
        by_kind = isinstance(choice, Mapping)
        found["criterion"] = {kind: _named(one) for kind, one in choice.items()} if by_kind else _named(choice)
        return found

    @classmethod
    def from_dict(cls, choices: Mapping[str, Any]) -> PruneConfig:
        """The choices of ``to_dict``; what is left out has its default.

        Raises:
            UsageError: an unknown name, a value of another type, or as ``PruneConfig``.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(choices) - set(known))
        if unknown:
            raise UsageError(
                f"`prune_config` has no entry {unknown[0]!r}; it has {', '.join(known)}. Leave {unknown[0]!r} out, or read"
                " it with the version of hf_shear that wrote it."
            )
        check_record(choices, "prune_config")
        return cls(**choices)

    def save_pretrained(self, save_directory: str | os.PathLike) -> Path:
        """Write ``prune_config.json`` into a folder, which is made if it does not exist."""
        return write_json_atomically(Path(save_directory) / PRUNE_CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, revision: str | None = None
    ) -> PruneConfig:
        """Read ``prune_config.json`` of a checkpoint: a folder, or a name on the Hub.

        Raises:
            UsageError: there is none, it is broken, or as ``from_dict``.
        """
        place = find_place("pretrained_model_name_or_path", pretrained_model_name_or_path)
        if place.folder is None:
            path = Path(hf_hub_download(place.name, PRUNE_CONFIG_NAME, revision=revision))
        else:
            path = place.folder / PRUNE_CONFIG_NAME
        choices = read_json_object(path)
        with of_file(path):
            return cls.from_dict(choices)


def _named(choice: str | Criterion) -> str:
    return choice if isinstance(choice, str) else choice.name
