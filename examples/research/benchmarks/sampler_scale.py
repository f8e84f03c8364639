"""The sampler at the size of a large run: 1 T tokens on 64 nodes of 8 GPUs, simulated on one CPU without any data.

    python -m examples.research.benchmarks.sampler_scale
    python -m examples.research.benchmarks.sampler_scale --num_tokens 1e11 --nodes 8

Prints a table, then one JSON object as its last line. Checks that ranks draw disjoint samples and that none repeats
within a pass, and fails if not. README.md beside this file says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Iterator

import datasets
import numpy as np
from datasets import IterableDataset

from hf_shear import DynamicBatchSampler
from hf_shear.data import StreamDataLoader

# Shares of the seven domains of RedPajama as sampled by the LLaMA recipe (arXiv 2302.13971, table 1).
MIXTURE = {
    "CommonCrawl": 0.67, "C4": 0.15, "GitHub": 0.045, "Wikipedia": 0.045, "Books": 0.045, "ArXiv": 0.025,
    "StackExchange": 0.02,
}  # fmt: skip
STEPS_TIMED = 50
SHARD_TOKENS = 2**28  # a file of a quarter of a billion tokens: about 1 GB of text
STREAM_STEPS = 6


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_tokens", type=float, default=1e12, help="of all domains together")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=4096, help="tokens of a sample")
    parser.add_argument("--batch_size", type=int, default=2, help="samples of a micro-batch")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--window", type=int, default=200, help="global batches in which no sample may repeat")
    return parser.parse_args(arguments)


def make_sampler(args: argparse.Namespace, rank: int = 0) -> DynamicBatchSampler:
    """The sampler of one rank."""
    return DynamicBatchSampler(
        domain_sizes(args),
        args.batch_size,
        MIXTURE,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        rank=rank,
        world_size=args.nodes * args.gpus_per_node,
    )


def domain_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Samples of each domain, in the proportions of the mixture."""
    samples = args.num_tokens / args.max_length
    return {name: max(1, round(share * samples)) for name, share in MIXTURE.items()}


def state_after(args: argparse.Namespace, share: float) -> dict:
    """The state of a run of which this share is done, as a checkpoint would hold it."""
    sampler = make_sampler(args)
    batches = int(share * sum(sampler.domain_sizes.values()) / sampler.global_batch_size)
    samples = batches * sampler.global_batch_size
    consumed = {name: int(weight * samples) for name, weight in sampler.mixture_weights.items()}
    return json.loads(json.dumps(sampler.state_dict() | {"global_batch_index": batches, "samples_consumed": consumed}))


def measure_sampler(args: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of one rank."""
    middle = state_after(args, 0.5)
    tracemalloc.start()
    sampler = make_sampler(args)
    next(iter(sampler))
    sampler.load_state_dict(middle)
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    start = time.perf_counter()
    sampler = make_sampler(args)
    next(iter(sampler))
    started = time.perf_counter()
    sampler.load_state_dict(middle)
    micro_batches = iter(sampler)
    next(micro_batches)
    resumed = time.perf_counter()
    seconds = []
    for _ in range(STEPS_TIMED):
        begin = time.perf_counter()
        for _ in range(args.gradient_accumulation_steps):
            next(micro_batches)
        sampler.commit()
        seconds.append(time.perf_counter() - begin)
    return {
        "start_seconds": started - start,
        "resume_seconds": resumed - started,
        "global_batch_seconds": statistics.median(seconds),
        "state_bytes": len(json.dumps(sampler.state_dict())),
        "peak_bytes": peak,
    }


def check_ranks(args: argparse.Namespace) -> int:
    """Every rank's samples of global batches at the start, in the middle and at the end; returns how many were checked.

    Raises:
        RuntimeError: if two ranks share a sample, or together are not the global batch.
    """
    checked = 0
    for share in (0.0, 0.5, 0.999):
        state = state_after(args, share)
        whole = make_sampler(args)
        whole.load_state_dict(state)
        drawn: list[int] = []
        for rank in range(whole.world_size):
            sampler = make_sampler(args, rank)
            sampler.load_state_dict(state)
            micro_batches = iter(sampler)
            for _ in range(args.gradient_accumulation_steps):
                drawn += next(micro_batches)
        if len(set(drawn)) != whole.global_batch_size or set(drawn) != set(whole.peek_global_batch()):
            raise RuntimeError(f"The ranks' samples of global batch {state['global_batch_index']} are not disjoint.")
        checked += 1
    return checked


def check_window(args: argparse.Namespace) -> int:
    """Samples drawn in consecutive global batches in the middle of the first pass.

    Raises:
        RuntimeError: if one repeats.
    """
    sampler = make_sampler(args)
    sampler.load_state_dict(state_after(args, 0.4))
    drawn = []
    for _ in range(args.window):
        drawn.append(np.array(sampler.peek_global_batch()))
        sampler.commit()
    samples = np.concatenate(drawn)
    repeated = len(samples) - len(np.unique(samples))
    if repeated:
        raise RuntimeError(f"{repeated} of {len(samples)} samples repeat within a pass.")
    return len(samples)


def fake_rows(shards: list[int], rows: int, length: int) -> Iterator[dict]:
    """Packed samples of a shard that cost nothing to make."""
    for shard in shards:
        for row in range(rows):
            yield {"input_ids": np.full(length, (shard + row) % 100, dtype=np.int32)}


def measure_streams(args: argparse.Namespace) -> dict[str, float]:
    """The same for one rank that reads all domains as streams, resumed from the end of a shard (the longest replay)."""
    rows = SHARD_TOKENS // args.max_length
    world_size = args.nodes * args.gpus_per_node
    streams = {
        name: IterableDataset.from_generator(
            fake_rows,
            gen_kwargs={"shards": list(range(max(world_size, size // rows))), "rows": rows, "length": args.max_length},
        )
        for name, size in domain_sizes(args).items()
    }
    sizes = dict.fromkeys(streams)

    def make_loader() -> StreamDataLoader:
        options = {"gradient_accumulation_steps": args.gradient_accumulation_steps, "world_size": world_size}
        return StreamDataLoader(streams, DynamicBatchSampler(sizes, args.batch_size, MIXTURE, **options))

    def one_step(loader: StreamDataLoader, batches: Iterator) -> None:
        for _ in range(args.gradient_accumulation_steps):
            next(batches)
        loader.sampler.commit()

    start = time.perf_counter()
    loader = make_loader()
    batches = iter(loader)
    one_step(loader, batches)
    started = time.perf_counter()
    seconds = []
    for _ in range(STREAM_STEPS):
        begin = time.perf_counter()
        one_step(loader, batches)
        seconds.append(time.perf_counter() - begin)
    for number in range(len(streams)):  # a sample of every stream, so that each has a position
        weights = {name: float(index == number) for index, name in enumerate(streams)}
        loader.sampler.set_mixture_weights(weights)
        one_step(loader, batches)
    loader.sampler.set_mixture_weights(MIXTURE)
    state, sampler_state = loader.state_dict(), loader.sampler.state_dict()
    loader.close()
    for stream in state["streams"].values():
        stream["positions"][0]["state"]["examples_iterable"]["shard_example_idx"] = rows - 100
    resumed = time.perf_counter()
    loader = make_loader()
    loader.sampler.load_state_dict(sampler_state)
    loader.load_state_dict(state)
    one_step(loader, iter(loader))
    resume_seconds = time.perf_counter() - resumed
    loader.close()
    return {
        "start_seconds": started - start,
        "resume_seconds": resume_seconds,
        "step_seconds": statistics.median(seconds),
        "state_bytes": len(json.dumps(state)),
        "sampler_state_bytes": len(json.dumps(sampler_state)),
        "rows_skipped_per_domain": rows - 100,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, check, print."""
    args = parse_arguments(arguments)
    sampler = make_sampler(args)
    run = {
        "num_samples": sum(sampler.domain_sizes.values()),
        "world_size": sampler.world_size,
        "global_batch_size": sampler.global_batch_size,
        "global_batch_tokens": sampler.global_batch_size * args.max_length,
        "num_steps": sum(sampler.domain_sizes.values()) // sampler.global_batch_size,
    }
    one_rank, streams = measure_sampler(args), measure_streams(args)
    checks = {"global_batches_disjoint": check_ranks(args), "samples_without_repeat": check_window(args)}
    print(
        f"{args.num_tokens:,.0f} tokens = {run['num_samples']:,} samples in {len(MIXTURE)} domains,"
        f" {run['world_size']} ranks, {run['num_steps']:,} steps of {run['global_batch_size']:,} samples"
        f" ({run['global_batch_tokens']:,} tokens)\n"
    )
    for title, values in (("packed data sets (the sampler of one rank)", one_rank), ("streams (one rank)", streams)):
        print(title)
        for name, value in values.items():
            shown = f"{1000 * value:12.2f} ms" if name.endswith("_seconds") else f"{value:12,}"
            print(f"  {name.removesuffix('_seconds'):26}{shown}")
    print(f"checked: {checks['global_batches_disjoint']} global batches have disjoint ranks;"
          f" no repeat in {checks['samples_without_repeat']:,} samples")  # fmt: skip
    environment = {
        "python": platform.python_version(), "numpy": np.__version__, "datasets": datasets.__version__,
        "machine": platform.machine(), "month": time.strftime("%Y-%m"),
    }  # fmt: skip
    result = {"benchmark": "sampler_scale", "environment": environment, "arguments": vars(args), "run": run}
    print(json.dumps(result | {"sampler": one_rank, "streams": streams, "checks": checks}))


if __name__ == "__main__":
    main()
