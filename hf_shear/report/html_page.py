"""The pieces a page is made of: escaped text, numbers as people read them, tables, sections, the frame.

Every piece is a string of well-formed HTML. Text from a run passes through ``text`` and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..core.redaction import redact_tokens
from .html_style import STYLE

NOT_KNOWN = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"
MAX_NAME_WIDTH = 60  # characters of a name; the whole one is its tooltip
# Nothing may be fetched or run, whatever a name in the results manages to smuggle in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class Cell(NamedTuple):
    """A cell of a table: its HTML, and a class of the style sheet."""

    content: str
    kind: str = ""


def text(value: Any) -> str:
    """Escaped for content and attributes, without what looks like a token or cannot be shown."""
    shown = "".join(letter if letter.isprintable() or letter == NO_BREAK else " " for letter in str(value))
    return html.escape(redact_tokens(shown), quote=True)


def name(value: Any) -> str:
    """A name of any length: its middle goes, since endings tell names apart, and the whole is its tooltip."""
    whole = str(value)
    if len(whole) <= MAX_NAME_WIDTH:
        return text(whole)
    whole = redact_tokens(whole)
    return f'<span title="{text(whole)}">{shortened(whole)}</span>'


def shortened(whole: str) -> str:
    """A name without its middle, escaped."""
    half = MAX_NAME_WIDTH // 2
    return f"{text(whole[:half])}…{text(whole[-half:])}"


def short_count(number: float, trimmed: bool = False) -> str:
    """Three digits and a unit: 1.09 M; 2 B instead of 2.00 B if ``trimmed``."""
    for size, unit in _SIZES:
        if abs(number) >= 0.9995 * size:
            return (f"{number / size:.3g}" if trimmed else f"{number / size:#.3g}".rstrip(".")) + f"{NO_BREAK}{unit}"
    return f"{number:.4g}"


def byte_count(number: float) -> str:
    """Decimal units, as disks and model pages count them."""
    return f"{short_count(number)}B" if number >= 1000 else f"{number:,.0f}{NO_BREAK}B"


def duration(seconds: float) -> str:
    """250 h, 1 h 02 min, 2 min 53 s, or 4.7 s."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole >= 100 * 3600:
        return f"{whole / 3600:,.0f} h"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def note(content: str) -> str:
    """A paragraph of explanation; ``content`` is HTML."""
    return f'<p class="note">{content}</p>\n'


def section(title: str, *parts: str) -> str:
    """A titled card; ``title`` is plain text, the parts are HTML."""
    return f"<section>\n<h2>{text(title)}</h2>\n{''.join(parts)}</section>\n"


def panels(figures: Iterable[str]) -> str:
    """Figures side by side where there is room, below one another where there is none."""
    return f'<div class="panels">\n{"".join(figures)}</div>\n'


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str | Cell]], more: str = "") -> str:
    """A table that scrolls by itself where it is too wide; headings and cells are HTML, ``caption`` plain text."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = []
    for first, *others in rows:
        cells = [other if isinstance(other, Cell) else Cell(other) for other in others]
        filled = "".join(f'<td class="{cell.kind}">{cell.content}</td>' for cell in cells)
        body.append(f'<tr><th scope="row">{first}</th>{filled}</tr>\n')
    more = f" <small>{text(more)}</small>" if more else ""
    return (
        f'<h3>{text(caption)}{more}</h3>\n<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(body)}"
        "</tbody></table></div>\n"
    )


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: (what, number, remark), plain text."""
    found = [f"<div><dt>{text(a)}</dt><dd>{text(b)}<small>{text(c)}</small></dd></div>\n" for a, b, c in facts]
    return f'<dl class="tiles">\n{"".join(found)}</dl>\n' if found else ""


def page(title: str, head: str, body: str, refresh_seconds: int | None = None) -> str:
    """The whole document. ``title`` is plain text, the others HTML; None: a browser does not load it again by itself."""
    again = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'{again}<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n{head}</header>\n<main>\n{body}</main>\n"
        "<footer>Made by hf_shear from the files of the run’s folder alone. This page fetches nothing.</footer>\n"
        "</body>\n</html>\n"
    )
