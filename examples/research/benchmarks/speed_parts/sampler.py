"""What the sampler of dynamic batches costs as the data grows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from torch.utils.data import BatchSampler, RandomSampler

from hf_shear import DynamicBatchSampler

from .timing import time_call

SAMPLER_SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
SAMPLER_DOMAINS = 7  # as in RedPajama
SAMPLER_BATCH_SIZE = 256  # the global batch of the paper
RANDOM_SAMPLER_LIMIT = 10**7  # torch's RandomSampler makes a Python list as long as the data: 4 GB for 1e8 samples


def measure_sampler(sizes: list[int], num_batches: int) -> dict:
    """Cost of the next batch as the data grows; a batch of every size in turn, so that noise hits all sizes alike."""
    streams = {("dynamic", size): dynamic_batches(size) for size in sizes}
    streams |= {("random", size): shuffled_batches(size) for size in sizes if size <= RANDOM_SAMPLER_LIMIT}
    first = {key: time_call(lambda stream=stream: next(stream), "cpu")[0] for key, stream in streams.items()}
    later = {key: [] for key in streams}
    for _ in range(num_batches):
        for key, stream in streams.items():
            later[key].append(time_call(lambda stream=stream: next(stream), "cpu")[0])
    rows = {
        sampler: {
            str(size): {"first_batch_seconds": first[kind, size], "batch_seconds": statistics.median(later[kind, size])}
            for kind, size in streams
            if kind == sampler
        }
        for sampler in ("dynamic", "random")
    }
    medians = [row["batch_seconds"] for row in rows["dynamic"].values()]
    return {
        "samples_per_batch": SAMPLER_BATCH_SIZE,
        "domains": SAMPLER_DOMAINS,
        **rows,
        "slowest_over_fastest": max(medians) / min(medians),
    }


def dynamic_batches(num_samples: int) -> Iterator[list[int]]:
    """Batches of a DynamicBatchSampler over equal domains, each committed as a training loop does it."""
    domain_sizes = {f"domain_{index}": max(num_samples // SAMPLER_DOMAINS, 1) for index in range(SAMPLER_DOMAINS)}
    sampler = DynamicBatchSampler(domain_sizes, SAMPLER_BATCH_SIZE)
    for batch in sampler:
        sampler.commit()
        yield batch


def shuffled_batches(num_samples: int) -> Iterator[list[int]]:
    """Batches of torch's RandomSampler, pass after pass."""
    sampler = BatchSampler(RandomSampler(range(num_samples)), SAMPLER_BATCH_SIZE, drop_last=True)
    while True:
        yield from sampler


def sampler_table(sampler: dict) -> list[str]:
    """Lines to print."""
    lines = [
        f"Sampler, microseconds per batch of {sampler['samples_per_batch']} (first batch: milliseconds)",
        f"  {'samples':>12}{'dynamic':>12}{'first':>12}{'RandomSampler':>16}{'first':>12}",
    ]
    for size, row in sampler["dynamic"].items():
        line = f"  {int(size):>12,}{row['batch_seconds'] * 1e6:12.0f}{row['first_batch_seconds'] * 1e3:12.2f}"
        if size in sampler["random"]:
            row = sampler["random"][size]
            line += f"{row['batch_seconds'] * 1e6:16.0f}{row['first_batch_seconds'] * 1e3:12.2f}"
        lines.append(line)
    return [*lines, f"  slowest size / fastest size: {sampler['slowest_over_fastest']:.2f}"]
