"""``hf-shear --print-completion SHELL``: a script with which a shell completes verbs, flags and choices (by shtab)."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from ..core import MissingExtraError, UsageError
from ..runs.flag_help import flags_read
from .verb_arguments import argument_types

FLAG = "--print-completion"


def completion_script(program: str, verbs: Sequence[str], words: Sequence[str]) -> str:
    """The script for the shell that ``words`` names.

    Raises:
        UsageError: no shell is named, or one that there is no script for.
        MissingExtraError: shtab is not installed.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise MissingExtraError(f"`{FLAG}` needs shtab: pip install 'hf-shear[completion]'.") from error
    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"`{FLAG}` needs one of {', '.join(shtab.SUPPORTED_SHELLS)}, but {words} was given.")
    parser = argparse.ArgumentParser(program)
    parser.add_argument("--version", action="store_true")
    parsers = parser.add_subparsers()
    for name in verbs:
        verb = importlib.import_module(f".{name}", __package__)
        one = parsers.add_parser(name, help=_shown(verb.SUMMARY))
        for position in verb.POSITIONAL:
            vars(one.add_argument(position))["complete"] = shtab.FILE
        vars(one.add_argument("--config"))["complete"] = shtab.FILE
        one.add_argument("--help-all", action="store_true")
        for flag in flags_read(argument_types(verb)):
            help = _shown(flag.field.metadata.get("help", "")).partition(". ")[0]
            added = one.add_argument(f"--{flag.name}", choices=flag.choices, help=help)
            if flag.kind is str and flag.choices is None:
                vars(added)["complete"] = shtab.FILE
    return shtab.complete(parser, words[0])


def _shown(text: str) -> str:
    return " ".join(str(text).split()).replace("%%", "%").replace("%", "%%")
