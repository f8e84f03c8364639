"""Text of others on one line: names of domains, runs and models may hold escape codes, line breaks and hidden letters."""

from __future__ import annotations


def printable(text: object) -> str:
    """``text`` on one line, with what cannot be seen spelled out (``spelled``); white space becomes single blanks."""
    return spelled(" ".join(str(text).split()))


def spelled(line: str) -> str:
    """``line`` with letters that cannot be seen spelled out: ``\\x1b`` for an escape code.

    Control characters, marks that turn the direction of writing, letters without width and halves of surrogate pairs could
    change what a terminal or a page shows around them.
    """
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in line)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
