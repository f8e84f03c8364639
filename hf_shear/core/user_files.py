"""Text and YAML that a user hands in: read whole, or refused in one sentence with the file, the line and the key."""

from __future__ import annotations

from pathlib import Path

import yaml

from .errors import UsageError

MAX_YAML_CHARACTERS = 2**20
MAX_YAML_VALUES = 10_000
"""Values of a file with its aliases written out. Nine aliases of nine aliases, nine deep, are 387 million."""


def read_text(path: str | Path, what: str) -> str:
    """The text of a file.

    Args:
        path: to read.
        what: what the message calls it, such as "`--config`".

    Raises:
        UsageError: there is no such file, or it is no UTF-8.
    """
    if not Path(path).is_file():
        raise UsageError(f"{what} {str(path)!r} is not a file. Give the path of one.")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {str(path)!r} is no text in UTF-8 ({error.reason}). Save it as UTF-8.") from error


def read_yaml_mapping(path: str | Path, what: str) -> tuple[dict[str, object], dict[str, int]]:
    """The mapping of names to values that a YAML file holds.

    Returns:
        The values by name, and the line of each name. Empty for an empty file.

    Raises:
        UsageError: as :func:`check_yaml_file`; or the file holds no mapping of names to values.
    """
    where = f"{what} {str(path)!r}"
    root, loader = _checked_root(path, what)
    if root is None:
        return {}, {}
    try:
        content = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {_problem(error)}. Correct it.") from error
    except (ValueError, TypeError, AttributeError) as error:
        # how PyYAML fails on a value that does not fit its tag, such as the date 2026-13-45
        raise UsageError(f"{where} holds a value that is not what it looks like: {error}. Put it in quotes.") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{where} must hold names and values, but it holds a {type(content).__name__}. Write lines such as `seed: 7`."
        )
    for name in content:
        if not isinstance(name, str):
            raise UsageError(f"{where} has the key {name!r}, which is no name of an argument. Remove it.")
    merged = dict.fromkeys(content, root.start_mark.line + 1)  # by `<<`, whose line names none of them
    return content, merged | {key.value: key.start_mark.line + 1 for key, _ in root.value}


def check_yaml_file(path: str | Path, what: str) -> None:
    """Raise UsageError for a file that is no YAML, gives a key twice, or whose aliases stand for too many values."""
    _checked_root(path, what)


def _checked_root(path: str | Path, what: str) -> tuple[yaml.Node | None, yaml.SafeLoader]:
    """The nodes of a file, before any value is made of them."""
    text, where = read_text(path, what), f"{what} {str(path)!r}"
    if len(text) > MAX_YAML_CHARACTERS:
        raise UsageError(f"{where} has more than {MAX_YAML_CHARACTERS:,} characters. Names and values need fewer.")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            _expanded_size(root, where, {})
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {_problem(error)}. Correct it.") from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deep to be read. Write it flat.") from error
    return root, loader


def _problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return (f"line {mark.line + 1}, " if mark is not None else "") + str(problem or error)


def _expanded_size(node: yaml.Node, where: str, sizes: dict[int, int | None]) -> int:
    """Values below a node with aliases written out; refuses too many, one that holds itself, and keys given twice."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise UsageError(f"{where}, line {node.start_mark.line + 1}: an anchor must not hold an alias of itself.")
        return size
    sizes[id(node)] = None
    children = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UsageError(
                    f"{where}, line {line}: {key.value!r} is given twice, first in line {seen[key.value]}. Keep one."
                )
            if isinstance(key, yaml.ScalarNode):
                seen[key.value] = line
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_expanded_size(child, where, sizes) for child in children)
    if size > MAX_YAML_VALUES:
        raise UsageError(
            f"{where}, line {node.start_mark.line + 1}: with its aliases written out it holds more than"
            f" {MAX_YAML_VALUES:,} values. Write out what is needed, without aliases."
        )
    sizes[id(node)] = size
    return size
