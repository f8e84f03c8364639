"""What FSDP2 does to a model must not reach its masks; one process with a process group is enough to see it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from training_helpers import make_args, make_trainer, masked_model, train_domains

from hf_shear.data import collate_domain_samples
from hf_shear.training.backends import keep_masks_float32


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_half_precision_casts_weights_and_inputs_but_no_masks(process_group):
    model = masked_model("hard_concrete").train()
    batch = collate_domain_samples([train_domains()["books"][index] for index in range(2)])
    model.take_masks_apart()
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    seen = {}
    model.model.layers[1].mlp.register_forward_pre_hook(
        lambda module, inputs: seen.update(hidden=inputs[0].dtype, neurons=module.down_proj.input_mask.dtype)
    )
    outputs = model(**batch)
    norm = model.model.layers[1].input_layernorm
    assert seen == {"hidden": torch.bfloat16, "neurons": torch.float32}
    assert norm.output_mask.dtype == norm.kept_count.dtype == torch.float32
    assert outputs.loss.dtype == outputs.lagrangian_loss.dtype == torch.float32
    (outputs.loss + outputs.lagrangian_loss).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.masks.parameters())
    assert isinstance(model.model.layers[1].mlp.up_proj.weight.grad, DTensor)


def test_a_norm_over_shards_is_looked_at_and_told_as_a_plain_number(process_group, tmp_path, monkeypatch):
    trainer = make_trainer(masked_model(), make_args(tmp_path, max_steps=1))
    trainer.train()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for value in (2.5, float("nan")):
        trainer.guard.start()
        norm = DTensor.from_local(torch.tensor(value), mesh)
        found = trainer._get_grad_norm(trainer.model, norm)
        assert not isinstance(found, DTensor)
        assert bool(trainer.guard.found) == (value != 2.5)


def test_the_policy_of_fsdp_adds_up_in_float32():
    plugin = SimpleNamespace(mixed_precision_policy=None)
    accelerator = SimpleNamespace(mixed_precision="bf16", state=SimpleNamespace(fsdp_plugin=plugin))
    keep_masks_float32(SimpleNamespace(is_fsdp_enabled=True, accelerator=accelerator))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
