"""``hf-shear push``: publish a model on the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core import printable

SUMMARY = "Publish a model with its card and results on the Hub, in one commit."
EXAMPLE = "hf auth login && hf-shear push runs/001 MY_NAME/MY_MODEL --private"
POSITIONAL = ("folder", "repo_id")


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


def run(arguments: Arguments) -> None:
    """Publish and say where; first, what of the folder is not published."""
    from ..publishing import files_left_out, find_run, named_license, push_to_hub

    left_out = files_left_out(find_run(arguments.folder).checkpoint)
    if left_out:
        print(f"Not published, since not of a kind that belongs to a model: {', '.join(map(printable, left_out))}")
    commit = push_to_hub(
        arguments.folder, arguments.repo_id, private=arguments.private or None, masked=arguments.masked,
        overwrite=arguments.overwrite, base_model=arguments.base_model, license_file=arguments.license_file,
        license=named_license(arguments.license, arguments.license_name, arguments.license_link),
        revision=arguments.revision, commit_message=arguments.commit_message,
    )  # fmt: skip
    print(f"Published: {commit.commit_url}")
