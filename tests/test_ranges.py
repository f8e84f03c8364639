"""Numbers out of their ranges are refused in one line, by flag, YAML and Python alike; every number has a range."""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing

import numpy as np
import pytest
import torch
from training_helpers import masked_model

from hf_shear import MaskSettings, ShearTrainingArguments
from hf_shear.cli.main import VERBS
from hf_shear.compensation.methods import COMPENSATIONS
from hf_shear.core import RANGES, UsageError, check_ranges, keyword_options, options_from_text
from hf_shear.core.ranges import OPTION_RANGES, Range
from hf_shear.criteria import CRITERIA
from hf_shear.data import Calibration, DynamicBatchSampler, pack_domains, split_domains, update_mixture_weights
from hf_shear.evaluation import PerplexityProtocol, SpeedProtocol
from hf_shear.evaluation.intervals import ratio_of_sums
from hf_shear.masks import MaskSchedule
from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.pruning.allocation import ALLOCATIONS
from hf_shear.runs import parse_arguments
from hf_shear.runs.bench import BenchArguments
from hf_shear.runs.bench_method import OPTIONS
from hf_shear.scaling_law import fit_law
from hf_shear.slicing import slice_model
from hf_shear.sparsity import SurgeonSettings
from hf_shear.training import evaluate_domains
from hf_shear.training.memory_setup import TrainingSetup

VERB_CLASSES = [importlib.import_module(f"hf_shear.cli.{verb}").Arguments for verb in VERBS]
PARSED = [*VERB_CLASSES, BenchArguments, ShearTrainingArguments]
SETTINGS = [
    MaskSettings,
    MaskSchedule,
    PerplexityProtocol,
    SpeedProtocol,
    SurgeonSettings,
    TrainingSetup,
]
WITHOUT_A_RANGE = {"local_rank": "the launcher sets it"}


def numeric_fields(kind: type) -> list[str]:
    """Fields that hold a number, or a list of numbers."""
    hints = typing.get_type_hints(kind)
    return [field.name for field in dataclasses.fields(kind) if field.init and _is_number(hints[field.name])]


def _is_number(hint) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union, list):
        return any(_is_number(part) for part in typing.get_args(hint))
    return hint in (int, float)


def required(kind: type) -> dict[str, object]:
    """A value for each field that has no default."""
    no_default = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    hints = typing.get_type_hints(kind)
    example = {str: "unused", list[str]: ["taylor"], int: 2, float: 0.5}
    return {name: example[hints[name]] for name in no_default}


def label(value) -> str:
    return value.__module__.rpartition(".")[2] + "." + value.__name__ if isinstance(value, type) else str(value)


NUMBERS = [(kind, name) for kind in (*PARSED, *SETTINGS) for name in numeric_fields(kind)]


def test_every_number_has_a_range_or_a_reason():
    missing = [(kind.__name__, name) for kind, name in NUMBERS if name not in RANGES and name not in WITHOUT_A_RANGE]
    assert not missing
    assert {"learning_rate", "warmup_steps", "ddp_timeout", "hardening_ratio"} <= {name for _, name in NUMBERS}


def test_every_option_of_a_method_has_a_range():
    options = dict(OPTIONS["interleaved"]) | OPTIONS["learned"]
    for criterion in CRITERIA.values():
        options |= criterion.defaults
    functions = [method.update for method in COMPENSATIONS.values() if method.update is not None]
    for function in functions + [allocation.choose for allocation in ALLOCATIONS.values()]:
        options |= keyword_options(function)
    numbers = {name for name, default in options.items() if type(default) in (int, float)}
    assert numbers <= set(OPTION_RANGES) and "damping" in numbers


@pytest.mark.parametrize(("kind", "name"), [pair for pair in NUMBERS if pair[1] in RANGES], ids=label)
def test_python_refuses(kind, name):
    wrong = [math.nan, math.inf, -math.inf, True, "much", *([] if RANGES[name].holds(-1) else [-1])]
    for value in wrong:
        given = [value] if RANGES[name].several else value
        arguments = required(kind) | {name: given} | ({"use_cpu": True} if kind is ShearTrainingArguments else {})
        with pytest.raises(UsageError, match=f"^`{name}` must be .*, but it is "):
            kind(**arguments)


@pytest.mark.parametrize("kind", PARSED, ids=label)
def test_flags_and_files_refuse(kind, tmp_path):
    path = tmp_path / "config.yaml"
    for name in numeric_fields(kind):
        if name not in RANGES:
            continue
        needed = [
            word for key, value in required(kind).items() if key != name
            for word in (f"--{key}", *(value if isinstance(value, list) else [str(value)]))
        ]  # fmt: skip
        if kind is ShearTrainingArguments:
            needed.append("--use_cpu=true")
        wrong = "nan" if RANGES[name].holds(-1) else "-1"
        with pytest.raises(UsageError, match=name):
            parse_arguments(kind, [*needed, f"--{name}={wrong}"])
        path.write_text(f"# a comment\n{name}: .nan\n")
        with pytest.raises(UsageError, match=rf"^`{name}`.* in '{path}', line 2"):
            parse_arguments(kind, [*needed, "--config", str(path)])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mask_share": 2}, "`mask_share` must be at least 0 and below 1, but it is 2. Give a share of the tokens"),
        ({"spread": -1}, "`spread` must be above 0, but it is -1. Give a spread such as 4."),
        ({"num_proc": 0}, "`num_proc` must be at least 1, but it is 0. Give .*, or leave it out."),
        ({"max_steps": 0}, r"`max_steps` must be at least 1 \(or -1\), but it is 0"),
        ({"adam_beta1": 1.0}, "`adam_beta1` must be at least 0 and below 1, but it is 1.0"),
        ({"eval_steps": 2.5}, "`eval_steps` must be above 0, and whole from 1 on, but it is 2.5"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0, and whole from 1 on, but it is -1"),
        ({"seeds": []}, r"`seeds` must be one or more of a whole number between 0 and 4,294,967,295, but it is \[\]"),
        ({"seeds": [1, 2.5]}, "`seeds` must be one or more of a whole number .*, but it is 2.5"),
        ({"num_tokens": 1e6}, "`num_tokens` must be a whole number of at least 1, but it is 1000000.0"),
        ({"gain": None}, "`gain` must be a finite number above 0, but it is None"),
    ],
)
def test_messages(fields, text):
    with pytest.raises(UsageError, match=text):
        check_ranges(fields)


def test_ends_of_ranges():
    check_ranges({"hardening_ratio": 1, "eval_token_share": 1.0, "learning_rate": 0, "max_steps": -1, "bootstrap": 0})
    check_ranges({"eval_steps": 0.1, "save_steps": 500.0, "warmup_steps": 0, "seed": 2**32 - 1, "num_proc": None})
    check_ranges({"seeds": [0, 1], "fractions": (0.15,), "tolerance": torch.finfo(torch.float32).eps})
    for name, value in {"eval_token_share": 0, "fractions": [1.0], "seed": 2**32, "label_smoothing_factor": 1}.items():
        with pytest.raises(UsageError):
            check_ranges({name: value})
    with pytest.raises(KeyError):  # a bug of ours, not of the user
        check_ranges({"no_such_number": 1})


def test_a_range_is_said_in_words():
    with pytest.raises(UsageError, match="`x` must be at most 3, but it is 4\\.$"):
        Range(high=3).check("x", 4)
    with pytest.raises(UsageError, match="`x` must be a finite number, but it is nan\\.$"):
        Range().check("x", math.nan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("damping=-1", "`damping` of `Criterion 'x'` must be at least 0, but it is -1.0"),
        ("damping=nan", "`damping` of `Criterion 'x'` must be a finite number of at least 0, but it is nan"),
        ("mine=inf", "`mine` of `Criterion 'x'` must be a finite number, but it is inf"),
    ],
)
def test_options_in_words(text, message):
    with pytest.raises(UsageError, match=message):
        options_from_text(text, {"damping": 0.1, "mine": 1.0}, "Criterion 'x'")


# ---- functions that are called with numbers of their own ----------------------------------------------------------


def test_masks_start_from_finite_scores_and_a_spread_that_keeps_their_order():
    masks = masked_model().masks
    scores = {kind.name: torch.rand(kind.mask_shape) for kind in masks.constrained}
    with pytest.raises(UsageError, match="`spread` must be above 0, but it is -1"):
        masks.start_from_importance(scores, spread=-1)
    name = masks.constrained[0].name
    scores[name].view(-1)[0] = math.nan
    with pytest.raises(UsageError, match=rf"`importance\['{name}'\]` must be finite, but it holds NaN"):
        masks.start_from_importance(scores)


def test_nothing_is_sliced_by_nan():
    model = masked_model().eval()
    gates = {kind.name: torch.ones(kind.mask_shape) for kind in model.masks.constrained}
    for value in (math.nan, 1.5, -0.5):
        with pytest.raises(UsageError, match=r"`gates\['hidden'\]` must be between 0 and 1"):
            slice_model(model, gates | {"hidden": torch.full_like(gates["hidden"], value)})
    for log_alpha in model.masks.log_alpha.values():
        log_alpha.data.fill_(math.nan)
    with pytest.raises(UsageError, match="hold NaN or infinite values, .* Take a checkpoint from before that"):
        slice_model(model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mixture_weights": {"a": math.nan, "b": 0.5}}, r"`mixture_weights\['a'\]` must be a finite number"),
        ({"mixture_weights": {"a": 1.0}}, "`mixture_weights` must name every domain"),
        ({"samples_consumed": {"a": -3, "b": 0}}, r"`samples_consumed\['a'\]` must be at least 0, but it is -3"),
        ({"samples_consumed": {"a": 0}}, r"`samples_consumed\['b'\]` must be a whole number .* but it is None"),
        ({"global_batch_index": -1}, "`global_batch_index` must be at least 0"),
    ],
)
def test_a_damaged_state_of_the_sampler_is_refused_and_changes_nothing(change, text):
    sampler = DynamicBatchSampler({"a": 4, "b": 4}, 2)
    before = sampler.state_dict()
    with pytest.raises(UsageError, match=text):
        sampler.load_state_dict(before | change)
    assert sampler.state_dict() == before


def test_functions_refuse_before_they_begin():
    ones = np.ones(3)
    with pytest.raises(UsageError, match="`num_resamples` must be at least 1, but it is 0"):
        ratio_of_sums(ones, ones, num_resamples=0)
    with pytest.raises(UsageError, match="`drop_start` must be at least 0 and below 1, but it is -1"):
        fit_law([], drop_start=-1)
    with pytest.raises(UsageError, match="`num_bootstrap` must be at least 0, but it is -1"):
        fit_law([], num_bootstrap=-1)
    with pytest.raises(UsageError, match="`seed` must be between 0 and 4,294,967,295, but it is -1"):
        Calibration([], seed=-1)
    with pytest.raises(UsageError, match="`batch_size` must be at least 1, but it is 0"):
        evaluate_domains(None, {}, 0)
    with pytest.raises(UsageError, match="`num_shots` must be at least 1, but it is 0"):
        prune_one_shot(masked_model(), {"intermediate_size": 16}, [], PruneConfig(num_shots=0))
    with pytest.raises(UsageError, match="`held_out_fraction` must be a finite number"):
        split_domains({}, math.nan)
    with pytest.raises(UsageError, match="`num_proc` must be at least 1, but it is 0"):
        pack_domains({}, types.SimpleNamespace(eos_token_id=1), 8, num_proc=0)
    with pytest.raises(UsageError, match="`smoothing` must be between 0 and 1, but it is -1"):
        update_mixture_weights({"a": 1.0}, {"a": 1.0}, {"a": 1.0}, smoothing=-1)
