"""A data loader whose next batch always follows the sampler's present weights, however far ahead workers have
read.

Shapes: b = samples of a micro-batch, S = tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader

from hf_shear.data.sampler import DynamicBatchSampler

if TYPE_CHECKING:
    from datasets import Dataset


IGNORED_LABEL = -100
"""A label that counts in no loss (the convention of torch and transformers)."""


def collate_domain_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples to LongTensors [b, S]: `input_ids`, `labels` (equal to them) and, if there,
    `position_ids`.

    There is no `attention_mask`: samples are full, and without one transformers reads restarted positions as
    separate documents. Causal models shift the labels themselves. Where documents are separate, the first token
    of each has no label (`IGNORED_LABEL`): what stands before it is another document.
    """
    batch = {
        key: torch.from_numpy(np.stack([np.asarray(sample[key], dtype=np.int64) for sample in samples]))
        for key in ("input_ids", "position_ids")
        if key in samples[0]
    }
    batch["labels"] = batch["input_ids"].clone()
    if "position_ids" in batch:
        batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
    return batch


class DynamicDataLoader:
    """Micro-batches without end, drawn by a `DynamicBatchSampler`.

    Workers read ahead of training. When the sampler's weights or state have changed since they began, what
    they read is thrown away and reading starts anew at the next uncommitted global batch, before another
    micro-batch is
    given: none is lost and none is given twice. So change weights between global batches, after
    `sampler.commit()`; a global batch that was not committed is drawn and given again.

    It has no length, and must not be prepared by accelerate: the sampler already deals to ranks. Its random
    generator is its own, so that starting it does not change the run's random numbers.

    Args:
        datasets: domain -> data set of samples, of 🤗 Datasets or map-style ones of torch; names, order and sizes as
            in the sampler.
        sampler: see `DynamicBatchSampler`.
        collate_fn: list of samples -> batch.
        num_workers, pin_memory, prefetch_factor: as in `torch.utils.data.DataLoader`.
        persistent_workers: keep the workers when reading starts anew; by default if there are any.

    Raises:
        ValueError: if the data sets are not those of the sampler.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        sampler: DynamicBatchSampler,
        collate_fn: Callable[[Sequence[Mapping[str, Any]]], Any] = collate_domain_samples,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool | None = None,
    ) -> None:
        sizes = [(name, len(dataset)) for name, dataset in datasets.items()]
        if sizes != list(sampler.domain_sizes.items()):
            raise ValueError(
                "`datasets` must have the names, order and sizes of the sampler's domains "
                f"({list(sampler.domain_sizes.items())}), but they are {sizes}. Build the sampler from them."
            )
        self.sampler = sampler
        self.dataset = _concatenate(list(datasets.values()))
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            generator=torch.Generator().manual_seed(sampler.seed),
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


def _concatenate(datasets: list) -> Any:
    """One data set after the other. The package of 🤗 Datasets is needed for its own only."""
    if all(isinstance(dataset, torch.utils.data.Dataset) for dataset in datasets):
        return ConcatDataset(datasets)
    from datasets import concatenate_datasets

    return concatenate_datasets(datasets).with_format("numpy")
