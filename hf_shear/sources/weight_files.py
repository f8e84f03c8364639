"""The files of a checkpoint's weights, and what their heads say: names, shapes and types, without any value."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from ..core import UsageError, read_json_object
from .places import ADAPTER, WEIGHT_NAMES, Place, adapter_refusal

SAFETENSORS, PICKLED, GGUF = ".safetensors", ".bin", ".gguf"

_WRAPPER = r"(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_WRAPPED = re.compile(rf"(?:^|(?<=\.)){_WRAPPER}")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorHead:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a name where torch has no such type


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint, unread.

    Attributes:
        paths: the files, each whole.
        kind: their suffix.
        tensors: by name as in a model, without the names of wrappers; none for GGUF, which has names of its own.
        names: those in the files, by the names in ``tensors``, with the path of the file.
    """

    paths: tuple[Path, ...]
    kind: str
    tensors: dict[str, TensorHead] = field(default_factory=dict)
    names: dict[str, tuple[str, Path]] = field(default_factory=dict)

    @property
    def key_mapping(self) -> dict[str, str] | None:
        """What takes the names of wrappers away as transformers loads; each rule takes one of a name."""
        depth = max((len(_WRAPPED.findall(name)) for name, _ in self.names.values()), default=0)
        rules = (f"(?:^|(?<=\\.)){'(?:' * level}{_WRAPPER}{')' * level}" for level in range(depth))
        return dict.fromkeys(rules, "") or None

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(torch.Size(head.shape).numel() for head in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One tensor, by its name as in a model."""
        inside, path = self.names[name]
        if self.kind == SAFETENSORS:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(inside)
        return _load_pickled(path)[inside]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: safetensors, or else PyTorch's own, or else GGUF."""
    patterns = ("model*.safetensors", "pytorch_model*.bin", "*.gguf")
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def find_weights(argument: str, place: Place, named: str | None, fetch: bool, hub: dict) -> Weights | None:
    """The weights at a place, with their heads read.

    Args:
        named: the file that the config names (``transformers_weights``); None: the first of those that are usual.
        fetch: whether weights must be there, and are downloaded from the Hub; those that are here are read in any case.
        hub: options such as ``revision``.

    Returns:
        None where they are not here, and need not be.

    Raises:
        UsageError: there are none; a file is missing, broken or cut off; an index names a file outside its folder.
    """
    if place.gguf_file is not None:
        return Weights((Path(place.name) / place.gguf_file,), GGUF)
    if place.folder is None and _file(place, ADAPTER, fetch, hub) is not None:  # transformers would add it by itself
        raise UsageError(adapter_refusal(argument, place.name))
    names = WEIGHT_NAMES if named is None else (named,)
    if named is not None and not _is_inside(named):
        raise UsageError(f"`{argument}` {place.name!r} has weights outside its folder ({named!r}): it is not read.")
    first = next(filter(None, (_file(place, name, fetch, hub) for name in names)), None)
    if first is None and not fetch:
        return None
    if first is None:
        raise UsageError(
            f"`{argument}` must be a whole checkpoint, but {place.name!r} holds no weights: none of {', '.join(names)}"
            f"{' or a .gguf file' if place.folder is not None else ', or it can not be reached'}. Get the"
            " checkpoint anew."
        )
    paths, suffix = [first], first.suffix
    if first.name.endswith(".index.json"):
        suffix = Path(first.name.removesuffix(".index.json")).suffix
        shards = [_shard(argument, place, first, name, suffix, fetch, hub) for name in _shards(argument, first)]
        paths = [shard for shard in shards if shard is not None]
        if len(paths) < len(shards):
            return None
    return _weights(argument, paths, suffix)


def _file(place: Place, name: str, fetch: bool, hub: dict) -> Path | None:
    if place.folder is not None:
        path = place.folder / hub.get("subfolder", "") / name
        return path if path.is_file() else None
    found = cached_file(
        place.name,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **(hub | ({} if fetch else {"local_files_only": True})),
    )
    return None if found is None else Path(found)


def _shards(argument: str, index: Path) -> list[str]:
    """The files that an index names, each once."""
    content = read_json_object(index, f"`{argument}`: the index")
    shards = content.get("weight_map")
    named = shards.values() if isinstance(shards, dict) else ()
    if not named or not all(isinstance(name, str) for name in named) or not isinstance(content.get("metadata"), dict):
        raise UsageError(
            f"`{argument}`: the index {str(index)!r} is broken: it must be an object with `metadata` and a `weight_map`"
            " from the names of weights to files. Get it anew."
        )
    return sorted(set(named))


def _shard(argument: str, place: Place, index: Path, name: str, suffix: str, fetch: bool, hub: dict) -> Path | None:
    if not _is_inside(name) or not name.endswith(suffix):
        raise UsageError(
            f"`{argument}`: the index {str(index)!r} names {name!r}, which is no {suffix} file in its folder. Nothing else"
            " is read: get the checkpoint anew from where you trust it."
        )
    path = _file(place, name, fetch, hub)
    if path is None and (fetch or place.folder is not None):
        raise UsageError(f"`{argument}`: the index {str(index)!r} names {name!r}, which does not exist. Get it anew.")
    return path


def _is_inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name) and not any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _weights(argument: str, paths: list[Path], suffix: str) -> Weights:
    heads, names, found = {}, {}, Counter()
    for path in paths:
        with _readable(argument, path):
            of_file = dict(_safetensors_heads(path) if suffix == SAFETENSORS else _pickled_heads(path))
        for inside, head in of_file.items():
            name = _WRAPPED.sub("", inside)
            found[name] += 1
            heads[name], names[name] = head, (inside, path)
    twice = [name for name, count in found.items() if count > 1]
    if twice:
        raise UsageError(
            f"`{argument}`: {str(paths[0].parent)!r} holds {len(twice)} weights more than once, such as {twice[0]}. Remove"
            " the files that do not belong to it."
        )
    return Weights(tuple(paths), suffix, heads, names)


@contextmanager
def _readable(argument: str, path: Path) -> Iterator[None]:
    """What readers say of a broken file, as one line that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"`{argument}`: {str(path)!r} holds more than weights, which may be code, and is not read"
            f" ({str(error).splitlines()[0]}). Ask for the checkpoint as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OverflowError, zipfile.BadZipFile) as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS)) == _LFS
        reason = "it is a pointer of Git LFS, not the file: run `git lfs pull`" if is_pointer else str(error)
        raise UsageError(
            f"`{argument}`: {str(path)!r} is cut off or no file of weights: {reason.splitlines()[0]}. Get it anew."
        ) from error


def _safetensors_heads(path: Path) -> Iterator[tuple[str, TensorHead]]:
    from transformers.modeling_utils import str_to_torch_dtype

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            tensor = file.get_slice(name)
            kind = tensor.get_dtype()
            yield name, TensorHead(tuple(tensor.get_shape()), str_to_torch_dtype.get(kind) or kind)


def _pickled_heads(path: Path) -> Iterator[tuple[str, TensorHead]]:
    for name, value in _load_pickled(path).items():
        yield name, TensorHead(tuple(value.shape), value.dtype)


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors by name, mapped from the file where its format allows it. No code of the file is run."""
    options = {"mmap": True} if zipfile.is_zipfile(path) else {}
    state = torch.load(path, map_location="cpu", weights_only=True, **options)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds no weights by name, but something else")
    return state
