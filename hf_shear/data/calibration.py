"""Calibration text: the packed samples that scores, statistics and compensation are computed on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import UsageError, check_ranges, predicted_tokens
from .loader import collate_domain_samples
from .sampler import DynamicBatchSampler

if TYPE_CHECKING:
    from datasets import Dataset

SEED_OFFSET = 1_000_003  # keeps calibration batches apart from the training batches of the same seed


@dataclass(frozen=True)
class Calibration:
    """Samples, in the batches that forwards take at once. What is computed on them does not depend on the batches.

    Attributes:
        batches: tensors by name, as a model takes them: ``input_ids`` and ``labels`` [samples, length], and perhaps
            ``position_ids`` or ``attention_mask``.
        seed: of the draw of the samples, and of whatever a criterion draws.
    """

    batches: list[dict[str, Tensor]]
    seed: int = 0

    def __post_init__(self):
        check_ranges(self)
        if not self.batches:
            raise UsageError("`batches` is empty: `calibration` needs at least one batch of text. Give some.")
        for batch in self.batches:
            if "input_ids" not in batch or "labels" not in batch:
                raise UsageError(
                    f"A batch of `calibration` must hold `input_ids` and `labels`, but it has {sorted(batch)}. Make batches"
                    " with `Calibration.from_domains`."
                )
        check_ranges({"seed": self.seed})

    @classmethod
    def from_domains(
        cls, domains: Mapping[Any, Dataset], batch_size: int = 8, num_batches: int = 16, seed: int = 0
    ) -> Calibration:
        """A seeded draw of packed samples, all domains alike.

        Args:
            domains: packed samples by domain, as ``pack_domains`` makes them.
            batch_size: samples per batch.
            num_batches: batches to draw.
            seed: of the draw; training batches of the same seed are others.
        """
        from datasets import concatenate_datasets

        check_ranges({"calibration_batch_size": batch_size, "calibration_batches": num_batches})
        samples = concatenate_datasets(list(domains.values()))
        sizes = {name: len(domain) for name, domain in domains.items()}
        sampler = DynamicBatchSampler(sizes, batch_size, seed=seed + SEED_OFFSET)
        drawn = islice(iter(sampler), num_batches)
        return cls([collate_domain_samples([samples[index] for index in indices]) for indices in drawn], seed)

    @classmethod
    def from_batches(
        cls, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None, seed: int = 0
    ) -> Calibration:
        """Calibration on ``batches``, each split into forwards of at most ``micro_batch_size`` samples."""
        if micro_batch_size is not None:
            check_ranges({"micro_batch_size": micro_batch_size})
        split = []
        for batch in batches:
            num_samples = len(batch["input_ids"])
            size = micro_batch_size or num_samples
            for start in range(0, num_samples, size):
                split.append({name: tensor[start : start + size] for name, tensor in batch.items()})
        return cls(split, seed)

    def digest(self) -> str:
        """SHA-256 over all values, in order; the same for every split into batches."""
        digest = hashlib.sha256()
        for name in sorted(self.batches[0]):
            digest.update(name.encode())
            for batch in self.batches:
                digest.update(batch[name].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def num_samples(self) -> int:
        return sum(len(batch["input_ids"]) for batch in self.batches)

    @property
    def num_tokens(self) -> int:
        """Tokens read, predicted or not."""
        return sum(batch["input_ids"].numel() for batch in self.batches)

    def num_samples_of(self, num_tokens: int) -> int:
        """Samples that hold ``num_tokens``."""
        return -(-num_tokens // self.batches[0]["input_ids"].shape[1])

    @property
    def num_predicted(self) -> int:
        """Tokens whose loss counts: labels that are not ignored, without each sample's first."""
        return sum(int(predicted_tokens(batch["labels"]).sum()) for batch in self.batches)
