"""What the processes of a launch do together: one works for all, or sums run over all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import FailedError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Result = TypeVar("Result")


def _process_group() -> Any:
    """``torch.distributed`` where there is a process group; without torch there is none."""
    if "torch" not in sys.modules:
        return None
    from torch import distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


def num_processes() -> int:
    """Processes of this launch, 1 without a process group."""
    group = _process_group()
    return 1 if group is None else group.get_world_size()


def is_main_process() -> bool:
    """Whether this is the first process of all, or the only one."""
    group = _process_group()
    return group is None or group.get_rank() == 0


def sum_over_ranks(*sums: Tensor | Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; without a process group nothing happens.

    All processes must call it, with tensors of the same shapes, and take every mean after it: a mean of sums over
    counts is the same whether processes share the text out or all read the same.
    """
    group = _process_group()
    if group is None:
        return
    from torch import Tensor

    for item in sums:
        for tensor in (item,) if isinstance(item, Tensor) else item:
            group.all_reduce(tensor)


def count_over_ranks(count: int, device: torch.device | str) -> int:
    """Sum of a number over all processes; ``device`` is one that the backend communicates on."""
    import torch

    total = torch.tensor(count, device=device)
    sum_over_ranks(total)
    return int(total)


def by_main_process(work: Callable[[], Result]) -> Result:
    """Call ``work`` in the main process of a launch. Its result, or its error, is that of every process.

    Args:
        work: what it returns can be pickled, where there are several processes.

    Raises:
        Exception: what ``work`` raised. In the other processes, which would wait for ever without it, a ``UsageError`` or
            ``FailedError`` with the same text, or else a RuntimeError that names it.
    """
    result: list[Result] = []  # of one, once it is there
    failure: Exception | None = None
    if is_main_process():
        try:
            result = [work()]
        except Exception as error:  # raised below, once the others know
            failure = error
    group = _process_group()
    if group is not None and group.get_world_size() > 1:
        told = [(result, failure if failure is None else _for_others(failure))]
        group.broadcast_object_list(told, src=0)
        if failure is None:
            result, failure = told[0]
    if failure is not None:
        raise failure
    return result[0]


def _for_others(failure: Exception) -> Exception:
    """What the other processes raise of an error in the main one; only errors of our own are known to be picklable."""
    for kind in (UsageError, FailedError):
        if isinstance(failure, kind):
            return kind(str(failure))
    return RuntimeError(f"The main process failed with {type(failure).__name__}: {failure}")
