"""Slices, saves and trains tiny models that are really sharded, with two processes on the CPU (gloo).

    torchrun --nproc_per_node 2 tests/sharded_run.py --output_dir OUT --parts zero3 fsdp2 training

Writes what came out below OUT; the tests build the same models in one process and compare. All of it is one start,
since the imports of two processes take longer than everything else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from training_helpers import LENGTH, VOCAB_SIZE, letter_tokenizer, masked_model, plain_model
from transformers import LlamaForCausalLM, PreTrainedModel

from hf_shear import MaskSettings, ShearingLlamaForCausalLM, slice_model
from hf_shear.masks import MaskPhase, MaskSchedule
from hf_shear.slicing import save_checkpoint
from hf_shear.training.mask_optimizer import MASKS, MULTIPLIERS, MaskOptimizer

# Whether embeddings are tied, and where the masks are while the model is sharded.
CASES = {
    "tied": {"tied": True, "masks": "apart"},
    "untied": {"tied": False, "masks": "ignored"},
    "masks sharded too": {"tied": False, "masks": "sharded"},
}
PARTS = ("zero3", "fsdp2", "training")
STEPS = 6
GLOBAL_BATCH = 4
MAX_GRAD_NORM = 0.3  # below every norm of the run, so that every step is clipped


def source_of_slice(tied: bool) -> ShearingLlamaForCausalLM:
    """A masked model with biases, whose soft masks differ from 0 and 1 and from each other."""
    settings = MaskSettings(method="hard_concrete")
    model = masked_model(settings, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("masks."):
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
            elif parameter.dim() == 1:  # stock norms and biases are 1 and 0
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.set_mask_phase(MaskPhase(hardening=0.5))
    return model.eval()


def source_of_save(tied: bool) -> LlamaForCausalLM:
    """A plain model as recovery leaves it."""
    return plain_model(seed=3, tie_word_embeddings=tied, attention_bias=True, use_cache=False).eval()


def shard_by_zero3(model: PreTrainedModel, masks: str) -> PreTrainedModel:
    """As a DeepSpeed engine of stage 3 trains it."""
    import deepspeed

    if masks == "apart":
        model.take_masks_apart()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # Smaller parameters are left whole by default, which is all that a tiny model has.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    return engine.module


def shard_by_fsdp2(model: PreTrainedModel, masks: str) -> PreTrainedModel:
    """Decoder layers, then the rest."""
    if masks == "apart":
        model.take_masks_apart()
    ignored = set(model.masks.parameters()) if masks == "ignored" else None
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model, ignored_params=ignored)
    return model


def export(shard: Callable, folder: Path) -> None:
    """Slice masked models and save plain ones that ``shard`` shards."""
    ids = torch.arange(3, 3 + LENGTH).unsqueeze(0)
    for case, options in CASES.items():
        model = shard(source_of_slice(options["tied"]), options["masks"])
        local_sizes = [parameter.numel() for parameter in local_parameters(model)]
        with torch.no_grad():  # FSDP2 leaves weights of the outermost module whole after it
            logits = model.eval()(ids).logits
        for name, dtype in (("sliced", None), ("sliced in bfloat16", torch.bfloat16)):
            sliced, kept = slice_model(model, dtype=dtype)
            save_checkpoint(sliced, folder / case / name, letter_tokenizer(), {"kept": kept.to_dict()})
            note = {
                "kept": kept.to_dict(),
                "devices": sorted({parameter.device.type for parameter in sliced.parameters()}),
                "shapes": {name: list(parameter.shape) for name, parameter in sliced.named_parameters()},
                "dtype": str(sliced.dtype),
                "training": sliced.training,
                "hooks": sum(len(module._forward_pre_hooks) for module in sliced.modules()),
            }
            (folder / case / f"{name} {dist.get_rank()}.json").write_text(json.dumps(note))
        torch.save(logits, folder / case / f"logits {dist.get_rank()}.pt")
        assert [parameter.numel() for parameter in local_parameters(model)] == local_sizes, "left gathered"
    for tied in (True, False):
        model = shard(source_of_save(tied), "none")
        for name, dtype in (("plain", None), ("plain in bfloat16", torch.bfloat16)):
            path = save_checkpoint(model, folder / f"{name}, {tied=}", dtype=dtype)
            assert (path / "config.json").exists(), "returned before the checkpoint was there"
    failure = None
    try:
        save_checkpoint(model, path / "config.json" / "out")
    except (OSError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    (folder / f"failure {dist.get_rank()}.json").write_text(json.dumps(failure))


def local_parameters(model: nn.Module) -> list[torch.Tensor]:
    """What this process holds of each parameter."""
    parameters = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
    return [getattr(parameter, "to_local", lambda p=parameter: p)() for parameter in parameters]


def learn_masks(sharded: bool) -> dict:
    """A few steps of mask learning by hand, on the same global batches however many processes there are."""
    settings = MaskSettings(method="hard_concrete", log_alpha_start=1.0)
    model = masked_model(settings, attention_dropout=0.0).train()
    if sharded:
        model = shard_by_fsdp2(model, "ignored")
    weights = [parameter for name, parameter in model.named_parameters() if not name.startswith("masks.")]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)
    mask_optimizer = MaskOptimizer(model.masks, {MASKS: 0.1, MULTIPLIERS: 1.0}, lambda step: 1.0)
    schedule = MaskSchedule(STEPS, budget_warmup_steps=2)
    generator = torch.Generator().manual_seed(1)
    record = {"losses": [], "norms": [], "masks": [], "multipliers": []}
    for step in range(STEPS):
        batch = torch.randint(VOCAB_SIZE, (GLOBAL_BATCH, LENGTH), generator=generator)
        if sharded:
            batch = batch.chunk(dist.get_world_size())[dist.get_rank()]
        model.set_mask_phase(model.masks.strategy.phase(schedule, step))
        outputs = model(input_ids=batch, labels=batch)
        (outputs.loss + outputs.lagrangian_loss).backward()
        mask_optimizer.reduce_gradients()
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        mask_optimizer.step(step)
        loss = outputs.loss.detach()
        if sharded:
            norm = norm.full_tensor()
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        record["losses"].append(loss.item())
        record["norms"].append(norm.item())
        record["masks"].append(torch.cat([p.detach().flatten() for p in model.masks.log_alpha.values()]).tolist())
        record["multipliers"].append(torch.cat([p.detach() for p in model.masks.multipliers()]).tolist())
    model.set_mask_phase(MaskPhase(hardening=1.0))
    sliced, kept = slice_model(model)
    weights = {name: tensor.tolist() for name, tensor in sliced.state_dict().items() if not tensor.is_meta}
    return record | {"kept": kept.to_dict(), "sliced": weights}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for part in options.parts:
        folder = options.output_dir / part
        for case in CASES:
            (folder / case).mkdir(parents=True, exist_ok=True)
        if part == "training":
            (folder / f"{dist.get_rank()}.json").write_text(json.dumps(learn_masks(sharded=True)))
        elif part == "fsdp2":
            export(shard_by_fsdp2, folder)
        else:
            import deepspeed
            from deepspeed.ops import __compatible_ops__

            __compatible_ops__["deepspeed_shm_comm"] = False  # gloo in its place: it would be compiled for minutes
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
            export(shard_by_zero3, folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
