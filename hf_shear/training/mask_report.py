"""How far the learned masks were from a clean choice of the target's size, before they were hardened."""

from __future__ import annotations

import warnings

from ..masks import ShearingMasks


def mask_report(masks: ShearingMasks) -> dict:
    """``expected_shape`` (floats), ``kept_below_half`` (counts) and ``gap`` (shares), keyed by the shape names.

    The gap is |expected - target| / target. Call it at the phase whose masks are to be judged.
    """
    expected, target = masks.expected_shape(), masks.target
    return {
        "expected_shape": expected,
        "kept_below_half": masks.kept_below_half(),
        "gap": {name: abs(expected[name] - getattr(target, name)) / getattr(target, name) for name in expected},
    }


def warn_if_off_target(report: dict, tolerance: float) -> None:
    """Warn if any size is off by more than ``tolerance`` (a share): what is cut is then not what was trained."""
    off = {name: gap for name, gap in report["gap"].items() if gap > tolerance}
    if off:
        sizes = ", ".join(f"{name} {report['expected_shape'][name]:.1f} ({gap:.1%} off)" for name, gap in off.items())
        warnings.warn(
            f"The learned masks have not met the target: expected {sizes}. What is cut differs from what was trained."
            " Learn masks for more steps, raise `mask_learning_rate` or `multiplier_learning_rate`, or use the"
            " relaxed_topk masks, which meet the target at every step. Silence this with a larger"
            " `shape_gap_tolerance`.",
            UserWarning,
            stacklevel=2,
        )
