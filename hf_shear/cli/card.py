"""``hf-shear card``: write a model's card from its results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core import check_output_file
from ..core.results import write_file_atomically

SUMMARY = "Write a model's card from its results, without a network."
EXAMPLE = "hf-shear card runs/001 --license apache-2.0"
POSITIONAL = ("folder",)


@dataclass
class Arguments:
    """Of which model, and what the files do not say."""

    folder: str = field(metadata={"help": "A run's folder, or one checkpoint."})
    output: str | None = field(
        default=None, metadata={"help": "File to write; README.md in the checkpoint by default."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Of the source, such as apache-2.0; what the source says by default."}
    )
    license_name: str | None = field(default=None, metadata={"help": "Of `--license other`: its name in words."})
    license_link: str | None = field(default=None, metadata={"help": "Of `--license other`: where its text is."})
    base_model: str | None = field(default=None, metadata={"help": "The source's id on the Hub, if a copy was cut."})
    source_name: str | None = field(default=None, metadata={"help": "What to call the source in the text."})
    rebuild_command: str | None = field(
        default=None, metadata={"help": "Command that made the model, if not recorded."}
    )
    datasets: list[str] | None = field(default=None, metadata={"help": "Ids of the data on the Hub, if it is there."})
    language: list[str] | None = field(default=None, metadata={"help": "Codes of its languages, such as en."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a card that is there."})


def run(arguments: Arguments) -> None:
    """Write the card and say where."""
    from ..publishing import (
        CARD_NAME,
        PICTURE_NAME,
        can_draw,
        find_run,
        kept_picture,
        model_card,
        named_license,
        source_license,
        source_metadata,
        write_card,
    )

    license = named_license(arguments.license, arguments.license_name, arguments.license_link)
    if arguments.output is not None:
        check_output_file("output", arguments.output)
    files = find_run(arguments.folder)
    output = Path(arguments.output or files.checkpoint / CARD_NAME)
    known, picture = source_metadata(files.provenance), kept_picture(files.results, files.provenance)
    card = model_card(
        files.results, provenance=files.provenance, evaluation=files.evaluation, arm=files.arm,
        license=license or source_license(files.provenance, files.checkpoint), base_model=arguments.base_model,
        source=arguments.source_name, rebuild_command=arguments.rebuild_command, checkpoint=files.checkpoint,
        has_picture=picture is not None, datasets=arguments.datasets or known.get("datasets"),
        language=arguments.language or known.get("language"),
    )  # fmt: skip
    path = write_card(card, output, arguments.overwrite)
    print(f"Wrote {path}.")
    if picture is not None:
        drawn = write_file_atomically(path.with_name(PICTURE_NAME), lambda temporary: temporary.write_bytes(picture))
        print(f"Wrote {drawn}.")
    elif not can_draw():
        print("No picture of what was kept was drawn: that needs matplotlib (pip install 'hf-shear[plots]').")
    if card.data.get("license") is None:
        print("The licence of the source was not found: give it with --license before you publish.")
