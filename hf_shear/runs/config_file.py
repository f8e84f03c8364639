"""Arguments from flags and from a YAML file, checked alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..core import UsageError


def parse_arguments(
    dataclass_types,
    arguments: Sequence[str] | None = None,
    *,
    default_config: str | Path | None = None,
    unless: Sequence[str] = (),
    instead: Mapping[str, Sequence[str]] | None = None,
    refused: Mapping[str, str] | None = None,
    raises: bool = False,
) -> tuple:
    """Parse flags, and ``--config FILE.yaml`` whose entries flags override, into dataclass instances.

    The file's entries are turned into flags and parsed by the same parser, so that 1e-4 is a number, a wrong type is
    an error, and an unknown name is refused in both places.

    Args:
        dataclass_types: one dataclass or several, as for ``HfArgumentParser``.
        arguments: flags; default ``sys.argv[1:]``.
        default_config: file to read where no ``--config`` is given.
        unless: names of flags; where one is given, ``default_config`` is not read.
        instead: name of a flag -> names that a file's entries lose where the flag is given, because it says the same
            in another way.
        refused: names of flags that must not be given, with what to do in place of each.
        raises: raise UsageError for unknown, missing and malformed flags, where argparse would print its usage and exit.

    Raises:
        ValueError: the file does not exist, or is not a YAML mapping of names to values; or a refused flag was given.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = (_RaisingParser if raises else HfArgumentParser)(dataclass_types, allow_abbrev=False)
    parser.add_argument("--config", help="A YAML file with any of these arguments; flags override it.")
    path, flags = _take_config(arguments)
    given = _names(flags)
    if path is None and not given & set(unless):
        path = default_config
    left_out = {name for flag, names in (instead or {}).items() if flag in given for name in names}
    from_file = _flags_from_file(path, left_out)
    for name in given | _names(from_file):
        if name in (refused or {}):
            raise UsageError(f"`--{name}` can not be given here: {refused[name]}.")
    try:
        *instances, _ = parser.parse_args_into_dataclasses(from_file + flags, look_for_args_file=False)
    except UsageError:
        raise
    except ValueError as error:  # of an unknown flag, or of what transformers checks in its own arguments
        raise UsageError(str(error)) from error
    return tuple(instances)


class _RaisingParser(HfArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _names(flags: Sequence[str]) -> set[str]:
    """Names of the flags given; argparse takes dashes for underscores in them."""
    return {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split ``--config PATH`` (or ``--config=PATH``) from the other flags."""
    if sum(argument.split("=")[0] == "--config" for argument in arguments) > 1:
        raise UsageError("`--config` is given more than once. Put all entries into one file, or give them as flags.")
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise UsageError("`--config` needs the path of a YAML file.")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if argument.startswith("--config="):
            return argument.split("=", 1)[1], arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _flags_from_file(path: str | Path | None, left_out: Collection[str] = ()) -> list[str]:
    if path is None:
        return []
    if not Path(path).is_file():
        raise UsageError(f"`--config` {path!r} is not a file.")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise UsageError(f"`--config` {path!r} must hold names and values, but it holds a {type(content).__name__}.")
    flags = []
    for name, value in content.items():
        if value is None or name in left_out:
            continue
        flags.append(f"--{name}")
        if isinstance(value, (list, tuple)):
            flags += [str(item) for item in value]
        else:
            flags.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return flags
