"""What one process of a launch does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def by_main_process(work: Callable[[], Result]) -> Result:
    """Call ``work`` in the main process of a launch. Its result, or its error, is that of every process.

    Args:
        work: what it returns or raises can be pickled, where there are several processes.
    """
    from accelerate import PartialState  # takes seconds to import
    from accelerate.utils import broadcast_object_list

    state, told = PartialState(), [None]
    if state.is_main_process:
        try:
            told = [(work(), None)]
        except Exception as error:  # raised below, in every process, once the others know
            told = [(None, error)]
    if state.num_processes > 1:
        broadcast_object_list(told)
    result, error = told[0]
    if error is not None:
        raise error
    return result
