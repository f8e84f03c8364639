"""What a criterion is: a function that scores units, and the declaration of what its scores are.

    @criterion(ranks=("intermediate",))
    def my_criterion(model, calibration, *, power=1.0):
        '''Returns float32 scores [*rows, units] by kind of unit; higher = keep.'''

The function takes a masked model and a ``Calibration``, and options as keyword arguments with defaults. It scores the
model under its gates in use (``ShearingMixin.gates_in_use``) and leaves weights, masks, gradients and mode as they are.
A criterion in a file of this folder is found by its function's name (``registry.py``). A user's own is passed itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..core import check_options, keyword_options
from ..data import Calibration
from ..modeling import ShearingMixin

Scores = dict[str, Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Criterion:
    """A function that scores units, its declaration, and the options that were set.

    Attributes:
        score: the function.
        declared_ranks, declared_comparable: ``ranks`` and ``comparable_across_layers`` as given to ``criterion``.
        presumes_compensation, needs_target_shape, shares_inputs, scores_the_cut: as in ``criterion``.
        options: set by ``with_options``, by name.
    """

    score: Callable[..., Scores]
    declared_ranks: Collection[str] | Callable[[Options], Collection[str]]
    declared_comparable: bool | Callable[[Options], bool]
    presumes_compensation: bool = False
    needs_target_shape: bool = False
    shares_inputs: bool = False
    scores_the_cut: bool = False
    options: Options = field(default_factory=dict, hash=False)

    def __post_init__(self):
        object.__setattr__(self, "__doc__", self.score.__doc__)

    def __call__(
        self,
        model: ShearingMixin,
        calibration: Calibration,
        shared_inputs: dict | None = None,
        kinds: Collection[str] | None = None,
        **options: object,
    ) -> Scores:
        """Score the units of ``model`` on ``calibration``.

        Args:
            model: a masked model, scored under its gates in use and left as it is.
            calibration: text.
            shared_inputs: filled by a criterion that shares inputs; others ignore it.
            kinds: of units whose scores are wanted, None: all; a criterion that shares inputs may leave others out.
            **options: as in ``with_options``.

        Returns:
            scores [*rows, units] for the kinds in ``ranks``, and perhaps others; higher = keep.
        """
        if options:
            return self.with_options(**options)(model, calibration, shared_inputs, kinds)
        shared = (shared_inputs, kinds) if self.shares_inputs else ()
        return self.score(model, calibration, *shared, **self.options)

    def with_options(self, **options: object) -> Criterion:
        """The criterion with these options in place of their defaults, or of what was set before.

        Raises:
            ValueError: an unknown option, or a number out of its range.
        """
        check_options(options, self.defaults, f"Criterion {self.score.__name__!r}")
        return replace(self, options={**self.options, **options})

    @property
    def name(self) -> str:
        """The function's name, with the options that were set: ``"taylor:order=mixed"``."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.score.__name__}:{options}" if options else self.score.__name__

    @property
    def defaults(self) -> dict[str, object]:
        """All options and their defaults."""
        return keyword_options(self.score)

    @property
    def ranks(self) -> tuple[str, ...]:
        """The kinds of units that the criterion ranks."""
        declared = self.declared_ranks
        return tuple(declared(self._all_options()) if callable(declared) else declared)

    @property
    def comparable_across_layers(self) -> bool:
        """Whether scores mean the same in every layer and for every kind of unit."""
        declared = self.declared_comparable
        return declared(self._all_options()) if callable(declared) else declared

    def _all_options(self) -> Options:
        return {**self.defaults, **self.options}


def criterion(
    *,
    ranks: Collection[str] | Callable[[Options], Collection[str]],
    presumes_compensation: bool = False,
    comparable_across_layers: bool | Callable[[Options], bool] = False,
    needs_target_shape: bool = False,
    shares_inputs: bool = False,
    scores_the_cut: bool = False,
) -> Callable[[Callable[..., Scores]], Criterion]:
    """Declare a function as a criterion.

    Args:
        ranks: the kinds of units that it can rank (``hf_shear.masks.RANKED_KINDS``), or a function from all options by
            name to these.
        presumes_compensation: whether its scores are costs after the remaining weights were updated. Without
            compensation it then ranks worse than it could.
        comparable_across_layers: whether scores of different layers and kinds of units have one unit of measure, such
            as nats of loss; or a function from all options by name to that. Where they have not, an allocation over all
            layers standardises them layer by layer.
        needs_target_shape: whether it asks the masked model how many units each row keeps, which only a target shape
            tells.
        shares_inputs: whether it takes two arguments more. The third is None or a dict
            (``hf_shear.calibration.InputsByModule``), which it may fill with second moments that it collects anyway, so
            that compensation need not collect them again. The fourth is None or the kinds of units that are wanted; it may
            leave out the others, and what only these need.
        scores_the_cut: whether it ranks whole layers better once the layers' own units are chosen and compensated for, as
            what measures a loss does. Where all layers shall have one shape, it is then asked last.
    """

    def declare(score: Callable[..., Scores]) -> Criterion:
        return Criterion(
            score,
            ranks,
            comparable_across_layers,
            presumes_compensation,
            needs_target_shape,
            shares_inputs,
            scores_the_cut,
        )

    return declare
