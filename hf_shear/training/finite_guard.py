"""NaN and infinity end a training before they reach a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import FailedError
from .arguments import ShearTrainingArguments
from .part import Part


class TrainingDivergedError(FailedError):
    """The loss or a gradient became NaN or infinite; no checkpoint was written after that."""


class FiniteGuard(Part):
    """Notes on the device what is not finite, and looks there before anything is logged or saved, not in every step.

    Args:
        args: of the training.
        mask_rate: peak learning rate of the masks; None where none are learned.
        reduce: sums a tensor over processes.
    """

    def __init__(self, args: ShearTrainingArguments, mask_rate: float | None, reduce: Callable[[Tensor, str], Tensor]):
        self.args, self.mask_rate, self.reduce = args, mask_rate, reduce
        self.start()

    def start(self) -> None:
        """Forget what was noted."""
        self.found = torch.zeros((), dtype=torch.bool, device=self.args.device)

    def note(self, value: Tensor | float) -> None:
        """Remember if ``value`` is not finite; nothing waits for the device."""
        self.found |= ~torch.isfinite(torch.as_tensor(value, device=self.found.device))

    def check(self, step: int, good_checkpoint: str | None) -> None:
        """Stop if anything that was noted was not finite. All processes must ask.

        Args:
            step: that is done.
            good_checkpoint: the last one that was written or resumed from.

        Raises:
            TrainingDivergedError: says what may help.
        """
        # One process alone may have met it; all of them stop, or the others would wait for it.
        if not self.reduce(self.found.float(), "sum").item():
            return
        args = self.args
        stage = "training" if self.mask_rate is None else "mask learning"
        lower = [f"`learning_rate` ({args.learning_rate})"]
        if self.mask_rate is not None:
            lower.append(f"`mask_learning_rate` ({self.mask_rate})")
        if args.max_grad_norm:
            lower.append(f"`max_grad_norm` ({args.max_grad_norm})")
        rescue = "No checkpoint was written before that: start again"
        if good_checkpoint is not None:
            rescue = f"The last good checkpoint is {good_checkpoint}: resume from it"
        raise TrainingDivergedError(
            f"The loss or a gradient became NaN or infinite during {stage}, by step {step}. {rescue}"
            f" with a lower {' or '.join(lower)}" + (", or with `bf16` in place of `fp16`." if args.fp16 else ".")
        )
