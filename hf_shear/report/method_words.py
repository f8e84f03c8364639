"""Methods of a bench in words, for pictures: tables keep the specification, which can be typed."""

from __future__ import annotations

import re

from .html_page import NO_BREAK

_NAMES = {
    "taylor": "Taylor", "llm_surgeon": "LLM Surgeon", "flap": "FLAP", "wanda_sp": "Wanda-SP", "scratch": "random weights",
    "random": "random units", "least_squares_bias": "least squares with bias", "hard_concrete": "hard concrete masks",
    "paper": "masks as in the paper", "relaxed_topk": "relaxed top-k masks",
}  # fmt: skip
"""What is not read well with blanks in place of underscores."""
_KINDS = {"layer": "layers", "hidden": "hidden", "head": "heads", "intermediate": "MLP", "expert": "experts"}
_PARTS = re.compile(r"(?P<words>.*?)(?:\+(?P<update>[^\s@]+))?(?:@(?P<shots>\d+))?")


def method_words(method: str) -> str:
    """A method of a bench (``hf_shear.runs.bench_method``) as a phrase.

    "flap layer=loss_rise+least_squares@5" is "FLAP (layers: loss rise) + least squares, 5 shots".
    """
    parts = _PARTS.fullmatch(method)
    assert parts is not None, "the pattern fits every line"
    first, *more = parts["words"].split() or [""]
    phrase = _first(first, more)
    if parts["update"]:
        update, _, options = parts["update"].partition(":")
        told = [_option(option) for option in options.split(",") if option]
        phrase += " ".join([f" + {_name(update)}", *told])
    return phrase + (f", {parts['shots']}{NO_BREAK}shots" if parts["shots"] and parts["shots"] != "1" else "")


def _first(word: str, more: list[str]) -> str:
    """The criteria; or how the units were chosen otherwise, with its options."""
    kind, _, rest = word.partition(":")
    if kind == "learned":
        return "learned masks" + _in_brackets([_option(option) for option in rest.split(",") if option])
    if kind != "interleaved":
        return _criteria(word, more)
    options, _, criterion = rest.rpartition(":") if "=" in rest.partition(":")[0] else ("", "", rest)
    first, *others = [*([criterion] if criterion else []), *more]
    told = [_option(option) for option in options.split(",") if option]
    return f"interleaved {_criteria(first, others)}" + "".join(f", {option}" for option in told)


def _criteria(word: str, more: list[str]) -> str:
    name, _, options = word.partition(":")
    told = [_option(option) for option in options.split(",") if option]
    for other in more:
        kind, _, criterion = other.partition("=")
        told.append(
            f"{_name(criterion)} allocation"
            if kind == "allocation"
            else f"{_KINDS.get(kind, kind)}: {_name(criterion)}"
        )
    return _name(name) + _in_brackets(told)


def _in_brackets(told: list[str]) -> str:
    return f" ({', '.join(told)})" if told else ""


def _option(option: str) -> str:
    name, _, value = option.partition("=")
    if name == "share":
        return f"{100 * float(value):g}{NO_BREAK}% of the tokens"
    if name == "stages":
        return f"{value}{NO_BREAK}stages"
    if name == "restart":
        return "AdamW restarted" if value == "true" else "AdamW not restarted"
    if name == "towards":
        return f"towards the {'chosen reference' if value == 'auto' else _name(value)}"
    if name == "masks":
        return _name(value)
    return f"{_name(value)} {_name(name)}"


def _name(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))
