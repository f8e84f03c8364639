"""Which code made a result: the commit, and a digest of what the numbers depend on.

The digest is of the rooms of hf_shear that a run goes through and of what an example's entry reaches in other examples,
each as a syntax tree without what changes no number: comments, docstrings, annotations, help, and the texts of errors and
warnings. So a page is stale when code has moved, and only then; that it moved does not say that a number did.
"""

from __future__ import annotations

import ast
import copy
import datetime
import hashlib
import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .shared import ROOT

ROOMS = (
    "calibration", "compensation", "core", "criteria", "data", "distillation", "masks", "modeling", "pruning", "runs",
    "shapes", "slicing", "sources", "training",
)  # fmt: skip
"""Of hf_shear: what every run goes through."""
ROOMS_IF_IMPORTED = ("evaluation", "scaling_law", "search", "sparsity")
"""What counts for an entry that imports it. Others (cli, publishing, report) show numbers and make none."""
REBUILD = "python -m examples.research.pages"
BEFORE = {"commit": None, "date": "2026-11", "digest": None}
"""Of results that were made before they named their code."""


# A syntax tree without what changes no number


class _Bare(ast.NodeTransformer):
    """Drops docstrings, annotations, help, and texts of errors and warnings."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return None
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return None if isinstance(called, ast.Attribute) and called.attr == "warn" else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=kind, cause=None)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(arg=node.arg, annotation=None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "metadata" else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)


def fingerprint(node: ast.AST) -> str:
    """The same for trees that compute the same, but for names of their variables; drops from ``node`` what is left out."""
    words: list[str] = []
    _add_words(words, _Bare().visit(node))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _add_words(words: list[str], node: Any) -> None:
    """A tree as words; what is empty is left out, so that other versions of Python say the same."""
    if isinstance(node, ast.AST):
        words.append(type(node).__name__)
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                words.append(name)
                _add_words(words, value)
    elif isinstance(node, list):
        for one in node:
            _add_words(words, one)
    else:
        words.append(repr(node))


@cache
def _room(name: str) -> str:
    """Of all modules of one room of hf_shear."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "hf_shear" / name).glob("*.py")):
        found.update(f"{path.name} {fingerprint(_tree(path))}".encode())
    return found.hexdigest()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# What an entry reaches in the examples


class _Module:
    """A module of the examples: its definitions and imports by name."""

    def __init__(self, name: str):
        self.name, path = name, ROOT.joinpath(*name.split("."))
        self.path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in _tree(self.path).body if self.path.is_file() else ():
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            self.definitions[name.id] = node
            elif isinstance(node, ast.ImportFrom):
                base = self.name.split(".")[: -node.level] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                self.imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}


@cache
def _module(name: str) -> _Module:
    return _Module(name)


def reached(module: str, names: Iterable[str]) -> tuple[dict[tuple[str, str], ast.stmt], set[str]]:
    """Definitions of examples that an entry needs, by module and name; and the rooms of hf_shear they import."""
    found: dict[tuple[str, str], ast.stmt] = {}
    rooms, waiting = set(), [(module, name) for name in names]
    while waiting:
        place, name = waiting.pop()
        own = _module(place)
        if (place, name) in found or place == __name__:
            continue
        if name in own.definitions:
            node = found[place, name] = own.definitions[name]
            waiting += [(place, used.id) for used in ast.walk(node) if isinstance(used, ast.Name)]
        elif name in own.imports:
            source, original = own.imports[name]
            if source.startswith("hf_shear."):
                rooms.add(source.split(".")[1])
            elif source.startswith("examples"):
                whole = _module(f"{source}.{original}")
                waiting += [(whole.name, one) for one in whole.definitions] or [(source, original)]
    return found, rooms


@cache
def code_digest(module: str, names: tuple[str, ...], config: Path | None = None) -> str:
    """Of the code that makes an entry's numbers.

    Args:
        module: of the examples, such as "examples.research.bench".
        names: of its functions or classes that make them.
        config: a YAML file of settings; its ``small`` part does not count.

    Raises:
        ValueError: the module has no such name.
    """
    found, rooms = reached(module, names)
    lacking = [name for name in names if (module, name) not in found]
    if lacking:
        raise ValueError(f"{module} has no {', '.join(lacking)}.")
    parts = [f"{room} {_room(room)}" for room in (*ROOMS, *(room for room in ROOMS_IF_IMPORTED if room in rooms))]
    parts += [
        f"{place}.{name} {fingerprint(copy.deepcopy(node))}"
        for (place, name), node in sorted(found.items(), key=lambda o: o[0])
    ]
    if config is not None:
        settings = {k: v for k, v in yaml.safe_load(config.read_text(encoding="utf-8")).items() if k != "small"}
        parts.append(json.dumps(settings, sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# What results record, and pages say


def code_record(digest: str) -> dict[str, Any]:
    """What a result keeps of the code that made it. The commit ends in "+" if files differ from it."""
    return {"commit": _commit(), "date": datetime.date.today().isoformat(), "digest": digest}


def is_code_of(commit: str | None) -> bool:
    """Whether the files that runs of hf_shear and its examples depend on are those of a commit."""
    places = [*(f"hf_shear/{room}" for room in ROOMS), "examples/shear.py", "examples/embedded"]
    command = ["git", "diff", "--quiet", str(commit), "--", *places]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@cache
def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "hf_shear", "examples")
        return git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # no checkout


def with_record(kept: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records of all code that made a file of results, with one more unless it is there."""
    known = any(one["digest"] == record["digest"] for one in kept)
    return [dict(one) for one in kept] + ([] if known else [dict(record)])


MadeAgain = tuple[str, Sequence[float], Sequence[float]]
"""What was made again, its kept numbers and today's."""
SAME = 1e-3
"""Relative difference of a number that is made again: another machine rounds otherwise, and training makes more of it."""


def check_made_again(what: str, was: Sequence[float], now: Sequence[float]) -> None:
    """Compare numbers that are kept with those that today's code makes, and print both.

    Args:
        what: was made again, for messages.

    Raises:
        ValueError: one differs by more than ``SAME`` of it: then measure anew.
    """
    print(f"{what}: {_numbers(was)} was, {_numbers(now)} is", flush=True)
    if len(was) != len(now) or not all(math.isclose(*pair, rel_tol=SAME) for pair in zip(was, now, strict=True)):
        raise ValueError(f"{what}: {list(was)} was, {list(now)} is. Measure anew.")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def confirm(
    kept: Mapping[str, Any], digest: str, made_again: Iterable[MadeAgain], sources: Iterable[str] = (),
    given: Iterable[str] = (),
) -> None:  # fmt: skip
    """Make some results again; where all are what they were, note in ``kept`` that today's code made them.

    Args:
        kept: results, with the records of their code as ``code``.
        digest: of today's code.
        made_again: is made one by one, as it is compared.
        sources: that ``kept`` has results of, where there are several.
        given: those that results are made again of.

    Raises:
        ValueError: a source is not given, in which case nothing is made; or a number differs: then measure anew.
    """
    if left := sorted(set(sources) - set(given)):
        raise ValueError(
            f"Results of {', '.join(left)} are kept, too, and are not compared. Give the source and its text."
        )
    for what, was, now in made_again:
        check_made_again(what, was, now)
    note_confirmed(kept["code"], digest)


def note_confirmed(kept: Iterable[dict[str, Any]], digest: str) -> None:
    """Add to the records of a file of results that today's code made some again and found the same numbers."""
    for one in kept:
        one["confirmed"] = code_record(digest)


def is_current(kept: Sequence[Mapping[str, Any]] | None, digest: str) -> bool:
    """Whether the code of today made all of a file's results, or made some again and found the same numbers."""
    return bool(kept) and all(digest in (one["digest"], one.get("confirmed", {}).get("digest")) for one in kept)


def stale_note(kept: Sequence[Mapping[str, Any]] | None, digest: str, command: str) -> str:
    """What a page says at its top where code has moved; "" where it has not. It is the same until results are made anew.

    Args:
        kept: the records of the results; None or empty if they have none.
        digest: of today's code.
        command: that makes the results anew.
    """
    if is_current(kept, digest):
        return ""
    made = " and ".join(f"{one['commit'] or 'unknown'} ({one['date']})" for one in kept or [BEFORE])
    if not kept or any(one["digest"] is None for one in kept):
        start = "These numbers were made before results named their code, in November 2026"
    else:
        start = f"The code that these numbers depend on has changed since they were made (commit {made})"
    return f"> {start}: they may differ today. Run again: `{command}`."


def made_by(kept: Sequence[Mapping[str, Any]], again: str) -> str:
    """The sentence of a page's end about the code of its results; "" where they do not name it.

    Args:
        again: what ``confirm`` makes again.
    """
    made = ", ".join(dict.fromkeys(f"{one['commit'] or 'unknown'} ({one['date']})" for one in kept))
    confirmed = " and ".join(dict.fromkeys(one["confirmed"]["commit"] for one in kept if "confirmed" in one))
    same = f"; {confirmed} made {again} again, and found the same within {100 * SAME:g} %" if confirmed else ""
    return f"Code: {made}{same}." if made else ""


def noted(note: str, text: str) -> str:
    """A text with a note under its first heading, if there is a note."""
    heading, _, rest = text.partition("\n")
    return f"{heading}\n\n{note}\n{rest}" if note else text
