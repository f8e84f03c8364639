"""What a rule about an engine is, and what follows from the rules for one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .checkpoint_facts import CheckpointFacts

ACCEPTED, UNTESTED, WRONG, REFUSED = "accepted", "untested", "wrong", "refused"
VERDICTS = (ACCEPTED, UNTESTED, WRONG, REFUSED)
"""From best to worst: of several rules that hold, the worst decides. WRONG: it loads, and computes something else."""

RUN, READ = "run", "read"
EVIDENCE = {
    RUN: "run here and compared with transformers",
    READ: "read in the engine's source, not run",
    UNTESTED: "neither run nor read, or runs disagree",
}
"""How a verdict is known. An untested one is known by nothing, so the word is the same."""


@dataclass(frozen=True)
class Rule:
    """One thing an engine accepts or refuses.

    Attributes:
        when: the condition in words.
        applies: the same as a function of the checkpoint.
        verdict: one of VERDICTS.
        evidence: how it is known, a key of EVIDENCE.
        note: what happens, and the way around; empty where there is nothing to add.
        forms: of a rule that was run, the forms in model_cards/engines that show it.
    """

    when: str
    applies: Callable[[CheckpointFacts], bool]
    verdict: str
    evidence: str
    note: str = ""
    forms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """An engine with weights in one kind of numbers.

    Attributes:
        name: how it is called in tables.
        version: of what was run or read: packages and their versions.
        date: when it was, as YYYY-MM-DD; YYYY-MM for runs that kept no day.
        rules: those of its own.
        key, precisions: where its measurements are in model_cards/engines; none for an engine that was only read.
        base: the engine whose rules hold too: a quantised form comes after the conversion of the plain one.
    """

    name: str
    version: str
    date: str
    rules: tuple[Rule, ...]
    key: str = ""
    precisions: tuple[str, ...] = ()
    base: Engine | None = None

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """Its own rules, behind those of its base."""
        return (*(self.base.all_rules if self.base else ()), *self.rules)


@dataclass(frozen=True)
class Row:
    """What is known of one checkpoint in one engine."""

    engine: str
    version: str
    date: str
    verdict: str
    evidence: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {**self.__dict__, "notes": list(self.notes)}


def judge(engine: Engine, facts: CheckpointFacts) -> Row:
    """The verdict on a checkpoint: the worst of the rules that hold; untested where none of the engine's own says more.

    A quantised form is never better than the engine it comes from.
    """
    row = _judge_alone(engine, facts)
    base = judge(engine.base, facts) if engine.base else row
    if VERDICTS.index(base.verdict) > VERDICTS.index(row.verdict):
        return replace(base, engine=engine.name, version=engine.version, date=engine.date)
    return row


def _judge_alone(engine: Engine, facts: CheckpointFacts) -> Row:
    holding = [rule for rule in engine.all_rules if rule.applies(facts)]
    stopped = any(rule.verdict in (WRONG, REFUSED) for rule in holding)
    if not stopped and not any(rule.verdict == ACCEPTED for rule in holding if rule in engine.rules):
        notes = [rule.note for rule in holding if rule.verdict == UNTESTED] or ["no rule covers this kind of model"]
        return Row(engine.name, engine.version, engine.date, UNTESTED, UNTESTED, tuple(notes))
    worst = max((rule.verdict for rule in holding), key=VERDICTS.index)
    deciding = [rule for rule in holding if rule.verdict == worst]
    shown = deciding if worst != ACCEPTED else holding
    evidence = max((rule.evidence for rule in deciding), key=list(EVIDENCE).index)
    notes = tuple(rule.note for rule in shown if rule.note)
    return Row(engine.name, engine.version, engine.date, worst, evidence, notes)


def where_it_loads(engines: Sequence[Engine], facts: CheckpointFacts) -> list[Row]:
    """A row for each engine."""
    return [judge(engine, facts) for engine in engines]
