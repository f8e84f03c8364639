"""What is checked on the Hub before a byte is uploaded: the token, and what the repository already holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..core import FailedError, UsageError
from ..sources import NETWORK_ERRORS

TOKEN_PAGE = "https://huggingface.co/settings/tokens"
TOKEN_FIX = (
    f"Make one with write rights at {TOKEN_PAGE}, and give it as the environment variable HF_TOKEN or with"
    " `hf auth login` (not on the command line, which shells keep)."
)
_CHUNK_BYTES = 1 << 20
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack")
_MODEL_CONFIGS = ("config.json", "adapter_config.json")


class PushError(FailedError):
    """A push that could not be finished; the text says why, and how to go on."""


@dataclass(frozen=True)
class RemoteRepo:
    """What is at a name on the Hub.

    Attributes:
        exists: whether there is a repository.
        files: its files at the revision, empty where there is none yet.
        same_model: whether every weight there is one of the model that is to be pushed.
        free: whether it holds no model.
    """

    exists: bool
    files: list[str]
    same_model: bool
    free: bool


@contextmanager
def asking_the_hub(api: HfApi) -> Iterator[None]:
    """Turn "nobody answers" into one sentence; refusals of the Hub pass."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code < 500:
            raise
        raise PushError(
            f"The Hub at {api.endpoint} is in trouble ({_status(error)}). Nothing was sent; try again."
        ) from error
    except NETWORK_ERRORS as error:
        raise PushError(
            f"The Hub at {api.endpoint} can not be reached ({type(error).__name__}). Nothing was sent, and nothing here was"
            " changed: run the same command when there is a network (and without HF_HUB_OFFLINE)."
        ) from error


def check_token(api: HfApi) -> str:
    """The user's name, if the token may write.

    Raises:
        ValueError: there is no token, the Hub does not know it, or it may only read.
        PushError: the Hub can not be reached.
    """
    try:
        with asking_the_hub(api):
            user = api.whoami()
    except PushError as error:
        if isinstance(error.__cause__, LocalTokenNotFoundError):
            raise UsageError(f"There is no token for the Hub. {TOKEN_FIX}") from None
        raise
    except HfHubHTTPError as error:
        raise UsageError(f"The Hub does not accept the token ({_status(error)}). {TOKEN_FIX}") from error
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UsageError(f"The token of {user['name']!r} may only read. {TOKEN_FIX}")
    return user["name"]


def remote_repo(
    api: HfApi, repo_id: str, revision: str | None, local: dict[str, Path], private: bool | None
) -> RemoteRepo:
    """Look at a repository before anything is sent to it.

    Args:
        local: paths of the local weights by name.
        private: whether the user asked for a private repository.

    Raises:
        ValueError: it must be private, but is public already.
        PushError: the Hub can not be reached.
    """
    with asking_the_hub(api):
        try:
            info = api.model_info(repo_id, files_metadata=True)
        except RepositoryNotFoundError:
            return RemoteRepo(exists=False, files=[], same_model=False, free=True)
        if private and not info.private:
            raise UsageError(
                f"{repo_id!r} exists and is public, so `--private` would not hide the model. Make it private in its"
                " settings on the Hub, or choose another name."
            )
        if revision is not None:
            try:
                info = api.model_info(repo_id, revision=revision, files_metadata=True)
            except RevisionNotFoundError:
                return RemoteRepo(exists=True, files=[], same_model=False, free=True)
    return _compare(info, local)


def _compare(info: ModelInfo, local: dict[str, Path]) -> RemoteRepo:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights = [name for name in siblings if name.endswith(_WEIGHT_SUFFIXES)]
    free = not weights and not any(name in siblings for name in _MODEL_CONFIGS)
    same = bool(weights) and all(name in local and _same_content(local[name], siblings[name]) for name in weights)
    return RemoteRepo(exists=True, files=list(siblings), same_model=same, free=free)


def _same_content(path: Path, sibling) -> bool:
    if sibling.size is not None and sibling.size != path.stat().st_size:
        return False
    if sibling.lfs is not None:
        return _digest(path, hashlib.sha256()) == sibling.lfs.sha256
    git_blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    return _digest(path, git_blob) == sibling.blob_id


def _digest(path: Path, algorithm) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            algorithm.update(chunk)
    return algorithm.hexdigest()


def refusal(error: BaseException, repo_id: str) -> str:
    """Why an upload stopped, in words, from the error or from the one it was raised from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is not None and cause.response is not None:
        if cause.response.status_code in (401, 403):
            return f"the Hub refused it ({_status(cause)}): the token may not write to {repo_id!r}. {TOKEN_FIX}"
        return f"the Hub answered {_status(cause)}"
    if isinstance(error, NETWORK_ERRORS) or isinstance(error.__cause__, NETWORK_ERRORS):
        return f"the connection was lost ({type(error.__cause__ or error).__name__})"
    return "; ".join(str(e).strip().rstrip(".") for e in (error, error.__cause__) if e is not None)


def _status(error: HfHubHTTPError) -> str:
    message = (error.server_message or "").strip().splitlines()
    return f"HTTP {error.response.status_code}" + (f", {message[0]}" if message else "")
