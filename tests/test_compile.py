"""torch.compile of a masked model: one compilation serves every phase of mask learning."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_helpers import VOCAB_SIZE, masked_model

from hf_shear.masks import STRATEGIES, MaskSchedule

STEPS = 6


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# While it traces, torch itself does two things that it warns of: it makes an instance of an autograd function, and looks
# for a gradient at the drawn masks.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("method", list(STRATEGIES))
def test_a_new_phase_compiles_nothing_anew(method, fresh_compiler):
    # Not the last step, whose masks are constants: that is another graph.
    schedule = MaskSchedule(
        STEPS + 1, budget_warmup_steps=2 * (method == "hard_concrete"), hardening_steps=3, start_noise=0.3
    )
    counter = CompileCounter()  # runs the graphs as they are, and counts them
    model = masked_model(method, num_hidden_layers=3, attention_dropout=0.0).train()
    compiled = torch.compile(model, backend=counter)
    input_ids = torch.randint(VOCAB_SIZE, (2, 8), generator=torch.Generator().manual_seed(0))
    for step in range(STEPS):
        model.set_mask_phase(model.masks.strategy.phase(schedule, step))
        model.zero_grad()
        outputs = compiled(input_ids=input_ids, labels=input_ids, use_cache=False)
        outputs.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert any(gradients[f"masks.log_alpha_{kind}"].any() for kind in model.masks.log_alpha)
        assert torch.isclose(outputs.loss, model(input_ids=input_ids, labels=input_ids).loss)
        assert (outputs.lagrangian_loss is None) == (method == "relaxed_topk")
    assert 0 < schedule.hardening(STEPS - 1) < 1
    assert counter.frame_count == 1
