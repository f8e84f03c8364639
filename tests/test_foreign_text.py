"""Text that is not ours (names, commands, versions) is shown as it is, and does nothing, wherever it is shown."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from publishing_helpers import SMALL, make_evaluation, make_provenance, make_results
from training_helpers import plain_model

from hf_shear.core import printable
from hf_shear.core.markdown import fenced_code, inline_code, link, markdown_text, safe_address
from hf_shear.evaluation import evaluation_table
from hf_shear.publishing import SourceLicense, model_card
from hf_shear.publishing.card import masked_card
from hf_shear.report import comparison_table, markdown_table
from hf_shear.report.html_report import html_report

ROOT = Path(__file__).resolve().parent.parent
markdown_it = pytest.importorskip("markdown_it")

CANARIES = (
    "<script>alert(1)</script>",
    '<img src="https://canary.example/x.png" onerror="x">',
    "<!-- canary",
    "![canary](https://canary.example/x.png)",
    "[canary](javascript:alert(1))",
    "[canary](data:text/html,x)",
    "[canary]: https://canary.example",
    "<https://canary.example>",
    "https://canary.example/x",
    "www.canary.example",
    "canary@canary.example",
    "x\n\n# canary\n\n",
    "x\n---\nlicense: canary\n---\n",
    "x\n\n- canary\n\n1. canary",
    "a | b | canary",
    "x |\n| canary | y |",
    "` canary",
    "```\n# canary\n```",
    "x ```` canary `",
    "~~~\ncanary",
    "**canary** __canary__ *x* ~~x~~",
    "$$canary$$",
    "&lt;script&gt; &#x3c;canary&#62;",
    "\\",
    "canary\\",
    "\u202ecanary\u2066\u200b\u00ad",
    "\x1b[31mcanary\x1b[0m\x1b]0;title\x07",
    "\x00\x08\r canary",
    "\ud800canary",
    "canary" * 100,
)
HIDDEN = set("\u202e\u2066\u200b\u00ad\x1b\x07\x00\x08\ud800")
FIELDS = (
    ("results", "domain"), ("results", "baseline"), ("results", "command"), ("results", "version"),
    ("results", "package"), ("results", "recovery"), ("provenance", "source"), ("provenance", "method"),
    ("evaluation", "domain"), ("evaluation", "task"), ("evaluation", "metric"), ("evaluation", "device"),
    ("evaluation", "dtype"), ("evaluation", "protocol"), ("evaluation", "protocol_name"),
)  # fmt: skip


@pytest.fixture(scope="module")
def files():
    source, small = plain_model(), plain_model(seed=1, **SMALL)
    results = make_results(source, small)
    return {"results": results, "provenance": make_provenance(source), "evaluation": make_evaluation(results)}


def renamed(mapping: dict, old: str, new: str) -> dict:
    return {new if name == old else name: value for name, value in mapping.items()}


def with_text(files: dict, field: tuple[str, str], text: str) -> dict:
    """The files with ``text`` in one field."""
    files = copy.deepcopy(files)
    results, provenance, evaluation = files["results"], files["provenance"], files["evaluation"]
    match field:
        case ("results", "domain"):
            for record in (
                *(results[name] for name in ("source", "pruned", "recovered")),
                *results["baselines"].values(),
            ):
                record["loss"] = renamed(record["loss"], "books", text)
            for row in results["history"]:
                row["mixture_weights"] = renamed(row["mixture_weights"], "books", text)
        case ("results", "baseline"):
            results["baselines"] = renamed(results["baselines"], "taylor", text)
        case ("results", "command"):
            results["command"] = text
        case ("results", "version"):
            results["versions"]["python"] = text
        case ("results", "package"):
            results["versions"] = renamed(results["versions"], "python", text)
        case ("results", "recovery"):
            results["recovery"] = {"method": text}
        case ("provenance", "source"):
            provenance["source"]["name_or_path"] = text
        case ("provenance", "method"):
            provenance["method"] = text
        case ("evaluation", name):
            for side in ("source", "pruned"):
                perplexity, tasks = evaluation[side]["perplexity"], evaluation[side]["tasks"]
                if name == "domain":
                    perplexity["domains"] = renamed(perplexity["domains"], "books", text)
                elif name == "task":
                    evaluation[side]["tasks"] = renamed(tasks, "piqa", text)
                elif name == "metric":
                    next(iter(tasks.values()))["metric"] = text
                elif name == "protocol":
                    perplexity["protocol"]["stride"] = text
                elif name == "protocol_name":
                    perplexity["protocol"] = renamed(perplexity["protocol"], "stride", text)
                else:
                    evaluation["speed"][name] = text
    return files


def parsed(text: str) -> list:
    """The nodes of a Markdown text, as a reader makes them that knows tables, HTML and addresses without brackets."""
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return list(itertools.chain.from_iterable([token, *(token.children or ())] for token in tokens))


def structure(text: str) -> list[tuple[str, str]]:
    """What the text is built of: kinds of nodes, and where links lead. Emphasis, breaks and text aside."""
    kinds = ("heading_open", "link_open", "image", "html_block", "html_inline", "fence", "td_open", "th_open", "hr",
             "list_item_open", "blockquote_open", "code_block", "s_open", "em_open", "strong_open")  # fmt: skip
    return [(node.type, str(node.attrs.get("href", "")) + node.tag) for node in parsed(text) if node.type in kinds]


def bare_addresses(text: str) -> list[str]:
    """Words of running text that readers would turn into links; code is not among them."""
    words = " ".join(node.content for node in parsed(text) if node.type == "text").split()
    return [word for word in words if "://" in word or "www." in word or "@" in word]


def everywhere(files: dict, text: str) -> dict:
    for field in FIELDS:
        files = with_text(files, field, text)
    return files


@pytest.fixture(scope="module")
def plain(files):
    """The card with a harmless text in all fields."""
    return card(everywhere(files, "plain"))


@pytest.mark.parametrize("canary", CANARIES)
def test_a_card_is_built_of_the_same_pieces_whatever_a_name_is(files, plain, canary):
    found = card(everywhere(files, canary))
    assert structure(found.text) == structure(plain.text) and not bare_addresses(found.text)
    assert not HIDDEN & set(str(found))
    assert found.data.to_dict().keys() == plain.data.to_dict().keys()
    assert len(found.data.eval_results) == len(plain.data.eval_results)


def card(files: dict, **more) -> ModelCard:
    made = model_card(files["results"], provenance=files["provenance"], evaluation=files["evaluation"], **more)
    return ModelCard(str(made))  # as it is read from the Hub


@pytest.mark.parametrize("canary", CANARIES)
def test_names_that_are_given_to_a_card(files, canary):
    license = {text: SourceLicense("other", text, text, "LICENSE") for text in ("plain", canary)}
    bare = files | {"evaluation": None}
    found, plain = (
        card(bare, name=text, source=text, rebuild_command=text, license=license[text]) for text in (canary, "plain")
    )
    assert structure(found.text) == structure(plain.text)
    assert not bare_addresses(found.text) and not HIDDEN & set(str(found))
    text = str(masked_card({"source_name_or_path": canary, "target_shape": {"hidden_size": canary, canary: 3}}))
    assert structure(text) == structure(str(masked_card({"source_name_or_path": "plain"})))
    assert not HIDDEN & set(text)


@pytest.mark.parametrize("canary", CANARIES)
def test_the_report_and_the_tables_show_no_name_as_code(files, canary):
    changed = everywhere(files, canary)
    page = html_report(changed["results"], changed["evaluation"])
    assert not any(tag in page for tag in ("<script", "<img", "<!--", "<a ", 'onerror="')) and not HIDDEN & set(page)
    for table in (comparison_table(changed["results"], 100), evaluation_table(evaluated(canary))):
        assert all(letter.isprintable() or letter == "\n" for letter in table)
    kinds = {kind for kind, _ in structure(markdown_table(changed["results"]))}
    assert not {"image", "link_open", "html_inline", "html_block"} & kinds


def evaluated(text: str) -> dict:
    """An evaluation of this repository with a text in place of names."""
    kept = json.loads((ROOT / "model_cards/models/embedded/evaluation.json").read_text(encoding="utf-8"))
    for side in (kept["source"], kept["pruned"]):
        side["name"], side["perplexity"]["protocol"]["tokenizer"] = text, text
        side["perplexity"]["domains"] = renamed(side["perplexity"]["domains"], "code", text)
    return kept | {"differences": renamed(kept["differences"], "code", text)}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_stays_text(text):
    for escaped in (markdown_text(text), inline_code(text)):
        line = f"a {escaped} b"
        kinds = {node.type for node in parsed(line)}
        assert kinds <= {"paragraph_open", "inline", "text", "code_inline", "paragraph_close"}, (text, escaped)
        assert not bare_addresses(line)
        cells = [node for node in parsed(f"| a | b |\n|---|---|\n| {escaped} | c |") if node.type == "td_open"]
        assert len(cells) == 2, (text, escaped)
    fence = [node for node in parsed(f"a\n\n{fenced_code(text, 'bash')}\n\nb") if node.type not in ("text", "inline")]
    assert [node.type for node in fence] == [
        "paragraph_open",
        "paragraph_close",
        "fence",
        "paragraph_open",
        "paragraph_close",
    ]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("books", "books"),
        ("a_b|c", r"a\_b\|c"),
        ("see https://x.example now", "see `https://x.example` now"),
        ("[a](b)", r"\[a\](b)"),
        ("two\nlines", "two lines"),
        ("\x1b[1m", r"\\x1b\[1m"),
    ],
)
def test_how_names_look_in_markdown(text, shown):
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    "address, safe",
    [
        ("https://example.org/a-b?c=d#e", True),
        ("https://example.org/a(b)", False),
        ("HTTPS://example.org", True),
        ("http://example.org", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("https://", False),
        ("https://user@example.org", False),
        ("https://example.org/\n", False),
        ("//example.org", False),
        ("https://[", False),
        (7, False),
    ],
)
def test_only_addresses_of_the_web_are_linked(address, safe):
    assert (safe_address(address) == address) == safe
    if isinstance(address, str):
        links = [node.attrs["href"] for node in parsed(f"a {link('x', address)} b") if node.type == "link_open"]
        assert all(href.lower().startswith("https://example.org") for href in links)


def test_what_cannot_be_seen_is_spelled_out():
    assert printable("a\n\tb\x1b[1m\u202e") == "a b\\x1b[1m\\u202e"
    assert printable("naïve 家 ✓") == "naïve 家 ✓"
    assert json.loads(json.dumps(printable("\ud800"))) == "\\ud800"
