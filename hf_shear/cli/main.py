"""Finds the verb's module, parses its arguments and runs it.

A verb is a module of this package, of the verb's name, with
    SUMMARY         one line for ``hf-shear --help``
    EXAMPLE         one command line for ``hf-shear VERB --help``
    POSITIONAL      names of the arguments that may be given without a flag, in order
    Arguments       a dataclass: its fields are the flags, checked in ``__post_init__`` without loading anything
    run(arguments)  does the work, and prints its result
It imports nothing at its head that takes long to import. It may have
    MAKES_FOLDER    True: it makes the folder ``output_dir``, and no other process may while it runs
    MANY            True: all words before the first flag are values of its one positional argument, a list
    TRAINS          True: it takes the flags of training too; ``run`` then takes a ``ShearTrainingArguments`` as well
    REFUSED         flags of training that it does not take, with what to do in place of each
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from types import ModuleType

from ..core import DEBUG, OK, WRONG_USE, locked_result, run_command_line
from . import completion
from .verb_arguments import HelpAsked, parse_verb

PROGRAM = "hf-shear"
VERBS = (
    "inspect", "search", "learn", "prune", "interleave", "export", "recover", "evaluate", "plan", "report", "compare",
    "card", "push", "docs",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hf-shear`` with ``arguments`` (default: those of the process) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return OK if words else WRONG_USE
    if words[0] == "--version":
        print(f"hf-shear {metadata.version('hf-shear')}")
        return OK
    if words[0] == completion.FLAG:
        return run_command_line(PROGRAM, lambda: print(completion.completion_script(PROGRAM, VERBS, words[1:])))
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0].lower(), VERBS, n=1)
        fix = f"Did you mean {near[0]!r}? " if near else ""
        return _refuse(f"there is no verb {words[0]!r}. {fix}Write one of these first: {', '.join(VERBS)}.")
    name, *rest = words
    return run_command_line(PROGRAM, lambda: _run(name, [word for word in rest if word != DEBUG]), DEBUG in rest)


def _run(name: str, words: Sequence[str]) -> None:
    verb = _load(name)
    try:
        instances = parse_verb(name, verb, words)
    except HelpAsked as help_asked:
        print(help_asked)
    else:
        makes_folder = getattr(verb, "MAKES_FOLDER", False)
        locks = makes_folder and not instances[0].dry_run
        with locked_result(instances[0].output_dir) if locks else nullcontext():
            verb.run(*instances)


def _load(verb: str) -> ModuleType:
    return importlib.import_module(f".{verb}", __package__)


def _refuse(text: str) -> int:
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)
    return WRONG_USE


def _overview() -> str:
    lines = [
        "usage: hf-shear VERB [ARGUMENTS]",
        "",
        "Make a pretrained Llama small, train it back to strength, publish it.",
        "",
    ]
    lines += [f"  {verb:<12}{_load(verb).SUMMARY}" for verb in VERBS]
    return "\n".join(
        [
            *lines,
            "",
            "hf-shear VERB --help tells each verb's arguments; --debug shows an error's traceback.",
            "hf-shear --print-completion bash (or zsh, tcsh) writes a script for your shell.",
        ]
    )
