"""What of a run's files is published: no path of the machine that made it, only their last part, and no token."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..core.redaction import redacted
from ..report.html_page import shortened

# An absolute path at the start of a word: /a/b, ~/a, C:\a or C:/a. Not the slashes of URLs, of "and/or" or of `</s>`.
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.<\\~-])(?:~[/\\]|[A-Za-z]:[/\\]|/(?=[\w.]))[^\s\"'`,;=<>|]*")
_PATH_KEYS = ("name_or_path", "_name_or_path", "source_name_or_path")
_TOKEN_KEYS = (
    "token",
    "use_auth_token",
    "auth_token",
    "hub_token",
    "access_token",
    "api_key",
)  # older libraries kept them


def last_part(path: str) -> str:
    """Name of the file or folder that a path ends in."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def publishable(value: Any) -> Any:
    """A JSON-ready value without tokens, and with every absolute path in its strings cut to its last part.

    Names of entries are strings too: a domain may be called by its folder. Two that read the same afterwards are numbered.
    """
    return _without_local_paths(redacted(value))


def _without_local_paths(value: Any) -> Any:
    if isinstance(value, dict):
        cut: dict = {}
        for name, item in value.items():
            short = again = _without_local_paths(name)
            number = 1
            while again in cut:
                number += 1
                again = f"{short} ({number})"
            cut[again] = _without_local_paths(item)
        return cut
    if isinstance(value, list | tuple):
        return [_without_local_paths(item) for item in value]
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub(lambda found: last_part(found.group()), value)
    return value


def paths_in(value: Any) -> Iterator[str]:
    """Every absolute path in the strings of a JSON-ready value."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from paths_in(item)
    if isinstance(value, str):
        yield from (found.group() for found in _ABSOLUTE_PATH.finditer(value))


def page_without_paths(page: str, paths: Iterable[str]) -> str:
    """An HTML page in which these absolute paths are cut to their last part, also where the page leaves out their middle.
    Only these: drawings have slashes anywhere."""
    for path in sorted(set(paths), key=len, reverse=True):
        page = page.replace(shortened(path), html.escape(last_part(path)))
        whole = rf"(?<![\w:/.<\\~-]){re.escape(html.escape(path))}(?![\w/\\.-])"
        page = re.sub(whole, lambda _, path=path: html.escape(last_part(path)), page)
    return page


def without_source_path(config: dict) -> dict:
    """A model's or tokenizer's config without the fields that hold tokens, and with paths cut in those of its origin."""
    return {
        key: publishable(item) if key in _PATH_KEYS else item for key, item in config.items() if key not in _TOKEN_KEYS
    }
