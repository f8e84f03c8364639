"""Reference losses for a size that no model of a family has, from the losses of the sizes that it has.

Paper: arXiv 2310.06694, section 2.2: one law `a / N^b + c` per domain, N the number of
parameters, fitted to the family's models and evaluated at the target's N.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import UsageError

FIT_START = (406.4, 0.336, 0.69)
"""Where the fit starts, (a, b, c): near the size term of Chinchilla's law (arXiv 2203.15556). The published
370M
values come from this start."""
MAX_EVALUATIONS = 200_000
NUM_CONSTANTS = 3
EXACT_FIT_TOLERANCE = 1e-6  # nats per token: with as many points as constants, a fit that misses one has failed


def reference_losses_by_size(
    sizes: Sequence[float], losses: Mapping[str, Sequence[float]], target_size: float
) -> dict[str, float]:
    """Fit `a / N^b + c` per domain and give its value at the target's size.

    Args:
        sizes: numbers of parameters of at least three models of one family, in any order.
        losses: domain -> their held-out losses, nats per token, in the order of `sizes`.
        target_size: number of parameters of the target.

    Returns:
        domain -> loss to be expected of a model of the family with `target_size` parameters.

    Raises:
        ValueError: for fewer than three sizes, lengths that differ, numbers that are not positive and finite,
            sizes that repeat, or a fit that fails or does not fall with size.

    Warns:
        UserWarning: with three sizes: three constants fit three points exactly, so nothing checks the law.
    """
    num_parameters = np.array([_positive("sizes", size) for size in sizes], dtype=np.float64)
    if len(set(num_parameters.tolist())) < NUM_CONSTANTS or len(set(num_parameters.tolist())) < len(num_parameters):
        raise UsageError(
            f"`sizes` must hold at least {NUM_CONSTANTS} different sizes, each once, but it is "
            f"{list(sizes)}. Where a family has fewer, use the source model's own losses as references."
        )
    _positive("target_size", target_size)
    for name, values in losses.items():
        if len(values) != len(num_parameters):
            raise UsageError(
                f"`losses` must have one loss per size ({len(num_parameters)}), but domain {name!r} has "
                f"{len(values)}. Give them in the order of `sizes`."
            )
        for value in values:
            _positive(f"losses[{name!r}]", value)
    if len(num_parameters) == NUM_CONSTANTS:
        warnings.warn(
            "Three sizes determine the three constants of a / N^b + c exactly, so no residual tells how good "
            "the reference losses are. A fourth size would. To silence this: "
            'warnings.filterwarnings("ignore", message="Three sizes determine").',
            UserWarning,
            stacklevel=2,
        )
    return {name: _fit_and_evaluate(name, num_parameters, values, target_size) for name, values in losses.items()}


def _positive(argument: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"`{argument}` must be positive and finite, but holds {value}. Correct it.")
    return float(value)


def _loss_law(num_parameters: Any, a: float, b: float, c: float) -> Any:
    """For one size or an array of them."""
    return a / num_parameters**b + c


def _fit_and_evaluate(name: str, sizes: np.ndarray, losses: Sequence[float], target_size: float) -> float:
    """The value at the target's size of the law fitted to one domain."""
    from scipy.optimize import OptimizeWarning, curve_fit

    values = np.array(losses, dtype=np.float64)
    if values[sizes.argmin()] <= values[sizes.argmax()]:
        raise UsageError(
            f"`losses` must fall as `sizes` grow, but those of domain {name!r} are {list(losses)}. Correct "
            "them, or use the source model's own losses as references."
        )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance: as many constants as points
            constants, _ = curve_fit(_loss_law, sizes, values, p0=FIT_START, maxfev=MAX_EVALUATIONS)
            residual = np.abs(_loss_law(sizes, *constants) - values).max()
            reference = float(_loss_law(np.float64(target_size), *constants))
    except RuntimeError as error:
        raise _no_fit(name, losses, str(error)) from error
    is_exact = len(sizes) > NUM_CONSTANTS or residual <= EXACT_FIT_TOLERANCE
    if not (is_exact and constants[0] > 0 and constants[1] > 0 and math.isfinite(reference)):
        raise _no_fit(name, losses, "the best found is {:.4g} / N^{:.4g} + {:.4g}".format(*constants))
    return reference


def _no_fit(name: str, losses: Sequence[float], reason: str) -> UsageError:
    return UsageError(
        "`losses` must follow a / N^b + c with positive a and b, but no such fit was found for domain "
        f"{name!r} ({list(losses)}): {reason}. Correct them, or use the source model's own losses as "
        "references."
    )
