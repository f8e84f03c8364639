"""Publish a model on the Hub: everything in one commit, after everything that could go wrong was checked."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..core import EVALUATION_NAME, REPORT_NAME, RESULTS_NAME, UsageError, read_json_object, redact_tokens
from ..slicing import PROVENANCE_NAME, PRUNE_CONFIG_NAME
from ..sources import NETWORK_ERRORS
from .card import check_license, masked_card, model_card, published_json
from .card_picture import PICTURE_NAME, kept_picture
from .card_sections import as_published
from .checkpoint_files import CARD_NAME, TOKENIZER_NAMES, is_masked, other_files, weight_files
from .eval_entries import eval_result_files
from .hub_access import PushError, RemoteRepo, asking_the_hub, check_token, refusal, remote_repo
from .local_paths import last_part, page_without_paths, paths_in, without_source_path
from .plain_files import plain_file
from .run_files import RunFiles, find_run
from .source_model import (
    SourceLicense,
    is_hub_id,
    masked_origin,
    source_license,
    source_metadata,
    text_license,
)

_BRANCH = re.compile(r"(?!.*\.\.)\w[\w./-]*")
_WITH_SOURCE_PATH = ("config.json", "tokenizer_config.json")  # files in which libraries note where something came from


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    masked: bool = False,
    overwrite: bool = False,
    license: SourceLicense | str | None = None,
    license_file: str | os.PathLike | None = None,
    base_model: str | None = None,
    endpoint: str | None = None,
) -> CommitInfo:
    """Publish a run's model, tokenizer, card, report, results and provenance in one commit.

    Only plain files of known kinds are published (``checkpoint_files``); ``files_left_out`` names the others. A
    README.md in the checkpoint's folder is published as the card, so it can be edited before; otherwise the card is
    written from the results. Nothing on this machine is changed. If the push stops, the same call goes on: large files
    that had arrived whole are not sent again.

    Args:
        folder: a run's folder (its ``recovered``, else ``pruned`` checkpoint is published) or a checkpoint.
        repo_id: "name/model", or "model" for the token's own user.
        private: make a new repository private; None leaves it to the Hub's default.
        token: by default HF_TOKEN or the stored login.
        revision: branch, made if it is not there.
        masked: publish a checkpoint from the middle of mask learning, which is refused otherwise.
        overwrite: replace another model of that name. Its files leave the branch and stay in its history.
        license, base_model: as for ``model_card``; by default what is known of the source.
        license_file: the licence's text, published as LICENSE; by default the one that lies in the checkpoint's folder.
            The folder that a provenance record names is not looked into: records come with checkpoints, from anywhere.
        endpoint: of the Hub, by default HF_ENDPOINT or huggingface.co.

    Raises:
        UsageError: the checkpoint is not complete, has a symbolic link among its files or no results, the token may not
            write, or the name is taken.
        PushError: the Hub can not be reached, or the upload stopped; the text says how to go on.
    """
    run, weights = _checked_run(folder, repo_id, masked, license_file, base_model, revision)
    own_card, files = _own_card(run.checkpoint / CARD_NAME), _files(run, weights, license_file)
    license = _named(license, license_file)
    api = HfApi(endpoint=endpoint, token=token)
    user = check_token(api)
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    remote = remote_repo(api, repo_id, revision, weights, private)
    if not (remote.free or remote.same_model or overwrite):
        raise UsageError(
            f"{repo_id!r} already holds another model. Choose another name, or replace it with `--overwrite`"
            " (`overwrite=True`); its history keeps the old one."
        )
    files |= _card_files(run, own_card, license, base_model, repo_id, PICTURE_NAME in files, api)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    if not (remote.free or remote.same_model):
        operations += _deletions(remote, {operation.path_in_repo for operation in operations})
    message = commit_message or f"Publish {last_part(repo_id)} with hf_shear"
    return _upload(api, repo_id, operations, private, revision, message)


def planned_push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    masked: bool = False,
    license: SourceLicense | str | None = None,
    license_file: str | os.PathLike | None = None,
    base_model: str | None = None,
) -> dict[str, str | bytes]:
    """What ``push_to_hub`` would send, with all of its checks that need no network; nothing is sent or written.

    What the source's card on the Hub says is not asked for.

    Args:
        folder, repo_id, revision, masked, license, license_file, base_model: as for ``push_to_hub``.

    Returns:
        Files by their names on the Hub: the path of one that is sent as it is, or the content of one that is written anew.

    Raises:
        UsageError: as ``push_to_hub``.
    """
    run, weights = _checked_run(folder, repo_id, masked, license_file, base_model, revision)
    own_card, files = _own_card(run.checkpoint / CARD_NAME), _files(run, weights, license_file)
    return files | _card_files(
        run, own_card, _named(license, license_file), base_model, repo_id, PICTURE_NAME in files, None
    )


def _checked_run(
    folder, repo_id: str, masked: bool, license_file, base_model, revision
) -> tuple[RunFiles, dict[str, Path]]:
    """What is published, and the paths of its weights by name."""
    run = find_run(folder)
    weights = {name: run.checkpoint / name for name in weight_files(run.checkpoint)}
    _check_before_network(run, repo_id, masked, license_file, base_model, revision)
    return run, weights


def _named(license: SourceLicense | str | None, license_file: str | os.PathLike | None) -> SourceLicense | None:
    """The licence that was given, by name or by its text."""
    if license is None and license_file is not None:
        license = text_license(Path(license_file))
    return check_license(license)


def _card_files(
    run: RunFiles, own_card: str | None, license: SourceLicense | None, base_model: str | None, repo_id: str,
    has_picture: bool, api: HfApi | None,
) -> dict[str, bytes]:  # fmt: skip
    """The card, and its picture if one is drawn.

    Args:
        own_card: that lies in the checkpoint's folder.
        has_picture: whether a picture lies there.
        api: asks the Hub of the source's card; without it nothing leaves the machine.
    """
    if own_card is not None:
        return {CARD_NAME: as_published(own_card, repo_id).encode()}
    with nullcontext() if api is None else asking_the_hub(api):
        license = license or source_license(_origin(run), run.checkpoint, api)
        metadata = source_metadata(_origin(run), api)
    picture = kept_picture(run.results, run.provenance) if run.results else None
    card = _card(run, license, base_model, repo_id, metadata, has_picture or picture is not None)
    return {CARD_NAME: card.encode()} | ({PICTURE_NAME: picture} if picture else {})


def _check_before_network(run: RunFiles, repo_id: str, masked: bool, license_file, base_model, revision) -> None:
    if license_file is not None and not Path(license_file).is_file():
        raise UsageError(f"`license_file` must be a file, but {str(license_file)!r} is none. Name the licence's text.")
    if re.fullmatch(r"hf_\w{20,}", repo_id):
        raise UsageError(
            "`repo_id` must be 'name/model', but a token was given. Set the environment variable HF_TOKEN to it."
        )
    if base_model is not None and not is_hub_id(base_model):
        raise UsageError(f"`base_model` must be an id on the Hub, such as 'name/model', but it is {base_model!r}.")
    if revision is not None and not _BRANCH.fullmatch(revision):
        raise UsageError(f"`revision` must be the name of a branch, such as 'main', but it is {revision!r}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"`repo_id` must be 'name/model', but it is {repo_id!r}: {error}") from error
    if is_masked(run.config):
        if not masked:
            raise UsageError(
                f"{str(run.checkpoint)!r} is a checkpoint in the middle of mask learning, which only hf_shear can load. To"
                " publish the finished model name the run's folder; to publish this one all the same, give `--masked`"
                " (`masked=True`)."
            )
        return
    if not any(plain_file(run.checkpoint / name) for name in TOKENIZER_NAMES):
        raise UsageError(
            f"{str(run.checkpoint)!r} has no tokenizer, and a model without one is of no use to others. Save it there:"
            " `AutoTokenizer.from_pretrained(SOURCE).save_pretrained(CHECKPOINT)`."
        )
    if run.results is None and not plain_file(run.checkpoint / CARD_NAME):
        raise UsageError(
            f"There is no {RESULTS_NAME} beside {str(run.checkpoint)!r} or in it, so its card would have no results. Name"
            f" the run's folder, put the results there, or write a {CARD_NAME} into the checkpoint yourself."
        )


def _origin(run: RunFiles) -> dict | None:
    """Where the source is noted: in the provenance, and in the config while masks are learned."""
    return masked_origin(run.config) if is_masked(run.config) else run.provenance


def _card(run: RunFiles, license, base_model: str | None, repo_id: str, metadata: dict, has_picture: bool) -> str:
    if is_masked(run.config):
        return str(masked_card(run.config, license, repo_id))
    card = model_card(
        run.results, provenance=run.provenance, evaluation=run.evaluation, arm=run.arm, license=license,
        repo_id=repo_id, base_model=base_model, checkpoint=run.checkpoint, has_picture=has_picture, **metadata,
    )  # fmt: skip
    return str(card)


def _own_card(path: Path) -> str | None:
    """A card that was written before, perhaps by hand; None if there is none."""
    if not plain_file(path):
        return None
    try:
        text = path.read_text(encoding="utf-8")
        ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"{str(path)!r} is no model card: {error}. Mend it, or remove it to have one written."
        ) from error
    return text


def _files(run: RunFiles, weights: dict[str, Path], license_file) -> dict[str, str | bytes]:
    """Every file of the commit but the card, by its name there: a path if sent as it is, bytes of what is changed."""
    files: dict[str, str | bytes] = {name: str(path) for name, path in weights.items()}
    for name in other_files(run.checkpoint):
        files[name] = (
            _without_source(run.checkpoint / name) if name in _WITH_SOURCE_PATH else str(run.checkpoint / name)
        )
    if license_file is not None:
        files["LICENSE"] = Path(license_file).read_bytes()
    contents = (
        (PROVENANCE_NAME, run.provenance), (PRUNE_CONFIG_NAME, (run.provenance or {}).get("prune_config")),
        (RESULTS_NAME, run.results), (EVALUATION_NAME, run.evaluation),
    )  # fmt: skip
    files |= {name: published_json(content) for name, content in contents if content is not None}
    files |= eval_result_files(run.evaluation)
    if plain_file(run.checkpoint / PICTURE_NAME):
        files[PICTURE_NAME] = (run.checkpoint / PICTURE_NAME).read_bytes()
    if run.report is not None:
        files[REPORT_NAME] = _report(run, run.report)
    return files


def _without_source(path: Path) -> bytes:
    return (json.dumps(without_source_path(read_json_object(path)), indent=2) + "\n").encode()


def _report(run: RunFiles, page: Path) -> bytes:
    """The report without tokens, and without the paths of this machine that the run's records and its folder name."""
    text = redact_tokens(page.read_text(encoding="utf-8", errors="replace"))
    records = [run.results, run.evaluation, run.provenance, _origin(run)]
    folders = [str(run.checkpoint.resolve()), str(run.checkpoint.resolve().parent)]
    return page_without_paths(text, [*folders, *paths_in(records)]).encode()


def _deletions(remote: RemoteRepo, added: set[str]) -> list[CommitOperationDelete]:
    """Files of the model that is replaced: left there, its shards or adapter could be loaded in place of the new one."""
    return [CommitOperationDelete(path_in_repo=name) for name in remote.files if name not in added | {".gitattributes"}]


def _upload(
    api: HfApi, repo_id: str, operations: list, private: bool | None, revision: str | None, message: str
) -> CommitInfo:
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)  # also where an earlier try got no further
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    except (ValueError, RuntimeError, *NETWORK_ERRORS) as error:
        raise PushError(
            f"The push to {repo_id!r} stopped: {refusal(error, repo_id)}. Nothing here was changed, and nothing"
            " was committed there. Run the same command again: large files that had arrived whole are not sent again."
        ) from error
