"""Numbers that a change of the code's structure must not move: the embedded job's, and three studies' of the claims.

``golden_values.json`` names the versions and the commit that it was recorded with. To record anew, after a change that is
meant to move numbers (a few minutes): ``HF_SHEAR_TEST_DATA=... python tests/test_golden_values.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_shear.core import collect_versions

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden_values.json")
CLAIMS = (
    "llm_surgeon_4_correlated",
    "llm_surgeon_5_semi_structured",
    "sheared_llama_4_dynamic_batches",
)
MEASURED = ("mean", "loss", "before", "rise", "errors")
RELATIVE = 1e-5


def run(*words) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, check=True, capture_output=True)


def embedded(folder: Path) -> dict:
    """Losses of every model of the main job, and the units that its masks kept."""
    run("examples/shear.py", "--output_dir", folder / "job")
    results = json.loads((folder / "job" / "results.json").read_text())
    provenance = json.loads((folder / "job" / "pruned" / "shear_provenance.json").read_text())
    models = {name: results[name] for name in ("source", "pruned", "recovered")} | results["baselines"]
    losses = {name: model["loss"] for name, model in models.items()}
    return {"losses": losses, "kept": json.dumps(provenance["kept"], sort_keys=True)}


def claim(name: str, folder: Path, data: Path) -> dict:
    """What the small form of a claim's study measures, by source and arm."""
    stories = data / "models" / "stories260K", data / "data" / "tinystories"
    text = "--data_dir", data / "data" / "redpajama_sample", "--stories", *stories
    run("-m", f"examples.research.claims.{name}", "--small", *text, "--output", folder)
    sources = json.loads((folder / f"{name}.json").read_text())["sources"]
    return {
        source: [{k: arm[k] for k in MEASURED if k in arm} for arm in found["runs"]]
        for source, found in sources.items()
    }


def differences(golden, measured, where: str) -> list[str]:
    """Where two records differ: numbers by more than ``RELATIVE``, anything else at all."""
    if isinstance(golden, dict) and isinstance(measured, dict) and golden.keys() == measured.keys():
        return [line for name in golden for line in differences(golden[name], measured[name], f"{where}.{name}")]
    if isinstance(golden, list) and isinstance(measured, list) and len(golden) == len(measured):
        pairs = enumerate(zip(golden, measured, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{where}[{index}]")]
    same = measured == (pytest.approx(golden, rel=RELATIVE, abs=1e-9) if isinstance(golden, float) else golden)
    return [] if same else [f"{where}: {golden} was recorded, {measured} is measured"]


@pytest.mark.slow
def test_the_embedded_job_gives_its_golden_values(tmp_path):
    golden = json.loads(GOLDEN.read_text())["embedded"]
    assert not differences(golden, embedded(tmp_path), "embedded")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_a_study_gives_its_golden_values(name, shared_data, tmp_path):
    golden = json.loads(GOLDEN.read_text())["claims"][name]
    assert not differences(golden, claim(name, tmp_path, shared_data), name)


def test_a_difference_is_found():
    golden = {"mean": 2.0, "kept": "[1]", "runs": [{"loss": {"a": 1.0}}]}
    assert not differences(golden, {"mean": 2.000001, "kept": "[1]", "runs": [{"loss": {"a": 1.0}}]}, "x")
    assert differences(golden, golden | {"mean": 2.001}, "x") == ["x.mean: 2.0 was recorded, 2.001 is measured"]
    assert differences(golden, golden | {"kept": "[2]"}, "x") and differences(golden, golden | {"runs": []}, "x")


def record() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(os.environ["HF_SHEAR_TEST_DATA"])
        found = {"versions": collect_versions(), "embedded": embedded(folder)}
        found["claims"] = {study: claim(study, folder / study, data) for study in CLAIMS}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    record()
