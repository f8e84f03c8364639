"""All criteria by name, and from what a user names to a criterion for every kind of unit."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path

from ..core import UsageError, named_entry, options_from_text
from ..masks import EXPERT, INTERMEDIATE, RANKED_KINDS
from ..shapes import Family
from .criterion import Criterion

CriterionChoice = str | Criterion | Mapping[str, "str | Criterion"]
DEFAULT_KIND = "default"


def _declared_in_this_folder() -> dict[str, Criterion]:
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if f"{__package__}.{module.name}" != __name__:
            names = vars(import_module(f"{__package__}.{module.name}"))
            found |= {name: value for name, value in names.items() if isinstance(value, Criterion)}
    return dict(sorted(found.items()))


CRITERIA: dict[str, Criterion] = _declared_in_this_folder()
"""The criteria of the library by name. A criterion is added by a file in this folder, and a row in the docs."""


def resolve_criterion(choice: str | Criterion) -> Criterion:
    """The criterion that a name with options stands for (``"taylor"``, ``"taylor:order=mixed"``).

    Raises:
        ValueError: an unknown name or option, or a function that ``criterion`` did not declare.
    """
    if isinstance(choice, Criterion):
        return choice
    if not isinstance(choice, str):
        raise UsageError(
            f"`criterion` {choice!r} does not say which units it ranks. Declare the function with"
            " @hf_shear.criteria.criterion(ranks=(...)), and set options by its `with_options`."
        )
    name, found, text = named_entry(CRITERIA, choice, "criterion")
    return found.with_options(**options_from_text(text, found.defaults, f"Criterion {name!r}")) if text else found


def criteria_by_kind(
    choice: CriterionChoice, kinds: Collection[str], family: Family | None = None
) -> dict[str, Criterion]:
    """The criterion of each kind of unit that is to be ranked.

    Args:
        choice: one criterion for all, or a dict with one per kind and perhaps ``"default"`` for the rest.
        kinds: those to rank.
        family: of the model; None: any.

    Raises:
        ValueError: a criterion cannot rank what it is asked to, or a kind has none.
    """
    named = dict(choice) if isinstance(choice, Mapping) else {DEFAULT_KIND: choice}
    unknown = sorted(set(named) - {*RANKED_KINDS, DEFAULT_KIND})
    if unknown:
        raise UsageError(f"`criterion` names {unknown}; kinds of units are {', '.join(RANKED_KINDS)} (and 'default').")
    chosen = {}
    for kind in kinds:
        if kind not in named and DEFAULT_KIND not in named:
            raise UsageError(
                f"`criterion` has none for {kind!r}, of which units are removed. Name one, or a 'default'."
            )
        found = resolve_criterion(named[kind] if kind in named else named[DEFAULT_KIND])
        if family is not None and family.has_experts:
            _check_for_experts(found, family)
        if kind not in found.ranks:
            able = _able_to_rank(kind)
            raise UsageError(
                f"`criterion` {found.name!r} cannot rank {kind!r}, of which units are removed (it ranks"
                f" {', '.join(found.ranks)}). Name one that can for this kind, such as"
                f" {{{kind!r}: {able[0]!r}}} beside 'default' (--criterion {found.name} {kind}={able[0]}); these"
                f" can: {', '.join(able)}."
            )
        chosen[kind] = found
    return chosen


def _able_to_rank(kind: str) -> list[str]:
    return [name for name, found in CRITERIA.items() if kind in found.ranks]


def _check_for_experts(found: Criterion, family: Family) -> None:
    """Refuse what measures the parts of a dense MLP, whatever it is to rank: it looks at all of the model."""
    if INTERMEDIATE in found.ranks and EXPERT not in found.ranks:
        raise UsageError(
            f"`criterion` {found.name!r} measures the MLP of a layer, in place of which a {family.model_type} has"
            f" experts. Name one of {', '.join(_able_to_rank(EXPERT))}, or for whole layers one that ranks nothing else,"
            " such as loss_rise."
        )


def criteria_from_words(words: Collection[str]) -> dict[str, str]:
    """A criterion by kind of unit from words such as ``activation layer=loss_rise``; a word without a kind is the default.

    Raises:
        ValueError: two words for one kind, an unknown kind or criterion, or a kind that its criterion cannot rank.
    """
    named = {}
    for word in words:
        kind, separator, choice = word.partition("=")
        if not separator or ":" in kind:  # the "=" of an option, as in "taylor:order=mixed"
            kind, choice = DEFAULT_KIND, word
        if kind in named:
            raise UsageError(f"`criterion` {' '.join(words)!r} names two criteria for {kind!r}.")
        named[kind] = choice
    criteria_by_kind(named, [kind for kind in named if kind != DEFAULT_KIND])
    if DEFAULT_KIND in named:
        resolve_criterion(named[DEFAULT_KIND])
    return named
