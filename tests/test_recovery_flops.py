"""FLOPs of a training token against those that torch counts in a small Llama."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_helpers import tiny_config
from transformers import LlamaForCausalLM

from hf_shear.shapes import forward_flops_per_token, training_flops_per_token
from hf_shear.training import num_trainable, recovery_method

LENGTH = 64
# torch counts attention over all S^2 pairs, causal or not; S / 2 earlier tokens on average are counted here.
SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 120,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": LENGTH,
    "attention_dropout": 0.0,
}


def counted(method: str, backward: bool) -> tuple[float, int]:
    """FLOPs per token and adapter parameters; attention by the math of matrix products, which torch counts one by one."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM._from_config(tiny_config(**SIZES), attn_implementation="eager")
    model = recovery_method(method).prepare(plain)
    ids = torch.randint(3, 300, (1, LENGTH))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, labels=ids).loss
        if backward:
            loss.backward()
    return counter.get_total_flops() / LENGTH, num_trainable(model) if method == "lora" else 0


def attention_beyond_causal(passes: int) -> float:
    """What a full S x S attention costs more than the causal half."""
    return passes * 3 * 2 * 2 * 6 * 8 * LENGTH / 2


def test_forward():
    found, _ = counted("full", backward=False)
    config = tiny_config(**SIZES)
    assert forward_flops_per_token(config, LENGTH) + attention_beyond_causal(1) == pytest.approx(found, rel=0.02)


# The bottom layer of a frozen model passes no gradients to its inputs, and its attention none to its queries and keys
# where nothing below them is trained: a share of one in three layers here, of one in dozens in a real model.
@pytest.mark.parametrize(("method", "bound"), [("full", 0.02), ("norms_and_biases", 0.03), ("lora", 0.05)])
def test_a_training_step(method, bound):
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    found, adapters = counted(method, backward=True)
    expected = training_flops_per_token(tiny_config(**SIZES), LENGTH, method != "full", adapters)
    assert expected + attention_beyond_causal(3) == pytest.approx(found, rel=bound)


def test_a_teacher_adds_its_forward():
    config, teacher = tiny_config(**SIZES), tiny_config(**SIZES | {"num_hidden_layers": 7})
    alone = training_flops_per_token(config, LENGTH)
    both = training_flops_per_token(config, LENGTH, teacher=teacher)
    assert both - alone == pytest.approx(forward_flops_per_token(teacher, LENGTH))
