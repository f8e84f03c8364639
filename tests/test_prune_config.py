"""PruneConfig: plain values that are checked, saved beside what they made, and read back."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.compensation.methods import COMPENSATIONS, Compensation
from hf_shear.core import UsageError, keyword_options
from hf_shear.criteria import CRITERIA, criterion
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, LAYER
from hf_shear.pruning import make_plan
from hf_shear.pruning.allocation import ALLOCATIONS, GLOBAL_KINDS, Allocation
from hf_shear.publishing.card_sections import chosen_by
from hf_shear.shapes import supported_model_types
from hf_shear.slicing import FORMS, PRUNE_CONFIG_NAME, read_provenance

DOCS = Path(__file__).resolve().parent.parent / "examples" / "docs"
EVEN = st.fixed_dictionaries({"allocation": st.just("uniform"), "units": st.none()})
UNEVEN = st.fixed_dictionaries(
    {
        "allocation": st.sampled_from(["global", "global:per_parameter=false"]),
        "units": st.none() | st.lists(st.sampled_from(GLOBAL_KINDS), min_size=1, unique=True),
    }
)
CHOICES = st.builds(
    lambda shared, allocation: shared | allocation,
    st.fixed_dictionaries(
        {
            "criterion": st.sampled_from(sorted(CRITERIA))
            | st.fixed_dictionaries({"default": st.just("taylor:order=mixed"), LAYER: st.just("loss_rise")}),
            "compensation": st.sampled_from([*COMPENSATIONS, "least_squares:damping=0.1,towards=source"]),
            "num_shots": st.integers(1, 9),
            "protect": st.sampled_from(["", "first:4,last:2"]) | st.lists(st.integers(0, 7)),
            "form": st.sampled_from(FORMS),
            "as_family": st.none() | st.sampled_from(supported_model_types()),
            "pruning_share": st.none() | st.floats(0.01, 1),
        }
    ),
    EVEN | UNEVEN,
)


@pytest.fixture
def calibration():
    ids = torch.randint(3, 40, (8, 12), generator=torch.Generator().manual_seed(3))
    return Calibration([{"input_ids": ids, "labels": ids}])


@settings(deadline=None, max_examples=60)
@given(CHOICES)
def test_what_is_saved_is_read_back(tmp_path_factory, choices):
    config = PruneConfig(**choices)
    assert PruneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    folder = tmp_path_factory.mktemp("config") / "new"
    assert config.save_pretrained(folder) == folder / PRUNE_CONFIG_NAME
    assert PruneConfig.from_pretrained(folder) == config


def test_what_is_left_out_has_its_default():
    assert PruneConfig.from_dict({"num_shots": 2}) == PruneConfig(num_shots=2)
    assert PruneConfig().criterion == {"default": "llm_surgeon", HIDDEN: "activation", LAYER: "joint_rise"}


def test_choices_are_frozen_and_plain():
    config = PruneConfig(units=("intermediate",), allocation="global", protect=(0, 3))
    assert (config.units, config.protect) == (["intermediate"], [0, 3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_shots = 1
    assert dataclasses.replace(config, num_shots=1).num_shots == 1


def test_a_function_of_ones_own_is_saved_by_its_name(monkeypatch):
    @criterion(ranks=(INTERMEDIATE,))
    def own(model, calibration, *, power=1.0):
        return {}

    found = PruneConfig({INTERMEDIATE: own.with_options(power=2.0)}).to_dict()
    assert found["criterion"] == {INTERMEDIATE: "own:power=2.0"}
    with pytest.raises(UsageError, match="`criterion` must be one of .*, but it is 'own'"):
        PruneConfig.from_dict(found)
    monkeypatch.setitem(CRITERIA, "own", own)
    assert PruneConfig.from_dict(found).to_dict() == found


@pytest.mark.parametrize(
    "choices, message",
    [
        (
            {"colour": "red"},
            "`prune_config` has no entry 'colour'; it has criterion, compensation, .* Leave 'colour' out",
        ),
        ({"compensation": 3}, "`prune_config.compensation` must be a string, but it is 3"),
        ({"criterion": ["taylor"]}, "`prune_config.criterion` must be a string, or an object with one for each kind"),
        ({"num_shots": "5"}, "`prune_config.num_shots` must be a whole number above 0, but it is '5'"),
        ({"units": "intermediate"}, "`prune_config.units` must be a list"),
        ({"protect": [0.5]}, "`prune_config.protect` must be a string, or a list of whole numbers"),
        ({"pruning_share": 2}, "`pruning_share` must be above 0 and at most 1, but it is 2. Give"),
        ({"form": "zip"}, "`form` must be one of padded, nemotron_nas, but it is 'zip'"),
        ({"as_family": "gpt"}, "`as_family`: .*must be one of .*mistral.*, but it is 'gpt'"),
        ({"criterion": {"wings": "taylor"}}, r"`criterion` names \['wings'\]; kinds of units are hidden"),
        ({"criterion": {"hidden": "loss_rise"}}, "`criterion` 'loss_rise' cannot rank 'hidden'"),
        ({"allocation": "global", "units": []}, "`units` must name some of layer, attention"),
    ],
)
def test_bad_choices_are_refused(choices, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        PruneConfig.from_dict(choices)
    (tmp_path / PRUNE_CONFIG_NAME).write_text(json.dumps(choices))
    with pytest.raises(UsageError, match=f"{PRUNE_CONFIG_NAME}'.*: {message}"):
        PruneConfig.from_pretrained(tmp_path)


def test_a_checkpoint_without_choices_is_refused(tmp_path):
    with pytest.raises(UsageError, match=rf"{PRUNE_CONFIG_NAME}' is not a file"):
        PruneConfig.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="`pretrained_model_name_or_path` must be the folder of a checkpoint"):
        PruneConfig.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("form", FORMS)
def test_a_pruned_checkpoint_holds_its_choices_once(build_llama, calibration, form, tmp_path):
    source = build_llama(hidden_size=36, head_dim=4)
    config = PruneConfig("taylor", "none", 1, "global", [INTERMEDIATE], protect=[0], form=form)
    pruning = prune_one_shot(source, 0.9, calibration, config)
    pruning.save(tmp_path / "pruned", seed=3)
    record = read_provenance(tmp_path / "pruned")
    assert record["prune_config"] == config.to_dict() and record["seed"] == 3
    assert record["num_parameters"] == pruning.num_parameters <= record["budget"]
    assert not set(config.to_dict()) & set(record)
    assert PruneConfig.from_pretrained(tmp_path / "pruned") == config == pruning.config


def test_training_in_between_is_for_interleaving(build_llama, calibration):
    with pytest.raises(UsageError, match="`pruning_share` .* is 0.5. Leave it out, or call `prune_interleaved`"):
        prune_one_shot(build_llama(), 0.9, calibration, PruneConfig(pruning_share=0.5))


def test_choices_in_a_phrase():
    assert chosen_by(PruneConfig().to_dict()) == (
        "criterion `llm_surgeon hidden=activation layer=joint_rise`, compensation `least_squares:towards=auto`,"
        " allocation `uniform`, in one shot"
    )
    config = PruneConfig("taylor", "none", 1, "global", [LAYER], protect=[0, 1], pruning_share=0.25)
    assert chosen_by(config.to_dict()) == (
        "criterion `taylor`, compensation `none`, allocation `global`, units `layer`, layers `0,1` protected, in one shot,"
        " taken in the first 25 % of the training steps"
    )


def test_a_plan_holds_the_resolved_parts(build_llama):
    config = PruneConfig("taylor", "bias", allocation="global:per_parameter=false", units=[INTERMEDIATE])
    plan = make_plan(build_llama().config, 0.9, config)
    assert plan.criteria == {INTERMEDIATE: CRITERIA["taylor"]} and plan.compensation.name == "bias"
    assert plan.allocation.name == "global" and plan.config.mlp_bias and plan.choices is config


def test_compensations_and_allocations_of_ones_own_are_found_by_name(build_llama, calibration, monkeypatch):
    def halved(gap, *, share=0.5):
        return None, share * gap.mean

    def from_the_top(shot, *, first=0):
        units = shot.open_units()
        gate = torch.ones(4, 22)
        gate[first, : int((units.num_parameters - shot.num_left) / (3 * 18)) + 1] = 0
        return {INTERMEDIATE: gate}

    monkeypatch.setitem(COMPENSATIONS, "halved", Compensation("halved", halved, needs_bias=True))
    monkeypatch.setitem(ALLOCATIONS, "top", Allocation("top", from_the_top, (INTERMEDIATE,)))
    config = PruneConfig("taylor", "halved:share=0.25", 1, "top:first=1", [INTERMEDIATE])
    pruning = prune_one_shot(build_llama(), 0.98, calibration, config)
    kept = {layer: len(neurons) for layer, neurons in pruning.kept.intermediate.items()}
    assert kept[1] < 22 and kept[0] == kept[2] == kept[3] == 22 and pruning.model.config.mlp_bias
    (report,) = pruning.compensation
    assert report.before and all(report.after[name] <= report.before[name] for name in report.before)


def test_every_compensation_and_allocation_has_a_row_in_the_docs():
    """Of its name, and its options with their defaults somewhere on the page."""
    parts = {"compensation": COMPENSATIONS, "allocation": ALLOCATIONS}
    for page, known in parts.items():
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
        assert [name for name in rows if name in known] == list(known)
        for part in known.values():
            function = part.update if isinstance(part, Compensation) else part.choose
            options = {} if function is None else keyword_options(function)
            assert not [name for name in options if name not in text]


def test_every_choice_has_a_line_in_the_docs():
    text = (DOCS / "pruning.md").read_text(encoding="utf-8").partition("## `PruneConfig`")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)[`=]", text))
    assert {field.name for field in dataclasses.fields(PruneConfig)} <= named
