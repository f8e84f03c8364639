"""One recovery run as the scaling laws see it: facts of the model, and its losses over tokens.

A mistake in the units of a table fits well and predicts nonsense, so units are checked: parameters are counted one by one,
fractions are not percentages, tokens are whole numbers, and many enough for the model (``check_runs``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError

UNITS_HINT = "tokens in millions or billions. Count them one by one (0.5 billion is 500000000)."
MIN_PARAMETERS = 1_000
MAX_CHANCE = 0.01
"""How likely a slope may be by chance alone, on losses that neither rise nor fall, before losses are said to rise."""


@dataclass(frozen=True)
class Case:
    """A model before it is pruned, and how much of it goes.

    Attributes:
        num_parameters: N0, parameters before pruning.
        fraction_removed: rho, removed / N0; above 0 and below 1.
        source_loss: L0, loss of the unpruned model, nats per token. Where a law was fitted against controls, the loss
            that the control has at the tokens in question.
        num_pruned_parameters: N, exactly; default (1 - rho) N0. FLOPs are counted with it.
        source_tokens: tokens that the source was trained on, for laws in the average parameter count.
    """

    num_parameters: float
    fraction_removed: float
    source_loss: float
    num_pruned_parameters: float | None = None
    source_tokens: float | None = None

    def __post_init__(self):
        _positive("num_parameters", self.num_parameters)
        if self.num_parameters < MIN_PARAMETERS:
            raise UsageError(
                f"`num_parameters` must count parameters one by one, but it is {self.num_parameters:g}: that looks like"
                " millions or billions. Give 1.3e9 for 1.3 billion."
            )
        _number("fraction_removed", self.fraction_removed)
        if not 0 < self.fraction_removed < 1:
            hint = f" Give {self.fraction_removed / 100:g} for {self.fraction_removed:g} %." if self._percent else ""
            raise UsageError(
                "`fraction_removed` must be removed / all parameters, above 0 and below 1, but it is"
                f" {self.fraction_removed:g}.{hint}"
            )
        _positive("source_loss", self.source_loss)
        for name in ("num_pruned_parameters", "source_tokens"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.num_pruned_parameters is not None and self.num_pruned_parameters >= self.num_parameters:
            raise UsageError(
                f"`num_pruned_parameters` ({self.num_pruned_parameters:,}) must be below `num_parameters`"
                f" ({self.num_parameters:,}). Give the parameters that are left."
            )

    @property
    def _percent(self) -> bool:
        return 1 <= self.fraction_removed < 100

    @property
    def pruned_size(self) -> float:
        """N, parameters after pruning."""
        if self.num_pruned_parameters is not None:
            return self.num_pruned_parameters
        return (1 - self.fraction_removed) * self.num_parameters


@dataclass(frozen=True)
class RecoveryRun:
    """Checkpoints of the recovery of one pruned model.

    Attributes:
        name: of the run, for messages.
        case: the model, and how much of it was removed.
        tokens: recovery tokens at each checkpoint, rising.
        losses: held-out loss at each, nats per token.
        control_losses: those of the unpruned source, continued on the same tokens; None for none. Without them an
            under-trained source makes the rise L - L0 negative, because the pruned model goes on improving.
        family: of models that one law holds for; runs that name different ones are not fitted together.
        pruning: kind of pruning (depth, width, 2:4, ...); as with the family.
        learning_rate: peak rate of the recovery, by which a nearest run is found among equals.

    Raises:
        ValueError: a value is not finite or not positive, or tokens are no whole numbers that rise.
    """

    name: str
    case: Case
    tokens: Sequence[float]
    losses: Sequence[float]
    control_losses: Sequence[float] | None = None
    family: str | None = None
    pruning: str | None = None
    learning_rate: float | None = None

    def __post_init__(self):
        for name in ("tokens", "losses", "control_losses"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.tokens:
            raise UsageError(f"Run {self.name!r} has no checkpoints.")
        for name in ("losses", "control_losses"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise UsageError(
                    f"Run {self.name!r} must have one of `{name}` per checkpoint ({len(self.tokens)}), but it has"
                    f" {len(values)}."
                )
            for value in values or ():
                _positive(f"{name}` of run `{self.name}", value)
        self._check_tokens()

    def _check_tokens(self) -> None:
        for value in self.tokens:
            _positive(f"tokens` of run `{self.name}", value)
        if any(value != math.floor(value) for value in self.tokens):
            raise UsageError(
                f"`tokens` of run {self.name!r} must be whole numbers, but it ends at {self.tokens[-1]:g}: that looks like"
                f" {UNITS_HINT}"
            )
        if any(after <= before for before, after in pairwise(self.tokens)):
            raise UsageError(
                f"`tokens` of run {self.name!r} must rise from checkpoint to checkpoint; sort or split it."
            )

    @cached_property
    def reference(self) -> NDArray:
        """L0 at each checkpoint: the control's losses, or the source's."""
        if self.control_losses is not None:
            return np.array(self.control_losses)
        return np.full(len(self.tokens), float(self.case.source_loss))

    @cached_property
    def rises(self) -> NDArray:
        """L - L0 at each checkpoint, nats per token."""
        return np.array(self.losses) - self.reference

    def between(self, low: float = 0.0, high: float = math.inf) -> RecoveryRun:
        """The checkpoints with ``low <= tokens <= high``."""
        kept = [index for index, value in enumerate(self.tokens) if low <= value <= high]
        if not kept:
            raise UsageError(f"Run {self.name!r} has no checkpoints between {low:,.0f} and {high:,.0f} tokens.")
        control = self.control_losses
        return replace(
            self,
            tokens=[self.tokens[index] for index in kept],
            losses=[self.losses[index] for index in kept],
            control_losses=None if control is None else [control[index] for index in kept],
        )

    def without_start(self, fraction: float) -> RecoveryRun:
        """Without the first ``fraction`` of its tokens, where the loss does not yet follow a power of them (2410.11840)."""
        if not 0 <= fraction < 1:
            raise UsageError(f"`drop_start` must be at least 0 and below 1, but it is {fraction}.")
        return self.between(low=fraction * self.tokens[-1])


def with_control(run: RecoveryRun, control_tokens: Sequence[float], control_losses: Sequence[float]) -> RecoveryRun:
    """``run`` with the losses that the unpruned source, trained on, has at the same tokens.

    Raises:
        ValueError: the control has no checkpoint at a token count of the run.
    """
    known = dict(zip(control_tokens, control_losses, strict=True))
    missing = [value for value in run.tokens if value not in known]
    if missing:
        raise UsageError(
            f"The control of run {run.name!r} has no checkpoint at {missing[0]:,.0f} tokens. Evaluate both at the same"
            " steps."
        )
    return replace(run, control_losses=[known[value] for value in run.tokens])


def rising_slope(tokens: Sequence[float], losses: Sequence[float]) -> float:
    """Nats per doubling of tokens where losses rise beyond their scatter, else 0.0; fewer than four checkpoints: 0.0."""
    if len(tokens) < 4:
        return 0.0
    from scipy.stats import t

    x, y = np.log2(np.asarray(tokens, dtype=float)), np.asarray(losses, dtype=float)
    x = x - x.mean()
    slope = x @ y / (x @ x)
    scatter = y - y.mean() - slope * x
    error = math.sqrt(scatter @ scatter / (len(x) - 2) / (x @ x))
    return float(slope) if slope > 0 and slope > t.ppf(1 - MAX_CHANCE, len(x) - 2) * error else 0.0


def _number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise UsageError(f"`{name}` must be a finite number, but it is {value!r}. Correct it, or leave it out.")


def _positive(name: str, value: float) -> None:
    _number(name, value)
    if value <= 0:
        raise UsageError(f"`{name}` must be above 0, but it is {value!r}. Correct it, or leave it out.")
