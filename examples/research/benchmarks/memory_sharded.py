"""Memory of several processes that share a model, predicted against measured, on Linux without a GPU or on GPUs.

    torchrun --nproc_per_node 2 -m examples.research.benchmarks.memory_sharded --backend fsdp2
    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 -m examples.research.benchmarks.memory_sharded --backend zero3

Prints one line, then one JSON object as its last line, both of the first process. Masks are held as ShearTrainer holds
them: whole on every process, in an optimizer of their own. Needs deepspeed for the backends that are its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import threading
import time

import torch
import torch.distributed as dist

from hf_shear.training.memory import estimate_memory
from hf_shear.training.memory_setup import BACKENDS, TrainingSetup

from .memory import KINDS, MEBIBYTE, MODELS, arm_arguments, build_config, setup_of
from .memory_models import build_model, environment
from .speed_parts.training_steps import PLAIN, mask_schedule, random_batches

STEPS = 3
BUCKET = 1_000_000  # of DeepSpeed's reduction: its default of 500 million would hide a small model
SAMPLING_SECONDS = 0.0005
TINY = (32, 2, 2, 2, 48, 64)  # trained first, so that what libraries load later does not count


class MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=[name for name in BACKENDS if name != "single"], required=True)
    parser.add_argument("--model", choices=MODELS, default="5m")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[1], help="of step")
    parser.add_argument("--dtype", choices=("float32", "mixed"), default="float32")
    parser.add_argument("--batch_size", type=int, default=2, help="sequences of a micro-batch")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    args = parser.parse_args(arguments)
    args.device = f"cuda:{dist.get_node_local_rank()}" if torch.cuda.is_available() else "cpu"
    return args


class Training:
    """A model under a backend, its masks beside it."""

    def __init__(self, args: argparse.Namespace, sizes: tuple):
        self.args, self.engine = args, None
        self.arm = arm_arguments(args, args.model, args.dtype, args.gradient_checkpointing)
        for name, size in zip(("hidden_size", "num_hidden_layers"), sizes, strict=False):
            setattr(self.arm, name, size)
        (self.arm.num_attention_heads, self.arm.num_key_value_heads) = sizes[2:4]
        (self.arm.intermediate_size, self.arm.vocab_size) = sizes[4:]
        self.schedule = None if args.kind == PLAIN else mask_schedule(args.kind, STEPS)
        model = build_model(self.arm, args.kind)
        self.masks = getattr(model, "masks", None)
        if self.masks is not None:
            model.take_masks_apart()
            self.mask_optimizer = torch.optim.AdamW(self.masks.parameters(), lr=0.05)
        self.model = self.wrap(model)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model as the backend runs it; makes the optimizer of its weights."""
        backend = self.args.backend
        if backend.startswith("zero"):
            return self.deepspeed_engine(model)
        if backend == "fsdp2":
            shard_layers(model, self.args)
        else:
            model = torch.nn.parallel.DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return model

    def deepspeed_engine(self, model: torch.nn.Module) -> torch.nn.Module:
        """DeepSpeed with small buckets, reducing with gloo on a CPU."""
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        config = {
            "train_micro_batch_size_per_gpu": self.args.batch_size,
            "zero_optimization": {"stage": int(self.args.backend[-1]), "reduce_bucket_size": BUCKET},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]
        return self.engine

    def step(self, input_ids: torch.Tensor) -> None:
        """Forward, backward, and the updates."""
        if self.schedule is not None:
            self.masks.phase = self.masks.strategy.phase(self.schedule, 0)
        mixed = self.args.dtype == "mixed" and self.args.backend != "fsdp2"  # it casts by itself
        with torch.autocast(input_ids.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = self.model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        if self.engine is not None:
            self.engine.backward(loss)
            self.engine.step()
        else:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.masks is not None:
            self.mask_optimizer.step()
            self.mask_optimizer.zero_grad()


def shard_layers(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """FSDP2 as accelerate applies it: every layer, then what is left."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if args.dtype == "mixed" else None)
    mesh = init_device_mesh(args.device.split(":")[0], (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


class PeakMeter:
    """Most bytes in use since the start: of torch's allocator on a GPU, of malloc on Linux, looked at all the time."""

    def __init__(self, device: str):
        self.device, self.peak, self.running = device, 0, True
        self.library = None if device.startswith("cuda") else ctypes.CDLL("libc.so.6")
        if self.library is not None:
            self.library.mallinfo2.restype = MallocInfo
        self.before = self.in_use()

    def in_use(self) -> int:
        """Bytes in use now."""
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.library is None else self.malloc_bytes()

    def malloc_bytes(self) -> int:
        """Bytes that malloc has handed out, to all threads."""
        info = self.library.mallinfo2()
        return info.uordblks + info.hblkhd

    def __enter__(self) -> PeakMeter:
        if self.library is None:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self) -> None:
        """Look at malloc until told to stop."""
        while self.running:
            self.peak = max(self.peak, self.malloc_bytes())
            time.sleep(SAMPLING_SECONDS)

    def __exit__(self, *exception) -> None:
        self.running = False
        if self.library is None:
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.thread.join()


def sharded_setup(args: argparse.Namespace, training: Training) -> TrainingSetup:
    """As the estimate takes it."""
    setup = vars(setup_of(training.arm))
    more = {"reduce_bucket_size": BUCKET} if args.backend.startswith("zero") else {}
    return TrainingSetup(**setup | more | {"backend": args.backend, "num_devices": dist.get_world_size()})


def main() -> None:
    """Measure one backend."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    args = parse_arguments()
    warm = Training(args, TINY)
    for input_ids, _ in zip(random_batches(warm.arm, warm.arm.vocab_size), range(STEPS), strict=False):
        warm.step(input_ids)
    if warm.engine is not None:
        warm.engine.destroy()
    del warm
    meter = PeakMeter(args.device)
    training = Training(args, MODELS[args.model])
    batches = random_batches(training.arm, training.arm.vocab_size)
    training.step(next(batches))
    with meter:  # making the model and the optimizer's moments is over
        for _ in range(STEPS - 1):
            training.step(next(batches))
    estimate = estimate_memory(build_config(MODELS[args.model], args.kind), sharded_setup(args, training))
    measured = meter.peak - meter.before
    if dist.get_rank() == 0:
        row = {"predicted_bytes": estimate.peak, "measured_bytes": measured, "error": estimate.peak / measured - 1}
        row |= {"moment": estimate.moment, "parts": estimate.device, "processes": dist.get_world_size()}
        print(
            f"{args.backend} x {row['processes']}, {args.model}, {args.dtype}, {args.kind}: predicted"
            f" {estimate.peak / MEBIBYTE:.1f} MiB, measured {measured / MEBIBYTE:.1f} MiB, error {row['error']:.1%}"
            f" ({estimate.moment})"
        )
        print(
            json.dumps({"benchmark": "memory_sharded", "environment": environment(args), "arguments": vars(args)} | row)
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
