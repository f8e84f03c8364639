"""Names and defaults that a command line shows before any room is loaded. The rooms take theirs from here."""

from __future__ import annotations

MASKED_PREFIX = "hf_shear_"
"""Of the model_type of masked configs, before that of the family. Without ``import hf_shear``, transformers' message that
it does not know the model_type is all that a user sees: it names the package to import."""

PROVENANCE_NAME, PRUNE_CONFIG_NAME = "shear_provenance.json", "prune_config.json"
"""Files beside a checkpoint's weights."""
SEARCH_NAME = "search.json"
"""What a search of shapes found, in its folder."""

MASK_METHODS = ("relaxed_topk", "hard_concrete")
MASK_DRAWS = ("per_step", "per_micro_batch")
START_SPREAD = 4.0
"""How far scores of importance set the start of log_alpha apart (measured: model_cards/tried.md)."""

FULL = "full"
"""The method of recovery that trains all weights."""
TEACHER_PLACEMENTS = ("device", "cpu", "stored")

COMPENSATION = "least_squares:towards=auto"
CRITERION = {"default": "llm_surgeon", "hidden": "activation", "layer": "joint_rise"}
"""By kind of unit. What chose it, and the compensation: the head of hf_shear/pruning/config.py."""
ALLOCATION = "uniform"
TARGET_BALANCES = ("weighted", "proportional")
"""Which parts a budget of parameters shrinks (hf_shear/shapes/budget.py); the first is the default."""
FORMS = ("padded", "nemotron_nas")
"""Of a checkpoint whose layers differ; the first is the default."""
NUM_SHOTS = 1
NUM_STAGES = 5
"""Of ``prune_interleaved``, where every stage is trained on."""
PRUNING_SHARE = 0.5
"""Of the steps; with 1.0 the last shot had too few left to recover (model_cards/bench.md)."""

GAIN = 0.01
"""Nats of a doubling of tokens below which a run counts as saturated."""
MASK_SHARE = 0.0
"""Of a budget's tokens: units are chosen at once, which lost less at equal FLOPs (``model_cards/main_job.md``)."""


def default_criterion_words() -> list[str]:
    """``CRITERION`` as a command line has it."""
    return [choice if kind == "default" else f"{kind}={choice}" for kind, choice in CRITERION.items()]
