"""How many tokens: scaling laws of recovery after pruning, fitted, predicting, planning and steering a run."""

from .callback import ScalingLawCallback
from .check_runs import check_runs
from .curves import LossCurve, NumericCurve, PowerCurve
from .estimates import Estimate
from .fit_report import FitReport, RunQuality
from .forms import FORMS, LawForm
from .generalisation import TEST_NAMES, generalisation_errors, split_runs
from .law_fit import LawFit, ScalingLawWarning, fit_constants, fit_each_run, fit_law
from .planning import BudgetPlan, Candidate, CandidatePlan, plan_budget
from .read_runs import read_runs, run_from_results, run_from_trainer_state, runs_from_csv, write_runs_csv
from .recovery_run import Case, RecoveryRun, with_control

__all__ = [
    "FORMS",
    "TEST_NAMES",
    "Candidate",
    "CandidatePlan",
    "Case",
    "Estimate",
    "FitReport",
    "LawFit",
    "LawForm",
    "LossCurve",
    "NumericCurve",
    "BudgetPlan",
    "PowerCurve",
    "RecoveryRun",
    "RunQuality",
    "ScalingLawCallback",
    "ScalingLawWarning",
    "check_runs",
    "fit_constants",
    "fit_each_run",
    "fit_law",
    "generalisation_errors",
    "plan_budget",
    "read_runs",
    "run_from_results",
    "run_from_trainer_state",
    "runs_from_csv",
    "split_runs",
    "with_control",
    "write_runs_csv",
]
