"""Domain weights: checking them, and the rule of dynamic batch loading that updates them.

Paper: arXiv 2310.06694, section 2.2 and algorithm 1. Losses are nats per token, on held-out text. All
arithmetic is float64. Everything is a dict keyed by domain, in the order of the weights given. The paper's rule takes
losses as they are measured; `damped_excess` is ours, and takes out of them what may be chance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from ..core import FINITE, RANGES, UsageError, check_ranges

SMOOTHING = 1e-4
"""Share of the uniform mixture in every update, so that none dies out (the reference code's c)."""

RUNAWAY_WEIGHT = 0.8
"""A domain that comes to take more of every batch than this is warned of. The paper's largest weight is .49."""


def check_mixture_weights(weights: Mapping[str, float] | None, domain_names: Iterable[str]) -> dict[str, float]:
    """Weights that sum to one, in the order of `domain_names`.

    Args:
        weights: domain -> weight, not negative, of any positive sum; `None` is uniform.
        domain_names: the domains there are.

    Raises:
        ValueError: for unknown or missing domains, weights that are negative or not finite, or all zero.
    """
    names = list(domain_names)
    if not names:
        raise UsageError("`domain_names` must name at least one domain, but it is empty. Give some data.")
    if weights is None:
        return dict.fromkeys(names, 1.0 / len(names))
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise UsageError(
            f"`mixture_weights` must name domains of the data, but {unknown} are unknown. The domains are {names}."
            " Use their names."
        )
    missing = [name for name in names if name not in weights]
    if missing:
        raise UsageError(
            f"`mixture_weights` must name every domain, but {missing} are missing. Give them a weight; 0 "
            "leaves a domain out."
        )
    for name in names:
        RANGES["mixture_weights[]"].check(f"mixture_weights[{name!r}]", weights[name])
    total = math.fsum(weights[name] for name in names)
    if total <= 0:
        raise UsageError("`mixture_weights` must have a positive sum, but all are 0. Give one domain a weight.")
    return {name: float(weights[name]) / total for name in names}


def check_mixture_bounds(
    floor: float,
    ceiling: float,
    num_domains: int,
    *,
    floor_name: str = "mixture_floor",
    ceiling_name: str = "mixture_ceiling",
) -> None:
    """Check that some weights between the bounds sum to one.

    Args:
        floor: least weight of a domain.
        ceiling: greatest weight of a domain. It binds no domain that is alone: any share will do then.
        num_domains: the domains that share a batch, at least 1.
        floor_name, ceiling_name: what the error calls them.

    Raises:
        ValueError: if there are no such weights.
    """
    FINITE.check(floor_name, floor)
    FINITE.check(ceiling_name, ceiling)
    if not (0.0 <= floor and floor * num_domains <= 1.0):
        most = math.floor(1e4 / num_domains) / 1e4  # rounded to the side that passes this check
        raise UsageError(
            f"`{floor_name}` must lie between 0 and 1 / {num_domains} (the number of domains), but it is {floor}. "
            + (f"Lower it to {most:g} or less." if floor > 0 else "Use 0 for no floor.")
        )
    is_too_low = ceiling * num_domains < 1.0 and (num_domains > 1 or ceiling <= 0.0)
    if is_too_low or not ceiling <= 1.0:
        least = math.ceil(1e4 / num_domains) / 1e4
        raise UsageError(
            f"`{ceiling_name}` must lie between 1 / {num_domains} (the number of domains) and 1, but it is "
            f"{ceiling}. " + (f"Raise it to {least:g} or more." if is_too_low else "Use 1 for no ceiling.")
        )


def update_mixture_weights(
    weights: Mapping[str, float],
    losses: Mapping[str, float],
    reference_losses: Mapping[str, float],
    *,
    clamp_excess: bool = True,
    smoothing: float = SMOOTHING,
    floor: float = 0.0,
    ceiling: float = 1.0,
) -> dict[str, float]:
    """Give more weight to the domains that are farther above their reference loss.

    `w' = softmax(log w + excess)`, `w'' = (1 - smoothing) w' + smoothing / k`, normalised, then moved between
    `floor` and `ceiling`; k is the number of domains. A domain of weight 0 only gets the smoothing's share.

    Args:
        weights: domain -> present weight.
        losses: domain -> held-out loss, nats per token.
        reference_losses: domain -> loss to be reached, nats per token. Domains without a weight are ignored,
            here and in `losses`.
        clamp_excess: the paper's rule, `excess = max(loss - reference, 0)`. `False` is the reference code's,
            `excess = loss - reference`, which takes weight from domains that are below their reference.
        smoothing: share of the uniform mixture.
        floor: least weight of a domain.
        ceiling: greatest weight of a domain: stops one that never reaches its reference from taking all. A
            domain that is alone takes all of every batch, whatever it is.

    Returns:
        The new weights. The arguments are not changed.

    Raises:
        ValueError: if a loss is missing or not finite, or no weights lie between `floor` and `ceiling`.
    """
    old = check_mixture_weights(weights, weights)
    names = list(old)
    check_mixture_bounds(floor, ceiling, len(names), floor_name="floor", ceiling_name="ceiling")
    check_ranges({"smoothing": smoothing})
    excess = _ordered("losses", losses, names) - _ordered("reference_losses", reference_losses, names)
    if len(names) == 1:
        return {names[0]: 1.0}
    if clamp_excess:
        excess = np.maximum(excess, 0.0)
    with np.errstate(divide="ignore"):  # the logarithm of a weight of 0 is minus infinity, as it should be
        logits = np.log(np.array([old[name] for name in names], dtype=np.float64)) + excess
    new = np.exp(logits - logits.max())
    new /= new.sum()
    new = (1.0 - smoothing) * new + smoothing / len(names)
    new = _between(new / new.sum(), floor, ceiling)
    return dict(zip(names, new.tolist(), strict=True))


def damped_excess(excess: Mapping[str, float], noise: Mapping[str, float]) -> dict[str, float]:
    """Excess losses of the domains, each moved to their mean by the share of it that may be chance.

    ``mean + s2 / (s2 + noise[d]**2) * (excess[d] - mean)``, where ``s2 = max(variance(excess) - mean(noise**2), 0)``
    estimates how much the domains truly differ: the positive-part shrinkage of Stein, with a variance for each
    domain. Without noise nothing is changed; domains that differ by no more than their noise all get the mean, which
    leaves their weights as they are.

    Args:
        excess: domain -> loss above the reference, nats per token.
        noise: domain -> standard error of it; infinite where it is not known, as from one sample. Such a domain gets
            the mean, and has no part in it unless all are such.

    Raises:
        ValueError: if a number is missing, an excess is not finite, or a standard error is negative or no number.
    """
    names = list(excess)
    values = _ordered("excess", excess, names)
    for name in names:
        if name not in noise or not noise[name] >= 0.0:
            raise UsageError(
                f"`noise` must have a standard error of at least 0 for every domain, but that of {name!r} is"
                f" {noise.get(name)}. Give it, or math.inf where it is not known."
            )
    variances = np.array([noise[name] for name in names], dtype=np.float64) ** 2
    is_known = np.isfinite(variances)
    if is_known.sum() < 2:
        return dict.fromkeys(names, float(values[is_known if is_known.any() else ~is_known].mean()))
    mean = values[is_known].mean()
    signal = max(values[is_known].var(ddof=1) - variances[is_known].mean(), 0.0)
    share = np.zeros(len(names))
    share[is_known] = signal / np.maximum(signal + variances[is_known], np.finfo(np.float64).tiny)
    return dict(zip(names, (mean + share * (values - mean)).tolist(), strict=True))


def warn_of_runaway(before: Mapping[str, float], after: Mapping[str, float], ceiling: float) -> None:
    """Warn where an update lets one domain take almost every batch, as one does that cannot reach its reference."""
    for name, weight in after.items():
        if before[name] <= RUNAWAY_WEIGHT < weight:
            warnings.warn(
                f"Domain {name!r} now gets {weight:.0%} of every batch, the others hardly train. Lower"
                f" `mixture_ceiling` ({ceiling:g}) to {RUNAWAY_WEIGHT:g} or less, raise `mixture_floor`, or give a"
                " reference loss that the domain can reach. A ceiling of that kind also silences this.",
                UserWarning,
                stacklevel=2,
            )


def _ordered(argument: str, losses: Mapping[str, float], names: list[str]) -> np.ndarray:
    """[domains] float64: the losses in the order of the names, all there and finite."""
    for name in names:
        if name not in losses:
            raise UsageError(
                f"`{argument}` must have a loss for every domain, but {name!r} is missing from {list(losses)}. Add it."
            )
        if not math.isfinite(losses[name]):
            raise UsageError(
                f"`{argument}` must be finite, but that of {name!r} is {losses[name]}. The weights were not "
                "changed. Give the domain held-out tokens; if it has some, training diverged: lower the learning rate."
            )
    return np.array([losses[name] for name in names], dtype=np.float64)


def _between(weights: np.ndarray, floor: float, ceiling: float) -> np.ndarray:
    """Weights with sum one between the bounds, in which those at no bound keep their ratios.

    A weight beyond a bound is set to it and the others are rescaled, which may carry more of them beyond. In
    each round only the side that is violated more is fixed, which makes the result exact, not merely
    feasible.
    """
    if weights.min() >= floor and weights.max() <= ceiling:
        return weights
    result = weights.copy()
    is_free = np.ones(len(weights), dtype=bool)
    while is_free.any():
        rest = 1.0 - result[~is_free].sum()
        total = weights[is_free].sum()
        share = weights[is_free] / total if total > 0 else np.full(is_free.sum(), 1.0 / is_free.sum())
        result[is_free] = rest * share
        above, below = np.maximum(result - ceiling, 0.0), np.maximum(floor - result, 0.0)
        above[~is_free] = below[~is_free] = 0.0
        if not above.any() and not below.any():
            break
        is_violated, bound = (above > 0, ceiling) if above.sum() >= below.sum() else (below > 0, floor)
        result[is_violated] = bound
        is_free &= ~is_violated
    return result
