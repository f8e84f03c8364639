"""What a criterion is: a function that scores units, and says which kinds of units it can rank.

A criterion is one function in a file of its name in ``hf_shear/criteria/``, or any function of a user's:

    @criterion(ranks=("intermediate",))
    def my_criterion(model, calibration, *, power=1.0):
        '''Returns float32 scores [*rows, units] by kind of unit; higher = keep.'''

It is called with a masked model (all its gates in use as they shall be, see ``ShearingMixin.gates_in_use``; weights,
masks, gradients and mode are to be left as they are) and a ``Calibration``. Options are keyword arguments with
defaults. It is named by its function's name, with options as in ``"my_criterion:power=2"``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from torch import Tensor

Scores = dict[str, Tensor]
Criterion = Callable[..., Scores]


def criterion(
    *,
    ranks: Collection[str],
    presumes_compensation: bool = False,
    comparable_across_layers: bool | Callable[[dict], bool] = False,
    needs_target_shape: bool = False,
    shares_inputs: bool = False,
) -> Callable[[Criterion], Criterion]:
    """Declare a function as a criterion.

    Args:
        ranks: the kinds of units that it can rank (``hf_shear.masks.RANKED_KINDS``).
        presumes_compensation: whether its scores are costs after the remaining weights were updated; without
            compensation it then ranks worse than it could.
        comparable_across_layers: whether scores of different layers and kinds of units have one unit of measure, such
            as nats of loss; or a function that says so of the options that were set, by name.
            Where they have not, an allocation over all layers standardises them layer by layer.
        needs_target_shape: whether it asks the masked model how many units each row shall keep, which only a target
            shape tells.
        shares_inputs: whether it takes a third argument, a dict (``hf_shear.calibration.InputsByModule``) that it may fill
            with second moments which it collects anyway, so that compensation need not collect them again.
    """

    def declare(score: Criterion) -> Criterion:
        score.ranks, score.presumes_compensation = tuple(ranks), presumes_compensation
        score.comparable_across_layers, score.needs_target_shape = comparable_across_layers, needs_target_shape
        score.shares_inputs = shares_inputs
        return score

    return declare


def _declared(function: Criterion) -> Criterion:
    """The function that was declared, without the options that were set."""
    return function.func if isinstance(function, partial) else function


def ranks_of(function: Criterion) -> tuple[str, ...]:
    """The kinds of units that a criterion ranks."""
    return _declared(function).ranks


def is_comparable_across_layers(function: Criterion) -> bool:
    """Whether a criterion's scores mean the same in every layer and for every kind of unit."""
    options = function.keywords if isinstance(function, partial) else {}
    declared = _declared(function).comparable_across_layers
    return declared(options) if callable(declared) else declared


def needs_target_shape(function: Criterion) -> bool:
    """Whether a criterion needs to know how many units each row shall keep."""
    return _declared(function).needs_target_shape


def shares_inputs(function: Criterion) -> bool:
    """Whether a criterion hands on the second moments of inputs that it collects."""
    return _declared(function).shares_inputs


def name_of(function: Criterion) -> str:
    """Name of a criterion, with the options that were set."""
    if not isinstance(function, partial):
        return function.__name__
    options = ",".join(f"{key}={value}" for key, value in function.keywords.items())
    return f"{function.func.__name__}:{options}"
