"""Work that one process of a launch does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def by_main_process(work: Callable[[], Result]) -> Result:
    """What ``work`` returns, or raises, on the main process: on every process, all of which must call this."""
    state, told = PartialState(), [None, None]
    if state.is_main_process:
        try:
            told = [work(), None]
        except Exception as error:  # raised below, on every process, once the others know
            told = [None, error]
    if state.num_processes > 1:
        broadcast_object_list(told)
    result, error = told
    if error is not None:
        raise error
    return result
