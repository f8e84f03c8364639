"""Where a run writes: not into the text that it reads, and not over what it needs."""

from __future__ import annotations

import os
from pathlib import Path

from ..core import UsageError

_READ = ("data_dir", "model_name_or_path", "pruned", "teacher_name_or_path", "checkpoint", "source", "base")


def check_places(arguments, output_dir: str | os.PathLike | None) -> None:
    """Check the folder of the results against what is read.

    Args:
        arguments: of a verb; those that name what is read are looked at, and ``overwrite``.
        output_dir: None for one that is made for the run.

    Raises:
        UsageError: the folder lies in ``data_dir``, where the next run would read it as text; or it is to be replaced and
            something that is read lies in it.
    """
    if output_dir is None:
        return
    output = Path(output_dir).resolve()
    read = {name: getattr(arguments, name, None) for name in _READ}
    places = {name: Path(path).resolve() for name, path in read.items() if path is not None and Path(path).exists()}
    if "data_dir" in places and places["data_dir"] in output.parents:
        raise UsageError(
            f"`output_dir` {str(output_dir)!r} must not lie in `data_dir` ({read['data_dir']!r}): results would be read as"
            " text. Name a folder beside it."
        )
    for name, place in places.items() if getattr(arguments, "overwrite", False) else ():
        if place == output or output in place.parents:
            raise UsageError(
                f"`overwrite` would delete `{name}` ({read[name]!r}), which lies in `output_dir` ({str(output_dir)!r})."
                " Name another folder, or move it out."
            )
