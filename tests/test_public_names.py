"""Names that users import are frozen: a change of public_names.json is a change of the interface."""

import ast
import importlib
import json
import re

import pytest

import hf_shear
from examples.research.api_page import NAMES, PAGE, ROOT, page

PUBLIC = {module: set(names) for module, names in json.loads(NAMES.read_text(encoding="utf-8")).items()}
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def imported(source: str) -> set[tuple[str, str]]:
    """(module, name) of what a piece of Python imports from hf_shear; a module's name is its own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_shear":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add((module, "") if module in PUBLIC else (node.module, alias.name))
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "hf_shear"}
    return found


def wrong_imports(source: str) -> set[str]:
    return {
        f"{module}.{name}".rstrip(".")
        for module, name in imported(source)
        if module not in PUBLIC or (name and name not in PUBLIC[module])
    }


def test_the_top_has_these_names():
    assert set(hf_shear.__all__) == PUBLIC["hf_shear"]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_exported_by_its_module(module):
    found = importlib.import_module(module)
    assert PUBLIC[module] <= set(found.__all__)
    assert all(hasattr(found, name) for name in PUBLIC[module])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_import_public_names_alone(path):
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python|py)\n(.*?)```", text, re.DOTALL)
    assert not set().union(*map(wrong_imports, blocks))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_examples_import_public_names_alone(path):
    assert not wrong_imports(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_dotted_names_in_prose_are_there(path):
    for name in set(re.findall(r"`(hf_shear(?:\.\w+)+)", path.read_text(encoding="utf-8"))):
        thing, *parts = hf_shear, *name.split(".")[1:]
        for number, part in enumerate(parts):
            if not hasattr(thing, part):
                importlib.import_module(".".join(["hf_shear", *parts[: number + 1]]))
            thing = getattr(thing, part)


@pytest.mark.parametrize(
    "source, wrong",
    [
        ("from hf_shear import ShearTrainer, runs", set()),
        ("from hf_shear.slicing import slice_model", {"hf_shear.slicing.slice_model"}),
        ("from hf_shear.data import loader", {"hf_shear.data.loader"}),
        ("import hf_shear.training.memory", {"hf_shear.training.memory"}),
        ("def f():\n    from hf_shear import masks, cli", {"hf_shear.cli"}),
    ],
)
def test_an_import_of_another_name_is_found(source, wrong):
    assert wrong_imports(source) == wrong


def test_the_page_of_names_is_made_from_the_docstrings():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m examples.research.api_page"
