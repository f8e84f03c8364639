"""Options in words, as in ``name:one=1,two=b``: of criteria, compensations and whatever else is chosen by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import UsageError
from .ranges import FINITE, OPTION_RANGES

Entry = TypeVar("Entry")


def keyword_options(function: Callable) -> dict[str, object]:
    """The options of a function, its keyword-only arguments, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def named_entry(table: Mapping[str, Entry], choice: str, argument: str) -> tuple[str, Entry, str]:
    """The entry of a table that ``name:one=1,two=b`` names.

    Args:
        table: entries by name.
        choice: name and options.
        argument: that holds the choice, for the message.

    Returns:
        The name, the entry, and the text of the options.

    Raises:
        UsageError: an unknown name.
    """
    name, _, text = choice.partition(":")
    if name not in table:
        raise UsageError(f"`{argument}` must be one of {', '.join(table)}, but it is {name!r}.")
    return name, table[name], text


def check_options(options: Mapping[str, object], known: Mapping[str, object], owner: str) -> None:
    """Check names of options, and numbers among their values.

    Args:
        options: values by name.
        known: options and their defaults.
        owner: whose options they are, such as "Criterion 'taylor'", for messages.

    Raises:
        ValueError: an unknown option, or a number out of its range.
    """
    for key, value in options.items():
        if key not in known:
            raise _unknown(f"{key}={value}", known, owner)
        if type(known[key]) in (int, float):
            OPTION_RANGES.get(key, FINITE).check(f"{key}` of `{owner}", value)


def options_from_text(text: str, known: Mapping[str, object], owner: str) -> dict[str, object]:
    """Options from ``one=1,two=b``, as the types of their defaults.

    Args:
        text: without the name and the colon; "" holds none.
        known, owner: as in ``check_options``.

    Raises:
        ValueError: an unknown option, a value of another type, or a number out of its range.
    """
    options = {}
    for part in text.split(",") if text else ():
        key, separator, value = part.partition("=")
        if not separator or key not in known:
            raise _unknown(part, known, owner)
        kind: Any = type(known[key])
        try:
            options[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            owner = owner[0].lower() + owner[1:]
            raise UsageError(f"Option {key!r} of {owner} must be a {kind.__name__}: {value!r}.") from error
    check_options(options, known, owner)
    return options


def _unknown(part: str, known: Mapping[str, object], owner: str) -> UsageError:
    return UsageError(
        f"{owner} has no option {part!r}. Its options and defaults:"
        f" {', '.join(f'{k}={v}' for k, v in known.items()) or 'none'}."
    )
