"""``hf-shear push``: publish a model on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import printable
from ..core.printable import spelled

SUMMARY = "Publish a model with its card and results on the Hub, in one commit."
EXAMPLE = "hf auth login && hf-shear push runs/001 MY_NAME/MY_MODEL --private"
POSITIONAL = ("folder", "repo_id")
SHOWN_LINES = 24  # of a card, in a dry run


@dataclass
class Arguments:
    """What is published, where to. The token is HF_TOKEN or the login of ``hf auth login``, never an argument."""

    folder: str = field(metadata={"help": "A run's folder (its recovered, else its pruned model), or a checkpoint."})
    repo_id: str = field(
        metadata={"help": "NAME/MODEL. The token comes from HF_TOKEN or `hf auth login`, never from a flag."}
    )
    private: bool = field(default=False, metadata={"help": "Make the new repository private."})
    masked: bool = field(default=False, metadata={"help": "Publish a checkpoint from the middle of mask learning."})
    overwrite: bool = field(default=False, metadata={"help": "Replace another model of that name."})
    license: str | None = field(
        default=None, metadata={"help": "Of the source, such as apache-2.0; what the source says by default."}
    )
    license_name: str | None = field(default=None, metadata={"help": "Of `--license other`: its name in words."})
    license_link: str | None = field(default=None, metadata={"help": "Of `--license other`: where its text is."})
    license_file: str | None = field(
        default=None, metadata={"help": "The licence's text, published as LICENSE; the checkpoint's own by default."}
    )
    base_model: str | None = field(default=None, metadata={"help": "The source's id on the Hub, if a copy was cut."})
    revision: str | None = field(default=None, metadata={"help": "Branch; main by default."})
    commit_message: str | None = field(default=None, metadata={"help": "Of the one commit."})
    dry_run: bool = field(
        default=False, metadata={"help": "Check all that needs no network, show what would be published, and end."}
    )


def run(arguments: Arguments) -> None:
    """Publish and say where; first, what of the folder is not published."""
    from ..publishing import files_left_out, find_run, named_license, planned_push, push_to_hub

    left_out = files_left_out(find_run(arguments.folder).checkpoint)
    if left_out:
        print(f"Not published, since not of a kind that belongs to a model: {', '.join(map(printable, left_out))}")
    options: dict[str, Any] = {
        "revision": arguments.revision, "masked": arguments.masked, "base_model": arguments.base_model,
        "license": named_license(arguments.license, arguments.license_name, arguments.license_link),
        "license_file": arguments.license_file,
    }  # fmt: skip
    if arguments.dry_run:
        print(_plan(arguments, planned_push(arguments.folder, arguments.repo_id, **options)))
        return
    commit = push_to_hub(
        arguments.folder, arguments.repo_id, private=arguments.private or None, overwrite=arguments.overwrite,
        commit_message=arguments.commit_message, **options,
    )  # fmt: skip
    print(f"Published: {commit.commit_url}")


def _plan(arguments: Arguments, files: dict[str, str | bytes]) -> str:
    """What would be published, and where to."""
    from ..publishing import CARD_NAME

    card = files[CARD_NAME]
    assert isinstance(card, bytes), "a card is written anew"
    sizes = {name: len(one) if isinstance(one, bytes) else Path(one).stat().st_size for name, one in files.items()}
    column = max(map(len, sizes))
    private = "private, if it is new" if arguments.private else "public, if it is new (`--private` hides it)"
    owner = "" if "/" in arguments.repo_id else ", of the user whose token it is"
    lines = [f"Repository: {arguments.repo_id}{owner}, branch {arguments.revision or 'main'}; {private}", ""]
    lines += [f"{name:<{column}}{size:>16,} bytes" for name, size in [*sizes.items(), ("in all", sum(sizes.values()))]]
    text = card.decode()
    head = re.sub(r"(?ms)^model-index:\n.*?^---$", "---", text, count=1).splitlines()[:SHOWN_LINES]
    lines += ["", f"{CARD_NAME} ({len(text.splitlines())} lines) begins, without its table of results for the Hub:"]
    lines += [f"  {spelled(line)}" for line in head]
    lines += ["", "Dry run: nothing was sent or written. What needs the network was not checked: the token, what the"]
    lines += ["repository holds, and what the source's card says of its licence."]
    return "\n".join(lines)
