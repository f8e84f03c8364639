"""The update of domain weights: the paper's numbers, the reference code's numbers, bounds and bad input."""

import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_shear.data.mixture import (
    check_mixture_bounds,
    check_mixture_weights,
    damped_excess,
    update_mixture_weights,
    warn_of_runaway,
)

START = {
    "cc": 0.67,
    "github": 0.045,
    "book": 0.045,
    "stackexchange": 0.02,
    "wiki": 0.045,
    "arxiv": 0.025,
    "c4-rp": 0.15,
}
EXCESS = dict(zip(START, [0.5, 0.1, 0.4, 0.2, 0.6, 0.2, 0.5], strict=True))
ZERO = dict.fromkeys(START, 0.0)


def test_numbers_of_the_guide():
    new = update_mixture_weights(START, EXCESS, ZERO)
    assert list(new) == list(START)
    expected = [0.68786, 0.03098, 0.04182, 0.01523, 0.05107, 0.01903, 0.15401]
    assert list(new.values()) == pytest.approx(expected, abs=6e-6)
    assert math.fsum(new.values()) == pytest.approx(1, abs=1e-15)


def test_reference_sequence():
    folder = os.environ.get("HF_SHEAR_TEST_DATA")
    if not folder:
        pytest.skip("HF_SHEAR_TEST_DATA is not set")
    (record,) = json.loads((Path(folder) / "reference" / "dynamic_loading_1.3b.json").read_text())
    names = record["names"]
    weights = dict(zip(names, record["start_proportion"], strict=True))
    reference = dict(zip(names, record["target_loss"], strict=True))
    assert len(record["sequence"]) == 6
    for step in record["sequence"]:
        losses = dict(zip(names, step["losses"], strict=True))
        weights = update_mixture_weights(weights, losses, reference, clamp_excess=False)
        assert list(weights.values()) == pytest.approx(step["new_proportion"], rel=1e-6, abs=1e-9)


def test_clamping_only_matters_below_the_reference():
    weights = {"a": 0.5, "b": 0.5}
    reference = {"a": 2.0, "b": 2.0}
    below = {"a": 1.0, "b": 2.5}
    clamped = update_mixture_weights(weights, below, reference, smoothing=0)
    free = update_mixture_weights(weights, below, reference, smoothing=0, clamp_excess=False)
    assert clamped["b"] / clamped["a"] == pytest.approx(math.exp(0.5))
    assert free["b"] / free["a"] == pytest.approx(math.exp(1.5))
    above = {"a": 2.1, "b": 2.5}
    assert update_mixture_weights(weights, above, reference) == update_mixture_weights(
        weights, above, reference, clamp_excess=False
    )


def test_nothing_moves_when_all_references_are_reached():
    new = update_mixture_weights(START, ZERO, dict.fromkeys(START, 1.0), smoothing=0)
    assert new == pytest.approx(START, abs=1e-15)
    smoothed = update_mixture_weights(START, ZERO, dict.fromkeys(START, 1.0), smoothing=0.5)
    assert smoothed["stackexchange"] == pytest.approx(0.5 * 0.02 + 0.5 / 7)


def test_huge_excess_does_not_overflow_and_smoothing_keeps_every_domain():
    new = update_mixture_weights({"a": 0.5, "b": 0.5}, {"a": 5000.0, "b": 0.0}, {"a": 0.0, "b": 0.0})
    assert new == pytest.approx({"a": 1 - 5e-5, "b": 5e-5})


def test_a_domain_of_weight_zero_only_gets_the_smoothing():
    new = update_mixture_weights({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 9.0}, {"a": 1.0, "b": 1.0}, smoothing=0)
    assert new == {"a": 1.0, "b": 0.0}


def test_bounds_hold_a_runaway_domain():
    new = update_mixture_weights(
        {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 4.0, "b": 1.0, "c": 1.0}, dict.fromkeys("abc", 1.0), ceiling=0.7
    )
    assert new["a"] == pytest.approx(0.7)
    assert new["b"] / new["c"] == pytest.approx(3.0, rel=2e-2)  # their ratio, but for the smoothing
    floored = update_mixture_weights(
        {"a": 0.98, "b": 0.01, "c": 0.01}, dict.fromkeys("abc", 1.0), dict.fromkeys("abc", 1.0), floor=0.05
    )
    assert floored == pytest.approx({"a": 0.9, "b": 0.05, "c": 0.05})
    # a weight of zero has no ratio to keep: what the ceiling takes away is shared equally
    assert update_mixture_weights(
        {"a": 1.0, "b": 0.0, "c": 0.0},
        dict.fromkeys("abc", 1.0),
        dict.fromkeys("abc", 1.0),
        smoothing=0,
        ceiling=0.6,
    ) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 12)), min_size=2, max_size=8).filter(
        lambda rows: sum(weight for weight, _ in rows) > 1e-3
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_any_update_is_a_mixture_between_the_bounds(rows, low, high):
    names = [f"d{i}" for i in range(len(rows))]
    floor = low / len(names)
    ceiling = 1 / len(names) + high * (1 - 1 / len(names))
    weights = {name: weight for name, (weight, _) in zip(names, rows, strict=True)}
    losses = {name: loss for name, (_, loss) in zip(names, rows, strict=True)}
    reference = dict.fromkeys(names, 1.0)
    free = update_mixture_weights(weights, losses, reference)
    new = update_mixture_weights(weights, losses, reference, floor=floor, ceiling=min(ceiling, 1.0))
    assert math.fsum(new.values()) == pytest.approx(1, abs=1e-12)
    assert all(floor - 1e-12 <= weight <= ceiling + 1e-12 for weight in new.values())
    # those at no bound keep their ratios
    scales = [new[name] / free[name] for name in names if floor + 1e-9 < new[name] < ceiling - 1e-9]
    assert all(scale == pytest.approx(scales[0], rel=1e-6) for scale in scales)
    for first in names:  # and the order
        for second in names:
            assert new[first] <= new[second] + 1e-12 or free[first] > free[second] - 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"a": float("nan"), "b": 1.0}}, "`losses` must be finite, but that of 'a' is nan"),
        ({"losses": {"a": 1.0, "b": float("inf")}}, "`losses` must be finite, but that of 'b' is inf"),
        (
            {"losses": {"a": 1.0}},
            r"`losses` must have a loss for every domain, but 'b' is missing from \['a'\]",
        ),
        (
            {"reference_losses": {"b": 1.0}},
            "`reference_losses` must have a loss for every domain, but 'a' is missing",
        ),
        (
            {"reference_losses": {"a": float("nan"), "b": 1.0}},
            "`reference_losses` must be finite, but that of 'a'",
        ),
        ({"smoothing": 1.1}, "`smoothing` must be between 0 and 1, but it is 1.1"),
        (
            {"floor": 0.51},
            r"`floor` must lie between 0 and 1 / 2 .* but it is 0.51\. Lower it to 0.5 or less",
        ),
        ({"floor": -0.1}, r"`floor` must lie between .* but it is -0.1\. Use 0 for no floor"),
        ({"floor": float("nan")}, "`floor` must be a finite number, but it is nan"),
        ({"ceiling": 0.4}, r"`ceiling` must lie between 1 / 2 .* but it is 0.4\. Raise it to 0.5 or more"),
        ({"ceiling": 1.1}, r"`ceiling` must lie between .* but it is 1.1\. Use 1 for no ceiling"),
        ({"ceiling": float("nan")}, "`ceiling` must be a finite number, but it is nan"),
        (
            {"weights": {"a": -1.0, "b": 2.0}},
            "`mixture_weights\\['a'\\]` must be at least 0, but it is -1",
        ),
    ],
)
def test_bad_updates(changes, message):
    arguments = {
        "weights": {"a": 0.5, "b": 0.5},
        "losses": {"a": 1.0, "b": 1.0},
        "reference_losses": {"a": 1.0, "b": 1.0},
    }
    with pytest.raises(ValueError, match=message):
        update_mixture_weights(**(arguments | changes))
    assert arguments["weights"] == {"a": 0.5, "b": 0.5}


def test_bounds_are_called_what_the_user_calls_them():
    check_mixture_bounds(0.25, 0.25, 4)
    with pytest.raises(ValueError, match=r"`mixture_floor` must lie between 0 and 1 / 4 .* but it is 0\.3\. Lower"):
        check_mixture_bounds(0.3, 1.0, 4)
    with pytest.raises(ValueError, match=r"`mixture_ceiling` must lie between 1 / 4 .* but it is 0\.2\. Raise"):
        check_mixture_bounds(0.0, 0.2, 4)
    with pytest.raises(ValueError, match="`least` must lie"):
        check_mixture_bounds(0.3, 1.0, 4, floor_name="least")
    with pytest.raises(ValueError, match="`most` must lie"):
        check_mixture_bounds(0.0, 0.2, 4, ceiling_name="most")


@pytest.mark.parametrize("num_domains", [1, 2, 3, 6, 7, 11, 13])
def test_bounds_that_the_errors_advise_are_accepted(num_domains):
    with pytest.raises(ValueError) as caught:
        check_mixture_bounds(1.01, 1.0, num_domains)
    check_mixture_bounds(float(str(caught.value).split("Lower it to ")[1].split()[0]), 1.0, num_domains)
    with pytest.raises(ValueError) as caught:
        check_mixture_bounds(0.0, 0.0, num_domains)
    check_mixture_bounds(0.0, float(str(caught.value).split("Raise it to ")[1].split()[0]), num_domains)


def test_a_ceiling_does_not_bind_a_domain_that_is_alone():
    check_mixture_bounds(0.2, 0.5, 1)
    assert update_mixture_weights({"a": 0.3}, {"a": 2.0}, {"a": 1.0}, floor=0.2, ceiling=0.5) == {"a": 1.0}
    with pytest.raises(ValueError, match="`mixture_floor` must lie between 0 and 1 / 1"):
        check_mixture_bounds(1.5, 0.5, 1)
    with pytest.raises(ValueError, match="`losses` must be finite"):
        update_mixture_weights({"a": 1.0}, {"a": math.nan}, {"a": 1.0})


def test_start_weights():
    assert check_mixture_weights(None, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert list(check_mixture_weights({"b": 3, "a": 1}, ["a", "b"]).items()) == [("a", 0.25), ("b", 0.75)]
    assert check_mixture_weights({"a": 0.0, "b": 2.0}, ["a", "b"]) == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "b": 1, "x": 1}, r"\['x'\] are unknown\. The domains are \['a', 'b'\]"),
        ({"a": 1}, r"\['b'\] are missing"),
        ({"a": 1, "b": -0.5}, "mixture_weights\\['b'\\]` must be at least 0, but it is -0.5"),
        ({"a": float("nan"), "b": 1}, "mixture_weights\\['a'\\]` must be a finite number.* but it is nan"),
        ({"a": float("inf"), "b": 1}, "mixture_weights\\['a'\\]` must be a finite number.* but it is inf"),
        ({"a": 0, "b": 0}, "all are 0"),
    ],
)
def test_bad_start_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        check_mixture_weights(weights, ["a", "b"])


def test_no_domains():
    with pytest.raises(ValueError, match="at least one domain"):
        check_mixture_weights(None, [])


def test_a_domain_that_takes_almost_every_batch_is_warned_of_once():
    before, after = {"a": 0.7, "b": 0.3}, {"a": 0.85, "b": 0.15}
    with pytest.warns(UserWarning, match=r"Domain 'a' now gets 85% .* `mixture_ceiling` \(1\) to 0\.8 or less"):
        warn_of_runaway(before, after, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_runaway(after, {"a": 0.9, "b": 0.1}, 1.0)
        warn_of_runaway({"a": 1.0}, {"a": 1.0}, 1.0)
        warn_of_runaway(before, {"a": 0.8, "b": 0.2}, 0.8)


# ---- damping --------------------------------------------------------------------------------------------------

EXCESSES = st.lists(st.floats(-3, 3), min_size=2, max_size=8)


def by_domain(values) -> dict:
    return dict(zip("abcdefgh"[: len(values)], values, strict=True))


def test_damped_excess_by_hand():
    """Excesses 1, 2, 6: mean 3, variance 7; noise variances 1, 4, 1 of mean 2: a signal of 5."""
    found = damped_excess({"a": 1.0, "b": 2.0, "c": 6.0}, {"a": 1.0, "b": 2.0, "c": 1.0})
    expected = {"a": 3 - 2 * 5 / 6, "b": 3 - 1 * 5 / 9, "c": 3 + 3 * 5 / 6}
    assert found == pytest.approx(expected, abs=1e-12)


@given(EXCESSES, st.data())
def test_damping_moves_every_domain_to_the_mean_and_never_beyond(values, data):
    noise = data.draw(st.lists(st.floats(0, 3), min_size=len(values), max_size=len(values)))
    excess, mean = by_domain(values), np.mean(values)
    for name, found in damped_excess(excess, by_domain(noise)).items():
        low, high = sorted((excess[name], mean))
        assert low - 1e-9 <= found <= high + 1e-9


@given(EXCESSES)
def test_without_noise_nothing_is_damped_and_drowned_in_noise_all_is(values):
    excess = by_domain(values)
    assert damped_excess(excess, dict.fromkeys(excess, 0.0)) == pytest.approx(excess, abs=1e-9)
    drowned = damped_excess(excess, dict.fromkeys(excess, 10.0))
    assert drowned == pytest.approx(dict.fromkeys(excess, np.mean(values)), abs=1e-9)
    weights = dict.fromkeys(excess, 1 / len(excess))
    moved = update_mixture_weights(weights, drowned, dict.fromkeys(excess, 0.0))
    assert moved == pytest.approx(weights, abs=1e-9)


@given(EXCESSES, st.floats(0, 2), st.floats(0, 2))
def test_more_noise_damps_more(values, one, other):
    excess = by_domain(values)
    less, more = (
        damped_excess(excess, dict.fromkeys(excess, noise)).values() for noise in (min(one, other), max(one, other))
    )
    assert np.ptp(list(more)) <= np.ptp(list(less)) + 1e-9


def test_a_domain_of_unknown_noise_gets_the_mean_of_the_others():
    found = damped_excess({"a": 1.0, "b": 2.0, "c": 50.0}, {"a": 0.0, "b": 0.0, "c": math.inf})
    assert found == {"a": 1.0, "b": 2.0, "c": 1.5}
    assert damped_excess({"a": 1.0, "b": 3.0}, {"a": math.inf, "b": math.inf}) == {"a": 2.0, "b": 2.0}
    assert damped_excess({"a": 1.0, "b": 3.0}, {"a": 0.1, "b": math.inf}) == {"a": 1.0, "b": 1.0}


def test_damped_estimates_are_nearer_the_truth_than_measured_ones():
    """Eight domains, noise of twice the spread of their true excesses: squared errors over 400 draws."""
    generator = np.random.default_rng(0)
    truth = generator.normal(0.3, 0.05, size=(400, 8))
    measured = truth + generator.normal(0, 0.1, size=truth.shape)
    damped = [list(damped_excess(by_domain(row), dict.fromkeys("abcdefgh", 0.1)).values()) for row in measured]
    errors = [np.mean((np.array(found) - truth) ** 2) for found in (damped, measured)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("noise", [{"a": 0.1}, {"a": 0.1, "b": -1.0}, {"a": 0.1, "b": math.nan}])
def test_noise_must_be_known_of_every_domain(noise):
    with pytest.raises(ValueError, match=r"`noise` must have a standard error of at least 0 .* 'b'"):
        damped_excess({"a": 1.0, "b": 2.0}, noise)
