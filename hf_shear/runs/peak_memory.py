"""How much memory a part of a program needs at its peak, above what was held when it began."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR_PEAK = "5"  # what Linux takes for "forget the peak of the resident set" (proc_pid_clear_refs(5))


@dataclass
class PeakMemory:
    """Bytes, or None where the system does not tell; filled when the block ends."""

    num_bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the block: allocated memory on a CUDA device, else the resident memory of the process (Linux).

    Memory that was freed before is given back first. What an allocator other than glibc's keeps of it is used again unseen,
    so that small peaks are underestimated.
    """
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.num_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:
        give_back(0)
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        before = _status_bytes("VmRSS")
    except OSError:  # no Linux, or not allowed: not known
        yield found
        return
    yield found
    found.num_bytes = max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}.")
