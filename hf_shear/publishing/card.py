"""Model cards, written from the results of a run with the Hub's own card classes. Nothing here needs a network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..core import UsageError
from ..core.markdown import fenced_code, markdown_text, shown
from ..core.record_types import without_nulls
from ..core.results import TARGET_NAMES, write_text_atomically
from . import card_sections
from .card_facts import CardFacts, arm_name, check_facts
from .card_limits import limits
from .checkpoint_facts import read_facts
from .checkpoint_files import has_chat_template
from .engine_rules import where_it_loads
from .engine_table import ENGINES
from .local_paths import publishable
from .source_model import (
    IDENTIFIER,
    LICENSE_NAMES,
    SourceLicense,
    hub_source,
    is_hub_id,
    is_language,
    is_license_link,
    masked_origin,
    source_name,
)

# The Hub knows four relations to a base model: adapter, merge, quantized and finetune. A pruned model has weights of its
# own that were trained on from the base's, which is what finetune means there. It is no quantised copy, and without a
# relation the Hub would guess one from the names of the files.
BASE_MODEL_RELATION = "finetune"
TAGS = ("hf_shear", "pruning", "structured-pruning")
UNPUBLISHED_DATA = "custom"  # dataset type of the model-index for text that is no data set on the Hub
_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}  # names of the harness -> names of the Hub


def model_card(
    results: dict | None,
    *,
    provenance: dict | None,
    evaluation: dict | None = None,
    arm: str = "recovered",
    license: SourceLicense | str | None = None,
    repo_id: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    has_picture: bool = False,
    name: str | None = None,
    base_model: str | None = None,
    source: str | None = None,
    rebuild_command: str | None = None,
    datasets: list[str] | None = None,
    language: list[str] | None = None,
) -> ModelCard:
    """The card of a sheared model; every number in it is one of these files', or follows from them.

    Args:
        results: content of results.json (contract: hf_shear.core.results; parts that are not needed may be missing).
        provenance: content of shear_provenance.json, None if there is none.
        evaluation: content of evaluation.json, whose ``pruned`` is this model.
        arm: which record of the results the model is, "recovered" or "pruned".
        license: of the source, as the Hub names it.
        repo_id: where the model is published; None for one that is nowhere.
        checkpoint: the model's folder, which says how it is used: with a chat template, and in which engines.
        has_picture: whether ``kept.png`` (``kept_picture``) lies beside the card.
        name: what to call a model that is nowhere; made of the source's name and the size by default.
        base_model: id of the source on the Hub, where the source was loaded from a copy of it. By default what the
            provenance says, if that is certain.
        source: the source's name in prose.
        rebuild_command: the command that made the model; by default ``command`` of the results.
        datasets, language: ids of existing data sets on the Hub, and codes such as "en", for the metadata; of a source on
            the Hub, ``source_metadata`` has them.

    Raises:
        ValueError: there are no results, the files are of different models, or an id is malformed.
    """
    if arm not in ("recovered", "pruned"):
        raise UsageError(f"`arm` must be 'recovered' or 'pruned', but it is {arm!r}.")
    for argument, ids in (("repo_id", [repo_id]), ("base_model", [base_model]), ("datasets", datasets or [])):
        for value in ids:
            if value is not None and not is_hub_id(value):
                raise UsageError(f"`{argument}` must be an id on the Hub, such as 'name/model', but it is {value!r}.")
    found, evaluation = without_nulls(publishable(results or {})), publishable(evaluation)
    for code in language or []:
        if not is_language(code):
            raise UsageError(f"`language` must be a code such as 'en' or 'pt-BR', but it is {code!r}.")
    provenance, base_model, source = check_facts(found, provenance, evaluation, arm, base_model, source)
    command = publishable(_with_base_model(rebuild_command or (results or {}).get("command"), provenance, base_model))
    engines = () if checkpoint is None else tuple(where_it_loads(ENGINES, read_facts(checkpoint)))
    facts = CardFacts(
        found, publishable(provenance), evaluation, arm, check_license(license), repo_id, base_model, source, command,
        name, checkpoint is not None and has_chat_template(Path(checkpoint)), engines, has_picture,
    )  # fmt: skip
    return ModelCard(f"---\n{_metadata(facts, datasets, language).to_yaml()}\n---\n\n{_body(facts)}")


def _with_base_model(command: str | None, provenance: dict, base_model: str | None) -> str | None:
    """The command with the source's id on the Hub in place of the folder of its copy."""
    folder = (provenance.get("source") or {}).get("name_or_path")
    if not command or not base_model or not folder:
        return command
    return re.sub(rf"(?<![^\s'\"=]){re.escape(folder)}/?(?![^\s'\"])", base_model, command)


def named_license(identifier: str | None, name: str | None = None, link: str | None = None) -> SourceLicense | None:
    """A licence as flags name it; None where none is named.

    Args:
        identifier: as the Hub names it; "other" for one that the Hub has no name for.
        name, link: of one that is "other": its name in words, and where its text is.

    Raises:
        ValueError: a name or a link of none, or of one that the Hub names itself; or as ``check_license``.
    """
    if identifier is None:
        if name or link:
            raise UsageError(
                "`license_name` and `license_link` are of a licence that is `--license other`: give that too."
            )
        return None
    identifier = identifier.strip().lower()
    if (name or link) and identifier != "other":
        raise UsageError(
            f"`license_name` and `license_link` are for `--license other`, but `license` is {identifier!r}, which the Hub"
            " knows by itself. Leave them out."
        )
    return check_license(SourceLicense(identifier, "whoever wrote this card", name, link))


def check_license(license: SourceLicense | str | None) -> SourceLicense | None:
    """A licence given as the Hub's identifier, or as it was found.

    Raises:
        ValueError: the identifier is no such one, or "other" without a name and a link.
    """
    if isinstance(license, str):
        return named_license(license)
    if license is None:
        return None
    if not IDENTIFIER.fullmatch(license.identifier):
        raise UsageError(
            f"`license` must be an identifier of https://huggingface.co/docs/hub/repositories-licenses, such as"
            f" 'apache-2.0' or 'llama2', but it is {license.identifier!r}."
        )
    if license.identifier == "other" and not license.name:
        raise UsageError(
            "`license` 'other' needs a name (`--license_name`), and a link (`--license_link`) or a licence file beside the"
            " source's weights: `SourceLicense('other', 'the file LICENSE', name=..., link=...)`."
        )
    if license.link is not None and not is_license_link(license.link):
        raise UsageError(
            f"`license_link` must be an address that begins with https://, or the name of a licence file"
            f" ({', '.join(LICENSE_NAMES[:3])}), but it is {license.link!r}. Give the page that has the licence's text."
        )
    return license


def _metadata(facts: CardFacts, datasets: list[str] | None, language: list[str] | None) -> ModelCardData:
    license = facts.license
    other = license if license is not None and license.identifier == "other" else None
    return ModelCardData(
        base_model=facts.base_model,
        base_model_relation=BASE_MODEL_RELATION if facts.base_model else None,
        license=license.identifier if license else None,
        license_name=shown(other.name) if other else None,
        license_link=other.link if other else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        datasets=datasets,
        language=language,
        model_name=shown(facts.name),
        eval_results=_eval_results(facts),
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    found = []
    for domain, loss in facts.record["loss"].items():
        found.append(_result(f"held-out text, {domain}", domain, "loss", loss, "Held-out loss (nats per token)"))
    evaluation: dict[str, Any] = facts.evaluation or {}
    model: dict[str, Any] = evaluation.get("pruned") or {}
    for domain, row in (model.get("perplexity") or {}).get("domains", {}).items():
        for metric, text in (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte")):
            if metric in row:
                found.append(_result(f"held-out text, {domain}", f"{domain}, evaluated", metric, row[metric], text))
    for task, row in (model.get("tasks") or {}).items():
        if row["value"] is None:  # the harness has none
            continue
        metric: Any = row["metric"]
        dataset = row.get("dataset") or {"id": UNPUBLISHED_DATA, "config": task}
        found.append(
            _result(
                task,
                dataset["config"] or "default",
                _METRICS[metric] if metric in _METRICS else metric,
                row["value"],
                metric,
                dataset["id"],
            )
        )
    return found


def _result(
    dataset: str, config: str, metric: str, value: float, name: str, kind: str = UNPUBLISHED_DATA
) -> EvalResult:
    return EvalResult(
        task_type="text-generation", dataset_type=shown(kind), dataset_name=shown(dataset),
        dataset_config=shown(config), metric_type=shown(metric), metric_value=value, metric_name=shown(name),
    )  # fmt: skip


def _body(facts: CardFacts) -> str:
    sections = {
        "Load it": card_sections.load,
        "What was removed": card_sections.removed,
        "How it was made": card_sections.made,
        f"Results {arm_name(facts.arm)}": card_sections.measured,
        "Speed and memory": card_sections.speed,
        "Limits": limits,
        "Licence": card_sections.license_text,
        "Make it again": card_sections.again,
        "Versions": card_sections.versions,
        "Citation": card_sections.cited,
    }
    text = [f"# {card_sections.title(facts)}", card_sections.summary(facts)]
    text += [f"## {heading}\n\n{section(facts)}" for heading, section in sections.items()]
    text.append(
        "Every number here comes from `results.json` and `evaluation.json` of this model; `hf-shear card` wrote it."
    )
    return "\n\n".join(text) + "\n"


def masked_card(config: dict, license: SourceLicense | str | None = None, repo_id: str | None = None) -> ModelCard:
    """The card of a checkpoint in the middle of mask learning, which is no result and has none.

    Args:
        config: its config.json.
    """
    origin = masked_origin(config)
    base_model, license = hub_source(origin), check_license(license)
    metadata = ModelCardData(
        base_model=base_model, base_model_relation=BASE_MODEL_RELATION if base_model else None,
        license=license.identifier if license else None, library_name="hf_shear", tags=[*TAGS, "masked"],
    )  # fmt: skip
    target = config.get("target_shape") or {}
    shape = ", ".join(f"{name} {target[name]:,}" for name in TARGET_NAMES if isinstance(target.get(name), int))
    licensed = license.identifier if license else "**of the source: not found; whoever publishes this must add it**"
    snippet = f"""from hf_shear import AutoShearingModelForCausalLM

model = AutoShearingModelForCausalLM.from_pretrained("{repo_id or "checkpoint"}")"""
    body = f"""# A masked checkpoint, in the middle of mask learning

Not a finished model: it has the size of its source, {markdown_text(source_name(origin))},
and masks that still choose what to keep on the way to this shape: {shape or "not known"}.
It has no results. Only `hf_shear` loads it; `slice_model` cuts it.

{fenced_code(snippet, "python")}

Licence: {licensed}.
"""
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def write_card(card: ModelCard, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write a card in one step: a reader sees the old one or the new one.

    Raises:
        ValueError: there is another card at ``path``, perhaps edited by hand, and ``overwrite`` was not asked for.
        FailedError: it could not be written, on a full disk for example; what was there is as it was.
    """
    path, text = Path(path), str(card)
    if path.is_dir():
        raise UsageError(f"`output` {str(path)!r} is a folder. Name the file, such as {str(path / 'README.md')!r}.")
    if path.is_file() and not overwrite and path.read_bytes() != text.encode():
        raise UsageError(
            f"{str(path)!r} is there already, with other content. Replace it with `--overwrite`, or write elsewhere with"
            " `--output FILE`."
        )
    return write_text_atomically(path, text)


def published_json(content: dict) -> bytes:
    """JSON as it is published: without the paths of this machine."""
    return (json.dumps(publishable(content), indent=1, allow_nan=False) + "\n").encode()
