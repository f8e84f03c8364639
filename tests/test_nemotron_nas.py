"""The nemotron-nas format: what is written, key by key against what engines read, and engines that compute it.

The engines run only in the slow tests, each where an environment variable names a Python that has it:
MLX_PYTHON (mlx-lm), LLAMA_CPP_PYTHON (llama-cpp-python and gguf, with CONVERT_HF_TO_GGUF, the converter's path).
"""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_shear.cli import main
from hf_shear.masks import INTERMEDIATE, KEY_VALUE_HEAD, LAYER
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.shapes import TargetShape
from hf_shear.slicing import check_nemotron_nas, read_provenance, save_nemotron_nas, slice_uneven

# Keys of config.json that readers ask for without a default, or with one that may differ from what is meant, and the
# values that they ask of each block. Read in their sources: vLLM vllm/model_executor/models/nemotron_nas.py at 00bd1493,
# with llama.py that it builds on; llama.cpp conversion/deci.py and src/models/deci.cpp as in llama-cpp-python 0.3.36;
# mlx-lm 0.32.2 models/nemotron-nas.py; SGLang python/sglang/srt/models/nemotron_nas.py (2025).
READ = {
    "vllm": {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act",
        "max_position_embeddings", "attention_bias", "mlp_bias", "tie_word_embeddings", "rope_parameters", "block_configs",
    },
    "sglang": {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act", "rope_theta",
        "max_position_embeddings", "attention_bias", "tie_word_embeddings", "block_configs",
    },
    "llama.cpp": {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "max_position_embeddings",
        "rope_parameters", "head_dim", "block_configs",
    },
    "mlx-lm": {
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act",
        "attention_bias", "mlp_bias", "rope_theta", "max_position_embeddings", "tie_word_embeddings", "block_configs",
    },
}  # fmt: skip
# mlx-lm takes no key of a block that it does not know.
READ_OF_BLOCKS = {
    "attention": {"n_heads_in_group", "no_op", "replace_with_linear"},
    "ffn": {"ffn_mult", "no_op", "replace_with_linear"},
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 50_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def build(**changes):
    """A Llama wide enough for MLPs of 256, 512 and 768."""
    sizes = {
        "vocab_size": 512, "hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3,
        "intermediate_size": 700, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def uneven(model):
    """Layer 1 without attention, layer 2 without MLP, layer 3 without both; widths 100, 300, 0, 0, 700."""
    masked = AutoShearingModelForCausalLM.from_model(model).eval()
    groups, neurons, layers = torch.ones(5, 3), torch.ones(5, 700), torch.ones(5)
    groups[1], layers[3] = 0, 0
    neurons[0, 100:] = neurons[1, 300:] = neurons[2] = 0
    return slice_uneven(masked, {KEY_VALUE_HEAD: groups, INTERMEDIATE: neurons, LAYER: layers})


SAVED = {
    "untied, llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "tied": {"tie_word_embeddings": True},
    "untied": {},
}


@pytest.fixture(scope="module", params=SAVED)
def saved(request, tmp_path_factory):
    """(folder, padded model): an uneven model in the format."""
    padded, kept = uneven(build(**SAVED[request.param]))
    folder = tmp_path_factory.mktemp("nas") / "model"
    save_nemotron_nas(padded, kept, folder, provenance={"kept": kept.to_dict()})
    return folder, padded


def read_width(ffn_mult, hidden_size):
    """As all readers compute it."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


@pytest.mark.parametrize("engine", READ)
def test_every_key_that_a_reader_asks_for_is_there(saved, engine):
    config = json.loads((saved[0] / "config.json").read_text())
    assert READ[engine] <= set(config)
    assert config["model_type"] == "nemotron-nas" and config["architectures"] == ["DeciLMForCausalLM"]
    assert len(config["block_configs"]) == config["num_hidden_layers"] == 4
    for block in config["block_configs"]:
        assert {part: set(settings) for part, settings in block.items()} == READ_OF_BLOCKS
    rope = config["rope_parameters"]
    assert config["rope_theta"] == rope["rope_theta"] and ("rope_scaling" in config) == (rope["rope_type"] == "llama3")
    assert {"rope_theta": rope["rope_theta"], **config.get("rope_scaling", {"rope_type": "default"})} == rope
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]


def test_the_weights_are_those_that_readers_expect(saved):
    """Names and shapes as the readers derive them from the config, and nothing else; widths 256, 512, 256, 768."""
    folder, padded = saved
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    expected = {"model.embed_tokens.weight": (512, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = (512, hidden)
    widths = []
    for layer, block in enumerate(config["block_configs"]):
        name, attention, ffn = f"model.layers.{layer}", block["attention"], block["ffn"]
        assert attention["no_op"] == (layer == 1) and not ffn["no_op"]  # llama.cpp misreads an MLP that is a no_op
        shapes = {}
        if not attention["no_op"]:
            keys = (heads // attention["n_heads_in_group"] * config["head_dim"], hidden)
            whole = (hidden, hidden)
            shapes |= {"input_layernorm": (hidden,), "self_attn.q_proj": whole, "self_attn.o_proj": whole}
            shapes |= {"self_attn.k_proj": keys, "self_attn.v_proj": keys}
        width = read_width(round(ffn["ffn_mult"], 6), hidden)  # rounded as mlx-lm does
        shapes |= {"post_attention_layernorm": (hidden,), "mlp.down_proj": (hidden, width)}
        shapes |= {"mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden)}
        expected |= {f"{name}.{module}.weight": shape for module, shape in shapes.items()}
        widths.append(width)
    assert widths == [256, 512, 256, 768]
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected
    for name, weight in padded.state_dict().items():  # the same numbers, but for zeros
        if name in weights:
            assert float(weights[name].double().abs().sum()) == pytest.approx(float(weight.double().abs().sum()))
    assert set(read_provenance(folder)["kept"]["intermediate"]) == {"0", "1", "2", "4"}


@pytest.mark.parametrize("width", [256, 2560, 11008, 14336, 28672])
@pytest.mark.parametrize("hidden_size", [64, 576, 3000, 4096, 8192])
def test_widths_survive_the_readers_rounding(width, hidden_size):
    for ffn_mult in (3 * width / (2 * hidden_size), round(3 * width / (2 * hidden_size), 6)):
        assert read_width(ffn_mult, hidden_size) == width


def test_inspect_describes_it_without_its_code(saved, tmp_path, capsys):
    """Three layers with attention, MLPs of 256, 512, 256 and 768: counted as they are, not as the largest one."""
    folder, _ = saved
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "configuration_decilm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert main(["inspect", str(copy), "--json", "--sequence_length", "32"]) == 0
    facts, weights = json.loads(capsys.readouterr().out), load_file(folder / "model.safetensors")
    now, tied = facts["now"], "lm_head.weight" not in weights
    assert facts["model_type"] == "nemotron-nas" and not (tmp_path / "ran").exists()
    assert now["num_parameters"] == sum(weight.numel() for weight in weights.values())
    assert now["kv_cache_bytes_per_token"] == 3 * 2 * 3 * 8 * 2  # layers, keys and values, heads, head_dim, bytes
    matrices = sum(weight.numel() for weight in weights.values() if weight.dim() == 2) - (not tied) * 512 * 48
    assert now["forward_flops_per_token"] == 2 * matrices + 3 * 4 * 48 * 16
    assert main(["inspect", str(copy), "--intermediate_size", "256"]) == 2
    assert "is a nemotron-nas export, which is cut already" in capsys.readouterr().err
    assert main(["evaluate", str(copy), "--data_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "computes by code of its own" in error and "trust" not in error and not (tmp_path / "ran").exists()


def test_transformers_reads_the_config_without_hf_shear(saved):
    config = AutoConfig.from_pretrained(saved[0], trust_remote_code=True)
    assert [block.attention.no_op for block in config.block_configs] == [False, True, False, False]
    assert config.block_configs[0].attention.n_heads_in_group == 2
    assert not hasattr(config.block_configs[0].ffn, "hidden_act")  # vLLM asks so
    assert config.rope_parameters == saved[1].config.rope_parameters
    assert "hf_shear" not in (saved[0] / "configuration_decilm.py").read_text()


@pytest.mark.parametrize(
    "changes, uneven_kinds, message",
    [
        ({}, ["key_value_head"], "one number of query heads for all layers, so key_value_head cannot"),
        ({}, ["query_head", "mlp"], "so query_head cannot"),
        ({"mlp_bias": True}, ["mlp"], "cannot hold the bias that stays where a sub-layer is removed"),
        ({"head_dim": 16}, ["intermediate"], r"needs hidden_size = num_attention_heads \* head_dim"),
        ({"hidden_act": "gelu"}, ["intermediate"], "needs hidden_act 'silu'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(changes, uneven_kinds, message):
    config = build(**changes).config
    with pytest.raises(ValueError, match=message):
        check_nemotron_nas(config, TargetShape.from_source(config), uneven_kinds)


def test_biases_of_even_parts_are_held(tmp_path):
    config = build(mlp_bias=True, attention_bias=True).config
    check_nemotron_nas(config, TargetShape.from_source(config), ["intermediate"])


def test_uneven_heads_are_refused_when_saved(tmp_path):
    masked = AutoShearingModelForCausalLM.from_model(build()).eval()
    groups = torch.ones(5, 3)
    groups[2, 0] = 0
    padded, kept = slice_uneven(masked, {KEY_VALUE_HEAD: groups})
    with pytest.raises(ValueError, match="one number of heads for all layers with attention"):
        save_nemotron_nas(padded, kept, tmp_path / "model")
    assert not (tmp_path / "model").exists()


MLX = """
import sys, numpy as np, mlx.core as mx
mx.set_default_device(mx.cpu)
from mlx_lm import load
folder, tokens, output = sys.argv[1:]
model, _ = load(folder, tokenizer_config={"trust_remote_code": True})
assert type(model).__module__ == "mlx_lm.models.nemotron-nas"
np.save(output, np.array(model(mx.array([np.load(tokens).tolist()]))[0].astype(mx.float32)))
"""
LLAMA_CPP = """
import os, subprocess, sys, numpy as np, llama_cpp
folder, tokens, output = sys.argv[1:]
gguf = folder + ".gguf"
convert = [sys.executable, os.environ["CONVERT_HF_TO_GGUF"], folder, "--outfile", gguf, "--outtype", "f32"]
subprocess.run(convert, check=True)
float32 = llama_cpp.GGML_TYPE_F32  # of the cache, which is float16 by default
model = llama_cpp.Llama(gguf, n_ctx=512, logits_all=True, n_threads=1, verbose=False, type_k=float32, type_v=float32)
assert model.metadata["general.architecture"] == "deci"
ids = np.load(tokens).tolist()
model.eval(ids)
np.save(output, np.array(model.scores[: len(ids)], dtype=np.float32))
"""
ENGINES = {"MLX_PYTHON": MLX, "LLAMA_CPP_PYTHON": LLAMA_CPP}


@pytest.mark.slow
@pytest.mark.parametrize("variable", ENGINES)
def test_an_engine_computes_the_same_function(saved, shared_data, tmp_path, variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: it names a Python that has this engine")
    folder, padded = saved
    if variable == "LLAMA_CPP_PYTHON" and padded.config.rope_parameters["rope_type"] != "default":
        pytest.skip(
            "transformers 5.24, which the converter asks for the tokenizer, fails on scaled rope in such a config"
        )
    AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K").save_pretrained(folder)
    tokens, output = tmp_path / "tokens.npy", tmp_path / "logits.npy"
    ids = np.random.default_rng(0).integers(3, 512, 40)
    np.save(tokens, ids)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [os.environ[variable], "-c", ENGINES[variable], str(folder), str(tokens), str(output)]
    subprocess.run(command, check=True, env=environment)
    with torch.no_grad():
        wanted = padded(torch.tensor(ids)[None]).logits[0].numpy()
    gap, size = np.abs(np.load(output) - wanted), np.abs(wanted).max()
    assert gap.max() < 2e-4 * size and gap.mean() < 2e-5 * size
