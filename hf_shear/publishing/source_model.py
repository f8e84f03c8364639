"""What is known of the source: whether the Hub has it, what it is called in prose, and its licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CardData, HfApi, ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..core.markdown import safe_address, shown
from .local_paths import last_part
from .plain_files import plain_file

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
MAX_LICENSE_BYTES = 1 << 20  # that are looked at to tell which licence it is
IDENTIFIER = re.compile(r"[A-Za-z0-9.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
# Identifiers of https://huggingface.co/docs/hub/repositories-licenses by words that only their texts hold; in order.
_LICENSE_TEXTS = (
    ("llama 3.3 community license", "llama3.3"),
    ("llama 3.2 community license", "llama3.2"),
    ("llama 3.1 community license", "llama3.1"),
    ("llama 3 community license", "llama3"),
    ("llama 2 community license", "llama2"),
    ("apache license version 2.0", "apache-2.0"),
    ("permission is hereby granted, free of charge, to any person", "mit"),
    ("gnu affero general public license version 3", "agpl-3.0"),
    ("gnu lesser general public license version 3", "lgpl-3.0"),
    ("gnu general public license version 3", "gpl-3.0"),
)


@dataclass(frozen=True)
class SourceLicense:
    """The licence of a source, as the Hub names it, and where that was read.

    Attributes:
        identifier: such as "apache-2.0" or "llama2"; "other" for one that the Hub has no name for.
        found_in: where it was read, in words.
        name, link: of a licence that is "other".
    """

    identifier: str
    found_in: str
    name: str | None = None
    link: str | None = None


def hub_source(provenance: dict | None) -> str | None:
    """The source's id on the Hub, or None where it was a folder.

    A relative folder such as ``models/llama`` looks like an id. What came from the Hub has the commit it was loaded at
    in its record, and no folder of that name.
    """
    source = (provenance or {}).get("source") or {}
    name, revision = source.get("name_or_path"), source.get("revision")
    if not name or not _COMMIT.fullmatch(str(revision)) or not is_hub_id(name) or Path(name).exists():
        return None
    return name


def masked_origin(config: dict) -> dict:
    """The source as a provenance record names it, from the config.json of a masked checkpoint."""
    name, revision = config.get("source_name_or_path"), config.get("source_revision")
    return {"source": {"name_or_path": name if isinstance(name, str) else None, "revision": revision}}


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of an id on the Hub (which says nothing about whether it is there)."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def source_name(provenance: dict | None) -> str:
    """The source in prose: its id on the Hub, or the name of its folder without the path."""
    name = ((provenance or {}).get("source") or {}).get("name_or_path")
    return hub_source(provenance) or (last_part(name) if name else "the source model")


def source_license(
    provenance: dict | None, checkpoint: Path | None = None, api: HfApi | None = None
) -> SourceLicense | None:
    """The source's licence, from its model card on the Hub, or else the licence file beside the weights.

    A provenance record comes with a checkpoint, from anywhere, so the folder that it names as its source is not opened.

    Args:
        checkpoint: the folder of the model, which may hold the licence file of its source.
        api: asks the Hub as well, for a source that is there; without it nothing leaves the machine.
    """
    found = _named_by_card(source_card(provenance, api), f"the model card of {hub_source(provenance)}")
    return found or (_folder_license(checkpoint) if checkpoint is not None else None)


def source_metadata(provenance: dict | None, api: HfApi | None = None) -> dict[str, list[str]]:
    """What the source's card on the Hub says of its ``language`` and its ``datasets``; without what is malformed.

    A pruned model has both from its source: its weights were made by that text.

    Args:
        api: as for ``source_license``.
    """
    data = source_card(provenance, api)
    found = {}
    for name, fits in (("language", is_language), ("datasets", is_hub_id)):
        values = (data.get(name) if data is not None else None) or []
        values = [values] if isinstance(values, str) else values if isinstance(values, list) else []
        found[name] = [value for value in values if isinstance(value, str) and fits(value)]
    return {name: values for name, values in found.items() if values}


def source_card(provenance: dict | None, api: HfApi | None = None) -> CardData | None:
    """The metadata of the source's card on the Hub: of its copy on this machine, or else as ``api`` gives it."""
    hub_id = hub_source(provenance)
    if provenance is None or hub_id is None:
        return None
    cached = try_to_load_from_cache(hub_id, "README.md", revision=provenance["source"]["revision"])
    if isinstance(cached, str):
        return ModelCard(Path(cached).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    try:
        return None if api is None else api.model_info(hub_id).card_data
    except HfHubHTTPError:
        return None  # gone or gated: the card then says that the licence was not found


def is_language(code: str) -> bool:
    """Whether it is a code of a language, such as "en" or "pt-BR", or one of the Hub's two special ones."""
    return code in ("code", "multilingual") or bool(_LANGUAGE.fullmatch(code))


def _folder_license(folder: Path) -> SourceLicense | None:
    path = next((folder / name for name in LICENSE_NAMES if plain_file(folder / name)), None)
    return None if path is None else text_license(path)


def _named_by_card(data: CardData | None, found_in: str) -> SourceLicense | None:
    """What a card of others says; a link that is no address of the web is not passed on."""
    if data is None:
        return None
    identifier = data.get("license")
    identifier = identifier[0] if isinstance(identifier, list) and identifier else identifier
    if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
        return None
    name, link = data.get("license_name"), data.get("license_link")
    return SourceLicense(
        identifier, found_in, name if isinstance(name, str) else None, link if is_license_link(link) else None
    )


def is_license_link(link: object) -> bool:
    """Whether a link to a licence is an address of the web, or the name of a licence file."""
    return link in LICENSE_NAMES or (isinstance(link, str) and safe_address(link) == link)


def text_license(path: Path) -> SourceLicense:
    """The licence whose text a file holds; its first line where that is none that is known."""
    with path.open("rb") as stream:
        text = stream.read(MAX_LICENSE_BYTES).decode("utf-8", errors="replace")
    words = " ".join(text.lower().replace(",", " ").split())
    for phrase, identifier in _LICENSE_TEXTS:
        if " ".join(phrase.replace(",", " ").split()) in words:
            return SourceLicense(identifier, f"the file {path.name}")
    first = next((line.strip() for line in text.splitlines() if line.strip()), "own licence")
    return SourceLicense("other", f"the file {path.name}", name=shown(first[:80]), link="LICENSE")
