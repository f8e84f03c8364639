"""Differences of two arms, paired by seed."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from hf_shear.report import paired_difference


def test_the_interval_is_that_of_the_paired_t_test():
    first, second = [1.0, 1.2, 1.5, 1.1], [1.3, 1.35, 1.9, 1.2]
    found = paired_difference(first, second)
    expected = ttest_rel(second, first).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.2375)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.is_ahead == (expected.low > 0) and not found.is_behind
    other = paired_difference(second, first)
    assert other.is_behind == found.is_ahead and other.mean == pytest.approx(-found.mean)


def test_95_percent_of_the_intervals_hold_the_mean():
    draws = np.random.default_rng(0).normal(0.3, 1.0, (4000, 3))
    inside = [found.low < 0.3 < found.high for found in (paired_difference([0.0] * 3, list(row)) for row in draws)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)  # standard error 0.0034


def test_one_seed_has_no_interval():
    found = paired_difference([1.0], [2.0])
    assert found == (1.0, None, None) and not found.is_ahead and not found.is_behind and found.text() == "1.000"
    assert paired_difference([1.0, 1.0], [2.0, 2.0]).text() == "1.000 (1.000 to 1.000)"


@pytest.mark.parametrize("first, second", [([], []), ([1.0], [1.0, 2.0])])
def test_seeds_must_be_the_same(first, second):
    with pytest.raises(ValueError, match="Arms are compared seed by seed"):
        paired_difference(first, second)
