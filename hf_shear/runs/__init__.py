"""Runs: arguments, folders, data, stages, baselines, reports; what the examples and the command line are made of."""

from typing import TYPE_CHECKING

from ..core.lazy_names import lazy_names

if TYPE_CHECKING:
    from .adoption import adopt, open_adopting_run
    from .bench import Bench, BenchArguments
    from .config_file import parse_arguments
    from .domain_data import DomainData, prepare_domain_data
    from .dry_run import tell_costs
    from .learned_arm import masked_arm
    from .learned_cut import check_learned_cut, cut_learned_masks
    from .nested import conclude_sizes, open_nested_run, rank_sizes, read_sizes, recover_sizes
    from .origin import commands_for
    from .pipeline_arguments import (
        SHAPE_ARGUMENTS,
        DataArguments,
        PipelineArguments,
        ShearArguments,
        TargetArguments,
        TextArguments,
        config_from_flags,
        dry_run_field,
        live_page_field,
    )
    from .report import (
        RESULTS_NAME,
        draw_report,
        interleaving_results,
        judge,
        judge_checkpoint,
        pruning_results,
        save_results,
    )
    from .run_folder import RunFolder, finished_stages, run_settings, settings_of_run, target_of_run
    from .run_time import STARTING_POINT, judging_share, pruning_work
    from .saves import check_result
    from .stages import (
        Run,
        conclude,
        judge_source,
        learn_masks,
        load_text,
        open_model,
        open_run,
        pack,
        prune_at_once,
        prune_or_learn,
        read_checkpoints,
        read_domains,
        recover,
        require_same_text,
        with_teacher_logits,
    )
    from .target_choice import choose_target, target_flags
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "RESULTS_NAME",
    "Bench",
    "BenchArguments",
    "DataArguments",
    "DomainData",
    "PipelineArguments",
    "Run",
    "ShearArguments",
    "SHAPE_ARGUMENTS",
    "STARTING_POINT",
    "RunFolder",
    "TargetArguments",
    "TextArguments",
    "adopt",
    "check_learned_cut",
    "check_result",
    "choose_target",
    "commands_for",
    "config_from_flags",
    "conclude",
    "conclude_sizes",
    "cut_learned_masks",
    "draw_report",
    "dry_run_field",
    "finished_stages",
    "interleaving_results",
    "judge",
    "judge_checkpoint",
    "judge_source",
    "judging_share",
    "learn_masks",
    "live_page_field",
    "load_text",
    "masked_arm",
    "open_adopting_run",
    "open_model",
    "open_nested_run",
    "open_run",
    "pack",
    "parse_arguments",
    "prepare_domain_data",
    "prune_at_once",
    "prune_or_learn",
    "pruning_results",
    "pruning_work",
    "rank_sizes",
    "read_checkpoints",
    "read_domains",
    "read_sizes",
    "recover",
    "recover_sizes",
    "require_same_text",
    "run_settings",
    "settings_of_run",
    "save_results",
    "target_flags",
    "target_of_run",
    "tell_costs",
    "with_teacher_logits",
]
