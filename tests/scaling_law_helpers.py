"""Recovery runs drawn from a law that the tests know."""

from __future__ import annotations

import csv
from dataclasses import asdict

import numpy as np

from hf_shear.scaling_law import Case, RecoveryRun
from hf_shear.scaling_law.read_runs import COLUMNS, OPTIONAL_COLUMNS

SIZES = (1e8, 3e8, 1e9, 3e9)
FRACTIONS = (0.15, 0.25, 0.35)
NUM_TOKENS = 1e9
CONSTANTS = {
    "rho_exponent": 1.5, "delta": 0.1, "alpha": 0.6, "beta": 0.5, "N_C": 5e3, "D_C": 3e4, "E": 0.8,
}  # fmt: skip


def true_rise(num_parameters, fraction_removed, tokens, constants=CONSTANTS):
    """L - L0 by the law of arXiv 2411.10272."""
    c = constants
    common = fraction_removed ** c["rho_exponent"] * num_parameters ** -c["delta"]
    return common * (c["N_C"] * num_parameters ** -c["alpha"] + c["D_C"] * tokens ** -c["beta"] + c["E"])


def source_loss(num_parameters: float) -> float:
    return 3.5 - 0.1 * np.log10(num_parameters)


def draw_run(num_parameters, fraction_removed, noise=0.0, num_checkpoints=30, num_tokens=NUM_TOKENS, seed=0, **fields):
    """One run: evenly spaced checkpoints, noise in nats."""
    tokens = np.linspace(num_tokens / num_checkpoints, num_tokens, num_checkpoints).round()
    case = Case(num_parameters, fraction_removed, source_loss(num_parameters))
    losses = case.source_loss + true_rise(num_parameters, fraction_removed, tokens)
    losses = losses + noise * np.random.default_rng(seed).standard_normal(num_checkpoints)
    return RecoveryRun(f"{num_parameters:.0e}-{fraction_removed}", case, tokens, losses, **fields)


def draw_runs(sizes=SIZES, fractions=FRACTIONS, noise=0.0, **options) -> list[RecoveryRun]:
    """A run of each size and fraction, each with noise of its own."""
    pairs = [(size, fraction) for size in sizes for fraction in fractions]
    return [draw_run(*pair, noise=noise, seed=seed, **options) for seed, pair in enumerate(pairs)]


def write_runs_csv(path, runs) -> None:
    """The table that ``read_runs`` reads."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS + OPTIONAL_COLUMNS)
        writer.writeheader()
        for run in runs:
            facts = {"run": run.name, "family": run.family, "pruning": run.pruning} | asdict(run.case)
            for index, (tokens, loss) in enumerate(zip(run.tokens, run.losses, strict=True)):
                control = None if run.control_losses is None else run.control_losses[index]
                writer.writerow(facts | {"tokens": int(tokens), "loss": loss, "control_loss": control})
