"""Progress bars for people at a terminal, silence for pipes and files."""

from __future__ import annotations

import os
import sys


def quiet_when_piped() -> None:
    """Switch the progress bars of all libraries off where nobody watches: stderr is no terminal.

    Their own environment variables do it, so that what is imported later knows as well.
    """
    if sys.stderr.isatty():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
