"""A data loader whose next batch always follows the sampler's present weights, however far ahead workers have
read.

Shapes: b = samples of a micro-batch, S = tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..core import IGNORED_LABEL, UsageError, leave_signals_to_parent
from .sampler import DynamicBatchSampler

if TYPE_CHECKING:
    from datasets import Dataset


TEACHER_COLUMNS = {"teacher_log_probs": np.float32, "teacher_ids": np.int64}
"""Columns that `hf_shear.distillation.store_teacher_logits` adds to samples, and the dtype in which they are collated."""


def collate_domain_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples to LongTensors [b, S]: `input_ids`, `labels` (equal to them) and, if there, `position_ids`;
    and stored teacher logits, if there: `teacher_log_probs` [b, S * (k + 1)] float32, `teacher_ids` [b, S * k].

    There is no `attention_mask`: samples are full, and without one transformers reads restarted positions as
    separate documents. Causal models shift the labels themselves. Where documents are separate, the first token
    of each has no label (`IGNORED_LABEL`): what stands before it is another document.

    Raises:
        ValueError: if some samples have `position_ids` and others have none.
    """
    if len({"position_ids" in sample for sample in samples}) > 1:
        raise UsageError(
            "Some samples of a batch have `position_ids` and others have none. Pack all domains with the same"
            " `block_diagonal`."
        )
    batch = {
        key: torch.from_numpy(np.stack([np.asarray(sample[key], dtype=np.int64) for sample in samples]))
        for key in ("input_ids", "position_ids")
        if key in samples[0]
    }
    for key, dtype in TEACHER_COLUMNS.items():
        if key in samples[0]:
            batch[key] = torch.from_numpy(np.stack([np.asarray(sample[key], dtype=dtype) for sample in samples]))
    batch["labels"] = batch["input_ids"].clone()
    if "position_ids" in batch:
        batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
    return batch


class DomainSamples(TorchDataset):
    """The samples of all domains, numbered through as by the sampler; nothing is copied or concatenated.

    A table of memory-mapped shards is not joined with others, so that nothing is done per shard or per row.

    Args:
        datasets: in the order of the sampler's domains.

    Raises:
        ValueError: if the data sets have different columns.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        columns = [sorted(data.column_names) for data in datasets if hasattr(data, "column_names")]
        if any(names != columns[0] for names in columns):
            raise UsageError(
                f"The domains must have the same columns, but they have {columns}. Pack all with the same"
                " `block_diagonal`."
            )
        self._datasets = [data.with_format("numpy") if hasattr(data, "with_format") else data for data in datasets]
        self._ends = np.cumsum([len(data) for data in datasets], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The samples of the indices, in their order; those of one domain are read together."""
        domains = np.searchsorted(self._ends, indices, side="right")
        samples: list[Any] = [None] * len(indices)
        for domain in np.unique(domains).tolist():
            slots = np.flatnonzero(domains == domain).tolist()
            dataset = self._datasets[domain]
            start = int(self._ends[domain]) - len(dataset)
            own = [int(indices[slot]) - start for slot in slots]
            read = dataset.__getitems__(own) if hasattr(dataset, "__getitems__") else [dataset[i] for i in own]
            for slot, sample in zip(slots, read, strict=True):
                samples[slot] = sample
        return samples


def check_sizes(found: Mapping[str, int | None], sampler: DynamicBatchSampler) -> None:
    """Raise ValueError unless domains, order and sizes (`None` for streams) are the sampler's."""
    if list(found.items()) != list(sampler.domain_sizes.items()):
        raise UsageError(
            "`datasets` must have the names, order and sizes of the sampler's domains "
            f"({list(sampler.domain_sizes.items())}), but they are {list(found.items())}. Build the sampler from them."
        )


class DynamicDataLoader:
    """Micro-batches without end, drawn by a `DynamicBatchSampler`.

    Workers read ahead of training. When the sampler's weights or state have changed since they began, what
    they read is thrown away and reading starts anew at the next uncommitted global batch, before another micro-batch
    is given: none is lost and none is given twice. So change weights between global batches, after
    `sampler.commit()`; a global batch that was not committed is drawn and given again.

    It has no length, and must not be prepared by accelerate: the sampler already deals to ranks. Its random
    generator is its own, so that starting it does not change the run's random numbers.

    Args:
        datasets: domain -> data set of samples; names, order and sizes as in the sampler. A `datasets.Dataset`, or
            anything with `__len__` and `__getitem__`.
        sampler: see `DynamicBatchSampler`.
        collate_fn: list of samples -> batch.
        num_workers, pin_memory, prefetch_factor: as in `torch.utils.data.DataLoader`.
        persistent_workers: keep the workers when reading starts anew; by default if there are any.

    Raises:
        ValueError: if the data sets are not those of the sampler.
    """

    weight_lag = 0
    """Global batches between a change of weights and the first batch that follows it."""

    def __init__(
        self,
        datasets: Mapping[Any, Dataset],
        sampler: DynamicBatchSampler,
        collate_fn: Callable[[Sequence[Mapping[str, Any]]], Any] = collate_domain_samples,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool | None = None,
    ) -> None:
        check_sizes({name: len(dataset) for name, dataset in datasets.items()}, sampler)
        self.sampler = sampler
        self.dataset = DomainSamples(list(datasets.values()))
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            generator=torch.Generator().manual_seed(sampler.seed),
            worker_init_fn=leave_signals_to_parent,
        )

    def state_dict(self) -> dict[str, Any]:
        """Empty: the sampler's state, which is the same for every process, says all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that there is nothing to restore.

        Raises:
            ValueError: if the state is of streams.
        """
        if state:
            raise UsageError(
                f"The checkpoint was written with streams ({list(state.get('streams', state))}), but no domain of"
                " `train_dataset` is a stream now. Resume with the same data."
            )

    def close(self) -> None:
        """Stop the workers. Iterating again starts new ones."""
        self._loader._iterator = None

    def __iter__(self) -> Iterator[Any]:
        version, batches = None, iter(())
        while True:
            if version != self.sampler.version:
                version, batches = self.sampler.version, iter(self._loader)
            yield next(batches)
