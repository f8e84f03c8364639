"""Sharded models are sliced and saved as whole ones are, bit for bit, by one process for all; and their masks learn alike.

The sharded ones are those of ``tests/sharded_run.py``, in two processes on the CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import free_port
from safetensors.torch import load_file
from sharded_run import CASES, MAX_GRAD_NORM, STEPS, learn_masks, source_of_save, source_of_slice
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from training_helpers import LENGTH, assert_equal_weights, letter_tokenizer, masked_model, plain_model, weights_of
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_shear import slice_model
from hf_shear.core import by_main_process, is_main_process
from hf_shear.slicing import save_checkpoint
from hf_shear.slicing.gathering import full_parameters, gathered, is_sharded

BACKENDS = [
    pytest.param(
        "zero3",
        marks=pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
    ),
    "fsdp2",
]
NAMES = {"sliced": None, "sliced in bfloat16": torch.bfloat16}
SHARDED_RUN_SECONDS = 900  # it takes 25 on an idle machine with two cores
IDS = torch.arange(3, 3 + LENGTH).unsqueeze(0)


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def with_weights_in(model, dtype):
    """The weights alone: ``model.to`` casts rotary frequencies too, which no loaded model has in half precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def assert_same_checkpoint(folder, expected) -> None:
    """Every weight bit for bit, and the same config."""
    found, wanted = load_file(folder / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((expected / name).read_text())
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


def assert_loads(folder, expected, dtype) -> None:
    """AutoModelForCausalLM gives a stock model with the logits of ``expected``."""
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is LlamaForCausalLM and loaded.dtype == dtype
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    assert torch.equal(logits_of(loaded), logits_of(expected))


# ---- sharded ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory) -> Path:
    """What tests/sharded_run.py wrote in two processes, started once for all tests that look at it."""
    folder = tmp_path_factory.mktemp("sharded")
    parts = ["fsdp2", "training"] + ["zero3"] * (importlib.util.find_spec("deepspeed") is not None)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(Path(__file__).with_name("sharded_run.py")), "--output_dir", str(folder), "--parts"]
    logs = [folder / f"log {rank}" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        with log.open("w") as output:
            processes.append(subprocess.Popen(command + parts, env=environment, stdout=output, stderr=output))
    try:
        failed = [process.wait(timeout=SHARDED_RUN_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert failed == [0, 0], "\n".join(log.read_text()[-4000:] for log in logs)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sharded_model_is_sliced_as_a_whole_one(sharded_run, tmp_path, backend, case, name):
    source, dtype = source_of_slice(CASES[case]["tied"]), NAMES[name]
    sliced, kept = slice_model(source, dtype=dtype)
    expected = save_checkpoint(sliced, tmp_path / "out", letter_tokenizer(), {"kept": kept.to_dict()})
    found = sharded_run / backend / case
    assert_same_checkpoint(found / name, expected)
    assert_loads(found / name, sliced, dtype or torch.float32)
    if dtype is None:
        assert (logits_of(sliced) - logits_of(source)).abs().max() < 1e-5
    for rank in range(2):
        note = json.loads((found / f"{name} {rank}.json").read_text())
        assert note["kept"] == kept.to_dict()
        assert note["shapes"] == {name: list(parameter.shape) for name, parameter in sliced.named_parameters()}
        assert note["devices"] == ["cpu" if rank == 0 else "meta"], "weights in a process that does not save them"
        assert note["dtype"] == str(sliced.dtype) and not note["training"] and note["hooks"] == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_sliced_is_the_model_that_was_sharded(sharded_run, backend, case):
    """Measured: equal on both backends."""
    expected = logits_of(source_of_slice(CASES[case]["tied"]))
    for rank in range(2):
        found = torch.load(sharded_run / backend / case / f"logits {rank}.pt")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sharded_model_is_saved_as_a_whole_one(sharded_run, tmp_path, backend, tied, dtype):
    model = source_of_save(tied)
    found = sharded_run / backend / f"plain{'' if dtype is None else ' in bfloat16'}, {tied=}"
    assert_same_checkpoint(found, save_checkpoint(model, tmp_path / "out", dtype=dtype))
    assert ("lm_head.weight" in load_file(found / "model.safetensors")) != tied
    assert_loads(found, with_weights_in(model, dtype), dtype or torch.float32)
    assert json.loads((found / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_of_the_main_process_reaches_all(sharded_run, backend):
    main, other = (json.loads((sharded_run / backend / f"failure {rank}.json").read_text()) for rank in range(2))
    assert main.startswith("FailedError: ") and "[Errno 20] Not a directory" in main
    assert other == main


# ---- mask learning on weights that FSDP2 shards -----------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(sharded_run) -> tuple[dict, list[dict]]:
    """One process, and each of two."""
    ranks = [json.loads((sharded_run / "training" / f"{rank}.json").read_text()) for rank in range(2)]
    return learn_masks(sharded=False), ranks


def largest_difference(found, expected) -> float:
    return np.abs(np.asarray(found) - np.asarray(expected)).max().item()


@pytest.mark.parametrize("values", ["losses", "norms", "masks", "multipliers"])
def test_two_processes_learn_what_one_learns(learned, values):
    """Measured: at most 2.3e-6 apart (masks), losses 4.8e-7, multipliers equal."""
    one, ranks = learned
    for rank in ranks:
        assert np.shape(rank[values]) == np.shape(one[values])
        assert largest_difference(rank[values], one[values]) < 1e-5


def test_masks_are_the_same_in_every_process(learned):
    _, (first, second) = learned
    assert first["masks"] == second["masks"] and first["multipliers"] == second["multipliers"]


def test_the_same_units_are_chosen_and_the_same_model_is_cut(learned):
    one, (main, other) = learned
    assert main["kept"] == other["kept"] == one["kept"]
    assert not other["sliced"] and main["sliced"].keys() == one["sliced"].keys()
    for name, weight in one["sliced"].items():
        assert largest_difference(main["sliced"][name], weight) < 1e-5


def test_the_run_is_one_that_could_differ(learned):
    """Every step is clipped, and weights, masks and multipliers move."""
    one, _ = learned
    assert len(one["norms"]) == STEPS and min(one["norms"]) > MAX_GRAD_NORM
    for values in ("losses", "masks", "multipliers"):
        assert largest_difference(one[values][-1], one[values][0]) > 0.05


# ---- one process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_come_module_by_module_the_largest_first(tied):
    model = plain_model(tie_word_embeddings=tied, attention_bias=True)
    expected = dict(model.named_parameters())
    groups, seen = [], {}
    for tensors in full_parameters(model):
        groups.append(list(tensors))
        seen |= tensors
    assert groups[0] == ["model.embed_tokens.weight"]
    assert (["lm_head.weight"] in groups) != tied
    assert ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias"] in groups
    assert ["model.layers.1.mlp.down_proj.weight"] in groups
    sizes = [sum(expected[name].numel() for name in group) for group in groups]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == model.num_parameters()
    assert seen.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) and not tensor.requires_grad for name, tensor in seen.items())


def test_a_module_is_let_go_before_the_next_comes():
    held = None
    for tensors in full_parameters(plain_model()):
        assert held is None or held == {}
        held = tensors


def test_names_do_not_depend_on_wrappers():
    model = plain_model()
    expected = dict(model.named_parameters()).keys()
    model.model.layers[1] = checkpoint_wrapper(model.model.layers[1])
    assert dict(model.named_parameters()).keys() != expected
    assert {name for tensors in full_parameters(model) for name in tensors} == expected


def test_what_is_not_sharded_passes_through():
    layer = nn.Linear(3, 2)
    assert not is_sharded(layer) and is_main_process()
    with gathered(layer.parameters()) as (weight, bias):
        assert weight.data_ptr() == layer.weight.data_ptr() and bias.data_ptr() == layer.bias.data_ptr()
    with pytest.raises(ZeroDivisionError):
        by_main_process(lambda: 1 / 0)


@pytest.mark.parametrize("tied", [True, False])
def test_dtype_casts_what_was_folded_in_the_source_s_dtype(tied):
    source = source_of_slice(tied)
    before = weights_of(source)
    sliced, _ = slice_model(source, dtype=torch.bfloat16)
    expected = slice_model(source)[0].to(torch.bfloat16)
    assert_equal_weights(sliced, expected.state_dict())
    assert sliced.dtype == sliced.config.dtype == torch.bfloat16
    assert sliced.model.rotary_emb.inv_freq.dtype == torch.float32, "as in a model that is loaded"
    assert_equal_weights(source, before)


def test_dtype_of_a_checkpoint(tmp_path):
    model = plain_model()
    before = weights_of(model)
    path = save_checkpoint(model, tmp_path / "out", dtype=torch.bfloat16)
    assert_loads(path, with_weights_in(plain_model(), torch.bfloat16), torch.bfloat16)
    assert_equal_weights(model, before)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_what_is_no_dtype_of_weights_is_refused(tmp_path, dtype):
    text = "`dtype` must be a floating-point torch.dtype, such as torch.bfloat16, or None to keep"
    with pytest.raises(ValueError, match=text):
        slice_model(masked_model(), dtype=dtype)
    with pytest.raises(ValueError, match=text):
        save_checkpoint(plain_model(), tmp_path / "out", dtype=dtype)


def test_a_masked_model_is_not_saved_in_another_dtype(tmp_path):
    with pytest.raises(ValueError, match="`model` has masks, and is sharded or to be cast.*Cut it first"):
        save_checkpoint(masked_model(), tmp_path / "out", dtype=torch.bfloat16)
