"""How it is published: a card written from the results, and one commit to the Hub."""

from .card import model_card, named_license, write_card
from .checkpoint_files import CARD_NAME, files_left_out
from .hub_access import PushError
from .push import push_to_hub
from .run_files import RunFiles, find_run
from .source_model import SourceLicense, source_license

__all__ = [
    "CARD_NAME",
    "PushError",
    "RunFiles",
    "SourceLicense",
    "files_left_out",
    "find_run",
    "model_card",
    "named_license",
    "push_to_hub",
    "source_license",
    "write_card",
]
