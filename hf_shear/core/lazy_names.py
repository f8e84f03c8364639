"""Packages whose names are loaded when they are asked for (PEP 562), so that what needs none of them starts at once."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for the ``__init__`` of a package.

    The names are those that the ``__init__`` imports under ``if TYPE_CHECKING:`` from modules of the package. So each
    stands in one place, and a type checker knows it. None may be called as a module of the package is.

    Args:
        package: ``__name__`` of the ``__init__`` that calls this.
    """
    module = sys.modules[package]
    owners = _imported_for_types(inspect.getsource(module))

    def load(name: str) -> Any:
        if name in owners:
            value = getattr(importlib.import_module(f".{owners[name]}", package), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        there = {name for name, value in vars(module).items() if name[:2] == "__" or isinstance(value, ModuleType)}
        return sorted(there | owners.keys())

    return load, names


def _imported_for_types(source: str) -> dict[str, str]:
    """Module by name, of the imports under ``if TYPE_CHECKING:``."""
    blocks = [
        statement.body
        for statement in ast.parse(source).body
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name: statement.module
        for block in blocks
        for statement in block
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module is not None
        for alias in statement.names
    }
