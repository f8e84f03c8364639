"""Private names of other libraries: each is where it was read, and each that is used stands in the table."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import hf_shear
from hf_shear.core.transformers_private import PRIVATE_NAMES, PrivateName
from hf_shear.modeling import ShearingMixin

PACKAGE = Path(hf_shear.__file__).parent
KNOWN = {private.name for private in PRIVATE_NAMES}
# Of Python, and of a text's or a tuple's own.
PYTHONS = {"_replace"}


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: f"{private.owner}.{private.name}")
def test_a_private_name_is_where_it_was_read(private):
    module = private.owner.partition(":")[0]
    if not private.read_in.startswith(("5.", "torch", "Python")):
        pytest.importorskip(module)
    assert private.fault() is None


@pytest.mark.parametrize(
    "private, fault",
    [
        (
            PrivateName("transformers.trainer:Trainer", "_save", "files", ("folder",)),
            "`transformers.trainer:Trainer._save`, read in 5.17 to 5.24 and used for files, takes output_dir, state_dict"
            " now, no longer folder. Read the new release, and mend hf_shear/core/transformers_private.py and its users.",
        ),
        (PrivateName("transformers.trainer:Trainer", "_saves", "files", ("folder",)), "used for files, is gone. Read"),
        (
            PrivateName("transformers.trainer:Trainer", "_no_sum", "losses"),
            "_no_sum`, read in 5.17 to 5.24 and used for",
        ),
        (
            PrivateName("transformers.trainer:Trainers", "_save", "files"),
            "used for files, is gone with its owner. Read",
        ),
    ],
)
def test_a_release_that_moved_a_name_is_told(private, fault):
    assert fault in private.fault()


def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]


def own_names(tree: ast.Module) -> set[str]:
    """Names that a module defines: functions, classes, variables, attributes of self."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            found |= {node.attr} if node.value.id in ("self", "cls") else set()
    return found


def used_names(tree: ast.Module) -> set[str]:
    """Private names that a module reads or imports, also by ``getattr``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            found |= {
                word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
            }
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_of_others_is_in_the_table():
    parsed = trees()
    own, used = (set().union(*map(names, parsed)) for names in (own_names, used_names))
    assert used - own <= KNOWN | PYTHONS, "read the release, and add a row to PRIVATE_NAMES"


def test_every_override_of_a_private_method_is_in_the_table():
    overridden = set()
    for module in pkgutil.walk_packages([str(PACKAGE)], "hf_shear."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or not kind.__module__.startswith("hf_shear"):
                continue
            bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] in ("transformers", "evaluate")]
            if issubclass(kind, ShearingMixin):
                bases += importlib.import_module("transformers").PreTrainedModel.__mro__
            names = {name for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
            overridden |= {name for name in names for base in bases if name in vars(base)}
    assert {"_save_checkpoint", "_init_weights", "_VALID_DICT_FIELDS"} <= overridden
    set_at_run_time = {"_abc_impl", *(name for name in overridden if name.endswith("_cached_value"))}  # caches
    assert overridden - set_at_run_time <= KNOWN, "read the release, and add a row to PRIVATE_NAMES"


def test_every_name_of_the_table_is_used():
    text = "".join(
        path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "transformers_private.py"
    )
    hooks = inspect.getsource(importlib.import_module("hf_shear.core.transformers_private").TrainerHooks)
    assert [name for name in sorted(KNOWN) if name not in text + hooks] == []
