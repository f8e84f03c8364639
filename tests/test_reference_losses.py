"""Reference losses by size: the published numbers, laws that are recovered, and bad input."""

import json
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.data.reference_losses import reference_losses_by_size

SIZES = [1e8, 4e8, 1.5e9, 7e9]


def law(a: float, b: float, c: float) -> list[float]:
    return [a / size**b + c for size in SIZES]


def test_published_370m_values():
    folder = os.environ.get("HF_SHEAR_TEST_DATA")
    if not folder:
        pytest.skip("HF_SHEAR_TEST_DATA is not set")
    record = json.loads((Path(folder) / "reference" / "reference_losses_370m.json").read_text())
    with pytest.warns(UserWarning, match=r"exactly.*filterwarnings\(\"ignore\"") as caught:
        found = reference_losses_by_size(record["model_sizes"], record["source_losses"], record["target_sizes"]["370m"])
    assert len(caught) == 1
    published = dict(zip(record["domain_order"], record["published_target_losses"]["370m"], strict=True))
    assert found.keys() == published.keys()
    for name in published:
        assert round(found[name], 4) == published[name]


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 0.6), st.floats(0.2, 2.5), st.floats(0.3, 2.0))
def test_a_law_is_recovered(b, spread, c):
    a = spread * SIZES[0] ** b
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = reference_losses_by_size(SIZES, {"x": law(a, b, c)}, 2.5e7)
    assert found["x"] == pytest.approx(a / 2.5e7**b + c, rel=1e-6)


def test_order_of_sizes_does_not_matter_and_domains_are_apart():
    losses = {"x": law(300.0, 0.3, 1.0), "y": law(50.0, 0.2, 0.5)}
    forward = reference_losses_by_size(SIZES, losses, 3e7)
    backward = reference_losses_by_size(SIZES[::-1], {name: values[::-1] for name, values in losses.items()}, 3e7)
    assert backward == pytest.approx(forward, rel=1e-6)
    assert forward["x"] == pytest.approx(300.0 / 3e7**0.3 + 1.0)
    assert forward["y"] == pytest.approx(50.0 / 3e7**0.2 + 0.5)


def test_noise_is_averaged_where_there_are_more_sizes():
    noisy = [loss + error for loss, error in zip(law(300.0, 0.3, 1.0), [0.003, -0.003, 0.003, -0.003], strict=True)]
    assert reference_losses_by_size(SIZES, {"x": noisy}, 3e8)["x"] == pytest.approx(300.0 / 3e8**0.3 + 1.0, abs=0.01)


GOOD = law(300.0, 0.3, 1.0)


@pytest.mark.parametrize(
    ("sizes", "losses", "target", "message"),
    [
        (
            SIZES[:2],
            GOOD[:2],
            1e7,
            r"`sizes` must hold at least 3 different sizes, .* \[100000000.0, 400000000.0\]",
        ),
        ([1e8, 1e8, 4e8, 7e9], GOOD, 1e7, "`sizes` must hold at least 3 different sizes, each once"),
        ([0.0, *SIZES[1:]], GOOD, 1e7, "`sizes` must be positive and finite, but holds 0.0"),
        (SIZES, GOOD[:3], 1e7, r"one loss per size \(4\), but domain 'x' has 3"),
        (SIZES, [-1.0, *GOOD[1:]], 1e7, r"`losses\['x'\]` must be positive and finite, but holds -1.0"),
        (
            SIZES,
            [float("nan"), *GOOD[1:]],
            1e7,
            r"`losses\['x'\]` must be positive and finite, but holds nan",
        ),
        (SIZES, GOOD, -1.0, "`target_size` must be positive"),
        (SIZES, GOOD[::-1], 1e7, r"`losses` must fall as `sizes` grow, but those of domain 'x'"),
        (SIZES, [2.0, 2.0, 2.0, 2.0], 1e7, "`losses` must fall as `sizes` grow"),
    ],
)
def test_bad_arguments(sizes, losses, target, message):
    with pytest.raises(ValueError, match=message):
        reference_losses_by_size(sizes, {"x": losses}, target)


def test_a_fit_that_fails_is_named():
    # losses that fall faster and faster: no law of this form goes through them
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no such fit was found for domain 'x'"):
        reference_losses_by_size([1e9, 2e9, 4e9], {"x": [3.0, 2.9, 1.0]}, 5e8)
