"""How a model runs while statistics of it are collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; a masked model runs with the gates in use, all open where none are.

    Without that a masked model would run with the gates of its own masks: as what it is going to be cut to.
    """
    was_training = model.training
    gates = model.use_gates(model.gates_in_use) if hasattr(model, "gates_in_use") else nullcontext()
    model.eval()
    try:
        with gates:
            yield
    finally:
        model.train(was_training)
