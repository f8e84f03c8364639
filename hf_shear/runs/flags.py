"""Words of a command line as values by name; what can not be read is refused by name, value, rule and fix."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from ..core import UsageError

_KINDS = {int: "a whole number", float: "a number", string_to_bool: "true or false"}
_EXAMPLES = {
    int: "Give digits alone, such as 8.",
    float: "Give one such as 0.1 or 1e-4.",
    string_to_bool: "Give one of them.",
}
_MAX_SHOWN = 200  # characters of a value
_TOKENS = ("token", "hub_token", "hf_token")
NO_TOKEN = (
    "Set the environment variable HF_TOKEN, or log in with `hf auth login`: shells keep what stands on a command line."
)


@dataclass(frozen=True)
class Entry:
    """A flag, or an entry of a YAML file, as it was written.

    Attributes:
        flag: with its dashes.
        values: its words; none for a flag alone.
        place: " in FILE", where it stands in a file.
    """

    flag: str
    values: tuple[str, ...]
    place: str = ""

    @property
    def name(self) -> str:
        """With underscores, whichever were written."""
        return self.flag.removeprefix("--").replace("-", "_")


def split_words(words: Sequence[str], program: str) -> list[Entry]:
    """The flags of a command line, each with the words up to the next."""
    entries: list[Entry] = []
    for word in words:
        if _is_flag(word):
            flag, *value = word.split("=", 1)
            entries.append(Entry(flag, tuple(value)))
        elif entries:
            entries[-1] = Entry(entries[-1].flag, (*entries[-1].values, word))
        else:
            raise UsageError(
                f"`{program}` takes nothing more without a flag, but {word!r} was given. Say what it is: `--NAME VALUE`."
            )
    return entries


def _is_flag(word: str) -> bool:
    """Whether it is no value; a negative number is one."""
    if not word.startswith("-"):
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def read_values(parser: HfArgumentParser, entries: Iterable[Entry], program: str) -> dict[str, Any]:
    """Values by name of the dataclasses' fields. Of a name that is given twice the last counts, as everywhere.

    Raises:
        UsageError: a name is unknown, or needed and not given; a value is missing, empty, of another type or none of the
            choices.
    """
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    values = {}
    for entry in entries:
        action = known.get("--" + entry.name)
        if action is None or not entry.flag.startswith("--"):
            raise _unknown(entry, known, program)
        values[action.dest] = _value(entry, action)
    for action in parser._actions:
        if action.required and action.dest not in values:
            raise UsageError(
                f"`{action.dest}` is needed, but it was not given. {action.help} See `{program} --help` for an example."
            )
    return values


def check_text(name: str, text: str, place: str = "") -> None:
    """Refuse a value that no argument can have: an empty one (as of a shell's variable that is not set), one with NUL."""
    if not text.strip():
        raise UsageError(f"`{name}`{place} must not be empty, but it is {text!r}. Give a value, or leave the flag out.")
    if "\0" in text:
        raise UsageError(f"`{name}`{place} must not hold the character NUL, but it is {text!r}. Remove it.")


def _unknown(entry: Entry, known: dict, program: str) -> UsageError:
    if entry.name in _TOKENS:
        return UsageError(f"`{entry.flag}` is no argument of `{program}`: a token never is. {NO_TOKEN}")
    near = difflib.get_close_matches(f"--{entry.name}", [flag for flag in known if "-" not in flag[2:]], n=1)
    fix = f"Did you mean `{near[0]}`?" if near else f"See `{program} --help`."
    return UsageError(f"`{entry.flag}`{entry.place} is no argument of `{program}`. {fix}")


def _value(entry: Entry, action: argparse.Action) -> Any:
    name, place, values = action.dest, entry.place, entry.values
    for text in values:
        if action.default != "":
            check_text(name, text, place)
    if action.nargs == 0:  # --no_something
        if values:
            raise UsageError(f"`{entry.flag}`{place} takes no value, but {values[0]!r} was given. Leave the value out.")
        return action.const
    if not values:
        if action.nargs == "?":
            return action.const
        raise UsageError(f"`{name}`{place} needs a value, but none was given. {_fix(action, '')}")
    if action.nargs == "+":
        return [_converted(name, text, place, action) for text in values]
    text, *more = values
    if more:
        raise UsageError(
            f"`{name}`{place} takes one value, but {len(values)} were given: {' '.join(map(repr, values))}. Put a text of"
            " several words in quotes, a flag before any other value, and what needs no flag before all flags."
        )
    return _converted(name, text, place, action)


def _converted(name: str, text: str, place: str, action: argparse.Action) -> Any:
    try:
        value = action.type(text) if callable(action.type) else text
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        kind = _KINDS.get(action.type, f"a {getattr(action.type, '__name__', 'value of its own kind')}")
        raise UsageError(f"`{name}`{place} must be {kind}, but it is {_shown(text)}. {_fix(action, text)}") from None
    if action.choices is not None and value not in action.choices:
        raise UsageError(
            f"`{name}`{place} must be one of {', '.join(map(str, action.choices))}, but it is {_shown(text)}."
            f" {_fix(action, text)}"
        )
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


def _fix(action: argparse.Action, text: str) -> str:
    """What to give."""
    if action.choices is not None:
        near = difflib.get_close_matches(text, [str(choice) for choice in action.choices], n=1)
        return f"Did you mean {near[0]!r}?" if near else "Choose one of them."
    if action.type is int and (number := _as_number(text)) is not None and number.is_integer():
        return f"Give {number:.0f}."
    return _EXAMPLES.get(action.type, "Give one after it, or leave the flag out.")


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
