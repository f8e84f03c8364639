"""How many tokens: scaling laws of recovery after pruning, fitted, predicting, planning and steering a run."""

from .check_runs import check_runs
from .curves import LossCurve, NumericCurve, PowerCurve
from .estimates import Estimate
from .fit_report import FitReport, RunQuality
from .forms import FORMS, LawForm
from .law_fit import LawFit, ScalingLawWarning, fit_each_run, fit_law
from .read_runs import read_runs, run_from_results, run_from_trainer_state, runs_from_csv, write_runs_csv
from .recovery_run import Case, RecoveryRun, with_control

__all__ = [
    "FORMS",
    "Case",
    "Estimate",
    "FitReport",
    "LawFit",
    "LawForm",
    "LossCurve",
    "NumericCurve",
    "PowerCurve",
    "RecoveryRun",
    "RunQuality",
    "ScalingLawWarning",
    "check_runs",
    "fit_each_run",
    "fit_law",
    "read_runs",
    "run_from_results",
    "run_from_trainer_state",
    "runs_from_csv",
    "with_control",
    "write_runs_csv",
]
