"""The study of a pretrained model: its arms, on a tiny one, and its page."""

from __future__ import annotations

import json

import pytest
import torch
from training_helpers import letter_tokenizer, plain_model, random_documents
from transformers import AutoModelForCausalLM

from examples.research import real_models


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A tiny model, its text, and the study's settings for them."""
    plain_model().save_pretrained(tmp_path / "model")
    letter_tokenizer().save_pretrained(tmp_path / "model")
    for name, seed in (("train", 0), ("valid", 1)):
        lines = [json.dumps({"text": text}) for text in random_documents(seed, 60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    changes = {"WINDOW": 16, "NUM_JUDGED": 8, "TOKENS": 128, "SEEDS": (0,), "RESULTS": tmp_path / "kept.json"}
    changes |= {"TARGETS": {"narrow": {"intermediate_size": 16}, "shallow": {"num_hidden_layers": 1}}}
    for name, value in changes.items():
        monkeypatch.setattr(real_models, name, value)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The calibration text has")
def test_each_arm_is_measured_once_and_shown(study, capsys):
    real_models.cut(study / "model", study)
    kept = real_models.kept_results()
    ours = [arm for arm in real_models.arms() if not arm.startswith(real_models.PEER)]
    assert [(run["target"], run["arm"]) for run in kept["runs"] if run["arm"] in ours] == [
        (target, arm) for target in real_models.TARGETS for arm in ours
    ]
    assert all(run["loss"] > 0 and run["cpu_seconds"] >= 0 for run in kept["runs"])
    before = (study / "kept.json").read_text(encoding="utf-8")
    real_models.cut(study / "model", study)
    assert (study / "kept.json").read_text(encoding="utf-8") == before
    text = real_models.page(kept)
    assert (
        "| narrow |" in text
        and "| shallow |" in text
        and "lowest mean, alone or with another, in" in text
        and "1 seed" in text
    )
    lowest = min(run["loss"] for run in kept["runs"] if run["target"] == "narrow")
    assert f"**{lowest:.3f}**" in text


@pytest.mark.filterwarnings("ignore:The calibration text has")
def test_arms_end_in_the_shape_that_was_asked_for(study):
    text = real_models.texts(study, study / "model")
    model = AutoModelForCausalLM.from_pretrained(study / "model", dtype=torch.float32)
    for arm, make in real_models.arms().items():
        if not arm.startswith(real_models.PEER):
            assert (
                make(model, {"intermediate_size": 16}, real_models.calibration(text, 0)).config.intermediate_size == 16
            )
