"""Words of a command line as values by name; what can not be read is refused by name, value, rule and fix."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..core import UsageError

_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
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


NEEDS_A_WORD = object()


@dataclass(frozen=True)
class Flag:
    """What a flag takes: of one field of a dataclass of arguments.

    Attributes:
        field: of the dataclass.
        name: without dashes; "no_..." switches off what is on by default.
        kind: bool, int, float, str or a class that is made of a text.
        choices: the only values, if there are such.
        several: whether it takes one value or more, as a list.
        alone: its value where no word follows it; ``NEEDS_A_WORD`` if one must.
    """

    field: dataclasses.Field
    name: str
    kind: Callable[[str], Any]
    choices: tuple | None = None
    several: bool = False
    alone: Any = NEEDS_A_WORD

    @property
    def required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING


def flags_of(cls: type) -> list[Flag]:
    """The flags of a dataclass, as ``transformers.HfArgumentParser`` has them: of its annotations and metadata."""
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if field.init:
            flag = _flag(field, hints[field.name])
            found.append(flag)
            if flag.kind is bool and field.default is True:
                found.append(Flag(field, f"no_{field.name}", bool, alone=False))
    return found


def _flag(field: dataclasses.Field, hint: Any) -> Flag:
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = [kind for kind in (get_args(hint) if union else (hint,)) if kind is not type(None)]
    choices = field.metadata.get("choices")
    alone = field.metadata.get("const", True) if field.metadata.get("nargs") == "?" else NEEDS_A_WORD
    if bool in kinds:
        alone = True if field.default is not None else alone
        return Flag(field, field.name, bool if str not in kinds else _switch_or_text, choices, False, alone)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum):
            return Flag(field, field.name, str, tuple(one.value for one in kind), False, alone)
    kind = str if str in kinds else kinds[0]
    if get_origin(kind) is Literal:
        return Flag(field, field.name, str, get_args(kind), False, alone)
    if get_origin(kind) is list:
        return Flag(field, field.name, get_args(kind)[0], choices, True, alone)
    kind = str if kind is Any or get_origin(kind) is dict or kind is dict else kind
    return Flag(field, field.name, kind, choices, False, alone)


def _switch(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def _switch_or_text(text: str) -> bool | str:
    return _switch(text) if text.lower() in (*_TRUE, *_FALSE) else text


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
_EXAMPLES = {
    int: "Give digits alone, such as 8.",
    float: "Give one such as 0.1 or 1e-4.",
    bool: "Give one of them.",
}


def read_values(flags: Iterable[Flag], entries: Iterable[Entry], program: str) -> dict[str, Any]:
    """Values by name of the dataclasses' fields. Of a name that is given twice the last counts, as everywhere.

    Raises:
        UsageError: a name is unknown, or needed and not given; a value is missing, empty, of another type or none of the
            choices.
    """
    known = {flag.name: flag for flag in flags}
    values = {}
    for entry in entries:
        flag = known.get(entry.name)
        if flag is None or not entry.flag.startswith("--"):
            raise _unknown(entry, known, program)
        values[flag.field.name] = _value(entry, flag)
    for flag in known.values():
        if flag.required and flag.name not in values:
            raise UsageError(
                f"`{flag.name}` is needed, but it was not given. {flag.field.metadata.get('help', '')} See"
                f" `{program} --help` for an example."
            )
    return values


def check_text(name: str, text: str, place: str = "") -> None:
    """Refuse a value that no argument can have: an empty one (as of a shell's variable that is not set), one with NUL."""
    if not text.strip():
        raise UsageError(f"`{name}`{place} must not be empty, but it is {text!r}. Give a value, or leave the flag out.")
    if "\0" in text:
        raise UsageError(f"`{name}`{place} must not hold the character NUL, but it is {text!r}. Remove it.")


def _unknown(entry: Entry, known: Iterable[str], program: str) -> UsageError:
    if entry.name in _TOKENS:
        return UsageError(f"`{entry.flag}` is no argument of `{program}`: a token never is. {NO_TOKEN}")
    near = difflib.get_close_matches(f"--{entry.name}", [f"--{name}" for name in known], n=1)
    fix = f"Did you mean `{near[0]}`?" if near else f"See `{program} --help`."
    return UsageError(f"`{entry.flag}`{entry.place} is no argument of `{program}`. {fix}")


def _value(entry: Entry, flag: Flag) -> Any:
    name, place, values = flag.field.name, entry.place, entry.values
    for text in values:
        if flag.field.default != "":
            check_text(name, text, place)
    if flag.name != name and values:  # --no_something
        raise UsageError(f"`{entry.flag}`{place} takes no value, but {values[0]!r} was given. Leave the value out.")
    if not values:
        if flag.alone is not NEEDS_A_WORD:
            return flag.alone
        raise UsageError(f"`{name}`{place} needs a value, but none was given. {_fix(flag, '')}")
    if flag.several:
        return [_converted(name, text, place, flag) for text in values]
    text, *more = values
    if more:
        raise UsageError(
            f"`{name}`{place} takes one value, but {len(values)} were given: {' '.join(map(repr, values))}. Put a text of"
            " several words in quotes, a flag before any other value, and what needs no flag before all flags."
        )
    return _converted(name, text, place, flag)


def _converted(name: str, text: str, place: str, flag: Flag) -> Any:
    try:
        value = _switch(text) if flag.kind is bool else flag.kind(text)
    except (ValueError, TypeError):
        kind = _KINDS.get(flag.kind, f"a {getattr(flag.kind, '__name__', 'value of its own kind')}")
        raise UsageError(f"`{name}`{place} must be {kind}, but it is {_shown(text)}. {_fix(flag, text)}") from None
    if flag.choices is not None and value not in flag.choices:
        raise UsageError(
            f"`{name}`{place} must be one of {', '.join(map(str, flag.choices))}, but it is {_shown(text)}."
            f" {_fix(flag, text)}"
        )
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


def _fix(flag: Flag, text: str) -> str:
    """What to give."""
    if flag.choices is not None:
        near = difflib.get_close_matches(text, [str(choice) for choice in flag.choices], n=1)
        return f"Did you mean {near[0]!r}?" if near else "Choose one of them."
    if flag.kind is int and (number := _as_number(text)) is not None and number.is_integer():
        return f"Give {number:.0f}."
    return _EXAMPLES.get(flag.kind, "Give one after it, or leave the flag out.")


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
