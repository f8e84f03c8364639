"""examples/research/shared.py: a sweep of learning rates goes on until the best lies between two others, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.research import shared as rates

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("best", [0.0625, 1.0, 8.0])
def test_a_sweep_goes_on_until_the_best_rate_lies_between_two_others(best):
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: None if rate > 4 * best else abs(rate - best) for rate in wanted}
        wanted = rates.next_rates(found)
    assert rates.best_rate(found) == best
    assert {best / 2, best * 2} <= set(found) and len(found) <= rates.MAX_RATES


def test_a_sweep_ends():
    found, wanted = {}, [1.0]
    while wanted:
        found |= {rate: 1 / rate for rate in wanted}  # the larger the better, for ever
        wanted = rates.next_rates(found)
    assert len(found) <= rates.MAX_RATES


def test_neighbours_of_another_rate_than_the_best():
    assert rates.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}) == []
    assert rates.next_rates({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, around=4.0) == [8.0]
