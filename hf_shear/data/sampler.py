"""The sampler of dynamic batch loading: which samples make up each global batch.

Shapes: B = samples of a global batch = `batch_size` x `gradient_accumulation_steps` x `world_size`.

Every global batch is a function of (seed, its number, samples consumed per domain, weights), and of nothing
else. So all ranks agree without talking, 1 x 8 = 8 x 1 = 2 x 4, and the state is a handful of numbers. No
array as long as the data is ever made: a pass over a domain is a keyed permutation, computed only at the
positions that are drawn.

Paper: arXiv 2310.06694, section 2.2 (data are sampled in proportion to the domain weights).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ..core import RANGES, UsageError, check_ranges
from .mixture import check_mixture_weights

logger = logging.getLogger(__name__)

FEISTEL_ROUNDS = 12  # enough for domains of a few samples too, where a round mixes little
BATCH_STREAM, PASS_STREAM = 0, 1  # tell the random streams of batches and of passes apart


def permute(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """A pseudo-random permutation of range(size), at some positions only.

    A Feistel network over pairs of digits in base ceil(sqrt(size)); values of `size` or more are sent through
    again until they fall below it (cycle walking), which keeps it a permutation. Needs no memory beside
    `positions`.

    Args:
        positions: [n] integers in range(size).
        size: length of the permutation, at most 2^62.
        key: numbers >= 0 that choose the permutation.

    Returns:
        [n] int64: the values at the positions.
    """
    base = np.uint64(math.isqrt(size - 1) + 1 if size > 1 else 1)
    round_keys = np.random.SeedSequence(key).generate_state(FEISTEL_ROUNDS, np.uint64)
    values = positions.astype(np.uint64)
    pending = np.arange(len(values))
    while len(pending):
        left, right = values[pending] // base, values[pending] % base
        for round_key in round_keys:
            left, right = right, (left + _mix(right ^ round_key) % base) % base
        values[pending] = left * base + right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64)


def stream_slot(domain: int) -> int:
    """The negative number that stands for "the next sample of the stream with this domain number"; its own inverse."""
    return -1 - domain


def _mix(values: np.ndarray) -> np.ndarray:
    """[n] uint64 -> [n] uint64: a 64-bit hash, the finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class DynamicBatchSampler(Sampler[list[int]]):
    """Micro-batches of one rank, from global batches that follow changeable domain weights.

    The samples of all domains are numbered through, in the order of `domain_sizes`. In a global batch, the
    number of samples per domain is drawn by systematic sampling: its expectation is exactly weight x B and it
    is off by less than one. Within a domain no sample repeats before all were seen; then a freshly shuffled
    pass begins. A domain of weight 0 is never drawn. The micro-batch m of rank r is the slice `[(m *
    world_size + r) * batch_size :] [:batch_size]` of the (shuffled) global batch.

    Drawing and consuming are apart. Iterating draws ahead, without end, and changes nothing. `commit()` says
    that the next global batch was really handed to training; only then do the counts advance.
    `set_mixture_weights` holds from the next uncommitted global batch on. It raises `version`, which tells
    whoever drew ahead (see `DynamicDataLoader`) to iterate anew.

    Args:
        domain_sizes: domain -> samples (not tokens), in the order in which the data sets are numbered. `None` is a
            stream, which has no size and is read in its own order: each of its slots in a global batch is given as
            `stream_slot(domain number)`, "the next sample of that stream on this rank".
        batch_size: samples of a micro-batch on one device.
        mixture_weights: domain -> weight; `None` is uniform.
        seed: >= 0; another seed is another order and other batches.
        gradient_accumulation_steps: micro-batches per global batch and rank.
        rank, world_size: this process and the number of processes.
        on_new_pass: called on rank 0 with a line of text when a domain is exhausted and a new pass over it
            begins; `None` is this module's `logger.info`, which is not shown unless logging is set up.

    Raises:
        ValueError: for numbers outside their ranges, an empty domain, or bad weights.
    """

    def __init__(
        self,
        domain_sizes: Mapping[str, int | None],
        batch_size: int,
        mixture_weights: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        gradient_accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        on_new_pass: Callable[[str], None] | None = None,
    ) -> None:
        for name, size in domain_sizes.items():
            if size is not None:
                RANGES["domain_sizes[]"].check(f"domain_sizes[{name!r}]", size)
        numbers = {"batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps}
        check_ranges(numbers | {"world_size": world_size, "seed": seed})
        if not 0 <= rank < world_size:
            raise UsageError(f"`rank` must lie in range(`world_size`), {world_size}, but it is {rank}. Correct it.")
        self.domain_sizes = {name: size if size is None else int(size) for name, size in domain_sizes.items()}
        self.batch_size = batch_size
        self.seed = seed
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rank = rank
        self.world_size = world_size
        self.on_new_pass = logger.info if on_new_pass is None else on_new_pass
        self.version = 0
        """Raised whenever batches drawn ahead have become stale."""
        self.global_batch_index = 0
        """Number of global batches committed."""
        self._weights = check_mixture_weights(mixture_weights, self.domain_sizes)
        self._consumed = np.zeros(len(self.domain_sizes), dtype=np.int64)  # replaced, never changed in place

    @property
    def global_batch_size(self) -> int:
        """B."""
        return self.batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def mixture_weights(self) -> dict[str, float]:
        """domain -> weight of the next global batch; a copy."""
        return dict(self._weights)

    @property
    def samples_consumed(self) -> dict[str, int]:
        """domain -> samples in committed global batches."""
        return dict(zip(self.domain_sizes, self._consumed.tolist(), strict=True))

    @property
    def passes(self) -> dict[str, float]:
        """domain -> passes over its samples so far, a fraction; without streams, whose size is not known."""
        consumed = self.samples_consumed
        return {name: consumed[name] / size for name, size in self.domain_sizes.items() if size is not None}

    def set_mixture_weights(self, mixture_weights: Mapping[str, float]) -> None:
        """Use these weights from the next uncommitted global batch on. Batches drawn ahead become stale."""
        self._weights = check_mixture_weights(mixture_weights, self.domain_sizes)
        self.version += 1

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's micro-batches from the next uncommitted global batch on, without end.

        The state is taken here, not when the first micro-batch is asked for.
        """
        weights = np.array(list(self._weights.values()))
        return self._draw_ahead(self.global_batch_index, self._consumed, weights)

    def _draw_ahead(self, index: int, consumed: np.ndarray, weights: np.ndarray) -> Iterator[list[int]]:
        while True:
            batch, counts = self._global_batch(index, consumed, weights)
            for micro_step in range(self.gradient_accumulation_steps):
                start = (micro_step * self.world_size + self.rank) * self.batch_size
                yield batch[start : start + self.batch_size].tolist()
            index, consumed = index + 1, consumed + counts

    def peek_global_batch(self) -> list[int]:
        """The samples of the next uncommitted global batch, [B], of all ranks; changes nothing."""
        weights = np.array(list(self._weights.values()))
        return self._global_batch(self.global_batch_index, self._consumed, weights)[0].tolist()

    def commit(self) -> None:
        """Count the next global batch as consumed: call it when all of it was handed to training."""
        counts, _ = self._counts(self.global_batch_index, np.array(list(self._weights.values())))
        before, self._consumed = self._consumed, self._consumed + counts
        self.global_batch_index += 1
        if self.rank == 0:
            self._tell_passes(before)

    def _tell_passes(self, before: np.ndarray) -> None:
        """One line for every domain of which a later pass than before has begun."""
        for name, old, new in zip(self.domain_sizes, before.tolist(), self._consumed.tolist(), strict=True):
            size = self.domain_sizes[name]
            if size is None:
                continue
            old_pass, new_pass = max(old - 1, 0) // size, max(new - 1, 0) // size
            if new_pass > old_pass:
                self.on_new_pass(
                    f"Domain {name!r} ({size} samples) is exhausted: pass {new_pass + 1} over it, in a fresh "
                    f"order, begins in global batch {self.global_batch_index - 1}."
                )

    # How a global batch is drawn. All of it is a function of its arguments and the seed.

    def _counts(self, index: int, weights: np.ndarray) -> tuple[np.ndarray, np.random.Generator]:
        """[domains] int64, sum B, and the batch's generator: systematic sampling with one random offset."""
        generator = np.random.default_rng((self.seed, BATCH_STREAM, index))
        is_drawn = weights > 0
        edges = np.cumsum(weights[is_drawn]) * self.global_batch_size
        edges[-1] = self.global_batch_size
        # the points offset, offset + 1, ... are B in number; a domain gets those between its edges
        points_below = np.clip(np.ceil(edges - generator.random()), 0, self.global_batch_size).astype(np.int64)
        counts = np.zeros(len(weights), dtype=np.int64)
        counts[is_drawn] = np.diff(points_below, prepend=0)
        return counts, generator

    def _global_batch(self, index: int, consumed: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a global batch [B], and how many of each domain [domains]."""
        counts, generator = self._counts(index, weights)
        parts = []
        offset = 0
        for domain, size in enumerate(self.domain_sizes.values()):
            if size is None:
                parts.append(np.full(counts[domain], stream_slot(domain)))
                continue
            positions = np.arange(consumed[domain], consumed[domain] + counts[domain])
            for number in np.unique(positions // size).tolist():
                in_pass = positions[positions // size == number] - number * size
                parts.append(offset + permute(in_pass, size, (self.seed, PASS_STREAM, domain, number)))
            offset += size
        return np.concatenate(parts)[generator.permutation(self.global_batch_size)], counts

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next global batch depends on; small and JSON-able."""
        return {
            "global_batch_index": self.global_batch_index,
            "samples_consumed": self.samples_consumed,
            "mixture_weights": self.mixture_weights,
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken, on any split of the same global batch over devices.

        Raises:
            ValueError: if the state is of other domains, sizes, seed or global batch size.
        """
        lacking = [field for field in self.state_dict() if field not in state]
        if lacking:
            raise UsageError(
                f"The sampler's state lacks `{lacking[0]}`. Take that of an undamaged checkpoint, or start a new run."
            )
        for field, own in self._identity().items():
            saved = state[field]
            if saved != own:
                raise UsageError(
                    f"The sampler's state must be of the same run, but its `{field}` is {saved} and this "
                    f"sampler's is {own}. Resume with the same data, seed and global batch size, or start a "
                    "new run."
                )
        check_ranges({"global_batch_index": state["global_batch_index"]})
        for name in self.domain_sizes:
            consumed = state["samples_consumed"].get(name)
            RANGES["samples_consumed[]"].check(f"samples_consumed[{name!r}]", consumed)
        check_mixture_weights(
            state["mixture_weights"], self.domain_sizes
        )  # they are taken as they are, to the last bit
        self.global_batch_index = int(state["global_batch_index"])
        self._consumed = np.array([state["samples_consumed"][name] for name in self.domain_sizes], dtype=np.int64)
        self._weights = {name: float(state["mixture_weights"][name]) for name in self.domain_sizes}
        self.version += 1

    def _identity(self) -> dict[str, Any]:
        """What must be equal for two samplers to draw the same batches. Pairs, because the order counts."""
        return {
            "domain_sizes": [[name, size] for name, size in self.domain_sizes.items()],
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
        }
