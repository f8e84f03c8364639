"""Write the page of the public names, examples/docs/api.md, from the docstrings: python -m examples.research.api_page"""

import importlib
import inspect
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ROOT / "tests" / "public_names.json"
PAGE = ROOT / "examples" / "docs" / "api.md"
MAX_SIGNATURE = 110  # characters; of a longer one, the parameters that have defaults are left out
_OF_FAMILY = re.compile(r"Shearing\w+(Config|ForCausalLM)")
HEAD = """# Public names

Everything that the README, these pages and the examples import stands here. A test keeps this list; other names may change
without notice. `help(NAME)` in Python shows arguments, shapes, units and errors. This page is made from the docstrings by
`python -m examples.research.api_page`.
"""


def first_sentence(thing: object) -> str:
    """What a docstring begins with."""
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z0-9)`\"])\. |:$", paragraph, maxsplit=1)[0].rstrip(".")
    return (
        re.sub(r":(?:class|func):`~?([^`]+)`", r"`\1`", sentence)
        .replace("``", "`")
        .replace("|", r"\|")
        .replace("<", r"\<")
    )


def called(name: str, thing: object) -> str:
    """A name with its parameters, as it is called."""
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, BaseException)):
        return name
    parameters = list(inspect.signature(thing).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name != "args"]
    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    every = [stars.get(p.kind, "") + p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in parameters]
    if not every:
        return name
    words = f"{name}({', '.join(every)})"
    if (
        len(words) > MAX_SIGNATURE
        or " object at 0x" in words
        or "<" in words
        or any(p.name == "args" for p in parameters)
    ):
        optional = ["..."] if len(required) < len(parameters) else []
        words = f"{name}({', '.join([*required, *optional])})"
    return words


def row(name: str, thing: object) -> str:
    if isinstance(thing, dict):
        return f"| `{name}` | By name: {', '.join(f'`{key}`' for key in thing)} |"
    return f"| `{called(name, thing)}` | {first_sentence(thing)} |"


def section(module: str, listed: list[str], top: list[str]) -> str:
    """A module's part of the page; names that stand at the top already are not described again."""
    found = importlib.import_module(module)
    families = [name for name in listed if module == "hf_shear.modeling" and _OF_FAMILY.fullmatch(name)]
    texts = [name for name in listed if isinstance(getattr(found, name), str)]
    also = [name for name in listed if name in top and name not in families]
    intro = [f"{first_sentence(found)}."]
    for what, names in (("A config and a model class per family", families), ("Also here", also)):
        intro += [f"{what}: {', '.join(f'`{name}`' for name in names)}."] if names else []
    if texts:
        intro.append(f"Texts: {', '.join(f'`{name}` is `{getattr(found, name)!r}`' for name in texts)}.")
    rows = [row(name, getattr(found, name)) for name in listed if name not in (*families, *texts, *also)]
    return "\n".join([f"\n## `{module}`\n", " ".join(intro), "", "| name | what |", "|---|---|", *rows]) + "\n"


def page() -> str:
    """The whole page."""
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    return HEAD + "".join(
        section(module, listed, [] if module == "hf_shear" else names["hf_shear"]) for module, listed in names.items()
    )


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
