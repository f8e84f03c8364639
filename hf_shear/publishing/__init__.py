"""How it is published: a card written from the results, and one commit to the Hub."""

from typing import TYPE_CHECKING

from ..core.lazy_names import lazy_names

if TYPE_CHECKING:
    from .card import model_card, named_license, write_card
    from .checkpoint_facts import CheckpointFacts, facts_of_config, has_byte_fallback, read_facts
    from .checkpoint_files import CARD_NAME, files_left_out
    from .engine_rules import EVIDENCE, REFUSED, WRONG, Row, where_it_loads
    from .engine_table import ENGINES
    from .push import push_to_hub
    from .run_files import find_run
    from .source_model import SourceLicense, source_license
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CARD_NAME",
    "CheckpointFacts",
    "ENGINES",
    "EVIDENCE",
    "REFUSED",
    "Row",
    "SourceLicense",
    "WRONG",
    "facts_of_config",
    "files_left_out",
    "find_run",
    "has_byte_fallback",
    "model_card",
    "named_license",
    "push_to_hub",
    "read_facts",
    "source_license",
    "where_it_loads",
    "write_card",
]
