"""The laws, each a sum of terms that are a constant times powers of facts: a row of data, and one way to compute it.

    features    n observations each: natural logarithms of the facts that powers are taken of
    theta       [k] constants: exponents as they are, scales as natural logarithms
    design      [terms, n, k]; a term is exp(design @ theta)

Signs: every exponent is written so that it is positive where a loss falls with tokens or size, or rises with the
fraction removed. The paper's gamma is ``-rho_exponent``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError
from .recovery_run import Case

SIZE, FRACTION, TOKENS = "size", "fraction", "tokens"
REMOVED = "removed"
"""The fraction itself, and not its logarithm: a term is exponential in it."""
PRUNED_SIZE, ALL_TOKENS, AVERAGE_SIZE, COMPUTE = "pruned_size", "all_tokens", "average_size", "compute"
OF_THE_SOURCE = (ALL_TOKENS, AVERAGE_SIZE, COMPUTE)
"""Features that count the tokens that the source was trained on."""

MAX_LOG = 300.0
"""Terms are kept below exp of this, so that a step of the fit that goes astray is large and not infinite."""


@dataclass(frozen=True)
class Term:
    """``scale * product of fact ** (sign * exponent)``; ``exponents``: name of an exponent -> (feature, sign)."""

    scale: str
    exponents: Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class LawForm:
    """One law.

    Attributes:
        name: of the law.
        terms: their sum is the law.
        of_rise: whether the sum is L - L0; else it is L.
        exponents: name -> (lowest, highest) that a fit looks at.
        source: where it is from.
        ties: pairs of exponents that a ridge draws together, and the difference that counts as one.
        weighting: of residuals, unless a fit is told another (``fitting.WEIGHTINGS``).
    """

    name: str
    terms: tuple[Term, ...]
    of_rise: bool
    exponents: Mapping[str, tuple[float, float]]
    source: str
    ties: tuple[tuple[str, str, float], ...] = ()
    weighting: str = "absolute"

    @property
    def scales(self) -> tuple[str, ...]:
        """Constants in nats per token, always positive."""
        return tuple(term.scale for term in self.terms)

    @property
    def constants(self) -> tuple[str, ...]:
        """Names, in the order of theta."""
        return (*self.exponents, *self.scales)

    @property
    def features(self) -> tuple[str, ...]:
        """Facts that the law takes powers of."""
        named = [feature for term in self.terms for feature, _ in term.exponents.values()]
        return tuple(dict.fromkeys(named))

    def design(self, features: Mapping[str, NDArray], shifts: Sequence[Mapping[str, float]] | None = None) -> NDArray:
        """[terms, n, k]: ``exp(design @ theta)`` are the terms.

        Args:
            features: of each observation.
            shifts: per term, what is taken off its features (the scaled units of a fit); default nothing.
        """
        number = len(next(iter(features.values())))
        design = np.zeros((len(self.terms), number, len(self.constants)))
        for index, term in enumerate(self.terms):
            design[index, :, self.constants.index(term.scale)] = 1.0
            for name, (feature, sign) in term.exponents.items():
                shift = shifts[index].get(feature, 0.0) if shifts else 0.0
                design[index, :, self.constants.index(name)] = sign * (features[feature] - shift)
        return design

    def natural(self, theta: NDArray, shifts: Sequence[Mapping[str, float]]) -> NDArray:
        """Constants for features without ``shifts``, from those for features with them."""
        theta = np.array(theta, dtype=float)
        exponents = dict(zip(self.constants, theta, strict=True))
        for term, shift in zip(self.terms, shifts, strict=True):
            moved = sum(sign * exponents[name] * shift.get(f, 0.0) for name, (f, sign) in term.exponents.items())
            theta[self.constants.index(term.scale)] -= moved
        return theta


def term_values(design: NDArray, theta: NDArray) -> NDArray:
    """[terms, n]."""
    return np.exp(np.clip(design @ theta, -MAX_LOG, MAX_LOG))


def feature_values(case: Case, tokens: NDArray, names: Sequence[str]) -> dict[str, NDArray]:
    """The named features of one model at ``tokens``.

    The average parameter count over training (2501.12486) is of the source at its own tokens and the pruned model after:
    (N0 D0 + N D) / (D0 + D).

    Raises:
        ValueError: the law needs to know what the source was trained on.
    """
    tokens = np.asarray(tokens, dtype=float)
    before = math.nan if case.source_tokens is None else case.source_tokens
    if case.source_tokens is None and any(name in OF_THE_SOURCE for name in names):
        raise UsageError(
            "`source_tokens` is needed: laws in the average parameter count or in all compute count the tokens that the"
            " source was trained on. Give it, or use another form."
        )
    values = {}
    for name in names:
        if name == SIZE:
            values[name] = np.full(tokens.shape, np.log(case.num_parameters))
        elif name == PRUNED_SIZE:
            values[name] = np.full(tokens.shape, np.log(case.pruned_size))
        elif name == FRACTION:
            values[name] = np.full(tokens.shape, np.log(case.fraction_removed))
        elif name == REMOVED:
            values[name] = np.full(tokens.shape, case.fraction_removed)
        elif name == COMPUTE:
            values[name] = np.log(6 * (case.num_parameters * before + case.pruned_size * tokens))
        elif name == TOKENS:
            values[name] = np.log(tokens)
        elif name == ALL_TOKENS:
            values[name] = np.log(before + tokens)
        else:
            average = (case.num_parameters * before + case.pruned_size * tokens) / (before + tokens)
            values[name] = np.log(average)
    return values


_OF_MODEL = {"rho_exponent": (FRACTION, 1), "delta": (SIZE, -1)}
_EXPONENTS = {"rho_exponent": (-2.0, 8.0), "delta": (-4.0, 4.0), "alpha": (0.0, 4.0), "beta": (1e-3, 4.0)}
_BETA = {"beta": (TOKENS, -1)}

P2 = LawForm(
    "p2",
    (
        Term("N_C", {**_OF_MODEL, "alpha": (SIZE, -1)}),
        Term("D_C", {**_OF_MODEL, **_BETA}),
        Term("E", _OF_MODEL),
    ),
    True,
    _EXPONENTS,
    "arXiv 2411.10272: L = L0 + rho^rho_exponent N0^-delta (N_C N0^-alpha + D_C D^-beta + E)",
)
P2_FIVE = LawForm(
    "p2_five",
    (Term("D_C", {**_OF_MODEL, **_BETA}), Term("E", _OF_MODEL)),
    True,
    {name: bounds for name, bounds in _EXPONENTS.items() if name != "alpha"},
    "the same without N_C and alpha, which two sizes can not tell from E",
)
CHINCHILLA = LawForm(
    "chinchilla",
    (Term("E", {}), Term("A", {"alpha": (PRUNED_SIZE, -1)}), Term("B", _BETA)),
    False,
    {name: _EXPONENTS[name] for name in ("alpha", "beta")},
    "arXiv 2203.15556: L = E + A N^-alpha + B D^-beta, N the pruned size, D recovery tokens",
)
AVERAGE_PARAMETERS = LawForm(
    "average_parameters",
    (Term("E", {}), Term("A", {"alpha": (AVERAGE_SIZE, -1)}), Term("B", {"beta": (ALL_TOKENS, -1)})),
    False,
    {name: _EXPONENTS[name] for name in ("alpha", "beta")},
    "arXiv 2501.12486: L = E + A Nbar^-alpha + B D^-beta, Nbar the average size over all D training tokens",
)
COMPUTE_LAW = LawForm(
    "compute",
    (Term("E", {}), Term("A", {"alpha": (COMPUTE, -1)})),
    False,
    {"alpha": _EXPONENTS["alpha"]},
    "arXiv 2404.19484 (More Compute Is What You Need): the loss depends on all training FLOPs alone, L = E + A C^-alpha",
)
_GROWTH = (-30.0, 30.0)
DAMAGE = LawForm(
    "damage",
    (
        Term("F", {"floor_delta": (SIZE, -1), "floor_growth": (REMOVED, 1)}),
        Term("B", {"delta": (SIZE, -1), "growth": (REMOVED, 1), **_BETA}),
    ),
    True,
    {
        "floor_delta": _EXPONENTS["delta"],
        "floor_growth": _GROWTH,
        "delta": _EXPONENTS["delta"],
        "growth": _GROWTH,
        "beta": _EXPONENTS["beta"],
    },  # fmt: skip
    "L = L0 + F N0^-floor_delta exp(floor_growth rho) + B N0^-delta exp(growth rho) D^-beta: what stays and what recovers,"
    " each with a size and a fraction of its own (model_cards/scaling_law.md)",
    ties=(("floor_delta", "delta", 1.0), ("floor_growth", "growth", 4.0)),
    weighting="relative",
)
NEIGHBOUR = LawForm(
    "neighbour",
    (Term("floor", {}), Term("amplitude", {"exponent": (TOKENS, -1)})),
    True,
    {"exponent": _EXPONENTS["beta"]},
    "no law of sizes: L = L0 + floor + amplitude D^-exponent of the nearest run, in fraction and then in size",
)
POWER_LAW = LawForm(
    "power_law",
    (Term("floor", {}), Term("amplitude", {"exponent": (TOKENS, -1)})),
    False,
    {"exponent": _EXPONENTS["beta"]},
    "of one run: L = floor + amplitude D^-exponent",
)

FORMS = {
    form.name: form for form in (DAMAGE, P2, P2_FIVE, CHINCHILLA, AVERAGE_PARAMETERS, COMPUTE_LAW, NEIGHBOUR, POWER_LAW)
}


def resolve_form(form: str | LawForm) -> LawForm:
    """The form of this name."""
    if isinstance(form, LawForm):
        return form
    if form not in FORMS:
        raise UsageError(f"`form` must be one of {', '.join(FORMS)} (or 'auto'), but it is {form!r}.")
    return FORMS[form]
