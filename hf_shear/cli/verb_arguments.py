"""Arguments of a verb: positional ones, flags and YAML, and a help that fits a screen."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from types import ModuleType

from ..core import UsageError
from ..runs import parse_arguments

MAX_HELP_WIDTH = 100  # characters


class HelpAsked(Exception):
    """``--help`` was given; the text is the help."""


def parse_verb(name: str, verb: ModuleType, words: Sequence[str]) -> tuple:
    """Instances of the verb's dataclasses of arguments.

    Raises:
        HelpAsked: ``--help`` is among the words.
        ValueError: an argument is unknown, missing, given twice or of the wrong type.
    """
    if any(word in ("-h", "--help") for word in words):
        raise HelpAsked(verb_help(name, verb))
    types = (verb.Arguments, *getattr(verb, "OTHERS", ()))
    return parse_arguments(
        types, _named(name, verb, list(words)), refused=getattr(verb, "REFUSED", None), program=f"hf-shear {name}"
    )


def _named(name: str, verb: ModuleType, words: list[str]) -> list[str]:
    """Give the words before the first flag the names of the verb's positional arguments."""
    first_flag = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    values, flags = words[:first_flag], words[first_flag:]
    if getattr(verb, "MANY", False) and values:
        values, flags = values[:1], [*values[1:], *flags]
    if len(values) > len(verb.POSITIONAL):
        raise UsageError(
            f"`hf-shear {name}` takes {len(verb.POSITIONAL)} argument(s) without a flag"
            f" ({' '.join(map(str.upper, verb.POSITIONAL))}), but {' '.join(values)!r} was given. Say what the others are:"
            " `--NAME VALUE`."
        )
    given = verb.POSITIONAL[: len(values)]
    for field in given:
        if any(flag.split("=")[0] == f"--{field}" for flag in flags):
            raise UsageError(f"`{field}` is given twice: without a flag, and as `--{field}`. Give it once.")
    return [part for field, value in zip(given, values, strict=True) for part in (f"--{field}", value)] + flags


def verb_help(name: str, verb: ModuleType) -> str:
    """Usage, one line per argument of the verb's own, and an example."""
    width = min(shutil.get_terminal_size((MAX_HELP_WIDTH, 24)).columns, MAX_HELP_WIDTH)
    fields = dataclasses.fields(verb.Arguments)
    column = max(len(field.name) for field in fields) + 5
    lines = [f"usage: hf-shear {' '.join([name, *map(str.upper, verb.POSITIONAL)])} [--config FILE.yaml] [FLAGS]", ""]
    lines += [verb.SUMMARY, ""]
    for field in fields:
        text = field.metadata["help"] + _default(field)
        wrapped = textwrap.wrap(text, width - column, break_on_hyphens=False)
        lines.append(f"  --{field.name}".ljust(column) + wrapped[0])
        lines += [" " * column + line for line in wrapped[1:]]
    if getattr(verb, "OTHERS", ()):
        lines += ["", f"And those of {', '.join(cls.__name__ for cls in verb.OTHERS)}: see examples/shear.py --help."]
    return "\n".join([*lines, "", "example:", f"  {verb.EXAMPLE}"])


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return " (required)"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return "" if value in (None, "") else f" ({value})"
