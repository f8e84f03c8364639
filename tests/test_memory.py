"""The memory estimate: its parts, what sharding takes away, its refusals. Measured peaks: test_memory_benchmark.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, OPTConfig

from hf_shear import MaskSettings, ShearingLlamaConfig, TargetShape
from hf_shear.shapes import count_parameters, preset_shape
from hf_shear.training.memory import estimate_memory, estimate_moments
from hf_shear.training.memory_setup import BACKENDS, FrozenSetup, ModelParts, TeachingSetup, TrainingSetup

SHARED = [backend for backend in BACKENDS if backend != "single"]
BASE = TrainingSetup(2, 64)


def llama(**changes) -> LlamaConfig:
    """A small model with untied embeddings and grouped-query attention."""
    sizes = {
        "vocab_size": 500,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 200,
    }
    return LlamaConfig(**sizes | changes)


def masked(source: LlamaConfig, **target) -> ShearingLlamaConfig:
    return ShearingLlamaConfig.from_source(source, TargetShape.from_source(source, **target), MaskSettings())


def llama_2_7b() -> ShearingLlamaConfig:
    source = LlamaConfig(
        vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008
    )
    return ShearingLlamaConfig.from_source(source, preset_shape("sheared-llama-1.3b", source), MaskSettings())


@pytest.mark.parametrize("tied", [True, False])
def test_states_of_a_plain_step_are_four_copies_of_the_weights(tied):
    config = llama(tie_word_embeddings=tied)
    step = estimate_moments(config, BASE)["optimizer step"]
    weights = 4 * count_parameters(config)
    assert step.device == {"weights": weights, "optimizer": 2 * weights, "gradients": weights}
    half = estimate_moments(config, replace(BASE, weight_dtype="bfloat16"))["optimizer step"]
    assert half.peak == step.peak // 2


def test_activations_are_what_autograd_saves():
    """Counted by hand, per token: two norms, q, k, v and the attention's output, a log-sum-exp per head, the MLP."""
    d, queries, keys, neurons, heads, layers, tokens = 96, 96, 48, 200, 6, 3, 128
    layer = 2 * 3 * 4 * d + 4 * (2 * queries + 2 * keys) + 4 * heads + 4 * 4 * neurons
    loss = estimate_moments(llama(), BASE)["loss backward"]
    assert loss.device["activations"] == tokens * (layers * layer + 3 * 4 * d)
    assert loss.device["logits"] == tokens * 500 * 12
    less = estimate_moments(llama(), replace(BASE, activation_checkpointing=True))["loss backward"]
    assert less.device["activations"] == tokens * (layers * 4 * d + 3 * 4 * d)


def test_masks_add_their_own_states_and_take_autocast_copies_away():
    plain, config = llama(), masked(llama(), hidden_size=48, intermediate_size=100)
    parts = ModelParts(config)
    assert parts.masks == 96 + 3 * 200
    assert ModelParts(plain).masks == 0
    mixed = replace(BASE, autocast=True)
    with_masks, without = (estimate_moments(c, mixed)["loss backward"].device for c in (config, plain))
    assert with_masks["weights"] == without["weights"] and "masks" not in without
    # Two bytes for each weight of o_proj and down_proj in three layers.
    assert without["casts"] - with_masks["casts"] == 2 * 3 * (96 * 96 + 96 * 200)
    only_neurons = ModelParts(masked(llama(), intermediate_size=100))
    assert (only_neurons.masked_output, only_neurons.masked_down) == (0, 96 * 200)


@pytest.mark.parametrize("backend", SHARED)
def test_more_devices_never_need_more(backend):
    config = masked(llama(), hidden_size=48)
    peaks = [
        estimate_memory(config, replace(BASE, backend=backend, num_devices=number, reduce_bucket_size=1000)).peak
        for number in (2, 4, 8)
    ]
    assert (peaks[0] == peaks[1] == peaks[2]) if backend == "ddp" else (peaks[0] > peaks[1] > peaks[2])


def test_each_stage_of_zero_shards_one_thing_more():
    weights = 4 * count_parameters(llama())
    shared = {"num_devices": 8, "reduce_bucket_size": 1000}
    first, second, third = (
        estimate_moments(llama(), replace(BASE, backend=f"zero{stage}", **shared))["head backward"].device
        for stage in (1, 2, 3)
    )
    head = 4 * 500 * 96
    assert first["optimizer"] == second["optimizer"] == third["optimizer"] == 3 * weights // 8
    assert (first["gradients"], second["gradients"]) == (head, head // 8)
    assert first["weights"] == second["weights"] == weights == 8 * third["weights"]
    assert third["buffers"] == 2 * 4000 + weights // 8 and second["buffers"] == 4000


def test_offloading_moves_bytes_to_the_host():
    setup = replace(BASE, backend="zero2", reduce_bucket_size=1000)
    here, there = (estimate_memory(llama(), replace(setup, offload=offload)) for offload in (False, True))
    parameters = count_parameters(llama())
    assert here.host == {} and there.host == {"optimizer": 12 * parameters, "gradients": 4 * parameters}
    assert "optimizer" not in there.device and there.peak <= here.peak - 12 * parameters
    sharded = estimate_memory(llama(), replace(BASE, backend="fsdp2", num_devices=2, offload=True))
    assert set(sharded.host) == {"optimizer", "gradients", "weights"} and "weights" not in sharded.device


@settings(deadline=None)
@given(
    backend=st.sampled_from(BACKENDS),
    checkpointing=st.booleans(),
    mixed=st.booleans(),
    accumulation=st.integers(1, 3),
    size=st.integers(1, 4),
)
def test_larger_batches_and_accumulation_never_need_less(backend, checkpointing, mixed, accumulation, size):
    setup = TrainingSetup(
        size, 32, autocast=mixed, activation_checkpointing=checkpointing, backend=backend,
        gradient_accumulation_steps=accumulation, num_devices=1 if backend == "single" else 2,
    )  # fmt: skip
    config = masked(llama(), intermediate_size=100)
    estimate = estimate_memory(config, setup)
    assert all(isinstance(value, int) and value > 0 for value in estimate.device.values())
    assert estimate.peak == max(moment.peak for moment in estimate_moments(config, setup).values())
    assert estimate_memory(config, replace(setup, micro_batch_size=size + 1)).peak >= estimate.peak
    once = replace(setup, gradient_accumulation_steps=1)
    assert estimate_memory(config, once).peak <= estimate.peak


@pytest.mark.parametrize(
    "setup",
    [
        TrainingSetup(4, 4096, weight_dtype="bfloat16", backend="zero3", num_devices=8),
        TrainingSetup(4, 4096, weight_dtype="bfloat16", backend="zero2", num_devices=8),
        TrainingSetup(4, 4096, autocast=True, backend="fsdp2", num_devices=8),
    ],
    ids=lambda setup: setup.backend,
)
def test_mask_learning_of_7b_fits_eight_cards_of_80_gb_with_room(setup):
    setup = replace(setup, activation_checkpointing=True, gradient_accumulation_steps=8)
    assert estimate_memory(llama_2_7b(), setup).peak < 0.6 * 80e9


def test_7b_does_not_fit_unsharded():
    setup = TrainingSetup(1, 4096, autocast=True, activation_checkpointing=True, backend="ddp", num_devices=8)
    assert estimate_memory(llama_2_7b(), setup).peak > 80e9


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"micro_batch_size": 0}, "`micro_batch_size` must be at least 1, but it is 0"),
        ({"backend": "zero4"}, "`backend` must be one of single, ddp, zero1, zero2, zero3, fsdp2, but it is 'zero4'"),
        ({"weight_dtype": "float16"}, "`weight_dtype` must be one of float32, bfloat16, but it is 'float16'"),
        ({"offload": True}, "`offload=True` needs a backend that can offload, but `backend` is 'single'"),
        ({"num_devices": 2}, "`backend='single'` is one device, but `num_devices` is 2"),
        ({"autocast": True, "weight_dtype": "bfloat16"}, "`autocast=True` is for float32 weights"),
    ],
)
def test_setups_that_do_not_exist_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        replace(BASE, **fields)


def test_what_is_frozen_has_no_gradients_and_no_moments():
    weights, trained = 4 * count_parameters(llama()), 5_000
    step = estimate_moments(llama(), replace(BASE, frozen=FrozenSetup(trained, True, 64)))["optimizer step"]
    assert step.device == {"weights": weights + 4 * trained, "optimizer": 8 * trained, "gradients": 4 * trained}
    norms = estimate_moments(llama(), replace(BASE, frozen=FrozenSetup(trained)))["optimizer step"]
    assert norms.device == {"weights": weights, "optimizer": 8 * trained, "gradients": 4 * trained}
    assert "embedding backward" not in estimate_moments(llama(), replace(BASE, frozen=FrozenSetup(trained)))


def test_frozen_layers_keep_what_gradients_need_on_their_way():
    """Counted by hand, per token: as for all weights, without inputs of frozen products and normed values."""
    d, queries, keys, neurons, heads, layers, tokens = 96, 96, 48, 200, 6, 3, 128
    shared = 4 * (2 * queries + 2 * keys) + 4 * heads
    norms = estimate_moments(llama(), replace(BASE, frozen=FrozenSetup(99)))["loss backward"]
    layer = 2 * 2 * 4 * d + shared + 4 * 3 * neurons
    assert norms.device["activations"] == tokens * (layers * layer + 2 * 4 * d)
    adapters = estimate_moments(llama(), replace(BASE, frozen=FrozenSetup(99, True, 28)))["loss backward"]
    layer = 2 * 2 * 4 * d + shared + 4 * 4 * neurons + 4 * 28
    assert adapters.device["activations"] == tokens * (layers * layer + 4 * d)


@pytest.mark.parametrize(("quantize", "size"), [("8bit", 1), ("4bit", 0.5625)])
def test_a_quantised_base_takes_its_bytes(quantize, size):
    parts = ModelParts(llama())
    frozen = replace(BASE, frozen=FrozenSetup(1_000, True, 8, quantize))
    products = 3 * (96 * 96 * 2 + 96 * 48 * 2 + 3 * 96 * 200)
    found = estimate_memory(llama(), frozen).device["weights"]
    assert found == 4 * (parts.total - products) + size * products + 4 * 1_000


def test_a_teacher_on_the_device_offloaded_and_stored():
    teacher = llama(intermediate_size=400)
    whole, head = 2 * count_parameters(teacher), 2 * 500 * 96
    here = estimate_memory(llama(), replace(BASE, teaching=TeachingSetup(teacher, "device", 2)))
    away = estimate_memory(llama(), replace(BASE, teaching=TeachingSetup(teacher, "cpu", 2)))
    stored = estimate_memory(llama(), replace(BASE, teaching=TeachingSetup(None, "stored", top_k=8)))
    assert (here.device["teacher"], here.host) == (whole, {})
    assert (away.device["teacher"], away.host) == (head, {"teacher": whole})
    assert (stored.device["teacher"], stored.host) == (128 * (4 * 8 + 2 * 9), {})


def test_logits_of_a_distillation_are_of_one_chunk(monkeypatch):
    teaching = replace(BASE, teaching=TeachingSetup(llama()))
    assert estimate_moments(llama(), teaching)["loss backward"].device["logits"] == 7 * 4 * 128 * 500
    monkeypatch.setattr("hf_shear.training.memory_recovery.MAX_CHUNK_LOGITS", 32 * 500)
    assert estimate_moments(llama(), teaching)["loss backward"].device["logits"] == 7 * 4 * 32 * 500


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_fewer_weights_never_needs_more(backend):
    setup = replace(BASE, backend=backend, num_devices=1 if backend == "single" else 2, reduce_bucket_size=1000)
    peaks = [estimate_memory(llama(), replace(setup, frozen=frozen)).peak
             for frozen in (FrozenSetup(200), FrozenSetup(5_000, True, 32), None)]  # fmt: skip
    assert peaks[0] < peaks[1] < peaks[2]


def test_a_teacher_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="`placement` must be 'stored' without a teacher"):
        TeachingSetup(None, "device")
    with pytest.raises(ValueError, match="`quantize` must be one of none, 8bit, 4bit, but it is '2bit'"):
        FrozenSetup(10, quantize="2bit")


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="supported family"):
        estimate_memory(OPTConfig(), BASE)
