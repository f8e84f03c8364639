"""The recovery runs behind the claims about the P2 law: those of examples/p2_law.py, a file per seed."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from study import EXAMPLES, RESULTS, Study

sys.path.insert(0, str(EXAMPLES))

from p2_law import FamilyRuns, law_runs, parse  # noqa: E402

from hf_shear.scaling_law import LawFit, RecoveryRun, ScalingLawWarning, fit_law  # noqa: E402

FAMILY = EXAMPLES / "family" / "models"


def recovery_runs(study: Study, seed: int) -> list[RecoveryRun]:
    """The runs of one seed against their controls; those that are missing are made first, which takes long.

    They are kept in ``scaling_law``, beside model_cards/claims or in the folder that is given.
    """
    path = runs_file(study.output.parent, study.name, seed)
    flags = study.recovery | {"family": FAMILY, "data_dir": study.data_dir, "output": path, "seed": seed}
    command = [f"--{name}={value}" for name, value in flags.items() if not isinstance(value, list)]
    for name, values in flags.items():
        command += [f"--{name}", *map(str, values)] if isinstance(values, list) else []
    family = FamilyRuns(parse(command))
    family.run_all()
    study.family_data = family.data.train
    return law_runs(json.loads(path.read_text(encoding="utf-8")))


def runs_file(folder: Path, family: str, seed: int) -> Path:
    """Where the runs of a seed are; ``examples/p2_law_page.py`` reads the same folder."""
    place = folder.parent if folder == RESULTS else folder
    return place / "scaling_law" / (f"{family}.json" if seed == 0 else f"{family}-seed-{seed}.json")


def cost(study: Study, seed: int) -> dict:
    """Tokens and seconds of the runs of a seed; their first claim counts them."""
    runs = json.loads(runs_file(study.output.parent, study.name, seed).read_text(encoding="utf-8"))["runs"]
    stage = runs[0]["tokens"][-1]  # of each run, the same number from every domain
    shares = {name: len(data) * study.max_length * len(study.family_data) for name, data in study.family_data.items()}
    return {
        "tokens": sum(run["tokens"][-1] for run in runs),
        "training_seconds": sum(run["seconds"] for run in runs),
        "stage_tokens": stage,
        "passes": {name: stage / tokens for name, tokens in shares.items()},
    }


def fitted(runs: list[RecoveryRun], form: str = "p2", **options) -> LawFit:
    """One law for all runs; what it warns of is on the page of examples/p2_law_page.py."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingLawWarning)
        return fit_law(runs, form=form, num_bootstrap=0, **options)
