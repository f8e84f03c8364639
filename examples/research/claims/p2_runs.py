"""The recovery runs behind the claims about the P2 law: those of examples/research/p2_law.py, a file per seed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sized
from pathlib import Path

from hf_shear.scaling_law import LawFit, RecoveryRun, ScalingLawWarning, fit_law

from ..p2_law import FamilyRuns, law_runs, parse
from ..shared import RESEARCH
from .claim_results import RESULTS
from .study import Study

FAMILY = RESEARCH / "family" / "models"


def recovery_runs(study: Study, seed: int) -> tuple[list[RecoveryRun], dict]:
    """The runs of one seed against their controls, and what they cost; missing ones are made first, which takes long.

    They are kept in ``scaling_law``, beside model_cards/claims or in the folder that is given.
    """
    path = runs_file(study.output.parent, study.name, seed)
    flags = study.recovery | {"family": FAMILY, "data_dir": study.data_dir, "output": path, "seed": seed}
    command = [f"--{name}={value}" for name, value in flags.items() if not isinstance(value, list)]
    for name, values in flags.items():
        command += [f"--{name}", *map(str, values)] if isinstance(values, list) else []
    family = FamilyRuns(parse(command))
    family.run_all()
    results = json.loads(path.read_text(encoding="utf-8"))
    return law_runs(results), cost(results["runs"], family.data.train, study.max_length)


def runs_file(folder: Path, family: str, seed: int) -> Path:
    """Where the runs of a seed are; ``examples/research/p2_law_page.py`` reads the same folder."""
    place = folder.parent if folder == RESULTS else folder
    return place / "scaling_law" / (f"{family}.json" if seed == 0 else f"{family}-seed-{seed}.json")


def cost(runs: list[dict], data: Mapping[str, Sized], max_length: int) -> dict:
    """Tokens and seconds of the runs of a seed, and passes over its training text (samples by domain)."""
    stage = runs[0]["tokens"][-1]  # of each run, the same number from every domain
    return {
        "tokens": sum(run["tokens"][-1] for run in runs),
        "training_seconds": sum(run["seconds"] for run in runs),
        "stage_tokens": stage,
        "passes": {name: stage / (len(samples) * max_length * len(data)) for name, samples in data.items()},
    }


def fitted(runs: list[RecoveryRun], form: str = "p2", **options) -> LawFit:
    """One law for all runs; what it warns of is on the page of examples/research/p2_law_page.py."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)
        return fit_law(runs, form=form, num_bootstrap=0, **options)
