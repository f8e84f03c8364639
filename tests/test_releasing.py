"""A source is let go of while it is cut: the result is the same, and its memory is free before the end."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gathering import assert_same_checkpoint
from training_helpers import (
    TARGET,
    assert_equal_weights,
    letter_tokenizer,
    make_domains,
    masked_model,
    plain_model,
    random_documents,
    weights_of,
)
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hf_shear import AutoShearingModelForCausalLM, PruneConfig, prune_one_shot, slice_model
from hf_shear.cli.main import main
from hf_shear.criteria import coupled_weights
from hf_shear.slicing import provenance_record, release_weights
from hf_shear.slicing import releasing as module
from hf_shear.slicing.gathering import full_parameters

MEGABYTE = 2**20


def qwen3() -> Qwen3ForCausalLM:
    """Tied embeddings, and norms over each head, which no target cuts."""
    fields = plain_model().config.to_dict() | {"tie_word_embeddings": True, "model_type": "qwen3"}
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config.from_dict(fields))


@pytest.fixture(params=["llama", "qwen3"])
def source(request):
    model = plain_model() if request.param == "llama" else qwen3()
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data.normal_(1, 0.3)
    return model.to(torch.bfloat16).eval()


@pytest.fixture
def folders(source, tmp_path, monkeypatch):
    """The same model, plain and masked, in one file and in shards, and a text."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    masked = AutoShearingModelForCausalLM.from_model(source, TARGET)
    masked.masks.load_state_dict({name: torch.randn_like(value) for name, value in masked.masks.state_dict().items()})
    for kind, model in (("plain", source), ("masked", masked)):
        for form, size in (("whole", 10**9), ("shards", 4000)):
            model.save_pretrained(tmp_path / form / kind, max_shard_size=size)
            letter_tokenizer().save_pretrained(tmp_path / form / kind)
        assert len(list((tmp_path / "whole" / kind).glob("*.safetensors"))) == 1
        assert len(list((tmp_path / "shards" / kind).glob("*.safetensors"))) >= 4
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(0, 60)))
    return tmp_path


@pytest.mark.parametrize("source", ["llama"], indirect=True)
def test_several_shards_are_cut_to_what_one_file_is(folders, source):
    sizes = [word for name, size in TARGET.items() for word in (f"--{name}", str(size))]
    text = ["--data_dir", str(folders / "text"), "--max_length", "16", "--eval_tokens", "64"]
    for form in ("whole", "shards"):
        words = [
            "prune",
            str(folders / form / "plain"),
            *text,
            *sizes,
            "--criterion",
            "magnitude",
            "--compensation",
            "none",
        ]
        assert main([*words, "--output_dir", str(folders / form / "pruned")]) == 0
        assert main(["export", str(folders / form / "masked"), "--output_dir", str(folders / form / "exported")]) == 0
    for name in ("pruned", "exported"):
        whole, shards = folders / "whole" / name, folders / "shards" / name
        for folder in (whole, shards):  # where the source lay is the one thing that differs
            (folder / "shear_provenance.json").unlink()
        assert_same_checkpoint(shards, whole)
        loaded = AutoModelForCausalLM.from_pretrained(shards)
        assert type(loaded) is type(source) and loaded.dtype == torch.bfloat16
        assert TARGET.items() <= loaded.config.to_dict().items()
    # The command's result is that of a source that stays where it is.
    masked = AutoShearingModelForCausalLM.from_pretrained(folders / "shards" / "masked")
    expected, _ = slice_model(masked)
    assert_equal_weights(AutoModelForCausalLM.from_pretrained(folders / "shards" / "exported"), weights_of(expected))


def test_a_released_source_is_empty_and_its_slice_the_same(source):
    masked = AutoShearingModelForCausalLM.from_model(source, TARGET)
    before = {name: weight.clone() for name, weight in masked.named_parameters()}
    expected, kept = slice_model(masked)
    wanted = weights_of(expected)
    for name, weight in masked.named_parameters():
        assert torch.equal(weight, before[name])
    sliced, kept_again = slice_model(masked, release_source=True)
    assert kept == kept_again
    assert all(weight.is_meta for weight in masked.parameters())
    assert [tuple(weight.shape) for weight in masked.parameters()] == [tuple(one.shape) for one in before.values()]
    # Nothing of the result is the source's memory, which is overwritten here.
    for weight in source.parameters():
        weight.data.fill_(float("nan"))
    assert_equal_weights(sliced, wanted)
    assert sliced.config.to_dict() == expected.config.to_dict()
    with pytest.raises(ValueError, match="must hold all its weights in this process"):
        AutoShearingModelForCausalLM.from_model(masked)


@pytest.mark.parametrize("target", [TARGET, 0.8], ids=["shape", "budget"])
def test_pruning_lets_go_of_its_source(target):
    changes = {"allocation": "global"} if target == 0.8 else {}
    calibration = [
        {"input_ids": ids, "labels": ids} for ids in [torch.tensor(make_domains()["books"]["input_ids"][:4])]
    ]
    expected = prune_one_shot(plain_model(), target, calibration, PruneConfig("magnitude", **changes))
    model = plain_model()
    found = prune_one_shot(model, target, calibration, PruneConfig("magnitude", **changes), release_source=True)
    assert found.kept == expected.kept
    assert_equal_weights(found.model, weights_of(expected.model))
    assert all(weight.is_meta for weight in model.parameters())
    record = provenance_record(found.masked_config, found.kept)
    assert record["source"]["shape"]["hidden_size"] == model.config.hidden_size and record["target_shape"]


def test_a_sharded_source_stays_with_its_backend(monkeypatch):
    slicing = importlib.import_module("hf_shear.slicing.slice_model")  # which the function of the same name hides
    monkeypatch.setattr(
        slicing, "is_sharded", lambda model: isinstance(model, torch.nn.Module) and hasattr(model, "model")
    )
    with pytest.raises(ValueError, match="`release_source` must be False for a model that is spread over processes"):
        slice_model(masked_model(), release_source=True)


def test_each_module_is_free_before_the_next_is_taken():
    model = plain_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    given = []
    for tensors in full_parameters(model, release=True):
        there = {name for name, weight in model.named_parameters() if not weight.is_meta}
        assert there == set(names.values()) - set(given)
        given += list(tensors)
    assert set(given) == set(names.values())


def test_tied_weights_stay_tied_and_others_stay():
    model = qwen3()
    release_weights(model, [model.model.embed_tokens.weight])
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.is_meta
    assert not model.model.norm.weight.is_meta
    release_weights(model)
    assert all(weight.is_meta for weight in model.parameters())


def resident_megabytes() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_pages_of_a_file_leave_and_come_back(tmp_path):
    save_file({"a": torch.arange(8 * MEGABYTE, dtype=torch.float32), "b": torch.ones(5)}, tmp_path / "a.safetensors")
    weights = load_file(tmp_path / "a.safetensors")
    total = weights["a"].double().sum()
    before = resident_megabytes()
    module.return_mapped_pages(weights.values())
    assert before - resident_megabytes() > 28  # of 32
    assert weights["a"].double().sum() == total and weights["b"].sum() == 5


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_other_memory_is_left_alone():
    values = np.ones(2 * MEGABYTE, dtype=np.float32)  # large enough for a mapping of its own, of no file
    module.return_mapped_pages([torch.from_numpy(values), torch.ones(MEGABYTE), torch.empty(3, device="meta")])
    assert values.sum() == 2 * MEGABYTE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_few_rows_at_a_time_are_the_scores(monkeypatch, dtype):
    model = masked_model().to(dtype)
    entries = dict(coupled_weights.values_of(model))
    expected = coupled_weights.sum_over_units(((name, value.float().abs()) for name, value in entries.items()), model)
    monkeypatch.setattr(coupled_weights, "BLOCK", 40)
    found = coupled_weights.sum_over_units(entries.items(), model, measure=torch.abs)
    assert found.keys() == expected.keys()
    for kind, scores in expected.items():
        torch.testing.assert_close(found[kind], scores, rtol=1e-5, atol=0)
