"""Arguments from flags and from a YAML file, checked alike."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

from ..core import UsageError, read_yaml_mapping
from .flag_help import flags_read, grouped_help, help_asked
from .flags import Entry, check_text, flags_of, read_values, split_words
from .source_fields import TrainingFlags


def parse_arguments(
    dataclass_types,
    arguments: Sequence[str] | None = None,
    *,
    default_config: str | Path | None = None,
    unless: Sequence[str] = (),
    instead: Mapping[str, Sequence[str]] | None = None,
    refused: Mapping[str, str] | None = None,
    program: str | None = None,
) -> tuple:
    """Parse flags, and ``--config FILE.yaml`` whose entries flags override, into dataclass instances.

    The file's entries are read as flags are, so that 1e-4 is a number, a wrong type is an error, and an unknown name is
    refused in both places. ``--help`` prints the usual ones by what they are for, ``--help-all`` all, and either exits.

    Args:
        dataclass_types: one dataclass or several, as for ``transformers.HfArgumentParser``; ``TrainingFlags`` for
            ``ShearTrainingArguments``, which is imported then only once nothing is wrong with the flags themselves.
        arguments: flags; default ``sys.argv[1:]``.
        default_config: file to read where no ``--config`` is given.
        unless: names of flags; where one is given, ``default_config`` is not read.
        instead: name of a flag -> names that a file's entries lose where the flag is given, because it says the same
            in another way.
        refused: names of flags that must not be given, with what to do in place of each.
        program: what is called, for messages; by default the name of the script.

    Raises:
        UsageError: the file does not exist, or is not a YAML mapping of names to values; a refused flag was given; a name
            is unknown, given twice, or missing; or a value is of the wrong type.
    """
    program = program or Path(sys.argv[0]).name
    classes = dataclass_types if isinstance(dataclass_types, Sequence) else (dataclass_types,)
    words = list(sys.argv[1:] if arguments is None else arguments)
    whole = help_asked(words)
    if whole is not None:
        usage = f"usage: {program} [--config FILE.yaml] [FLAGS]"
        print("\n".join([usage, "", *grouped_help(classes, whole, list(refused or ()))]))
        sys.exit(0)
    path, flags = _take_config(split_words(words, program))
    given = {entry.name for entry in flags}
    if path is None and not given & set(unless):
        path = default_config
    overridden = given | {name for flag, names in (instead or {}).items() if flag in given for name in names}
    from_file = [entry for entry in _entries_of_file(path) if entry.name not in overridden]
    for entry in from_file + flags:
        if refused is not None and entry.name in refused:
            where = f" It stands{entry.place}." if entry.place else ""
            raise UsageError(f"`--{entry.name}` can not be given here: {refused[entry.name]}.{where}")
    entries = from_file + flags
    values = read_values(flags_read(classes), entries, program)
    try:
        return tuple(_made(cls, values, entries, program) for cls in classes)
    except ValueError as error:  # of ranges, of combinations, or of what transformers checks in its own arguments
        fix = (
            ""
            if isinstance(error, UsageError)
            else f"{'' if str(error).endswith('.') else '.'} Change or leave out what is named."
        )
        raise UsageError(f"{error}{fix}{_where(error, from_file)}") from error


def _made(cls: type, values: Mapping[str, Any], entries: Sequence[Entry], program: str) -> Any:
    """An instance of a dataclass of arguments."""
    if cls is TrainingFlags:  # whose values were not checked against the class's own choices
        cls = cls.load()
        own = flags_of(cls)
        known = {flag.name for flag in own}
        values = read_values(own, [entry for entry in entries if entry.name in known], program)
    return cls(**{field.name: values[field.name] for field in fields(cls) if field.init and field.name in values})


def _where(error: ValueError, from_file: Sequence[Entry]) -> str:
    """Where in the file the argument stands that an error begins with; "" for one that a flag gave."""
    named = re.match(r"`(\w+)", str(error))
    places = [entry.place for entry in from_file if named is not None and entry.name == named[1]]
    return f" It stands{places[0].rstrip(',')}." if places else ""


def _take_config(entries: list[Entry]) -> tuple[str | None, list[Entry]]:
    """Split ``--config PATH`` from the other flags."""
    found = [entry for entry in entries if entry.flag == "--config"]
    if len(found) > 1:
        raise UsageError("`--config` is given more than once. Put all entries into one file, or give them as flags.")
    if found and len(found[0].values) != 1:
        given = " and ".join(map(repr, found[0].values)) or "nothing"
        raise UsageError(f"`--config` needs the path of a YAML file, but {given} was given. Give one path.")
    for entry in found:
        check_text("config", entry.values[0])
    return (found[0].values[0] if found else None), [entry for entry in entries if entry.flag != "--config"]


def _entries_of_file(path: str | Path | None) -> list[Entry]:
    if path is None:
        return []
    values, lines = read_yaml_mapping(path, "`--config`")
    entries = []
    for name, value in values.items():
        place = f" in {str(path)!r}, line {lines[name]},"
        if name == "config":
            raise UsageError(f"`config`{place} names another file, but only a flag can. Put its entries into this one.")
        if value is not None:
            entries.append(Entry(f"--{name}", _words(name, value, place), place))
    return entries


def _words(name: str, value: object, place: str) -> tuple[str, ...]:
    """A value of the file as flags have it."""
    if isinstance(value, list):
        return tuple(_word(name, item, place) for item in value)
    if not isinstance(value, dict):
        return (_word(name, value, place),)
    try:
        return (json.dumps(value),)
    except TypeError as error:
        raise UsageError(f"`{name}`{place} holds what JSON can not: {error}. Put it in quotes.") from error


def _word(name: str, value: object, place: str) -> str:
    if not isinstance(value, (str, int, float, date)):
        raise UsageError(
            f"`{name}`{place} must be a text, a number, true or false, a list of those, or names with values, but it"
            f" holds a {type(value).__name__}. Correct it."
        )
    return str(value)
