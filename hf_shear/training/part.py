"""What a training is made of: parts that each have one task, and whose state every checkpoint holds."""

from __future__ import annotations

from typing import Any


class Part:
    """A part of a training, with the moments in which it may act; by itself it does nothing in any of them.

    A step ends exactly as in a run that never stopped once all parts are loaded from a checkpoint.

    Attributes:
        name: of its state in a checkpoint.
    """

    name = ""

    # ---- moments ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Before each training, and before a checkpoint is read."""

    def weights_are_loaded(self) -> None:
        """Once the weights are those to begin with, before a backend wraps the model."""

    def end(self) -> None:
        """After each training, however it ended."""

    def after_optimizer_step(self, step: int) -> None:
        """When the weights have taken step number ``step`` (0 is the first)."""

    def log_entries(self, step: int) -> dict[str, float]:
        """What is logged beside the loss after ``step`` steps; all processes must ask."""
        return {}

    def evaluation_entries(self, step: int) -> dict[str, float]:
        """What is logged beside the held-out losses after ``step`` steps."""
        return {}

    # ---- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state that is the same for all processes, which must all ask."""
        return {}

    def own_state_dict(self) -> dict[str, Any]:
        """JSON-ready state of this process alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any], same_processes: bool) -> None:
        """Go on from a checkpoint.

        Args:
            state: as ``state_dict`` gave it.
            own: as ``own_state_dict`` gave it in the process of this number; {} if there was none.
            same_processes: whether the checkpoint is of as many processes.
        """

    def save_files(self, checkpoint: str) -> None:
        """Write tensors to a checkpoint; called in one process."""

    def load_files(self, checkpoint: str) -> None:
        """Read what ``save_files`` wrote; called in all processes."""
