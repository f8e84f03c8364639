"""A checkpoint is written as a whole or not at all, plain, with where it came from beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_helpers import (
    TARGET,
    assert_equal_weights,
    letter_tokenizer,
    masked_model,
    plain_model,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from hf_shear import ShearingLlamaForCausalLM, slice_model
from hf_shear.core import FailedError, UsageError, collect_versions
from hf_shear.slicing import PROVENANCE_NAME, provenance_record, read_provenance, save_checkpoint


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_checkpoint_is_plain_and_complete(tmp_path):
    model = plain_model()
    model.config.use_cache = False  # as Trainer leaves it
    model.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=2, bos_token_id=1)
    path = save_checkpoint(model, tmp_path / "out", letter_tokenizer(), {"seed": 1, "kept": [1, 2]})
    assert path == tmp_path / "out"
    assert names(tmp_path) == {"out"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", PROVENANCE_NAME} <= names(
        path
    )
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert type(loaded) is LlamaForCausalLM
    assert_equal_weights(loaded, weights_of(model))
    assert loaded.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(path)("ab").input_ids == letter_tokenizer()("ab").input_ids
    assert json.loads((path / PROVENANCE_NAME).read_text()) == {"seed": 1, "kept": [1, 2]}


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_trained_model_generates_with_a_cache_again(tmp_path, use_cache):
    model = plain_model()
    model.config.use_cache = use_cache
    save_checkpoint(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True
    assert model.config.use_cache is use_cache


def test_tokenizer_and_provenance_are_optional(tmp_path):
    path = save_checkpoint(plain_model(), str(tmp_path / "a" / "out"))
    assert PROVENANCE_NAME not in names(path)
    assert "tokenizer.json" not in names(path)


def test_the_sentencepiece_model_goes_along(tmp_path):
    embedded = Path(__file__).resolve().parent.parent / "examples" / "embedded" / "model"
    pieces = (embedded / "tokenizer.model").read_bytes()
    first = save_checkpoint(plain_model(), tmp_path / "first", AutoTokenizer.from_pretrained(embedded))
    assert (first / "tokenizer.model").read_bytes() == pieces
    # From one export to the next too, and onto itself: the old folder is replaced only once the new one is whole.
    second = save_checkpoint(plain_model(), first, AutoTokenizer.from_pretrained(first))
    assert (second / "tokenizer.model").read_bytes() == pieces
    assert "tokenizer.model" not in names(save_checkpoint(plain_model(), tmp_path / "third", letter_tokenizer()))


def test_a_sentencepiece_model_that_is_a_link_out_of_its_checkpoint_is_not_published(tmp_path):
    embedded = Path(__file__).resolve().parent.parent / "examples" / "embedded" / "model"
    secret = tmp_path / "secret"
    secret.write_bytes((embedded / "tokenizer.model").read_bytes())
    received = save_checkpoint(plain_model(), tmp_path / "received", AutoTokenizer.from_pretrained(embedded))
    (received / "tokenizer.model").unlink()
    (received / "tokenizer.model").symlink_to(secret)
    with pytest.raises(UsageError, match="tokenizer.model' is a link to .*secret', outside of its checkpoint"):
        save_checkpoint(plain_model(), tmp_path / "out", AutoTokenizer.from_pretrained(received))
    assert names(tmp_path) == {"secret", "received"}
    # The Hub's cache is made of links, to files of its own.
    cached = tmp_path / "models--a--b" / "snapshots" / "1234"
    cached.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for file in embedded.iterdir():
        blob = tmp_path / "models--a--b" / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        (cached / file.name).symlink_to(blob)
    out = save_checkpoint(plain_model(), tmp_path / "out", AutoTokenizer.from_pretrained(cached))
    assert (out / "tokenizer.model").read_bytes() == secret.read_bytes()


class BrokenTokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("half")
        raise OSError("no space left on device")


@pytest.mark.parametrize("failing", ["model", "tokenizer", "provenance"])
def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, failing, monkeypatch):
    out = tmp_path / "out"
    save_checkpoint(plain_model(seed=0), out, letter_tokenizer(), {"version": 1})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    model, tokenizer, provenance = plain_model(seed=1), letter_tokenizer(), {"version": 2}
    model.config.use_cache = False
    if failing == "model":

        def save(folder, **kwargs):
            folder.mkdir()
            raise OSError("no space left on device")

        monkeypatch.setattr(model, "save_pretrained", save)
    elif failing == "tokenizer":
        tokenizer = BrokenTokenizer()
    else:
        provenance = {"version": torch.tensor(2)}
    with pytest.raises((FailedError, TypeError)):
        save_checkpoint(model, out, tokenizer, provenance)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert model.config.use_cache is False
    assert names(tmp_path) == {"out"}  # nothing of the new one takes room
    monkeypatch.undo()
    save_checkpoint(model, out, letter_tokenizer(), {"version": 3})
    assert names(tmp_path) == {"out"}
    assert_equal_weights(LlamaForCausalLM.from_pretrained(out), weights_of(model))
    assert json.loads((out / PROVENANCE_NAME).read_text()) == {"version": 3}


def test_nothing_of_an_old_checkpoint_stays(tmp_path):
    out = save_checkpoint(plain_model(), tmp_path / "out", letter_tokenizer())
    (out / "model-00002-of-00002.safetensors").write_text("old")
    save_checkpoint(plain_model(), out)
    assert "model-00002-of-00002.safetensors" not in names(out)
    assert "tokenizer.json" not in names(out)


def test_provenance_says_what_was_kept_of_which_source(tmp_path):
    source = tmp_path / "source"
    plain_model().save_pretrained(source)
    model = ShearingLlamaForCausalLM.from_pretrained(source, target_shape=TARGET)
    sliced, kept = slice_model(model)
    record = provenance_record(model, kept, seed=3, masks={"a": 1})
    assert record["source"]["name_or_path"] == str(source)
    assert record["source"]["revision"] is None
    sizes = {"hidden_size": 18, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3}
    assert sizes | {"intermediate_size": 24, "head_dim": 4} == record["source"]["shape"]
    assert TARGET.items() <= record["target_shape"].items()
    assert record["mask_settings"]["method"] == "relaxed_topk"
    assert (record["versions"], record["seed"], record["masks"]) == (collect_versions(), 3, {"a": 1})
    assert record["kept"] == kept.to_dict()
    kept_layers = record["kept"]["layers"]
    assert len(kept_layers) == 2 and len(record["kept"]["hidden"]) == 12
    assert set(record["kept"]["heads"]) == {str(layer) for layer in kept_layers}
    path = save_checkpoint(sliced, tmp_path / "out", provenance=record)
    assert read_provenance(path) == json.loads((path / PROVENANCE_NAME).read_text()) == record
    # The indices are those of the source: its rows are the sliced model's, up to the masks folded in.
    layer = kept_layers[1]
    rows = record["kept"]["intermediate"][str(layer)]
    weight = plain_model().model.layers[layer].mlp.gate_proj.weight[rows][:, record["kept"]["hidden"]]
    assert torch.equal(LlamaForCausalLM.from_pretrained(path).model.layers[1].mlp.gate_proj.weight, weight)


def test_provenance_of_a_model_in_memory(tmp_path):
    record = provenance_record(masked_model("hard_concrete"), {"layers": [0]})
    assert record["source"]["name_or_path"] is None
    assert record["kept"] == {"layers": [0]}
    json.dumps(record)


def test_the_rotary_embedding_stands_where_older_readers_look(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}  # fmt: skip
    config = LlamaConfig(**{**plain_model().config.to_dict(), "rope_parameters": rope})
    folder = save_checkpoint(LlamaForCausalLM(config), tmp_path / "out")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert fields["rope_theta"] == 500_000.0 and fields["rope_parameters"] == rope
    assert fields["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}
    loaded = AutoModelForCausalLM.from_pretrained(folder).config
    assert loaded.rope_parameters == config.rope_parameters
    plain = save_checkpoint(plain_model(), tmp_path / "plain")
    fields = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] and fields["rope_scaling"] is None
