"""A tiny nested training that any launcher can start; writes OUT/end.json and OUT/<size>, a plain checkpoint of each size.

accelerate launch ... tests/nested_run.py OUT SOURCE TEACHING [--resume]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from training_helpers import held_out_domains, make_args, train_domains

from hf_shear import AutoShearingModelForCausalLM, save_checkpoint
from hf_shear.pruning import NestedSizes, NestedTrainer

ACCUMULATION, SAMPLES_PER_STEP = 2, 8


def main(folder: Path, source: Path, teaching: str, *more: str) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # gloo in its place: it would be compiled for minutes
    args = make_args(
        folder, per_device_train_batch_size=SAMPLES_PER_STEP // ACCUMULATION // world_size,
        gradient_accumulation_steps=ACCUMULATION, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=4,
        save_strategy="steps", save_steps=3,
    )  # fmt: skip
    model = AutoShearingModelForCausalLM.from_pretrained(source, target_shape={})
    trainer = NestedTrainer(
        model, args, train_domains(), held_out_domains(), sizes=NestedSizes.load(source, model.config),
        size_teacher=teaching,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint="--resume" in more)
    for name in trainer.sizes.names:
        sliced, _ = trainer.cut(name)
        save_checkpoint(sliced, folder / name)
    history = [row for row in trainer.state.log_history if "train_runtime" not in row]
    if args.process_index == 0:
        (folder / "end.json").write_text(json.dumps(history), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
