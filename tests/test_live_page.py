"""The page that follows a run: what it shows, that it costs little, and that it never stops a run."""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace

import pytest
from test_html_report import Page, complete

from hf_shear.core import REPORT_NAME, StoppedBySignal
from hf_shear.report import live_report
from hf_shear.runs import live_page
from hf_shear.runs.live_page import LivePage
from hf_shear.runs.run_time import Work


def live(**changes) -> dict:
    stages = [
        {"name": "source", "state": "finished", "share": 0.1, "seconds": 7.0},
        {"name": "mask_learning", "state": "running", "share": 0.4, "seconds": None},
        {"name": "recovery", "state": "waiting", "share": 0.5, "seconds": None},
    ]
    return {
        "state": "running", "said": "", "written": "2026-01-02 03:04:05 UTC", "refresh_seconds": 17,
        "stage": "mask_learning", "step": 25, "max_steps": 100, "seconds": 61.0, "seconds_left": 1234.0,
        "stages": stages, "tokens": 7_654_321, "flops": 3.21e12, "num_processes": 4,
        "training": [{"num_tokens": 100 * i, "loss": 5.0 - i} for i in range(1, 4)],
        "swapped": {"num_attention_heads": 3, "hidden_size": 0},
    } | changes  # fmt: skip


def under_way() -> dict:
    """Results as they are known while masks are learned."""
    whole = complete()
    names = ("source", "target_shape", "kept", "history", "passes")
    return {name: whole[name] for name in names} | {"history": whole["history"][:3], "sizes": whole["history"][:3]}


def test_the_page_shows_how_far_the_run_is():
    content = live_report(under_way(), live())
    page = Page(content)
    for said in (
        "Mask learning, step 25 of 100", "Time left 21 min", "1 min 01 s", "4 processes", "7.65", "3.21e+12",
        "Written 2026-01-02 03:04:05 UTC", "every 17 s", "What a cut would keep now", "attention heads 3.",
        "Expected and target sizes", "Domains", "Loss curves", "Training loss", "to come",
    ):  # fmt: skip
        assert said in page.text, said
    assert 'style="left:0;width:20.0%"' in content  # a tenth, and a quarter of four tenths
    assert "hold no" not in page.text and "Comparison" not in page.text


def test_only_a_run_that_goes_is_loaded_again():
    refresh = '<meta http-equiv="refresh"'
    assert content_of_refresh(live_report(under_way(), live())) == "17"
    for state in ("finished", "stopped"):
        content = live_report(under_way(), live(state=state, said="Because <b>."))
        assert refresh not in content and "Because &lt;b&gt;." in content and "Time left" not in content


def content_of_refresh(content: str) -> str:
    return content.partition('<meta http-equiv="refresh" content="')[2].partition('"')[0]


def test_nothing_need_be_known_yet():
    content = live_report({"source": {"shape": complete()["source"]["shape"]}, "target_shape": complete()["target_shape"]},
                          live(stage="source", step=None, max_steps=None, training=[], seconds_left=None))  # fmt: skip
    text = Page(content).text
    assert "Source" in text and "Time left –" in text and "Shape" in text
    assert "Domains" not in text and "What" not in text.partition("Shape")[0]


@pytest.fixture
def run(tmp_path):
    """A run of two stages, the first of them finished."""
    records = {"source": complete()["source"] | {"stage_seconds": 2.0}}
    folder = SimpleNamespace(path=tmp_path, holds_another_run=False, records=records)
    sizes = complete()["target_shape"]
    target = SimpleNamespace(sizes=lambda: sizes, source=SimpleNamespace(to_dict=lambda: complete()["source"]["shape"]))
    return SimpleNamespace(
        folder=folder, target=target, source=SimpleNamespace(name="/home/me/llama"),
        stop_after=None,
        planned=lambda: {"source": Work(0.0, 1e9), "recovery": Work(3e9, 1e9)},
    )  # fmt: skip


def test_a_stage_is_drawn_when_it_begins(run, tmp_path):
    page = LivePage()
    with page.stage(run, "recovery"):
        text = Page((tmp_path / REPORT_NAME).read_text(encoding="utf-8")).text
        assert "Recovery" in text and "llama" in text and "/home" not in text
        assert "Time left 8 s" in text  # four times what the source took, at its speed
    assert content_of_refresh((tmp_path / REPORT_NAME).read_text(encoding="utf-8")) == "10"  # the report comes next


def test_the_last_stage_that_was_asked_for_ends_the_page(run, tmp_path):
    run.stop_after = "recovery"
    with LivePage().stage(run, "recovery"):
        pass
    content = (tmp_path / REPORT_NAME).read_text(encoding="utf-8")
    assert not content_of_refresh(content) and "the last that was asked for" in content


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoppedBySignal(15, " after step 3"), "Stopped by SIGTERM after step 3."),
        (RuntimeError("no room"), "ended with an error: no room"),
    ],
)
def test_a_run_that_stops_says_so(run, tmp_path, error, said):
    with pytest.raises(type(error)), LivePage().stage(run, "recovery"):
        raise error
    content = (tmp_path / REPORT_NAME).read_text(encoding="utf-8")
    assert said in content and not content_of_refresh(content)


def test_an_error_in_drawing_is_told_once_and_stops_nothing(run, tmp_path, monkeypatch):
    def broken(*args):
        raise KeyError("lost")

    monkeypatch.setattr(live_page, "live_report", broken)
    page = LivePage()
    with pytest.warns(UserWarning, match=r"KeyError: 'lost'.*--live_page false"), page.stage(run, "recovery"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.draw_if_due()
        with page.stage(run, "recovery"):
            pass
    assert page.num_drawn == 1 and not (tmp_path / REPORT_NAME).exists()


def test_drawing_takes_a_hundredth_of_the_time_at_most(run, monkeypatch):
    monkeypatch.setattr(live_page, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live_page, "live_report", lambda *args: time.sleep(0.01) or "page")
    page = LivePage()
    with page.stage(run, "recovery"):
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            page.draw_if_due()
    assert page.num_drawn == 1  # the next is due after a second
    page._due = time.perf_counter()
    page.draw_if_due()
    assert page.num_drawn == 2


def test_a_page_that_is_off_or_of_a_run_to_be_replaced_writes_nothing(run, tmp_path):
    with LivePage(False).stage(run, "recovery"):
        pass
    run.folder.holds_another_run = True
    with LivePage().stage(run, "recovery"):
        pass
    assert not (tmp_path / REPORT_NAME).exists()
