"""How long the rest of a run takes, from what its finished stages took, and what judging adds to the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..criteria.joint_rise import NUM_TOKENS
from ..criteria.mask_start import LAYER_SAMPLES
from ..distillation.teachers import STORED
from ..shapes import TargetShape, config_for_shape, forward_flops_per_token, training_flops_per_token
from .domain_data import DomainData
from .pipeline_arguments import PAPER, PipelineArguments

SOURCE, TEACHER_LOGITS, RECOVERY = "source", "teacher_logits", "recovery"
RANKING = "ranking"  # of nested sizes
PRUNING, MASK_LEARNING, BY_TURNS = "pruning", "mask_learning", "pruning_by_turns"  # a run has one of them,
STARTING_POINT = "pruned_checkpoint"  # or this, where a checkpoint is recovered that another run pruned
CHOOSING = (MASK_LEARNING, PRUNING, BY_TURNS, STARTING_POINT)
PAPER_MASKS = "paper_masks"
PAPER_MASK_SHARE = 0.15  # of a rival's tokens, for the paper's masks (model_cards/tried.md)
PASSES_TO_PRUNE = 2  # what scores and compensation take, in training passes over the calibration text


@dataclass(frozen=True)
class Work:
    """FLOPs of a stage: of what it is for, and of the evaluation of what it made."""

    own: float
    judging: float = 0.0

    @property
    def flops(self) -> float:
        return self.own + self.judging


def planned_work(
    pipeline: PipelineArguments,
    data: DomainData,
    source: PretrainedConfig,
    target: TargetShape,
    teacher: PretrainedConfig | None,
    samples_per_step: int,
) -> dict[str, Work]:
    """Work of the stages that a run goes through, by name, in their order.

    Args:
        pipeline: what was asked for.
        data: what is trained on, and what judges.
        source, teacher: configs; the teacher's is None without distillation.
        target: the shape to reach.
        samples_per_step: of an optimizer step.
    """
    length, small = pipeline.max_length, config_for_shape(source, target)
    online = None if pipeline.teacher_placement == STORED else teacher
    of_source, of_target = (training_flops_per_token(config, length, teacher=online) for config in (source, small))
    judging = sum(map(len, data.judged.values())) * length
    judged = judging * forward_flops_per_token(small, length)
    stages = {SOURCE: Work(0.0, judging * forward_flops_per_token(source, length))}
    if teacher is not None and pipeline.teacher_placement == STORED:
        read = sum(map(len, data.train.values())) * length
        stages[TEACHER_LOGITS] = Work(read * forward_flops_per_token(teacher, length))
    if pipeline.stop_after == TEACHER_LOGITS:
        return stages
    trained = pipeline.recovery_tokens
    if not pipeline.is_pruned:
        read = pipeline.calibration_batches * samples_per_step * length
        if pipeline.learns_masks:
            trained += pipeline.mask_tokens
            own = pipeline.mask_tokens * of_source
            if pipeline.mask_start != "uniform" and not pipeline.paper:
                own += read * of_source + _layer_choice(source, target, LAYER_SAMPLES * length, length)
            stages[MASK_LEARNING] = Work(own, judged)
        else:
            own = PASSES_TO_PRUNE * read * of_source + _layer_choice(source, target, NUM_TOKENS, length)
            stages[PRUNING] = Work(own, judged)
    if pipeline.stop_after in (PRUNING, MASK_LEARNING):
        return stages
    sizes = pipeline.num_sizes
    if sizes > 1:
        if pipeline.teaches_sizes:  # the largest is run once more in the steps of the others
            of_target += (sizes - 1) / sizes * forward_flops_per_token(small, length)
        read = pipeline.calibration_batches * samples_per_step * length
        stages[RANKING] = Work(read * of_target, sizes * judged)
    stages[RECOVERY] = Work(pipeline.recovery_tokens * of_target, sizes * judged)
    for name in pipeline.rivals if pipeline.baselines and pipeline.stop_after is None else ():
        own = trained * of_target
        if name == PAPER:
            own -= PAPER_MASK_SHARE * trained * of_target
            stages[PAPER_MASKS] = Work(PAPER_MASK_SHARE * trained * of_source, judged)
        stages[name] = Work(own, judged)
    return stages


def _layer_choice(source: PretrainedConfig, target: TargetShape, num_tokens: int, length: int) -> float:
    """FLOPs of the loss without each layer: half of the layers run for each, on average. Few more are measured."""
    if target.num_hidden_layers == target.source.num_hidden_layers:
        return 0.0
    return num_tokens * target.source.num_hidden_layers / 2 * forward_flops_per_token(source, length)


def judging_note(planned: Mapping[str, Work], data: DomainData, max_length: int) -> str:
    """How much text judges each model, and its share of the run's work, for people."""
    tokens = {name: len(samples) * max_length for name, samples in data.judged.items()}
    share = sum(work.judging for work in planned.values()) / sum(work.flops for work in planned.values())
    return (
        f"Each model is judged on {sum(tokens.values()):,} held-out tokens of {len(tokens)} domain"
        f"{'s' * (len(tokens) != 1)}: {share:.0%} of the run's FLOPs (`eval_tokens`)."
        " The evaluation loss in the log is of other held-out text."
    )


def judging_share(config: PretrainedConfig, judging: int, calibration: int, max_length: int) -> float:
    """Of the FLOPs of pruning at once, those that judging the source and the result takes, at most.

    Args:
        config: of the source.
        judging, calibration: tokens that are read.
        max_length: tokens of a sample.
    """
    work = pruning_work(config, judging, calibration, max_length).values()
    return sum(one.judging for one in work) / sum(one.flops for one in work)


def pruning_work(config: PretrainedConfig, judging: int, calibration: int, max_length: int) -> dict[str, Work]:
    """Work of pruning at once, at most; the arguments are those of ``judging_share``."""
    judged = judging * forward_flops_per_token(config, max_length)
    own = PASSES_TO_PRUNE * calibration * training_flops_per_token(config, max_length)
    return {SOURCE: Work(0.0, judged), PRUNING: Work(own, judged)}


def seconds_left(planned: Mapping[str, float], taken: Mapping[str, float]) -> float | None:
    """Seconds of the stages that are not finished; None if no stage is.

    A stage takes its share of the planned work. The speed is that of the finished stages, all together.

    Args:
        planned: work by stage, in FLOPs.
        taken: seconds by finished stage.
    """
    done = {name: seconds for name, seconds in taken.items() if planned.get(name)}
    work = sum(planned[name] for name in done)
    if not work:
        return None
    return (sum(planned.values()) - work) * sum(done.values()) / work
