"""What the bench compares, in words.

    CRITERIA[+COMPENSATION][@SHOTS]      one-shot pruning: "flap layer=loss_rise+least_squares@5"
    ... allocation=global ...            among the criteria: uneven widths at equal parameters
    interleaved:stages=5:CRITERIA[+...]  prune and train by turns on the recovery budget
    learned[:share=0.3][+COMPENSATION]   learned masks, which spend that share of the recovery budget; masks=hard_concrete
                                         or paper, start=uniform, weights=frozen (while masks are learned)
    scratch                              the same shape from random weights

Criteria, compensations and allocations are written as everywhere else (``hf-shear prune``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ..core import UsageError, options_from_text
from ..core.defaults import PRUNING_SHARE
from ..criteria import criteria_from_words
from ..pruning import PruneConfig
from ..pruning.allocation import resolve_allocation
from .learned_arm import ARM_CHOICES, ARM_DEFAULTS

ONE_SHOT, INTERLEAVED, LEARNED, SCRATCH = "one_shot", "interleaved", "learned", "scratch"
OPTIONS = {
    INTERLEAVED: {"stages": 5, "share": PRUNING_SHARE, "restart": True},
    LEARNED: {"share": 0.3, **ARM_DEFAULTS},
    SCRATCH: {},
}
"""Options of what is not one-shot pruning, and their defaults. share: of the recovery budget."""
_PARTS = re.compile(r"(?P<words>.*?)(?:\+(?P<compensation>[^\s@]+))?(?:@(?P<shots>\S+))?")


@dataclass(frozen=True)
class BenchMethod:
    """One method.

    Attributes:
        text: as it was written; its name in the table.
        kind: ``ONE_SHOT``, ``INTERLEAVED``, ``LEARNED`` or ``SCRATCH``.
        config: its choices; of learned masks and scratch the compensation alone.
        options: those of ``OPTIONS`` that the kind has.
    """

    text: str
    kind: str = ONE_SHOT
    config: PruneConfig = field(default_factory=lambda: PruneConfig(compensation="none", num_shots=1))
    options: dict = field(default_factory=dict)

    @property
    def is_uneven(self) -> bool:
        """Whether its layers may end with different widths."""
        return resolve_allocation(self.config.allocation).uneven

    @classmethod
    def parse(cls, text: str) -> BenchMethod:
        """Read a method.

        Raises:
            ValueError: it is not written as above, or names what does not exist.
        """
        text = " ".join(text.split())
        parts = _PARTS.fullmatch(text)
        assert parts is not None, "the pattern fits every line"
        words = parts["words"].split()
        compensation = parts["compensation"] or "none"
        plain = PruneConfig(compensation=compensation, num_shots=1)
        if not words:
            raise UsageError(f"`methods` has {text!r}, which names no criterion, such as 'taylor+least_squares@5'.")
        kind, options, words = _kind(words, text)
        shots = parts["shots"]
        if shots is not None and (kind != ONE_SHOT or not shots.isdigit() or int(shots) < 1):
            raise UsageError(f"`methods` has {text!r}: @ is followed by a number of shots, of one-shot pruning alone.")
        if kind in (LEARNED, SCRATCH):
            if words or (kind == SCRATCH and compensation != "none"):
                raise UsageError(f"`methods` has {text!r}, but {kind!r} takes nothing more than its options.")
            return cls(text, kind, plain, options)
        allocations = [word.partition("=")[2] for word in words if word.startswith("allocation=")]
        criterion = criteria_from_words([word for word in words if not word.startswith("allocation=")])
        if len(allocations) > 1 or (allocations and kind != ONE_SHOT):
            raise UsageError(f"`methods` has {text!r}: one-shot pruning has one allocation, the others none.")
        chosen: dict[str, Any] = {"allocation": allocations[0]} if allocations else {}
        if kind == INTERLEAVED:
            chosen |= {"num_shots": options["stages"], "pruning_share": options["share"]}
        else:
            chosen["num_shots"] = int(shots or 1)
        return cls(text, kind, replace(plain, criterion=criterion, **chosen), options)


def _kind(words: list[str], text: str) -> tuple[str, dict, list[str]]:
    """The kind that the first word names, its options, and the criteria that are left."""
    name, _, rest = words[0].partition(":")
    if name not in OPTIONS:
        return ONE_SHOT, {}, words
    known, owner = OPTIONS[name], f"Method {name!r}"
    if name != INTERLEAVED:
        options, left = options_from_text(rest, known, owner), words[1:]
    else:
        given, separator, criterion = rest.partition(":")
        if not separator and "=" not in given:  # interleaved:taylor
            given, criterion = "", given
        elif given.partition("=")[0] not in known:  # interleaved:taylor:order=mixed
            given, criterion = "", rest
        options, left = options_from_text(given, known, owner), [*([criterion] if criterion else []), *words[1:]]
        if not left:
            raise UsageError(
                f"`methods` has {text!r}, which names no criterion, such as 'interleaved:stages=5:taylor'."
            )
    options = known | options
    for option, choices in ARM_CHOICES.items():
        if option in options and options[option] not in choices:
            raise UsageError(f"`methods` has {text!r}: {option} must be one of {', '.join(choices)}.")
    return name, options, left
