"""``hf-shear card``: write a model's card from its results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core import check_output_file

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
    from ..publishing import CARD_NAME, find_run, model_card, named_license, source_license, write_card

    license = named_license(arguments.license, arguments.license_name, arguments.license_link)
    if arguments.output is not None:
        check_output_file("output", arguments.output)
    files = find_run(arguments.folder)
    card = model_card(
        files.results, provenance=files.provenance, evaluation=files.evaluation, arm=files.arm,
        license=license or source_license(files.provenance, files.checkpoint), base_model=arguments.base_model,
        source=arguments.source_name, rebuild_command=arguments.rebuild_command, datasets=arguments.datasets,
        language=arguments.language,
    )  # fmt: skip
    output = Path(arguments.output or files.checkpoint / CARD_NAME)
    path = write_card(card, output, arguments.overwrite)
    print(f"Wrote {path}.")
    if card.data.get("license") is None:
        print("The licence of the source was not found: give it with --license before you publish.")
