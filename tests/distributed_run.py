"""A tiny run that any launcher can start: every process notes what each of its steps saw and gave.

    torchrun --nproc_per_node 2 tests/distributed_run.py --output_dir OUT --case relaxed_topk

Writes OUT/records-<process>.jsonl (one line per micro-batch, also of steps that a killed run did and a resumed one
repeats), OUT/end.json and OUT/end (the weights) when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
from pathlib import Path

import torch
from training_helpers import (
    LENGTH,
    TARGET,
    VOCAB_SIZE,
    held_out_domains,
    make_args,
    masks_of,
    plain_model,
    train_domains,
)
from transformers import LlamaForCausalLM

from hf_shear import MaskSettings, ShearingLlamaForCausalLM, ShearTrainer
from hf_shear.runs import judge
from hf_shear.sources import whole_models
from hf_shear.training.backends import backend_name

CASES = {
    "relaxed_topk": MaskSettings(),
    "hard_concrete": MaskSettings(method="hard_concrete", log_alpha_start=1.0),
    "recovery": None,
}
SAMPLES_PER_STEP = 8
SMALL_FILE = 28_000  # bytes: the limit that stands for a full disk; more than a log, less than the weights
HANGING = 600.0  # seconds: until it is killed
ACCUMULATION = 2


class NotingTrainer(ShearTrainer):
    """Appends a line per micro-batch to a file, flushed, so that a kill loses at most the line in progress."""

    def __init__(self, *args, notes: Path, options: argparse.Namespace, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes, self.options = notes.open("a", encoding="utf-8"), options

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Overridden: notes what goes in and what comes out."""
        record = {
            "step": self.state.global_step,
            "micro_batch": self.micro_batch,
            "input_ids": inputs["input_ids"].tolist(),
            "mixture_weights": self.domains.sampler.mixture_weights,
            "masks": masks_of(self.masked_model),
        }
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.notes.write(json.dumps(record | {"loss": loss.item()}) + "\n")
        self.notes.flush()
        time.sleep(HANGING if self.state.global_step == self.options.hang_at else self.options.pace)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Overridden: the fault that was asked for."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training and self.state.global_step == self.options.fault_at:
            fault, process = self.options.fault, self.args.process_index
            if fault == "nan" and process == self.args.world_size - 1:
                return found * float("nan")
            if fault == "die" and process == self.args.world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    def save_parts(self, checkpoint):
        """Overridden: the checkpoint that takes too long was asked for."""
        super().save_parts(checkpoint)
        if self.options.fault == "slow_save" and self.state.global_step >= self.options.fault_at:
            time.sleep(HANGING)

    def _save_checkpoint(self, model, trial):
        """Overridden: the disk that is full was asked for."""
        full = self.options.fault == "full_disk" and self.state.global_step >= self.options.fault_at
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, resource.RLIM_INFINITY))
        try:
            super()._save_checkpoint(model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True, help="A plain checkpoint.")
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--save_steps", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.0, help="Seconds to sleep after each micro-batch.")
    parser.add_argument("--hang_at", type=int, help="Step whose first micro-batch never ends.")
    parser.add_argument(
        "--fault", choices=("nan", "die", "full_disk", "slow_save"), help="nan, die: of the last process alone."
    )
    parser.add_argument("--fault_at", type=int, help="Step of the fault.")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--arguments", type=json.loads, default={}, help="JSON: more training arguments.")
    options = parser.parse_args(words)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # gloo in its place: it would be compiled for minutes
    args = make_args(
        options.output_dir,
        **{
            "max_steps": options.steps,
            "per_device_train_batch_size": SAMPLES_PER_STEP // ACCUMULATION // world_size,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": ACCUMULATION,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps" if options.save_steps else "no",
            "save_steps": options.save_steps or 500,
            "hardening_ratio": 0.25,
            "max_grad_norm": 0.5,
            "lr_scheduler_type": "cosine",
        }
        | options.arguments,
    )
    settings = CASES[options.case]
    # The source has dropout: a resumed run needs its random state, and runs that are compared switch it off there.
    if settings is None:
        model = LlamaForCausalLM.from_pretrained(options.source)
    else:
        model = ShearingLlamaForCausalLM.from_pretrained(options.source, target_shape=TARGET, mask_settings=settings)
    notes = options.output_dir / f"records-{args.process_index}.jsonl"
    notes.parent.mkdir(parents=True, exist_ok=True)
    teacher = plain_model(1, attention_dropout=0.0) if args.distillation != "none" else None
    trainer = NotingTrainer(
        model, args, train_domains(), held_out_domains(), teacher=teacher, notes=notes, options=options
    )
    assert trainer.sample_length == LENGTH and model.config.vocab_size == VOCAB_SIZE
    with trainer.notes:
        trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.output_dir / "end"))
    drifted = None
    if settings is not None:
        optimizer = trainer.mask_learning.optimizer
        drifted = [optimizer.drifted()]
        with torch.no_grad():  # one bit of one mask in the last process alone
            first = next(iter(optimizer.masks.parameters())).view(-1)
            kept = first[0].clone()
            if args.process_index == args.world_size - 1:
                first[0] = torch.nextafter(first[0], torch.tensor(torch.inf))
            drifted.append(optimizer.drifted())
            first[0] = kept
    with whole_models():
        judged = judge(LlamaForCausalLM.from_pretrained(options.source), held_out_domains(), args)
    history = [row for row in trainer.state.log_history if "train_runtime" not in row]
    end = {
        "backend": backend_name(trainer),
        "num_processes": args.world_size,
        "history": [{name: value for name, value in row.items() if name != "eval_runtime"} for row in history],
        "masks": masks_of(trainer.masked_model),
        "mask_report": trainer.mask_report,
        "drifted": drifted,
        "judged": {name: value for name, value in judged.items() if name != "seconds"},
        "sampler": trainer.domains.sampler.state_dict(),
    }
    if settings is not None:
        end["kept"] = {name: kept.int().tolist() for name, kept in trainer.masked_model.masks.kept_units().items()}
    if args.process_index == 0:
        (options.output_dir / "end.json").write_text(json.dumps(end), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
