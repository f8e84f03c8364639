"""Methods of a bench in words."""

import json
from pathlib import Path

import pytest

from hf_shear.report.html_page import NO_BREAK
from hf_shear.report.method_words import method_words
from hf_shear.runs.bench_method import BenchMethod

RESULTS = Path(__file__).resolve().parent.parent / "model_cards" / "bench"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("taylor", "Taylor"),
        ("flap layer=loss_rise+least_squares@5", "FLAP (layers: loss rise) + least squares, 5 shots"),
        ("taylor allocation=global+bias", "Taylor (global allocation) + bias"),
        ("taylor+least_squares_bias:towards=source", "Taylor + least squares with bias towards the source"),
        ("taylor+least_squares:towards=auto", "Taylor + least squares towards the chosen reference"),
        ("taylor+least_squares:damping=0.1,towards=source", "Taylor + least squares 0.1 damping towards the source"),
        ("learned:share=0.15,start=uniform", "learned masks (15 % of the tokens, uniform start)"),
        ("learned+least_squares", "learned masks + least squares"),
        ("interleaved:stages=5,restart=false:taylor", "interleaved Taylor, 5 stages, AdamW not restarted"),
        ("interleaved:taylor layer=loss_rise", "interleaved Taylor (layers: loss rise)"),
        ("scratch", "random weights"),
    ],
)
def test_a_method_is_said_in_words(method, words):
    BenchMethod.parse(method)
    assert method_words(method).replace(NO_BREAK, " ") == words


def test_kept_methods_differ_in_words_and_show_no_specification():
    found = {run["method"] for path in RESULTS.glob("*.json") for run in json.loads(path.read_text())["runs"]}
    words = {method_words(method) for method in found}
    assert len(words) == len(found) > 20
    assert not [phrase for phrase in words if "=" in phrase or "_" in phrase or "@" in phrase]
