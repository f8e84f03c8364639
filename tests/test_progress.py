"""Signs of life: a bar in a terminal, a line now and then in a file, nothing for who imports the library."""

import sys

import pytest

from hf_shear.core import lines_when_piped, progress, tracked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when somebody works."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "_lines", True)
    return now


def work(items, clock, seconds):
    done = []
    for item in items:
        done.append(item)
        clock[0] += seconds
    return done


def test_a_file_is_told_after_the_first_item_and_each_half_minute(clock, capsys):
    assert work(tracked(range(60), "Scores"), clock, 2.0) == list(range(60))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Scores: 1 of 60 batches, about 2 min left"
    assert lines[1] == "Scores: 16 of 60 batches, about 88 s left" and len(lines) == 4


def test_short_work_is_not_told(clock, capsys):
    work(tracked(range(60), "Scores"), clock, 0.1)
    assert capsys.readouterr().err == ""


def test_without_a_length_there_is_no_promise(clock, capsys):
    work(tracked(iter(range(60)), "Scores", unit="layer"), clock, 2.0)
    assert capsys.readouterr().err.splitlines()[0] == "Scores: 5 layers"


def test_an_importing_script_is_told_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_lines", False)
    work(tracked(range(60), "Scores"), clock, 2.0)
    assert capsys.readouterr().err == ""


def test_it_can_be_silenced(clock, capsys, monkeypatch):
    monkeypatch.setenv(progress.SILENCED_BY, "1")
    work(tracked(range(60), "Scores"), clock, 2.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_watched", lambda: True)
    monkeypatch.setattr(progress, "BAR_DELAY", 0)
    assert list(tracked(range(3), "Scores")) == [0, 1, 2]
    assert "Scores" in capsys.readouterr().err


def test_bars_of_lm_eval_become_lines(clock, capsys):
    from tqdm import tqdm

    from hf_shear.evaluation.quiet import _no_bars

    with _no_bars():
        bar = tqdm(total=60, desc="Running loglikelihood requests", disable=False)
        for _ in range(30):
            clock[0] += 2.0
            bar.update(2)
        bar.close()
        assert list(tqdm(range(3), disable=False)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Running loglikelihood requests: 1 of 60 requests, about 2 min left" and len(lines) == 2
    assert tqdm(range(3), disable=True).n == 0


def test_what_stops_early_leaves_the_rest(clock):
    items = iter(range(5))
    assert next(tracked(items, "Scores")) == 0 and next(items) == 1


def test_bars_of_other_libraries_are_off_where_nobody_watches(monkeypatch):
    import datasets

    monkeypatch.setattr(progress, "_lines", False)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
    datasets.enable_progress_bars()
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    monkeypatch.setattr(progress, "_watched", lambda: False)
    try:
        lines_when_piped()
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


def test_a_command_in_a_file_has_no_bars(monkeypatch):
    monkeypatch.setattr(progress, "_lines", False)
    assert progress.bars_are_seen()
    monkeypatch.setattr(progress, "_lines", True)
    monkeypatch.setattr(progress, "_watched", lambda: False)
    assert not progress.bars_are_seen()
