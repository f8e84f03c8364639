"""How long the rest of a run takes."""

import pytest

from hf_shear.runs.run_time import duration_text, seconds_left


def test_the_rest_runs_at_the_speed_of_what_is_finished():
    planned = {"source": 1e9, "pruning": 2e9, "recovery": 6e9, "random": 6e9}
    assert seconds_left(planned, {}) is None
    assert seconds_left(planned, {"source": 2.0}) == pytest.approx(28.0)
    assert seconds_left(planned, {"source": 2.0, "pruning": 1.0}) == pytest.approx(12.0)
    assert seconds_left(planned, dict.fromkeys(planned, 1.0)) == 0
    assert seconds_left(planned, {"teacher_logits": 5.0}) is None  # of no planned stage


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5000, "83 min"),
        (7200, "2 h"),
        (170_000, "47 h"),
        (260_000, "3 days"),
    ],
)
def test_durations_are_read_by_people(seconds, text):
    assert duration_text(seconds) == text
