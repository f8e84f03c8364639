"""Training a finalist for a short while, as recovery would."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ..shapes import training_flops_per_token
from ..training import ShearTrainer, ShearTrainingArguments


@dataclass(frozen=True)
class ShortRecovery:
    """Trains all weights in place, all domains alike, on a decay of its own: (1 - t) ** 0.5 of the peak.

    Attributes:
        train: packed samples by domain.
        learning_rate, batch_size, seed: as in ``ShearTrainingArguments``.
        max_length: tokens of a sample.
    """

    train: Mapping[Any, Dataset]
    learning_rate: float
    batch_size: int
    max_length: int
    seed: int = 42

    def __call__(self, model: PreTrainedModel, flops: float) -> tuple[PreTrainedModel, int]:
        """The model, trained for these FLOPs; and the tokens that it was trained on."""
        per_step = self.batch_size * self.max_length
        steps = max(round(flops / training_flops_per_token(model.config, self.max_length) / per_step), 1)
        with tempfile.TemporaryDirectory() as folder:
            args = ShearTrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=self.batch_size, learning_rate=self.learning_rate,
                lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 0.5, "lr_end": 0.0}, warmup_steps=0.05,
                dynamic_batches=False, eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none",
                disable_tqdm=True, seed=self.seed,
            )  # fmt: skip
            trainer = ShearTrainer(model, args, self.train)
            trainer.train()
            trained = trainer.accelerator.unwrap_model(trainer.model)
        assert isinstance(trained, PreTrainedModel)
        return trained, steps * per_step
