"""What is installed: the built archives, the pages that come with the package, an extra for every optional import."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from hf_shear.cli import docs
from hf_shear.cli.docs import docs_folder, page_names
from hf_shear.cli.main import main
from hf_shear.core import UsageError
from hf_shear.runs import teaching
from hf_shear.training.early_checks import _PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hf_shear"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DISTRIBUTIONS = {"yaml": "pyyaml", "lm_eval": "lm-eval", "liger_kernel": "liger-kernel", "google": "protobuf"}
"""Of modules that have another name than what is installed for them, beside those that are installed here."""
BY_TRANSFORMERS = {"sentencepiece", "protobuf", "gguf"}
"""Packages that transformers imports where hf_shear asks it to, and that have an extra for it."""
OPTIMIZERS = {"torchao", "galore_torch", "apollo_torch", "grokadamw", "optimi", "torchdistx", "torch_xla", "torch_npu"}
"""Packages of optimizers that `--optim` can name: transformers', of which a run needs at most one."""


# Extras


def names_in(text: str) -> set[str]:
    """Distributions in a list of requirements."""
    return {re.split(r"[\[<>=~! ]", word)[0].lower().replace("_", "-") for word in re.findall(r'"([^"]+)"', text)}


def requirements() -> tuple[set[str], dict[str, set[str]]]:
    """What is always installed, and what each extra adds, as pyproject.toml has it (Python 3.10 reads no TOML)."""
    always = names_in(re.search(r"^dependencies = \[(.*?)^\]", PYPROJECT, re.M | re.S)[1])
    part = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = {
        name: names_in(body) for name, body in re.findall(r"^([\w-]+) = \[(.*?)\]\n(?=[\w-]+ =|$)", part, re.M | re.S)
    }
    return always, extras


def modules_of(source: str) -> set[str]:
    """Top modules that a piece of code imports anywhere, or looks for by ``find_spec``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("find_spec", "import_module")):
            found |= {value.value for value in ast.walk(node) if isinstance(value, ast.Constant)}
    return {name.split(".")[0] for name in found if isinstance(name, str)} - {""}  # "": of a name that is put together


def imported_distributions() -> set[str]:
    """Of all code of hf_shear."""
    modules = set().union(*(modules_of(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")))
    modules -= set(sys.stdlib_module_names) | {"hf_shear", "__future__"}
    installed = packages_distributions()
    names = {DISTRIBUTIONS.get(module) or installed.get(module, [module])[0] for module in modules}
    return {name.lower().replace("_", "-") for name in names}


def test_the_walk_sees_imports_wherever_they_stand():
    code = "import a.b\ndef f():\n    from c.d import e\n    from . import g\n    importlib.util.find_spec('h')"
    assert modules_of(code) == {"a", "c", "h"}


def test_every_package_that_the_code_imports_is_a_dependency_or_has_an_extra():
    always, extras = requirements()
    assert {"torch", "transformers"} <= always and {"plots", "lora", "bitsandbytes"} <= set(extras)
    optional = set().union(*(names for extra, names in extras.items() if extra != "dev"))
    imported = imported_distributions()
    assert {"torch", "peft", "matplotlib", "zstandard", "liger-kernel"} <= imported
    assert imported - always - optional == set()
    assert set(_PACKAGES.values()) - OPTIMIZERS <= optional
    assert optional - imported <= BY_TRANSFORMERS, "an extra that nothing uses"


def test_every_extra_that_a_message_names_is_there():
    _, extras = requirements()
    said = set()
    for path in PACKAGE.rglob("*.py"):
        said |= set(re.findall(r"hf-shear\[([\w,-]+)\]", path.read_text(encoding="utf-8")))
    assert said >= {"plots", "lora", "eval", "bitsandbytes"}
    assert {name for names in said for name in names.split(",")} <= set(extras)


def test_a_quantised_base_without_its_package_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(teaching, "find_spec", lambda name: None)
    pipeline, args = SimpleNamespace(quantize="8bit"), SimpleNamespace(recovery=SimpleNamespace(adapts=True))
    with pytest.raises(UsageError, match=r"`quantize='8bit'` needs .*: pip install 'hf-shear\[bitsandbytes\]'"):
        teaching.check_teaching(pipeline, args, None, LlamaConfig(), None)


# Pages that come with the package


def test_docs_prints_a_page_or_lists_them_all(capsys):
    assert main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{name} +\S", listed, re.M) for name in page_names()) and str(docs_folder()) in listed
    assert main(["docs", "engines.md"]) == 0
    assert capsys.readouterr().out.strip() == (ROOT / "examples/docs/engines.md").read_text(encoding="utf-8").strip()


def test_pages_that_messages_name_are_there():
    said = set()
    for path in PACKAGE.rglob("*.py"):
        said |= set(re.findall(r"hf-shear docs (\w+)`", path.read_text(encoding="utf-8")))
    assert {"engines", "memory"} <= said <= set(page_names())


# Archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(wheel, source archive), built from this tree."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install 'hf-shear[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def tracked(*folders: str) -> set[str]:
    """Files that git knows, and those it does not but would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("no checkout: what belongs into the archives is not known")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_its_pages_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    pages = {f"hf_shear/docs/{Path(name).name}" for name in tracked("examples/docs")}
    record = {name for name in names if ".dist-info/" in name}
    assert names - record == tracked("hf_shear") | pages
    assert "hf_shear/py.typed" in names
    assert {name.split(".dist-info/")[1] for name in record} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"
    }  # fmt: skip
    assert "License-Expression: Apache-2.0" in metadata and "License-File: LICENSE" in metadata
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.M)) == set(requirements()[1])


def test_the_source_archive_holds_what_the_wheel_is_built_from(archives):
    with tarfile.open(archives[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    expected = tracked("hf_shear", "examples/docs") | {"pyproject.toml", "README.md", "LICENSE", ".gitignore"}
    assert names == expected | {"PKG-INFO"}


def test_the_archives_pass_the_index_checks(archives):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed: pip install 'hf-shear[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_an_unpacked_wheel_has_its_pages_in_the_package(archives, tmp_path, monkeypatch):
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(tmp_path)
    names = page_names()
    monkeypatch.setattr(docs, "__file__", str(tmp_path / "hf_shear" / "cli" / "docs.py"))
    assert docs_folder() == tmp_path / "hf_shear" / "docs" and page_names() == names
