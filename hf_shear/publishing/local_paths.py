"""Paths of the machine that made a model: none of them is published, only their last part."""

from __future__ import annotations

import re
from typing import Any

# An absolute path at the start of a word: /a/b, ~/a, C:\a or C:/a. Not the slashes of URLs, of "and/or" or of `</s>`.
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.<\\~-])(?:~[/\\]|[A-Za-z]:[/\\]|/(?=[\w.]))[^\s\"'`,;=<>|]*")
_PATH_KEYS = ("name_or_path", "_name_or_path", "source_name_or_path")


def last_part(path: str) -> str:
    """Name of the file or folder that a path ends in."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def without_local_paths(value: Any) -> Any:
    """A JSON-ready value with every absolute path in its strings cut to its last part."""
    if isinstance(value, dict):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub(lambda found: last_part(found.group()), value)
    return value


def without_source_path(config: dict) -> dict:
    """A model's or tokenizer's config with paths cut in the fields that hold where it came from, and nowhere else."""
    return {key: without_local_paths(item) if key in _PATH_KEYS else item for key, item in config.items()}
