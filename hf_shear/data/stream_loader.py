"""A data loader for domains of which some, or all, are streams.

Shapes: b = samples of a micro-batch, S = tokens of a sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..core import FailedError, UsageError
from .loader import DomainSamples, check_sizes, collate_domain_samples
from .read_ahead import ProcessReadAhead, ThreadReadAhead
from .sampler import DynamicBatchSampler, stream_slot
from .streams import PackedStream, as_stream, is_stream, read_share

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PREFETCH_FACTOR = 2  # torch's default


class StreamReader:
    """One domain's stream on one process: its next samples, held until they are committed.

    Args:
        name: of the domain, for errors.
        stream: a `PackedStream` or an `IterableDataset` of samples.
        rank, world_size: this process and the number of processes; each reads shares of its own.
        num_workers: processes that read, each a share; 0 is one share, read in a thread. Shares take turns, so that the
            order of samples depends on nothing but their number.
        capacity: samples read ahead of each share.
    """

    def __init__(
        self,
        name: str,
        stream: PackedStream | IterableDataset,
        *,
        rank: int,
        world_size: int,
        num_workers: int,
        capacity: int,
    ) -> None:
        self.name = name
        self.passes_ended = 0
        """Passes over all of a share that are committed, of the share that is farthest."""
        self._stream = as_stream(stream)
        self._num_shares = max(num_workers, 1)
        self._first_share, self._all_shares = rank * self._num_shares, world_size * self._num_shares
        self._read_ahead = ProcessReadAhead if num_workers else ThreadReadAhead
        self._capacity = capacity
        self._positions: list[dict | None] = [None] * self._num_shares  # committed
        self._turn = 0  # of the share that gives the first sample in `_held`
        self._held: deque[tuple[Any, dict]] = deque()  # read, not committed
        self._given = 0  # how many of these were given
        self._sources: list[ThreadReadAhead | ProcessReadAhead] = []
        self._error: RuntimeError | None = None

    def start(self) -> None:
        """Begin to read ahead, if that is not under way."""
        for share in range(0 if self._sources else self._num_shares):
            index = self._first_share + share
            items = partial(read_share, self._stream, index, self._all_shares, self._positions[share])
            self._sources.append(self._read_ahead(items, self._capacity, f"{self.name}-{index}"))

    def take(self) -> Any:
        """The next sample.

        Raises:
            RuntimeError: what failed in the thread or process that reads, with the domain's name; again at every call,
                until `close`.
        """
        if self._error is not None:
            raise self._error
        self.start()
        if self._given == len(self._held):
            source = self._sources[(self._turn + self._given) % self._num_shares]
            try:
                self._held.append(next(source))
            except Exception as error:
                kind = FailedError if isinstance(error, (UsageError, OSError)) else RuntimeError
                self._error = kind(
                    f"The stream of domain {self.name!r} could not be read: {type(error).__name__}: {error}"
                )
                raise self._error from error
        self._given += 1
        return self._held[self._given - 1][0]

    def rewind(self) -> None:
        """Give again what was given and not committed."""
        self._given = 0

    def commit(self, num_samples: int) -> None:
        """Let go of the first samples that were given, and move on the position from which a resumed run reads."""
        for _ in range(num_samples):
            _, position = self._held.popleft()
            self._positions[self._turn] = position
            self._turn = (self._turn + 1) % self._num_shares
            self._given -= 1
            self.passes_ended = max(self.passes_ended, position["pass"])

    def close(self) -> None:
        """Stop reading. Taking a sample again begins at the committed position."""
        for source in self._sources:
            source.close()
        self._sources, self._given, self._error = [], 0, None
        self._held.clear()

    def state_dict(self) -> dict[str, Any]:
        """The committed position; small and JSON-able."""
        return {"num_shards": self._stream.dataset.num_shards, "turn": self._turn, "positions": list(self._positions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sample after the committed ones.

        Raises:
            ValueError: if the state is of another number of shards or of workers.
        """
        shards = self._stream.dataset.num_shards
        if state["num_shards"] != shards:
            raise UsageError(
                f"The stream of domain {self.name!r} must have the shards (files) it was saved with,"
                f" {state['num_shards']}, but it has {shards}. Give the same files, or start a new run."
            )
        if len(state["positions"]) != self._num_shares:
            raise UsageError(
                f"Domain {self.name!r} was read in {len(state['positions'])} share(s) per process, but `num_workers` makes"
                f" it {self._num_shares}. Resume with `dataloader_num_workers={len(state['positions'])}`"
                + (" or 0." if len(state["positions"]) == 1 else ".")
            )
        self.close()
        self._turn, self._positions = state["turn"], list(state["positions"])
        self.passes_ended = max((position["pass"] for position in self._positions if position), default=0)


class StreamDataLoader:
    """Micro-batches without end, drawn by a `DynamicBatchSampler`, from domains of which some are streams.

    Each process reads a share of its own of every stream, disjoint from all others, into a queue per domain. A batch is
    composed from the queues when it is asked for: a changed weight reaches the very next batch (`weight_lag` is 0),
    however much was read ahead. Positions move on only over global batches that the sampler committed; one that was not
    committed is given again. Domains that are not streams are read in this process, when their samples are asked for.

    `state_dict` is of this process alone: a checkpoint needs that of every process.

    Args:
        datasets: domain -> `PackedStream`, `IterableDataset` of samples, or data set of samples; names and order as in
            the sampler, which has no size (`None`) for streams.
        sampler, collate_fn, pin_memory: as for `DynamicDataLoader`.
        num_workers: processes per stream, each of which reads a share of its own; 0 reads every stream in a thread.
        prefetch_factor: optimizer steps to read ahead: every share holds up to so many steps' samples of this process.

    Raises:
        ValueError: if the data sets are not those of the sampler.
    """

    weight_lag = 0
    """Global batches between a change of weights and the first batch that follows it."""

    def __init__(
        self,
        datasets: Mapping[Any, Dataset | IterableDataset | PackedStream],
        sampler: DynamicBatchSampler,
        collate_fn: Callable[[Sequence[Mapping[str, Any]]], Any] = collate_domain_samples,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
    ) -> None:
        check_sizes({name: None if is_stream(data) else len(data) for name, data in datasets.items()}, sampler)
        self.sampler = sampler
        self._collate, self._pin_memory = collate_fn, pin_memory
        self._samples = DomainSamples([data for data in datasets.values() if not is_stream(data)])
        factor = PREFETCH_FACTOR if prefetch_factor is None else prefetch_factor
        options = {
            "rank": sampler.rank,
            "world_size": sampler.world_size,
            "num_workers": num_workers,
            "capacity": factor * sampler.batch_size * sampler.gradient_accumulation_steps,
        }
        self._readers = {
            stream_slot(number): StreamReader(name, data, **options)
            for number, (name, data) in enumerate(datasets.items())
            if is_stream(data)
        }
        self._num_workers = num_workers
        self._given: deque[dict[int, int]] = deque()  # of each micro-batch given and not committed: samples per reader
        self._settled_batches = sampler.global_batch_index

    def __iter__(self) -> Iterator[Any]:
        for reader in self._readers.values():
            reader.start()
        version, micro_batches = None, iter(())
        while True:
            self._settle()
            if version != self.sampler.version:
                version, micro_batches = self.sampler.version, iter(self.sampler)
                self._given.clear()
                for reader in self._readers.values():
                    reader.rewind()
            yield self._compose(next(micro_batches))

    def _compose(self, slots: list[int]) -> Any:
        """The batch of a micro-batch's slots."""
        stored = iter(self._samples.__getitems__([slot for slot in slots if slot >= 0]))
        samples = [next(stored) if slot >= 0 else self._readers[slot].take() for slot in slots]
        self._given.append({slot: slots.count(slot) for slot in self._readers})
        batch = self._collate(samples)
        if self._pin_memory and isinstance(batch, Mapping):
            batch = {
                name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()
            }
        return batch

    def _is_in_step(self) -> bool:
        """Whether all the global batches that the sampler committed since the last time were given from here."""
        new = self.sampler.global_batch_index - self._settled_batches
        return 0 <= new * self.sampler.gradient_accumulation_steps <= len(self._given)

    def _settle(self) -> None:
        """Commit what the sampler has committed since the last call."""
        steps = self.sampler.gradient_accumulation_steps
        if not self._is_in_step():
            raise UsageError(
                f"The sampler is at global batch {self.sampler.global_batch_index}, but the streams are at"
                f" {self._settled_batches} and gave {len(self._given) // steps} more. Restore both from one checkpoint:"
                " the sampler's `load_state_dict`, then the loader's."
            )
        while self._settled_batches < self.sampler.global_batch_index:
            before = {slot: reader.passes_ended for slot, reader in self._readers.items()}
            for counts in [self._given.popleft() for _ in range(steps)]:
                for slot, num_samples in counts.items():
                    self._readers[slot].commit(num_samples)
            self._tell_passes(before)
            self._settled_batches += 1

    def _tell_passes(self, before: Mapping[int, int]) -> None:
        """One line for every stream of which a later pass than before has begun."""
        for slot, reader in self._readers.items():
            if self.sampler.rank == 0 and reader.passes_ended > before[slot]:
                self.sampler.on_new_pass(
                    f"Domain {reader.name!r} (a stream) is exhausted, as far as this process reads it: pass"
                    f" {reader.passes_ended + 1} over it begins in global batch {self._settled_batches}."
                )

    def close(self) -> None:
        """Stop threads and processes. Iterating again begins at the next uncommitted global batch."""
        if self._is_in_step():  # else the next batch tells; here an error would hide the one that ended the run
            self._settle()
        self._given.clear()
        for reader in self._readers.values():
            reader.close()

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands in each of its streams, after the committed global batches; JSON-able."""
        self._settle()
        return {
            **self._identity(),
            "global_batch_index": self._settled_batches,
            "streams": {reader.name: reader.state_dict() for reader in self._readers.values()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken. Restore the sampler first, from the same checkpoint.

        Raises:
            ValueError: if the state is of another process, number of processes, global batch or other streams.
        """
        own = self._identity() | {"global_batch_index": self.sampler.global_batch_index}
        for field, value in own.items():
            if state.get(field) != value:
                raise UsageError(
                    f"The streams' state must be of the same process and step, but its `{field}` is {state.get(field)} and"
                    f" here it is {value}. Streams resume with as many processes as they were saved with, each from its"
                    " own file; packed data sets (not streams) resume with any number."
                )
        names = [reader.name for reader in self._readers.values()]
        if list(state["streams"]) != names:
            raise UsageError(
                f"The streams' state must be of the streams {names}, but it is of {list(state['streams'])}. Resume with the"
                " same domains."
            )
        for reader in self._readers.values():
            reader.load_state_dict(state["streams"][reader.name])
        self._given.clear()
        self._settled_batches = self.sampler.global_batch_index

    def _identity(self) -> dict[str, int]:
        return {"rank": self.sampler.rank, "world_size": self.sampler.world_size}
