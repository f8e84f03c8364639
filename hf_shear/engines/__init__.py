"""Where a checkpoint loads besides transformers: rules of engines as data, and what follows for one checkpoint."""

from .checkpoint_facts import CheckpointFacts, facts_of_config, has_byte_fallback, read_facts
from .rules import ACCEPTED, EVIDENCE, REFUSED, UNTESTED, VERDICTS, WRONG, Engine, Row, Rule, judge, where_it_loads
from .table import ENGINES

__all__ = [
    "ACCEPTED",
    "ENGINES",
    "EVIDENCE",
    "REFUSED",
    "UNTESTED",
    "VERDICTS",
    "WRONG",
    "CheckpointFacts",
    "Engine",
    "Row",
    "Rule",
    "facts_of_config",
    "has_byte_fallback",
    "judge",
    "read_facts",
    "where_it_loads",
]
