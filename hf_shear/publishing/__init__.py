"""How it is published: a card written from the results, and one commit to the Hub."""

from typing import TYPE_CHECKING

from ..core.lazy_names import lazy_names

if TYPE_CHECKING:
    from .card import model_card, named_license, write_card
    from .card_picture import PICTURE_NAME, can_draw, kept_picture
    from .checkpoint_facts import CheckpointFacts, facts_of_config, has_byte_fallback, read_facts
    from .checkpoint_files import CARD_NAME, files_left_out
    from .engine_rules import EVIDENCE, REFUSED, UNTESTED, WRONG, Row, where_it_loads
    from .engine_table import ENGINES
    from .eval_entries import eval_result_files
    from .push import planned_push, push_to_hub
    from .run_files import find_run
    from .source_model import SourceLicense, source_license, source_metadata
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CARD_NAME",
    "CheckpointFacts",
    "ENGINES",
    "EVIDENCE",
    "PICTURE_NAME",
    "REFUSED",
    "Row",
    "SourceLicense",
    "UNTESTED",
    "WRONG",
    "can_draw",
    "eval_result_files",
    "facts_of_config",
    "files_left_out",
    "find_run",
    "has_byte_fallback",
    "kept_picture",
    "model_card",
    "named_license",
    "planned_push",
    "push_to_hub",
    "read_facts",
    "source_license",
    "source_metadata",
    "where_it_loads",
    "write_card",
]
