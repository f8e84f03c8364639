"""Calibration text: the packed samples that scores, statistics and compensation are computed on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..core import UsageError, check_ranges, predicted_tokens


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
                    " with `collate_domain_samples`."
                )
        check_ranges({"seed": self.seed})

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

    @property
    def num_predicted(self) -> int:
        """Tokens whose loss counts: labels that are not ignored, without each sample's first."""
        return sum(int(predicted_tokens(batch["labels"]).sum()) for batch in self.batches)
