"""Arguments of a verb: positional ones, flags and YAML, and a help that fits a screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType

from ..core import UsageError
from ..runs import parse_arguments
from ..runs.flag_help import flag_lines, grouped_help, help_asked
from ..runs.source_fields import TrainingFlags


class HelpAsked(Exception):
    """``--help`` or ``--help-all`` was given; the text is the help."""


def argument_types(verb: ModuleType) -> tuple[type, ...]:
    """The dataclasses of a verb's flags."""
    return (verb.Arguments, TrainingFlags) if getattr(verb, "TRAINS", False) else (verb.Arguments,)


def parse_verb(name: str, verb: ModuleType, words: Sequence[str]) -> tuple:
    """Instances of the verb's dataclasses of arguments.

    Raises:
        HelpAsked: ``--help`` or ``--help-all`` is among the words.
        ValueError: an argument is unknown, missing, given twice or of the wrong type.
    """
    whole = help_asked(words)
    if whole is not None:
        raise HelpAsked(verb_help(name, verb, whole))
    return parse_arguments(
        argument_types(verb), _named(name, verb, list(words)), refused=getattr(verb, "REFUSED", None),
        program=f"hf-shear {name}",
    )  # fmt: skip


def _named(name: str, verb: ModuleType, words: list[str]) -> list[str]:
    """Give the words before the first flag the names of the verb's positional arguments."""
    first_flag = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    values, flags = words[:first_flag], words[first_flag:]
    if getattr(verb, "MANY", False) and values:
        values, flags = values[:1], [*values[1:], *flags]
    if len(values) > len(verb.POSITIONAL):
        raise UsageError(
            f"`hf-shear {name}` takes {len(verb.POSITIONAL)} argument{'s' * (len(verb.POSITIONAL) != 1)} without a flag"
            f" ({' '.join(map(str.upper, verb.POSITIONAL))}), but {' '.join(values)!r} was given. Say what the others are:"
            " `--NAME VALUE`."
        )
    given = verb.POSITIONAL[: len(values)]
    for field in given:
        if any(flag.split("=")[0] == f"--{field}" for flag in flags):
            raise UsageError(f"`{field}` is given twice: without a flag, and as `--{field}`. Give it once.")
    return [part for field, value in zip(given, values, strict=True) for part in (f"--{field}", value)] + flags


def verb_help(name: str, verb: ModuleType, whole: bool) -> str:
    """Usage, what each flag does, and an example."""
    types = argument_types(verb)
    lines = [f"usage: hf-shear {' '.join([name, *_positional_words(verb, types[0])])} [--config FILE.yaml] [FLAGS]", ""]
    lines += [verb.SUMMARY, ""]
    if len(types) > 1:
        lines += grouped_help(types, whole, list(getattr(verb, "REFUSED", ())))
    else:
        lines += flag_lines(dataclasses.fields(verb.Arguments))
    return "\n".join([*lines, "", "example:", f"  {verb.EXAMPLE}"])


def _positional_words(verb: ModuleType, arguments: type) -> list[str]:
    """The arguments without a flag as a usage line writes them: [X] may be left out, X ... may be several."""
    fields = {field.name: field for field in dataclasses.fields(arguments)}
    words = []
    for name in verb.POSITIONAL:
        field, word = fields[name], name.upper() + " ..." * bool(getattr(verb, "MANY", False))
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        words.append(word if needed else f"[{word}]")
    return words
