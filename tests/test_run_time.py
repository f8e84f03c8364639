"""How long the rest of a run takes."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from hf_shear.cli import recover
from hf_shear.core import duration_text
from hf_shear.pruning import PruneConfig
from hf_shear.runs import Run, ShearArguments
from hf_shear.runs.run_time import judging_note, seconds_left
from hf_shear.shapes import TargetShape


def test_the_rest_runs_at_the_speed_of_what_is_finished():
    planned = {"source": 1e9, "pruning": 2e9, "recovery": 6e9, "random": 6e9}
    assert seconds_left(planned, {}) is None
    assert seconds_left(planned, {"source": 2.0}) == pytest.approx(28.0)
    assert seconds_left(planned, {"source": 2.0, "pruning": 1.0}) == pytest.approx(12.0)
    assert seconds_left(planned, dict.fromkeys(planned, 1.0)) == 0
    assert seconds_left(planned, {"teacher_logits": 5.0}) is None  # of no planned stage


@pytest.mark.parametrize(
    ("choices", "stages"),
    [
        ({}, "source pruning recovery random taylor paper_masks paper scratch"),
        ({"mask_tokens": 9, "stop_after": "mask_learning"}, "source mask_learning"),
        ({"stop_after": "recovery"}, "source pruning recovery"),
        ({"baselines": False, "pruned": "there"}, "source recovery"),
    ],
)
def test_what_a_run_does_not_do_takes_no_time(choices, stages):
    arguments = recover.Arguments if "pruned" in choices else ShearArguments
    pipeline = arguments(model_name_or_path="m", recovery_tokens=100, **choices)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40
    )
    args, data = SimpleNamespace(samples_per_step=lambda: 4), SimpleNamespace(judged={"a": [0]}, train={"a": [0, 0]})
    target = TargetShape.from_dict(config, {"intermediate_size": 16})
    run = Run(pipeline, args, SimpleNamespace(config=config), None, target, data, data.train, None, None)
    assert set(run.planned()) == set(stages.split())
    note = judging_note(run.planned(), data, 256)
    assert note.startswith("Each model is judged on 256 held-out tokens of 1 domain: ") and "%" in note


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


def test_a_long_recovery_changes_what_the_cut_is_fitted_to():
    short, long = (ShearArguments(model_name_or_path="m", recovery_tokens=tokens) for tokens in (29_999, 30_000))
    assert short.compensation is None
    assert short.for_target(100_000).prune_config() == PruneConfig()
    assert long.for_target(100_000).compensation == "least_squares"
    named = ShearArguments(model_name_or_path="m", recovery_tokens=10**9, compensation="bias")
    assert named.for_target(100).compensation == "bias"
    assert ShearArguments(model_name_or_path="m", mask_tokens=9).compensation == "none"
