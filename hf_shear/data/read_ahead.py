"""Reading ahead of an endless iterator: in a thread, or in a process of its own. Errors come out where items would."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..core import leave_signals_to_parent

CLOSING_SECONDS = 5.0  # what a thread that waits for a file or the network is given to end; it dies with the process


class ThreadReadAhead:
    """Items of an endless iterator, up to `capacity` of them read ahead by a thread.

    Args:
        make_items: makes the iterator; called in the thread.
        capacity: items that may wait.
        name: of the thread.
    """

    def __init__(self, make_items: Callable[[], Iterator[Any]], capacity: int, name: str) -> None:
        self._capacity = capacity
        self._waiting: deque[Any] = deque()
        self._error: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(make_items,), name=name, daemon=True)
        self._thread.start()

    def _read(self, make_items: Callable[[], Iterator[Any]]) -> None:
        try:
            for item in make_items():
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or len(self._waiting) < self._capacity)
                    if self._is_closed:
                        return
                    self._waiting.append(item)
                    self._changed.notify_all()
            raise RuntimeError("An endless iterator ended.")
        except BaseException as error:  # of any kind: whoever waits for an item must hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def __next__(self) -> Any:
        """The next item. What was read before an error is given first; the error is raised again at every call."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._error is not None)
            if self._error is not None and not self._waiting:
                raise self._error
            item = self._waiting.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(CLOSING_SECONDS)


class ProcessReadAhead:
    """The same in a worker process of torch's DataLoader, which notices a worker that dies."""

    def __init__(self, make_items: Callable[[], Iterator[Any]], capacity: int, name: str) -> None:
        loader = DataLoader(
            _Items(make_items),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=1,
            prefetch_factor=capacity,
            generator=torch.Generator().manual_seed(0),  # so that starting does not touch the run's random numbers
            worker_init_fn=leave_signals_to_parent,
        )
        self._iterator: Iterator[Any] = iter(loader)

    def __next__(self) -> Any:
        """The next item."""
        return next(self._iterator)

    def close(self) -> None:
        """End the process."""
        self._iterator = iter(())  # who lets go of torch's iterator ends its process


class _Items(IterableDataset):
    def __init__(self, make_items: Callable[[], Iterator[Any]]) -> None:
        self.make_items = make_items

    def __iter__(self) -> Iterator[Any]:
        return self.make_items()


def _unchanged(item: Any) -> Any:
    return item
