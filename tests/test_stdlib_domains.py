"""The text domains of the embedded example, its tokenizer, its training script and its model."""

from __future__ import annotations

import ast
import json
import math
import os
import sys
import textwrap
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.embedded import stdlib_domains
from examples.research import source_tokenizer, train_source
from hf_shear.data import load_domains, pack_domains, split_domains
from hf_shear.shapes import count_parameters

MODEL = Path(__file__).resolve().parents[1] / "examples" / "embedded" / "model"
LIBRARY = Path(os.__file__).parent

needs_model = pytest.mark.skipif(not (MODEL / "source.json").exists(), reason="the embedded model is not trained yet")


@pytest.fixture(scope="module")
def documents() -> list[stdlib_domains.Document]:
    return stdlib_domains.stdlib_documents(LIBRARY)


@pytest.fixture(scope="module")
def domains(documents: list[stdlib_domains.Document]) -> DatasetDict:
    by_name = {name: [one for one in documents if one.domain == name] for name in stdlib_domains.DOMAIN_NAMES}
    return DatasetDict({name: stdlib_domains._as_dataset(members) for name, members in by_name.items()})


@pytest.fixture(scope="module")
def sides(domains: DatasetDict) -> tuple[DatasetDict, DatasetDict]:
    return split_domains(domains)


def test_held_out_documents_as_files_are_read_back_as_they_are(sides, tmp_path):
    _, held_out = sides
    stdlib_domains.write_domains(held_out, tmp_path / "text")
    found = load_domains(tmp_path / "text", group_field="group")
    assert {name: dataset.to_dict() for name, dataset in found.items()} == {
        name: dataset.to_dict() for name, dataset in held_out.items()
    }
    with pytest.raises(ValueError, match="exists. Name a folder that does not"):
        stdlib_domains.write_domains(held_out, tmp_path / "text")


# Code and documentation strings -----------------------------------------------------------------------------

SOURCE = '''\
"""About the module."""
import os

# Copyright someone.
# All rights reserved.

# A real comment.
class Empty:
    """Nothing else."""


def both(): "short"; return 1

async def later():
    r"""First line.

    Margin.
        Indented.
    """

    "another string that would now be the first"
    text = "kept: é"
    if text:
        def inner():
            """é, twice: é"""; x = """kept
            too"""
            return x
    return text
'''

WITHOUT = '''\
import os


# A real comment.
class Empty:
    pass


def both(): return 1

async def later():

    text = "kept: é"
    if text:
        def inner():
            x = """kept
            too"""
            return x
    return text
'''


def test_documentation_strings_are_cut_out_and_nothing_else() -> None:
    nodes = list(stdlib_domains._docstring_nodes(ast.parse(SOURCE)))
    assert stdlib_domains._without_docstrings(SOURCE, nodes) == WITHOUT
    assert stdlib_domains._docstrings(nodes) == [
        "About the module.",
        "Nothing else.",
        "short",
        "First line.\n\nMargin.\n    Indented.",
        "é, twice: é",
    ]


def test_code_of_the_library_still_parses_and_has_no_documentation_string(domains: DatasetDict) -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = domains["code"]["text"][::9]
    assert len(texts) > 30
    for text in texts:
        for node in ast.walk(stdlib_domains._parsed(text)):
            assert not isinstance(node, kinds) or ast.get_docstring(node) is None, text[:200]


def test_long_files_are_split_between_statements_and_lose_nothing() -> None:
    function = "@wraps\ndef function_{}():\n    x = '\f'\n    return 1\n\n\n"
    text = "".join(function.format(number) for number in range(900))
    parts = stdlib_domains._parts(stdlib_domains.Document("code", "a.py", "a", text))
    assert "".join(parts) == text and len(parts) > 2
    assert max(map(len, parts)) <= stdlib_domains.MAX_DOCUMENT_CHARACTERS
    assert all(part.startswith("@wraps\n") for part in parts)


# Groups and sides -------------------------------------------------------------------------------------------


def test_domains_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("zipapp", "bisect", "heapq", "_pydecimal"):
        (tmp_path / f"{name}.py").write_bytes((LIBRARY / f"{name}.py").read_bytes())
    first, second = (stdlib_domains.stdlib_domains(tmp_path) for _ in range(2))
    assert {name: rows[:] for name, rows in first.items()} == {name: rows[:] for name, rows in second.items()}
    assert set(first["code"]["group"]) == {"zipapp", "bisect", "heapq", "decimal"}


def test_shingles_are_the_same_on_every_machine() -> None:
    assert stdlib_domains.shingles("a b c d e f g h i j k é").tolist() == [
        795600158262206251, 1121967987178167273, 3180708567670751502, 4487193013563886393, 10870669992228023130,
    ]  # fmt: skip


def test_no_group_is_on_both_sides(sides: tuple[DatasetDict, DatasetDict]) -> None:
    train, held_out = ({group for rows in side.values() for group in rows["group"]} for side in sides)
    assert train and held_out and not train & held_out


def test_held_out_text_is_not_in_the_training_text(sides: tuple[DatasetDict, DatasetDict]) -> None:
    """Seen without the detector: runs of 12 words between spaces, of documents from all domains."""

    def runs(text: str) -> set[int]:
        words = text.split()
        return {hash(tuple(words[start : start + 12])) for start in range(len(words) - 11)}

    seen = {run for name, rows in sides[0].items() if name != "tables" for text in rows["text"] for run in runs(text)}
    for name in ("docstrings", "manual"):
        for text in sides[1][name]["text"]:
            found = runs(text)
            assert len(found) < 20 or len(found & seen) < 0.25 * len(found), text[:200]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("decimal.py", "_pydecimal.py"),
        ("io.py", "_pyio.py"),
        ("bz2.py", "lzma.py"),
        ("ntpath.py", "posixpath.py"),
        ("cProfile.py", "profile.py"),
        ("importlib/_bootstrap.py", "importlib/abc.py"),
        ("asyncio/locks.py", "threading.py"),
        ("pdb.py", "debugger"),
        ("specialnames", "customization"),
    ],
)
def test_near_duplicates_share_a_group(documents: list[stdlib_domains.Document], left: str, right: str) -> None:
    groups = {name: {one.group for one in documents if one.source == name} for name in (left, right)}
    if not all(groups.values()):
        pytest.skip("this Python has not both of them")
    assert groups[left] & groups[right]


def test_modules_without_common_text_keep_their_own_groups(documents: list[stdlib_domains.Document]) -> None:
    groups = {one.source: one.group for one in documents}
    assert [groups[f"{name}.py"] for name in ("heapq", "textwrap", "argparse")] == ["heapq", "textwrap", "argparse"]
    largest = Counter(one.group for one in documents if one.domain == "code").most_common(1)[0][1]
    assert largest < 0.2 * sum(one.domain == "code" for one in documents)


def test_both_sides_have_enough_text(sides: tuple[DatasetDict, DatasetDict]) -> None:
    sizes = stdlib_domains.domain_sizes(*sides)
    assert list(sizes) == ["code", "docstrings", "manual", "tables"]
    for name, size in sizes.items():
        assert size["train_characters"] > 200_000, name
        assert size["held_out_characters"] > 20_000, name
        assert size["held_out_characters"] < 0.35 * size["train_characters"], name


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="abc", max_size=40), max_size=6), st.integers(0, 5))
def test_shared_shingles_equal_their_definition(texts: list[str], repeat: int) -> None:
    texts = [" ".join(text) for text in texts] + [" ".join("abcabcabcabc")] * repeat
    sets = [set(stdlib_domains.shingles(text).tolist()) for text in texts]
    owners = Counter(shingle for one in sets for shingle in one)
    counted = {shingle for shingle, number in owners.items() if number <= stdlib_domains.MAX_TEXTS_PER_SHINGLE}
    expected = {
        (i, j): len(sets[i] & sets[j] & counted)
        for j in range(len(sets))
        for i in range(j)
        if sets[i] & sets[j] & counted
    }
    assert stdlib_domains.shared_shingles([stdlib_domains.shingles(text) for text in texts]) == expected


@pytest.mark.parametrize(("copies", "links"), [(12, True), (13, False)])
def test_text_that_many_share_links_nothing(copies: int, links: bool) -> None:
    licence = " ".join(f"licence{number}" for number in range(40))
    assert bool(stdlib_domains.near_duplicates([licence] * copies)) == links


@pytest.mark.parametrize(
    ("shared", "own", "is_near"),
    [(40, 100, True), (40, 400, False), (31, 0, True), (30, 0, False)],
    ids=["much", "a small share", "just long enough", "too short"],
)
def test_near_duplicates_share_a_good_part_and_more_than_a_few_words(shared: int, own: int, is_near: bool) -> None:
    common = [f"shared{number}" for number in range(shared)]  # shared - 7 shingles of 8 words
    texts = [" ".join(common + [f"{name}{number}" for number in range(own)]) for name in ("left", "right")]
    assert bool(stdlib_domains.near_duplicates(texts)) == is_near


def test_groups_are_named_by_their_smallest_member() -> None:
    links = [("e", "d"), ("b", "c"), ("c", "e")]
    expected = {"a": "a", "b": "b", "c": "b", "d": "b", "e": "b"}
    assert stdlib_domains.merged_groups("edcba", links) == expected


def test_a_library_without_sources_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning) as record:
        domains = stdlib_domains.stdlib_domains(tmp_path)
    assert list(domains) == ["manual", "tables"]
    assert ["'code'" in str(record[0].message), "'docstrings'" in str(record[1].message)] == [True, True]
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"gives 1 text domain\(s\), \['tables'\], but at least 2"),
    ):
        stdlib_domains.stdlib_domains(tmp_path)


# Tokenizer --------------------------------------------------------------------------------------------------

TEXT = textwrap.dedent(
    """\
    def read(path, *, size=4096):
        for number in range(100):
            if number % 7 == 0:
                yield path[number : number + size]
        return None
    """
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory):
    """(the Hugging Face tokenizer as AutoTokenizer reads it, the SentencePiece processor of the same folder)."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("tokenizer")
    rows = Dataset.from_dict({"text": [TEXT + f"\n\n# comment {n}: {n * 37}\n" for n in range(50)]})
    model = source_tokenizer.train_pieces(DatasetDict(code=rows), vocab_size=360, character_coverage=1.0)
    source_tokenizer.save_tokenizer(model, folder, model_max_length=64)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return AutoTokenizer.from_pretrained(folder), processor


WRITTEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\N{LOWER ONE EIGHTH BLOCK}"))
PIECES_OF_CODE = st.lists(st.sampled_from([" ", "    ", "\n", "\t", "def", "range(", "é", "12", "x"])).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=WRITTEN | PIECES_OF_CODE)
def test_tokenizer_gives_every_text_back_and_equals_sentencepiece(tokenizers, text: str) -> None:
    tokenizer, processor = tokenizers
    ids = tokenizer(text)["input_ids"]
    assert ids == processor.encode(text)
    assert tokenizer.decode(ids) == text


def test_tokenizer_has_the_usual_special_tokens_and_single_digits(tokenizers) -> None:
    tokenizer, processor = tokenizers
    assert len(tokenizer) == processor.get_piece_size() == 360
    assert (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 2, 2)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    assert tokenizer.tokenize("4096") == ["4", "0", "9", "6"]
    assert any(piece == 4 * source_tokenizer.SPACE for piece in tokenizer.get_vocab())


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    pytest.importorskip("sentencepiece")
    rows = DatasetDict(code=Dataset.from_dict({"text": [TEXT]}))
    with pytest.raises(ValueError, match=r"`vocab_size` \(200\) does not do for this text: it must exceed 3 special"):
        source_tokenizer.train_pieces(rows, vocab_size=200)


# Training script --------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_ends_low() -> None:
    factors = [train_source.learning_rate_factor(step, 1000) for step in range(1001)]
    assert factors[0] == 1 / 20 and factors[19] == 1.0
    assert factors[510] == pytest.approx((1 + train_source.FINAL_LEARNING_RATE) / 2)
    assert factors[1000] == pytest.approx(train_source.FINAL_LEARNING_RATE)


def test_stream_repeats_no_sample_within_a_pass_and_follows_the_weights() -> None:
    samples = {"large": torch.arange(16)[:, None], "small": torch.arange(100, 104)[:, None]}
    stream = train_source.SampleStream(samples, batch_size=4, size_exponent=0.5, seed=3)
    assert stream.weights == {"large": 2 / 3, "small": 1 / 3}
    drawn = [int(row) for batch in islice(stream, 300) for row in batch]
    for name, rows in samples.items():
        own = [row for row in drawn if row in rows]
        passes = [sorted(own[start : start + len(rows)]) for start in range(0, len(own), len(rows))]
        assert all(one == rows.flatten().tolist() for one in passes[:-1])
        assert own[: len(rows)] != own[len(rows) : 2 * len(rows)], "each pass has an order of its own"
        assert stream.passes()[name] == len(own) / len(rows)
    expected, deviation = 1200 / 3, math.sqrt(1200 * (1 / 3) * (2 / 3))
    assert abs(sum(row >= 100 for row in drawn) - expected) < 4 * deviation


def test_unigram_loss_by_hand() -> None:
    train, held_out = torch.tensor([[0, 0, 1]]), torch.tensor([[2, 0, 2]])  # counts + 1: 3, 2, 1 of 6
    expected = -(math.log(3 / 6) + math.log(1 / 6)) / 2
    assert train_source.unigram_loss(train, held_out, 3) == pytest.approx(expected)


class TinyTokenizer:
    bos_token_id = eos_token_id = 2

    def __len__(self):
        return 40


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "phi3"])
def test_any_family_can_be_the_source(model_type):
    arguments = train_source.SourceArguments("folder", hidden_size=16, model_type=model_type)
    model = train_source.build_model(arguments, TinyTokenizer())
    assert model.config.model_type == model_type and model.config.head_dim == 2
    assert model.num_parameters() == count_parameters(model.config)


def test_a_family_that_can_not_be_sheared_is_refused():
    arguments = train_source.SourceArguments("folder", model_type="opt")
    with pytest.raises(ValueError, match="The model_type must be one of .*llama.*'opt'"):
        train_source.build_model(arguments, TinyTokenizer())


def test_script_trains_measures_and_goes_on_after_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"{name} {n} {TEXT}"}) for n in range(60)]
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "text.jsonl").write_text("\n".join(lines))
    flags = {"vocab_size": 330, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    flags |= {"num_key_value_heads": 1, "intermediate_size": 16, "max_length": 16, "batch_size": 2, "num_tokens": 192}
    command = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command += ["--data_dir", str(tmp_path / "data")]
    whole = train_source.main([*command, "--output_dir", str(tmp_path / "whole")])

    monkeypatch.setattr(train_source, "SAVE_SECONDS", -1.0)
    save, saved = train_source._save, []

    def save_and_break(*arguments) -> None:
        save(*arguments)
        saved.append(arguments[3]["step"])
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_source, "_save", save_and_break)
    with pytest.raises(KeyboardInterrupt):
        train_source.main([*command, "--output_dir", str(tmp_path / "broken")])
    with pytest.raises(ValueError, match="holds the unfinished run of other arguments"):
        train_source.main([*command, "--output_dir", str(tmp_path / "broken"), "--seed", "1"])
    resumed = train_source.main([*command, "--output_dir", str(tmp_path / "broken")])

    assert saved == [1, 2, 3, 4, 5, 6]
    assert resumed["loss"] == whole["loss"] and resumed["passes"] == whole["passes"]
    assert whole["tokens"] == 192 and whole["shape"]["head_dim"] == 8
    assert not (tmp_path / "broken" / "checkpoint.pt").exists()
    with pytest.raises(ValueError, match="already holds a source model"):
        train_source.main([*command, "--output_dir", str(tmp_path / "whole")])


# The embedded model -----------------------------------------------------------------------------------------


@needs_model
def test_embedded_model_is_a_small_plain_checkpoint_far_below_the_unigram_model() -> None:
    numbers = json.loads((MODEL / "source.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert {name: getattr(model.config, name) for name in numbers["shape"]} == numbers["shape"]
    assert model.num_parameters() == numbers["num_parameters"]
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings
    assert len(AutoTokenizer.from_pretrained(MODEL)) == model.config.vocab_size == numbers["vocab_size"]
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 5.5e6
    assert numbers["mean"] == pytest.approx(np.mean(list(numbers["loss"].values())))
    for name, loss in numbers["loss"].items():
        assert loss < numbers["unigram_loss"][name] - 1.5, name


@needs_model
def test_recorded_losses_of_the_embedded_model_are_measured_again(sides: tuple[DatasetDict, DatasetDict]) -> None:
    """On the first held-out samples; another Python version has other text, which the digest tells."""
    numbers = json.loads((MODEL / "source.json").read_text())
    assert numbers["arguments"]["seed"] == 0 and numbers["arguments"]["held_out_fraction"] == 0.1
    first = DatasetDict({name: rows.select(range(6)) for name, rows in sides[1].items()})
    packed = pack_domains(first, AutoTokenizer.from_pretrained(MODEL), numbers["arguments"]["max_length"])
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    compared = 0
    for name, samples in train_source.as_tensors(packed).items():
        probe = numbers["probe"][name]
        own = samples[: probe["samples"]]
        if train_source.digest(own) == probe["sha256"]:
            assert train_source.mean_loss(model, own) == pytest.approx(probe["loss"], abs=1e-4)
            compared += 1
    if not compared:
        pytest.skip(f"trained with the library of Python {numbers['versions']['python']}, which has other text")
