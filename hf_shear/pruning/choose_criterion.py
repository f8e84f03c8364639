"""From what a user names to a criterion for every kind of unit."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from functools import partial

from .. import criteria
from ..core import UsageError
from ..importance import Criterion, keyword_options, name_of, options_from_text, ranks_of
from ..masks import EXPERT, INTERMEDIATE, RANKED_KINDS
from ..shapes import Family

CriterionChoice = str | Criterion | Mapping[str, "str | Criterion"]
DEFAULT_KIND = "default"


def criterion_names() -> list[str]:
    """Names of the criteria that come with the library."""
    return sorted(module.name for module in pkgutil.iter_modules(criteria.__path__))


def resolve_criterion(choice: str | Criterion) -> Criterion:
    """The function that a name with options (``"taylor"``, ``"taylor:order=mixed"``) or a function stands for.

    Raises:
        ValueError: an unknown name or option, or a function that ``criterion`` did not declare.
    """
    if not isinstance(choice, str):
        declared = choice.func if isinstance(choice, partial) else choice
        if not hasattr(declared, "ranks"):
            raise UsageError(
                f"`criterion` {declared!r} does not say which units it ranks. Declare the function with"
                " @hf_shear.importance.criterion(ranks=(...))."
            )
        return choice
    name, _, text = choice.partition(":")
    if name not in criterion_names():
        raise UsageError(f"`criterion` must be one of {', '.join(criterion_names())}, but it is {name!r}.")
    function = getattr(importlib.import_module(f"{criteria.__name__}.{name}"), name)
    if not text:
        return function
    return partial(function, **options_from_text(text, keyword_options(function), f"Criterion {name!r}"))


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
        function = resolve_criterion(named.get(kind, named.get(DEFAULT_KIND)))
        if family is not None and family.has_experts:
            _check_for_experts(function, family)
        if kind not in ranks_of(function):
            able = _able_to_rank(kind)
            raise UsageError(
                f"`criterion` {name_of(function)!r} cannot rank {kind!r}, of which units are removed (it ranks"
                f" {', '.join(ranks_of(function))}). Name one that can for this kind, such as"
                f" {{{kind!r}: {able[0]!r}}} beside 'default' (--criterion {name_of(function)} {kind}={able[0]}); these"
                f" can: {', '.join(able)}."
            )
        chosen[kind] = function
    return chosen


def _able_to_rank(kind: str) -> list[str]:
    return [name for name in criterion_names() if kind in ranks_of(resolve_criterion(name))]


def _check_for_experts(function: Criterion, family: Family) -> None:
    """Refuse what measures the parts of a dense MLP, whatever it is to rank: it looks at all of the model."""
    ranks = ranks_of(function)
    on_adapters = isinstance(function, partial) and function.keywords.get("gradient") == "adapters"
    if (INTERMEDIATE in ranks and EXPERT not in ranks) or on_adapters:
        raise UsageError(
            f"`criterion` {name_of(function)!r} measures the MLP of a layer, in place of which a {family.model_type} has"
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
