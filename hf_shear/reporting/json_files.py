"""Read JSON files of a run or a checkpoint that may come from anywhere: whole, plain, of bounded size and depth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..core import UsageError

MAX_BYTES = 1 << 28  # a provenance record that lists every kept unit of a large model has some 10 MB
MAX_DEPTH = 64  # of objects and lists in each other; the files of a run have fewer than ten


def read_json_object(path: str | os.PathLike, fix: str = "Write it again, or move it away.") -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        fix: what to do about a broken file, for the message.

    Raises:
        UsageError: there is no such plain file, or it is too large, no UTF-8, no JSON, too deep, no object, or holds a
            number that is not finite.
    """
    path = Path(path)

    def wrong(what: str) -> UsageError:
        return UsageError(f"{str(path)!r} {what}. {fix}")

    if not path.is_file():
        raise wrong("is no file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise wrong(f"has {size:,} bytes, and no more than {MAX_BYTES:,} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise wrong(f"is not valid JSON: {error}") from error
    except RecursionError:
        raise wrong(f"is not valid JSON: more than {MAX_DEPTH} objects and lists lie in each other") from None
    if not isinstance(value, dict):
        raise wrong(f"must hold one JSON object, but it holds a {type(value).__name__}")
    if _is_deeper_than(value, MAX_DEPTH):
        raise wrong(f"is not valid JSON: more than {MAX_DEPTH} objects and lists lie in each other")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a finite number")


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Goes one level at a time: a function that calls itself would fail where this is asked."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True
