"""Text between two marks of a page, which a script writes anew while the rest is written by hand."""

from __future__ import annotations


def put_between(text: str, marks: tuple[str, str], inner: str) -> str:
    """``text`` with what is between the two marks replaced by ``inner``.

    Raises:
        ValueError: a mark is missing, or they are not in this order.
    """
    before, _, rest = text.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        raise ValueError(f"The text needs the marks {marks}, in this order.")
    return before + marks[0] + inner + marks[1] + after
