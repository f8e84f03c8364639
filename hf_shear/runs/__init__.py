"""Runs: arguments, folders, data, baselines, reports; what the examples are made of."""

from .baselines import BASELINES, baseline_learning_rates, baseline_model
from .choose_target import choose_target
from .config_file import parse_arguments
from .domain_data import DomainData, prepare_domain_data
from .report import RESULTS_NAME, judge, judge_checkpoint, run_results, write_report
from .run_folder import RunFolder, finished_stages, run_settings
from .whole_models import whole_models

__all__ = [
    "BASELINES",
    "RESULTS_NAME",
    "DomainData",
    "RunFolder",
    "baseline_learning_rates",
    "baseline_model",
    "choose_target",
    "finished_stages",
    "judge",
    "judge_checkpoint",
    "parse_arguments",
    "prepare_domain_data",
    "run_results",
    "run_settings",
    "whole_models",
    "write_report",
]
