"""When learned masks count as off the target."""

import inspect
import warnings

import pytest

from hf_shear.shapes import SHAPE_NAMES
from hf_shear.training import ShearTrainingArguments
from hf_shear.training.mask_learning import warn_if_off_target

TOLERANCE = inspect.signature(ShearTrainingArguments).parameters["shape_gap_tolerance"].default


def report(**gaps):
    """A report of a target of 100 units of each kind, all of them met but for ``gaps``."""
    gap = dict.fromkeys(SHAPE_NAMES, 0.0) | gaps
    return {"expected_shape": {name: 100 * (1 + share) for name, share in gap.items()}, "gap": gap}


def test_the_default_tolerance_is_a_hundredth():
    assert TOLERANCE == 0.01


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_a_gap_below_the_tolerance_is_fine(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_off_target(report(**{name: 0.009}), TOLERANCE)
        warn_if_off_target(report(**{name: TOLERANCE}), TOLERANCE)
        warn_if_off_target(report(**{name: 0.011}), 0.02)


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_a_gap_above_the_tolerance_warns_of_that_size_alone(name):
    other = SHAPE_NAMES[SHAPE_NAMES.index(name) - 1]
    text = rf"have not met the target: expected {name} 101\.1 \(1\.1% off\)\. What is cut"
    with pytest.warns(UserWarning, match=text):
        warn_if_off_target(report(**{name: 0.011, other: 0.009}), TOLERANCE)
