"""Finds the verb's module, parses its arguments, runs it, and turns users' mistakes into one line and an exit code.

A verb is a module of this package, of the verb's name, with
    SUMMARY         one line for ``hf-shear --help``
    EXAMPLE         one command line for ``hf-shear VERB --help``
    POSITIONAL      names of the arguments that may be given without a flag, in order
    Arguments       a dataclass: its fields are the flags, checked in ``__post_init__`` without loading anything
    run(arguments)  does the work, and prints its result
and may have OTHERS, further dataclasses of arguments; ``run`` then takes one instance of each, in order.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from .terminal import quiet_when_piped
from .verb_arguments import HelpAsked, parse_verb

VERBS = ("inspect", "learn", "prune", "interleave", "export", "recover", "evaluate", "plan", "report", "card", "push")

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; something failed on the way; a mistake in the command or what it names; stopped by Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hf-shear`` with ``arguments`` (default: those of the process) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return OK if words else WRONG_USE
    if words[0] == "--version":
        print(f"hf-shear {metadata.version('hf-shear')}")
        return OK
    if words[0] not in VERBS:
        return _refuse(f"there is no verb {words[0]!r}. Verbs: {', '.join(VERBS)}.")
    quiet_when_piped()
    verb = _load(words[0])
    try:
        instances = parse_verb(words[0], verb, words[1:])
        verb.run(*instances)
    except HelpAsked as help_asked:
        print(help_asked)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        return _refuse(str(error))
    except (OSError, ImportError, RuntimeError) as error:
        print(f"hf-shear {words[0]}: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    return OK


def _load(verb: str) -> ModuleType:
    return importlib.import_module(f".{verb}", __package__)


def _refuse(text: str) -> int:
    print(f"hf-shear: error: {text}", file=sys.stderr)
    return WRONG_USE


def _overview() -> str:
    lines = [
        "usage: hf-shear VERB [ARGUMENTS]",
        "",
        "Make a pretrained Llama small, train it back to strength, publish it.",
        "",
    ]
    lines += [f"  {verb:<12}{_load(verb).SUMMARY}" for verb in VERBS]
    return "\n".join([*lines, "", "hf-shear VERB --help tells each verb's arguments."])
