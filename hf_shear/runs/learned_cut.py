"""Cut a model with learned masks, and make up for what is cut."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..compensation import CompensationReport, compensate, resolve_compensation
from ..core import UsageError
from ..data import Calibration
from ..modeling import ShearingModel
from ..slicing import KeptUnits, slice_model
from ..sources import on_device


def check_learned_cut(
    compensation: str, config: PretrainedConfig, hardened: bool = True, sharded: bool = False
) -> None:
    """Refuse, before masks are learned, what ``cut_learned_masks`` would refuse after it.

    Args:
        compensation: as there.
        config: of the source, in the family that the result is to have.
        hardened: whether masks end at 0 and 1.
        sharded: whether weights are spread over processes.
    """
    method = resolve_compensation(compensation)
    method.check(config)
    if method.does_nothing:
        return
    if not hardened:
        raise UsageError(
            f"`compensation={compensation!r}` needs masks of 0 and 1, but these are never hardened (`paper`, or a"
            " `hardening_ratio` of 0). Leave one of the two out."
        )
    if sharded:
        raise UsageError(
            f"`compensation={compensation!r}` needs whole weights, but DeepSpeed or FSDP spread them over processes."
            " Learn masks without it, and compensate in one process: `hf-shear export CHECKPOINT --compensation ...`."
        )


def cut_learned_masks(
    masked: ShearingModel,
    compensation: str = "none",
    calibration: Calibration | None = None,
    source: PreTrainedModel | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, KeptUnits, CompensationReport]:
    """Slice by the learned masks, after the weights that stay were compensated.

    Args:
        masked: after mask learning, its masks hardened; left as it is.
        compensation: as in ``hf_shear.compensation.compensate``. Without ``towards`` every module is fitted to what it
            gives with all gates open; with ``towards=source`` the residual stream to that of ``source``.
        calibration: text; needed for any compensation.
        source: the model before mask learning; needed for ``towards=source``.
        dtype: of the sliced weights, as in ``slice_model``.

    Raises:
        ValueError: what is needed is not given, or masks are not 0 or 1.
    """
    method = resolve_compensation(compensation)
    if method.does_nothing:
        return *slice_model(masked, dtype=dtype), CompensationReport()
    if calibration is None or (source is None and method.reads_source):
        raise UsageError(f"`compensation={compensation!r}` needs calibration text, and with towards=source the source.")
    masked.masks.check_finite()
    gates = masked.masks.deterministic()
    twin = type(masked).from_model(masked, masked.config.resolved_target()).eval()  # shares the weights
    reference = None if source is None else on_device(type(masked).from_model(source), twin.device).eval()
    report = compensate(twin, gates, calibration, compensation, reference)
    return *slice_model(twin, gates, dtype), report
