"""How a run can be made again: the command it was started with, and the commit of the code that it ran."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core import redact_command
from ..slicing import PROVENANCE_NAME, read_provenance

COMMANDS = "commands"
"""In a provenance record: the commands that made the checkpoint, in order, from the first cut on."""
_ROOT = Path(__file__).resolve().parents[2]  # of a clone, where this is one


def run_command() -> str:
    """The command that this process was started with, as it is given again from a clone, without tokens."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["hf-shear"]
    elif program.suffix == ".py":
        path = program.resolve()
        launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
        words = [*launcher, str(path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else program)]
    else:
        words = [program.name]
    return redact_command(shlex.join([*words, *sys.argv[1:]]))


def with_command(*before: str) -> list[str]:
    """Commands that were given before, in order, and this process's, each once."""
    return list(dict.fromkeys([*before, run_command()]))


def commands_for(checkpoint: str | os.PathLike) -> list[str]:
    """The commands that make what this process makes of a checkpoint: those that made the checkpoint, and this process's.

    Args:
        checkpoint: a folder, or a name on the Hub. One that is no folder, or has no provenance, is where it begins.
    """
    recorded = (Path(checkpoint) / PROVENANCE_NAME).is_file()
    return with_command(*(read_provenance(checkpoint).get(COMMANDS) or () if recorded else ()))


def code_origin() -> dict[str, Any]:
    """Where the installed code came from; {} where nothing says it.

    Returns:
        ``commit``; ``url`` of the repository where it is an address of the web; and ``changed``, True where files differ
        from the commit.
    """
    installed = _installed_from()
    if installed:
        return installed
    commit = _git("rev-parse", "HEAD") if (_ROOT / ".git").exists() else ""
    if not commit:
        return {}
    found: dict[str, Any] = {"commit": commit}
    url = _git("remote", "get-url", "origin")
    if _is_public(url):
        found["url"] = url
    if _git("status", "--porcelain", "--", "hf_shear", "examples"):
        found["changed"] = True
    return found


def _installed_from() -> dict[str, Any]:
    """What pip noted of `pip install git+https://...`."""
    try:
        text = metadata.distribution("hf_shear").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    noted = json.loads(text) if text else {}
    if "vcs_info" not in noted:
        return {}
    found = {"commit": noted["vcs_info"]["commit_id"]}
    return found | ({"url": noted["url"]} if _is_public(noted["url"]) else {})


def _is_public(url: str) -> bool:
    return url.startswith("https://") and "@" not in url


def _git(*words: str) -> str:
    """What git prints; "" where it is not installed or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
