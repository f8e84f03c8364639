"""Memory of weights that were cut, given back to the system at once."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

_MADV_DONTNEED = 4  # of Linux, on every processor


def release_weights(model: nn.Module, weights: Iterable[Tensor] | None = None) -> None:
    """Let a model forget weights: in their places stand tensors of the same shapes without values (on the meta device).

    Their memory is free once nobody else holds them.

    Args:
        model: changed.
        weights: parameters of the model, wherever and under however many names it has them; default: all.
    """
    forgotten = None if weights is None else {id(weight) for weight in weights}
    placeholders: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not (forgotten is None or id(parameter) in forgotten):
                continue
            if id(parameter) not in placeholders:
                empty = torch.empty_like(parameter, device="meta", requires_grad=False)
                placeholders[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = placeholders[id(parameter)]


def return_freed_memory() -> None:
    """Give what was freed back to the system.

    glibc keeps freed blocks of up to 32 MiB for itself, scattered among those that stay. Measured over all layers of a
    model on the CPU, a process that keeps nothing grew by up to three quarters of the model.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and need none
        if trim is not None:
            trim(0)


def return_mapped_pages(weights: Iterable[Tensor]) -> None:
    """Take the pages of weights that are mapped from a file out of this process's memory.

    A loaded checkpoint is such a file, and its mapping ends with the last weight of a shard only: what was read of it
    would stay resident until then. The file keeps the values, and a page that is read again comes back from it. Weights
    in other memory are left alone; those that were written to since they were loaded must not be read again.
    """
    if sys.platform != "linux":
        return
    mapped = _ranges_of_files()
    for weight in weights:
        if weight.device.type != "cpu":
            continue
        start, size = weight.data_ptr(), weight.nbytes
        first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end and any(begin <= first and end <= stop for begin, stop in mapped):
            # Advice: where the system does not take it, for locked pages, they stay, and nothing else changes.
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_DONTNEED)


def _ranges_of_files() -> list[tuple[int, int]]:
    """Addresses (first, behind the last) at which this process has files mapped."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            begin, stop = addresses.split("-")
            ranges.append((int(begin, 16), int(stop, 16)))
    return ranges
