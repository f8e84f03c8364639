"""Imports between the packages of hf_shear point only down, and every package has its place."""

import ast
from pathlib import Path

import pytest

import hf_shear

PACKAGE = Path(hf_shear.__file__).parent

# What the stages of a run are made of; the command line has these too.
STAGES = {
    "shapes",
    "masks",
    "sources",
    "modeling",
    "slicing",
    "criteria",
    "compensation",
    "pruning",
    "data",
    "distillation",
    "training",
    "report",
}

# What each package may import from hf_shear, besides itself and core. A new package must be given its place here.
ALLOWED = {
    "core": set(),
    "shapes": set(),
    "masks": {"shapes"},
    "sources": {"shapes"},
    "modeling": {"shapes", "masks", "sources"},
    "slicing": {"shapes", "masks", "modeling", "sources"},
    "data": set(),
    "calibration": {"shapes", "modeling", "masks"},
    "criteria": {"shapes", "masks", "modeling", "data", "calibration"},
    "compensation": {"shapes", "masks", "modeling", "data", "calibration"},
    "pruning": {"shapes", "masks", "modeling", "sources", "slicing", "data", "criteria", "compensation"}
    | {"distillation", "training"},
    "sparsity": {"data", "calibration"},
    "distillation": set(),
    "training": {"shapes", "masks", "modeling", "sources", "slicing", "data", "distillation"},
    "scaling_law": set(),
    "report": set(),
    "evaluation": {"shapes", "sources", "data", "report"},
    "search": {"shapes", "masks", "modeling", "slicing", "data", "calibration", "criteria", "compensation", "pruning"}
    | {"training", "evaluation"},
    "publishing": {"shapes", "sources", "masks", "modeling", "slicing", "report"},
    "runs": STAGES | {"search"},
    "cli": STAGES | {"evaluation", "publishing", "scaling_law", "search", "runs"},
}


def imported_packages(source: str, package: str) -> set[str]:
    """Packages of hf_shear that a module in ``hf_shear/<package>/`` imports, wherever the import stands.

    "" is hf_shear itself, whose ``__init__`` imports everything.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["hf_shear", package][: 3 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import masks` and `from hf_shear import masks` name the package after `import`.
            names = [f"hf_shear.{a.name}" for a in node.names] if module == "hf_shear" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "hf_shear":
                found.add(parts[1] if len(parts) > 1 else "")
    return found


def packages() -> list[str]:
    return sorted(folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py")))


def violations(package: str, source: str, where: str) -> list[str]:
    if package not in ALLOWED:
        return [f"{where}: the package {package!r} has no place in ALLOWED"]
    wrong = imported_packages(source, package) - ALLOWED[package] - {package, "core"}
    return [f"{where}: {package} must not import {name or 'hf_shear'}" for name in sorted(wrong)]


def test_every_package_has_a_place():
    assert set(packages()) <= set(ALLOWED), "give the new package its place in ALLOWED"
    # Nothing but packages: a module beside them would be under no rule.
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert not [path for path in PACKAGE.glob("*/*/*.py")], "the rule knows one level of packages"


def test_the_order_has_no_circle():
    done = set()
    while len(done) < len(ALLOWED):
        free = {name for name, below in ALLOWED.items() if name not in done and below <= done}
        assert free, f"these packages need each other: {sorted(set(ALLOWED) - done)}"
        done |= free


@pytest.mark.parametrize("package", packages())
def test_imports_point_down(package):
    found = []
    for path in sorted((PACKAGE / package).glob("*.py")):
        found += violations(package, path.read_text(encoding="utf-8"), f"{package}/{path.name}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "package, source, wrong",
    [
        ("masks", "from ..modeling import ShearingMixin", "modeling"),
        ("masks", "from ..modeling.folding import scale_weight", "modeling"),
        ("shapes", "import hf_shear.masks", "masks"),
        ("shapes", "import hf_shear.masks.lagrangian as x", "masks"),
        ("data", "from hf_shear.shapes import ModelShape", "shapes"),
        ("data", "from hf_shear import shapes", "shapes"),
        ("data", "from .. import shapes", "shapes"),
        ("data", "from hf_shear import TargetShape", "TargetShape"),
        ("data", "import hf_shear", "hf_shear"),
        ("report", "def f():\n    from ..training import ShearTrainer", "training"),
        ("slicing", "if TYPE_CHECKING:\n    from ..criteria import CRITERIA", "criteria"),
        ("training", "from ..report import results_table", "report"),
    ],
)
def test_an_import_that_points_up_is_found(package, source, wrong):
    assert violations(package, source, "x.py") == [f"x.py: {package} must not import {wrong}"]


@pytest.mark.parametrize(
    "package, source",
    [
        ("masks", "from ..shapes import ModelShape\nfrom .schedule import MaskPhase\nfrom . import settings"),
        ("pruning", "from ..slicing.slice_model import slice_model\nimport torch"),
        ("runs", "from ..training import ShearTrainer\nfrom hf_shear.report import results_table"),
        ("report", "import hf_shearing_unrelated"),
    ],
)
def test_an_import_that_points_down_is_allowed(package, source):
    assert violations(package, source, "x.py") == []


def test_an_unlisted_package_is_found():
    assert violations("utils", "", "x.py") == ["x.py: the package 'utils' has no place in ALLOWED"]
