"""A signal during training: the processes of a launch agree at which step they end."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from ..core import Noted


class StopRequest:
    """A signal that was noted, in this process or another.

    Args:
        args: of the training.
        noted: the signal of this process.

    Attributes:
        agreed: number of the signal that a process got, once all know of it.
    """

    def __init__(self, args, noted: Noted):
        self.agreed: int | None = None
        self._noted, self._alone, self._group = noted, args.world_size == 1, None
        if not self._alone and "cpu:gloo" not in dist.get_backend_config():
            # Between hosts: one that asked its GPU would wait, in every step, for all that it was given to do.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def agree(self) -> int | None:
        """The signal that any process has got by now, the same for all; None if none has. All must call it."""
        signum = self._noted.signum or 0
        if not self._alone:
            largest = torch.tensor(signum)
            dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
            signum = int(largest)
        self.agreed = signum or None
        self._noted.is_answered = self.agreed is not None
        return self.agreed
