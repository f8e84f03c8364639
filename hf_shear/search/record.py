"""``search.json``: what a search was asked, all that it measured, and what it found. An interrupted one goes on from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..core import UsageError, of_file, read_json_object, write_json_atomically
from ..core.defaults import SEARCH_NAME
from ..shapes import ModelShape, PerLayerShape
from .candidate import AGAIN, ShapeCandidate

VERSION = 2
Value = TypeVar("Value")


class SearchRecord:
    """Measurements of one search by name, written to a file one after another.

    Attributes:
        path: of the file; None: nothing is written.
        content: of the file.
    """

    def __init__(self, path: Path | None, content: dict[str, Any]):
        self.path, self.content, self._begun = path, content, time.perf_counter()
        self._seconds_before = content["seconds"]

    @classmethod
    def open(cls, output_dir: str | os.PathLike | None, settings: Mapping[str, Any], resume: bool) -> SearchRecord:
        """A new record, or the one in a folder.

        Raises:
            UsageError: the folder holds a search, and it is not resumed, or had other settings.
        """
        new = {"version": VERSION, "settings": dict(settings), "measured": {}, "flops": {}, "seconds": 0.0}
        path = None if output_dir is None else Path(output_dir) / SEARCH_NAME
        if path is None or not path.exists():
            return cls(path, new)
        if not resume:
            raise UsageError(f"`output_dir` {str(output_dir)!r} holds a search. Resume it, or name another folder.")
        content = _read(path, needs=("settings", "measured", "flops", "seconds"))
        before = content["settings"]
        changed = sorted(name for name in new["settings"] | before if new["settings"].get(name) != before.get(name))
        if changed:
            raise UsageError(
                f"`output_dir` {str(output_dir)!r} holds a search with other settings ({', '.join(changed)}). Give it the"
                " same ones, or name another folder."
            )
        return cls(path, content)

    def measured(self, what: str, shape: ModelShape | PerLayerShape, measure: Callable[[], Value]) -> Value:
        """What was measured of a shape before, or is now."""
        if isinstance(shape, PerLayerShape):
            sizes = f"hidden_size {shape.hidden_size}, layers {shape.to_list()}"
        else:
            sizes = ", ".join(f"{size} {value}" for size, value in shape.sizes().items())
        name = f"{what}: {sizes}"
        if name not in self.content["measured"]:
            self.content["measured"][name] = measure()
            self._write()
        return self.content["measured"][name]

    def charge(self, what: str, flops: float) -> None:
        """Add FLOPs."""
        self.content["flops"][what] = self.content["flops"].get(what, 0.0) + float(flops)

    def note(self, what: str, value: Any) -> None:
        """Keep something that follows from measurements."""
        self.content[what] = value

    def finish(self, found: Sequence[ShapeCandidate]) -> None:
        """Write what was found."""
        self.content["candidates"] = [one.to_dict() for one in found]
        self._write()

    def _write(self) -> None:
        self.content["seconds"] = self._seconds_before + time.perf_counter() - self._begun
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(self.path, self.content)


def read_candidates(path: str | os.PathLike) -> list[ShapeCandidate]:
    """What a finished search found, the best first.

    Args:
        path: of ``search.json``, or of its folder.

    Raises:
        UsageError: there is none, it is broken, or the search is not finished.
    """
    place = Path(path)
    place = place / SEARCH_NAME if place.is_dir() else place
    if not place.is_file():
        raise UsageError(f"{str(path)!r} is no search: there is no {SEARCH_NAME}. Make one with `hf-shear search`.")
    content = _read(place)
    if "candidates" not in content:
        raise UsageError(f"The search in {str(place)!r} is not finished. Go on with `hf-shear search ... --resume`.")
    if not isinstance(content["candidates"], list):
        raise UsageError(f"`candidates` in {str(place)!r} must be a list. {AGAIN}")
    with of_file(place):
        return [ShapeCandidate.from_dict(one) for one in content["candidates"]]


def _read(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """A record of this version.

    Raises:
        UsageError: the file is broken, or another version of the library wrote it.
    """
    content = read_json_object(path, fix=AGAIN, needs=needs)
    if content.get("version") != VERSION:
        raise UsageError(
            f"{str(path)!r} is a search of another version of hf_shear ({content.get('version')!r}; this one reads"
            f" {VERSION}). {AGAIN}"
        )
    return content
