"""Text that is not ours in Markdown: it is shown as it is, and can be no link, image, heading, HTML or end of a table.

Names of domains, runs, tasks, devices and models come from files and folders of others. Every place where such a text
enters a page passes one of these functions: ``markdown_text`` in prose and cells of tables, ``inline_code``,
``fenced_code``, ``link``.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from .printable import printable, spelled
from .redaction import redact_tokens

MAX_LENGTH = 200  # characters of one name; the middle goes, since endings tell names apart
# Letters that mean something inside a line. Names enter in the middle of lines, where "#", "-" and "1." mean nothing.
_MEANINGFUL = re.compile(r"([\\`*_\[\]<>&|~$])")
# What renderers turn into links by themselves, even with escaped letters. In code nothing is a link.
_LINK_BY_ITSELF = re.compile(r"(\S*(?:://|www\.|@|mailto:)\S*)", re.IGNORECASE)


def shown(text: object, max_length: int = MAX_LENGTH) -> str:
    """A text of others on one line, of bounded length, without what looks like a token; not yet escaped."""
    line = redact_tokens(printable(text))
    if len(line) <= max_length:
        return line
    half = max_length // 2
    return f"{line[:half]}...{line[-half:]}"


def markdown_text(text: object, max_length: int = MAX_LENGTH) -> str:
    """For the middle of a line or a cell of a table; addresses become code, which is no link."""
    parts = _LINK_BY_ITSELF.split(shown(text, max_length))
    return "".join(_code(part) if index % 2 else _MEANINGFUL.sub(r"\\\1", part) for index, part in enumerate(parts))


def inline_code(text: object) -> str:
    """For the middle of a line or a cell of a table, as code."""
    return _code(shown(text))


def fenced_code(text: str, language: str = "") -> str:
    """A block of code that no run of backticks in it ends; its lines stay lines."""
    content = "\n".join(spelled(line.expandtabs(4)) for line in redact_tokens(text).splitlines())
    fence = "`" * max(3, _longest_run(content) + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def link(text: object, address: str) -> str:
    """A link with ``text``; an address that is not safe is shown beside it as code."""
    safe = safe_address(address)
    return f"[{markdown_text(text)}]({safe})" if safe else f"{markdown_text(text)} ({inline_code(address)})"


def safe_address(address: object) -> str | None:
    """An address of the web that can stand in Markdown and YAML; None for what is none, ``javascript:`` for example."""
    if not isinstance(address, str) or printable(address) != address or len(address) > 10 * MAX_LENGTH:
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.scheme.lower() != "https" or not parts.hostname or parts.username or parts.password:
        return None
    return quote(address, safe=":/?#@!$&*+,;=%~-._'")


def _code(text: str) -> str:
    """In a fence longer than any run of backticks in it. A bar would end a cell, even in code."""
    text = text.replace("|", "¦")
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if not text or text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
