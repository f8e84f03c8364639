"""Does memory stay flat, and do processes stay equal, over an hour of mask learning?

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m examples.research.benchmarks.soak --minutes 60

A tiny random model on random tokens, with evaluations (domain weights change) and checkpoints. Every process notes its
resident memory; at every checkpoint all weights and masks are compared over processes bit for bit. Prints a table, then
one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time

import psutil
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_shear import ShearingLlamaConfig, ShearingLlamaForCausalLM, ShearTrainer, ShearTrainingArguments
from hf_shear.core import collect_versions
from hf_shear.masks import MaskSettings
from hf_shear.shapes import TargetShape

VOCABULARY, LENGTH, DOMAINS = 512, 64, ("a", "b", "c")
WARM_UP = 0.2  # share of the samples of memory, the first ones, that growth is not measured over


def source_config() -> LlamaConfig:
    """A Llama of 0.4 M parameters."""
    return LlamaConfig(vocab_size=VOCABULARY, hidden_size=96, intermediate_size=256, num_hidden_layers=3,
                       num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=LENGTH)  # fmt: skip


def masked_model(method: str) -> ShearingLlamaForCausalLM:
    """Masked towards about half of it; random weights."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(source_config())
    target = TargetShape.from_source(plain.config, hidden_size=60, num_hidden_layers=2, intermediate_size=128)
    model = ShearingLlamaForCausalLM(ShearingLlamaConfig.from_source(plain.config, target, MaskSettings(method=method)))
    masks = {f"masks.{name}": value for name, value in model.masks.state_dict().items()}
    model.load_state_dict(plain.state_dict() | masks)
    return model


def random_domains(num_samples: int, seed: int) -> dict[str, Dataset]:
    """Packed samples of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = {name: torch.randint(VOCABULARY, (num_samples, LENGTH), generator=generator).tolist() for name in DOMAINS}
    return {name: Dataset.from_dict({"input_ids": rows}) for name, rows in ids.items()}


class Watch(TrainerCallback):
    """Stops after a time; notes memory, and whether processes are equal."""

    def __init__(self, model, minutes: float, every: int):
        self.model, self.seconds, self.every = model, minutes * 60, every
        self.memory: list[float] = []
        self.compared = self.unequal = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.memory.append(psutil.Process().memory_info().rss / 2**20)
            # One clock decides for all processes.
            over = broadcast_object_list([time.monotonic() - self.began > self.seconds])[0]
            if over:
                control.should_training_stop = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        digest = hashlib.sha256()
        for tensor in [*self.model.parameters(), *self.model.masks.parameters()]:
            digest.update(tensor.detach().numpy().tobytes())
        self.compared += 1
        self.unequal += len(set(gather_object([digest.hexdigest()]))) > 1


def growth(memory: list[float]) -> dict[str, float]:
    """MiB: means of the first and the last tenth of what follows the warm-up, and the highest of all."""
    values = torch.tensor(memory[int(len(memory) * WARM_UP) :], dtype=torch.float64)
    tenth = max(len(values) // 10, 1)
    return {"first_tenth": values[:tenth].mean().item(), "last_tenth": values[-tenth:].mean().item(),
            "highest": max(memory)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--method", choices=("relaxed_topk", "hard_concrete"), default="hard_concrete")
    parser.add_argument("--every", type=int, default=50, help="Steps between two looks at memory and clock.")
    parser.add_argument("--save_steps", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args = ShearTrainingArguments(
            folder, max_steps=10_000_000, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True,
            learning_rate=1e-4, eval_steps=200, eval_token_share=0.05, logging_steps=100, disable_tqdm=True,
            save_strategy="steps", save_steps=options.save_steps, save_total_limit=2, report_to="none",
            reference_losses=dict.fromkeys(DOMAINS, 6.0), multiplier_learning_rate=1e-3, mask_learning_rate=1e-3,
        )  # fmt: skip
        model = masked_model(options.method)
        watch = Watch(model, options.minutes, options.every)
        trainer = ShearTrainer(model, args, random_domains(4000, 0), random_domains(50, 1), callbacks=[watch])
        trainer.train()
        memory = gather_object([watch.memory])
    result = {
        "benchmark": "soak",
        "versions": collect_versions(),
        "processes": args.world_size,
        "minutes": round((time.monotonic() - watch.began) / 60, 1),
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens_seen(),
        "evaluations": sum("eval_loss" in row for row in trainer.state.log_history),
        "checkpoints_compared": watch.compared,
        "checkpoints_unequal": watch.unequal,
        "memory_mib": [growth(values) for values in memory],
    }
    if args.process_index == 0:
        print(f"{result['steps']:,} steps in {result['minutes']} minutes, {result['processes']} process(es)")
        for process, row in enumerate(result["memory_mib"]):
            print(f"  process {process}: resident memory {row['first_tenth']:.0f} MiB after warm-up,"
                  f" {row['last_tenth']:.0f} MiB at the end, {row['highest']:.0f} MiB at most")  # fmt: skip
        print(f"  weights and masks compared at {watch.compared} checkpoints, unequal at {watch.unequal}")
        print(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
