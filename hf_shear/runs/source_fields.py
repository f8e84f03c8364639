"""The flags of training, read in the source of the classes that have them: importing those takes seconds.

``ShearTrainingArguments`` is a dataclass over ``transformers.TrainingArguments``. Their names, annotations, defaults and
help texts stand in the two source files. What is read there answers ``--help`` and refuses a mistake at once. Values are
made by the class itself.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..core import defaults

UNKNOWN = "UNKNOWN"
"""Stands for a default that is no constant of its file."""


class TrainingFlags:
    """Stands for ``ShearTrainingArguments`` until its values are needed."""

    @staticmethod
    def load() -> type:
        """The class itself."""
        from ..training import ShearTrainingArguments

        return ShearTrainingArguments

    @staticmethod
    @cache
    def as_read() -> type:
        """A dataclass of the same fields. An annotation is a text's where its class is not Python's own."""
        transformers = importlib.util.find_spec("transformers")
        assert transformers is not None and transformers.origin is not None, "it is a dependency"
        theirs = Path(transformers.origin).parent / "training_args.py"
        ours = Path(__file__).parent.parent / "training" / "arguments.py"
        fields = _read(theirs, "TrainingArguments") | _read(ours, "ShearTrainingArguments")
        return dataclasses.make_dataclass("ShearTrainingArguments", fields.values())


class _Names(dict):
    """Of an annotation: what is not Python's own is written as a text."""

    def __missing__(self, name: str) -> type:
        return str


_PYTHONS = {"dict": dict, "list": list, "bool": bool, "int": int, "float": float, "Any": Any, "Literal": Literal}


def _read(path: Path, name: str) -> dict[str, tuple[str, Any, dataclasses.Field]]:
    """(name, type, field) by name, of a dataclass in a file whose fields are all written as ``name: type = field(...)``."""
    constants, found = dict(vars(defaults)), {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign):
            _note(statement, constants)
        if not isinstance(statement, ast.ClassDef) or statement.name != name:
            continue
        for line in statement.body:
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            given = {word.arg: _constant(word.value, constants) for word in getattr(line.value, "keywords", ())}
            if given.get("init") is False:
                continue
            metadata = given.get("metadata", {})
            field = dataclasses.field(
                default=given.get("default", UNKNOWN), metadata=metadata if isinstance(metadata, dict) else {}
            )
            kind = eval(ast.unparse(line.annotation), {"__builtins__": {}}, _Names(_PYTHONS))
            found[line.target.id] = (line.target.id, kind, field)
    return found


def _note(statement: ast.Assign, constants: dict[str, Any]) -> None:
    """Keep the values of ``NAME = constant``, and of ``ONE, TWO = constants``."""
    value = _constant(statement.value, constants)
    for target in statement.targets if value is not UNKNOWN else ():
        if isinstance(target, ast.Name):
            constants[target.id] = value
        elif isinstance(target, ast.Tuple):
            constants |= dict(zip((name.id for name in target.elts if isinstance(name, ast.Name)), value, strict=True))


def _constant(expression: ast.expr, constants: dict[str, Any]) -> Any:
    """The value of an expression of constants; ``UNKNOWN`` of another."""
    if isinstance(expression, ast.Name) and expression.id in constants:
        return constants[expression.id]
    if isinstance(expression, ast.Dict):
        pairs = zip(expression.keys, expression.values, strict=True)
        return {_constant(key, constants): _constant(value, constants) for key, value in pairs if key is not None}
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return UNKNOWN
