"""JSON that may come from anywhere: one object, whole, of bounded size and depth, or refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError

MAX_BYTES = 1 << 28  # a provenance record that lists every kept unit of a large model has some 10 MB
MAX_DEPTH = 64  # of objects and lists in each other; the files of a run have fewer than ten


def read_json_object(
    path: str | os.PathLike, what: str = "", fix: str = "", needs: Iterable[str] = ()
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        what: what the message calls the file, such as "`--config`"; "": its path says enough.
        fix: what to do about a broken file, for the message.
        needs: keys that must be there.

    Raises:
        UsageError: there is no such plain file, or it is too large, no UTF-8, lacks a key, or what ``json_object`` refuses.
    """
    path = Path(path)
    where = f"{what} {str(path)!r}".strip()
    fix = fix or ("Correct it." if what else "Write it again, or move it away.")
    if not path.is_file():
        raise UsageError(f"{where} is not a file. {'Give the path of one.' if what else fix}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UsageError(f"{where} has {size:,} bytes, and no more than {MAX_BYTES:,} are read. {fix}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not valid JSON: it is no text in UTF-8 ({error.reason}). {fix}") from error
    content = json_object(text, where, fix)
    missing = [name for name in needs if name not in content]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}. {fix}")
    return content


def json_object(text: str, what: str, fix: str = "Correct it.") -> dict[str, Any]:
    """The object that a text holds as JSON.

    Raises:
        UsageError: the text is no JSON, holds no object or one with a key twice, is nested too deep, or has a number
            that is not finite (which Python writes, and JSON does not know).
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(found)
        if len(content) < len(found):
            keys = [key for key, _ in found]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UsageError(f"{what} has the key {twice!r} twice. Keep one of the two.")
        return content

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse_constant)
    except UsageError:
        raise
    except json.JSONDecodeError as error:
        raise UsageError(f"{what} is not valid JSON: line {error.lineno}, {error.msg}. {fix}") from error
    except ValueError as error:  # a constant, or an integer of too many digits
        raise UsageError(f"{what} is not valid JSON: {error}. {fix}") from error
    except RecursionError:
        raise UsageError(f"{what} is not valid JSON: it is nested too deep to be read. {fix}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{what} must hold one JSON object, but it holds a {type(value).__name__}. {fix}")
    if _is_deeper_than(value, MAX_DEPTH):
        raise UsageError(
            f"{what} is not valid JSON for this: more than {MAX_DEPTH} objects and lists lie in each other. {fix}"
        )
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
