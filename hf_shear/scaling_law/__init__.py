"""How many tokens: scaling laws of recovery after pruning, fitted, predicting, planning and steering a run."""

from .callback import ScalingLawCallback
from .generalisation import TEST_NAMES, generalisation_errors
from .law_fit import LawFit, ScalingLawWarning, fit_each_run, fit_law
from .planning import BudgetPlan, Candidate, plan_budget
from .read_runs import read_runs, runs_from_csv
from .recovery_run import Case, RecoveryRun, with_control

__all__ = [
    "TEST_NAMES",
    "Candidate",
    "Case",
    "LawFit",
    "BudgetPlan",
    "RecoveryRun",
    "ScalingLawCallback",
    "ScalingLawWarning",
    "fit_each_run",
    "fit_law",
    "generalisation_errors",
    "plan_budget",
    "read_runs",
    "runs_from_csv",
    "with_control",
]
