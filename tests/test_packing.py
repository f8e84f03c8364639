"""Documents to fixed-length samples: nothing lost, nothing doubled, borders kept where asked for."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_shear.core import UsageError
from hf_shear.data import encode_texts
from hf_shear.data.domains import load_domains, split_domains
from hf_shear.data.packing import PACK_BATCH, check_max_length, pack_domains
from hf_shear.data.streams import PackedStream

EOS = 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def word_tokenizer(words: dict[str, int], eos_token: str | None = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, which would also add a BOS if it were asked for special tokens."""
    backend = Tokenizer(WordLevel({"<s>": 0, "</s>": EOS, **words}, unk_token="<s>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos_token)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer({f"w{i}": i for i in range(2, 200)})


def documents(*ids: list[int]) -> Dataset:
    return Dataset.from_dict({"text": [" ".join(f"w{i}" for i in document) for document in ids]})


def test_documents_are_joined_by_eos_and_cut(tokenizer):
    packed = pack_domains({"a": documents([5, 6, 7], [8], [9, 10, 11, 12, 13])}, tokenizer, 4)
    assert packed["a"]["input_ids"][:] == [[5, 6, 7, EOS], [8, EOS, 9, 10], [11, 12, 13, EOS]]
    assert packed["a"].column_names == ["input_ids"]
    assert packed["a"].features["input_ids"].feature.dtype == "int32"


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(2, 199), max_size=9), min_size=1, max_size=30),
    st.integers(2, 12),
)
def test_samples_are_the_stream_and_positions_restart(tokenizer, ids, max_length):
    # documents of the empty string are dropped when read, but may come from a user's own data set
    stream = [(token, i) for document in ids for i, token in enumerate([*document, EOS])]
    if len(stream) < max_length:
        return
    packed = pack_domains({"a": documents(*ids)}, tokenizer, max_length, block_diagonal=True)["a"]
    num_samples = len(stream) // max_length
    assert len(packed) == num_samples
    assert np.array(packed["input_ids"][:]).ravel().tolist() == [t for t, _ in stream[: num_samples * max_length]]
    for number, positions in enumerate(packed["position_ids"]):
        expected, position = [], -1
        for _, i in stream[number * max_length : (number + 1) * max_length]:
            position = 0 if i == 0 else position + 1
            expected.append(position)
        assert positions == expected


def test_samples_cross_the_batches_of_reading(tokenizer):
    ids = [[2 + (i + j) % 190 for j in range(i % 5)] for i in range(2 * PACK_BATCH + 50)]
    stream = [token for document in ids for token in [*document, EOS]]
    packed = pack_domains({"a": documents(*ids)}, tokenizer, 7)["a"]
    assert np.array(packed["input_ids"][:]).ravel().tolist() == stream[: len(stream) // 7 * 7]


def test_processes_do_not_change_the_samples(tokenizer):
    domains = {"a": documents(*[[2 + i, 3 + i] for i in range(20)])}
    one = pack_domains(domains, tokenizer, 5)["a"]["input_ids"][:]
    assert pack_domains(domains, tokenizer, 5, num_proc=2)["a"]["input_ids"][:] == one


def packed_again(**_):
    raise AssertionError("the cache was not used")


def test_packing_is_cached(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "a.txt"
    path.write_text("w5 w6 w7 w8")
    first = pack_domains(load_domains(tmp_path), tokenizer, 2)["x"]
    monkeypatch.setattr("hf_shear.data.packing._samples", packed_again)
    again = pack_domains(load_domains(tmp_path), tokenizer, 2)["x"]
    assert again._fingerprint == first._fingerprint
    assert again["input_ids"][:] == [[5, 6], [7, 8]]
    with pytest.raises(DatasetGenerationError):  # another length is another cache entry
        pack_domains(load_domains(tmp_path), tokenizer, 3)


def test_a_part_that_is_too_short_is_not_called_the_whole_domain(tokenizer):
    with pytest.warns(UserWarning, match="single document"):
        train, held_out = split_domains({"book": documents([5] * 40)}, 0.1)
    assert len(pack_domains(train, tokenizer, 16)["book"]) == 2
    with pytest.raises(ValueError) as caught:
        pack_domains(held_out, tokenizer, 16)
    assert "the text of domain 'book' given here (the whole of it, or its train or held-out part) holds 5" in str(
        caught.value
    )
    for fix in ("Lower `max_length`", "add text", "`held_out_fraction` (larger for a longer held-out part, smaller"):
        assert fix in str(caught.value)


def test_a_single_document_is_tokenised_once(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text(" ".join(f"w{i}" for i in range(2, 42)))

    def pack_both_parts():
        with pytest.warns(UserWarning, match="single document"):
            parts = split_domains(load_domains(tmp_path), 0.25)
        return [pack_domains(part, tokenizer, 4)["book"] for part in parts]

    first = pack_both_parts()
    monkeypatch.setattr("hf_shear.data.packing._samples", packed_again)
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", packed_again)
    again = pack_both_parts()
    assert [part._fingerprint for part in again] == [part._fingerprint for part in first]
    assert [part["input_ids"][:] for part in again] == [part["input_ids"][:] for part in first]


def test_ids_above_65535_survive():
    large = word_tokenizer({f"w{i}": i for i in (2, 65_535, 65_536, 70_001, 151_935)})
    packed = pack_domains({"a": documents([65_535, 65_536, 70_001, 151_935])}, large, 5)
    assert packed["a"]["input_ids"][:] == [[65_535, 65_536, 70_001, 151_935, EOS]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_block_diagonal_documents_do_not_see_each_other(tokenizer, attention):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    first, second = [7, 8, 9, 10, 11], [20, 21, 22]
    packed = pack_domains({"a": documents(first, second)}, tokenizer, 10, block_diagonal=True)["a"]
    ids = torch.tensor(packed["input_ids"][:])
    positions = torch.tensor(packed["position_ids"][:])
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 6:]
        alone = model(input_ids=torch.tensor([[*second, EOS]]), use_cache=False).logits[0]
        crossing = model(input_ids=ids, use_cache=False).logits[0, 6:]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (crossing - alone).abs().max() > 0.1


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/llama2_hf"])
def test_real_tokenizers(name):
    folder = os.environ.get("HF_SHEAR_TEST_DATA")
    if not folder:
        pytest.skip("HF_SHEAR_TEST_DATA is not set")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / name)
    texts = ["Once upon a time there was a cat.", "The cat sat.\n\nIt slept. "]
    packed = pack_domains({"a": Dataset.from_dict({"text": texts})}, tokenizer, 8)["a"]
    ids = np.array(packed["input_ids"][:]).ravel()
    stream = [i for text in texts for i in [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]]
    assert ids.tolist() == stream[: len(stream) // 8 * 8]
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(stream[: stream.index(tokenizer.eos_token_id)]).strip() == texts[0]


def test_long_documents_do_not_warn(tokenizer, caplog):
    short = word_tokenizer({"w2": 2})
    short.model_max_length = 4
    packed = pack_domains({"a": documents([2] * 9)}, short, 10)
    assert packed["a"]["input_ids"][:] == [[2] * 9 + [EOS]]
    assert "longer than" not in caplog.text


def test_bad_arguments(tokenizer):
    domains = {"few": documents([5, 6])}
    with pytest.raises(ValueError, match=r"`max_length` \(4\) tokens, but .* domain 'few' .* holds 3\. Lower"):
        pack_domains(domains, tokenizer, 4)
    with pytest.raises(ValueError, match="`max_length` must be at least 2, but it is 1"):
        pack_domains(domains, tokenizer, 1)
    with pytest.raises(ValueError, match="`tokenizer` must have an `eos_token_id`"):
        pack_domains(domains, word_tokenizer({"w2": 2}, eos_token=None), 2)
    with pytest.raises(ValueError, match=r"column 'text' .*, but domain 'x' has \['body'\]"):
        pack_domains({"x": Dataset.from_dict({"body": ["w2"]})}, tokenizer, 2)


def test_the_ids_of_the_text_are_judged_not_the_vocabulary(tokenizer):
    domains = {"a": documents([5, 6], [198, 7])}
    assert pack_domains(domains, tokenizer, 3, vocab_size=199)["a"]["input_ids"][:] == [[5, 6, EOS], [198, 7, EOS]]
    with pytest.raises(
        UsageError, match=r"^Domain 'a': .* `vocab_size` \(198\), but it holds 'w198', which has id 198"
    ):
        pack_domains(domains, tokenizer, 3, vocab_size=198)
    with pytest.raises(
        UsageError, match=r"`tokenizer.eos_token_id` must be below .*\(1\), but it is 1 \('</s>'\), and stands"
    ):
        pack_domains(domains, tokenizer, 3, vocab_size=1)


def test_a_control_token_beyond_the_vocabulary_is_refused_where_it_is_written(tokenizer):
    larger = word_tokenizer({f"w{i}": i for i in range(2, 200)})
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert larger.convert_tokens_to_ids("<image_soft_token>") == 200
    domains = {"a": documents([5, 6], [7, 8])}
    packed = pack_domains(domains, larger, 3, vocab_size=200)["a"]
    assert packed["input_ids"][:] == pack_domains(domains, tokenizer, 3)["a"]["input_ids"][:]
    written = {"a": Dataset.from_dict({"text": ["w5 w6", "w7<image_soft_token> w8"]})}
    for parse in (False, True):
        with pytest.raises(
            UsageError, match=r"holds '<image_soft_token>', which has id 200 in .* in 'w7<image_soft_token> w8'"
        ):
            pack_domains(written, larger, 3, vocab_size=200, parse_special_tokens=parse)


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/llama2_hf", "embedded"])
def test_control_tokens_in_text_stay_text(name):
    folder = os.environ.get("HF_SHEAR_TEST_DATA")
    if name != "embedded" and not folder:
        pytest.skip("HF_SHEAR_TEST_DATA is not set")
    path = Path(__file__).parents[1] / "examples/embedded/model" if name == "embedded" else Path(folder) / name
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "One</s><s>two <s> </s>three <unk> </s>\n<|endoftext|>"
    control = set(tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<unk>"]))
    (ids,) = encode_texts([text], tokenizer)
    assert tokenizer.decode(ids).strip() == text and not control & set(ids)
    if (path / "tokenizer.model").exists():  # SentencePiece itself never takes a control token from text
        assert ids == SentencePieceProcessor(model_file=str(path / "tokenizer.model")).encode(text)
    parsed = encode_texts([text], tokenizer, parse_special_tokens=True)[0]
    assert parsed == tokenizer(text, add_special_tokens=False)["input_ids"] != ids
    assert control <= set(parsed)
    domains = {"a": Dataset.from_dict({"text": [text]})}
    for parse, expected in ((False, ids), (True, parsed)):
        packed = pack_domains(domains, tokenizer, 8, parse_special_tokens=parse)["a"]
        flat = np.array(packed["input_ids"][:]).ravel().tolist()
        assert flat == [*expected, tokenizer.eos_token_id][: len(flat)]
        stream = PackedStream(domains["a"].to_iterable_dataset(), tokenizer, 8, parse_special_tokens=parse)
        assert [s["input_ids"].tolist() for s, _ in stream.samples(stream.dataset, None)] == packed["input_ids"][:]


def test_tokenizers_of_other_kinds_keep_control_tokens_as_text():
    """Without a fast backend; of byte level; and of unigrams, which know a control token as a piece: refused."""
    assert encode_texts(["</s>a"], ByT5Tokenizer()) == [[ord(letter) + 3 for letter in "</s>a"]]
    assert encode_texts(["</s>a"], ByT5Tokenizer(), parse_special_tokens=True) == [[1, ord("a") + 3]]
    pieces = Tokenizer(Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("<", -2.0), ("/", -2.0)], unk_id=0))
    unigram = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>", unk_token="<unk>")
    assert encode_texts(["a<?"], unigram) == [[2, 3, 0]]
    with pytest.raises(UsageError, match=r"holds '</s>', of which the tokenizer .* `--parse_special_tokens`"):
        encode_texts(["a</s>"], unigram)
    assert encode_texts(["a</s>"], unigram, parse_special_tokens=True) == [[2, 1]]


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (3, "int")])
def test_documents_are_strings(tokenizer, value, kind):
    with pytest.raises(
        UsageError, match=rf"Domain 'a': Every document must be a string, but one is {kind}\. Leave it out"
    ):
        pack_domains({"a": Dataset.from_dict({"text": [value]})}, tokenizer, 3)


def test_checks_against_the_model():
    check_max_length(512, 512)
    with pytest.raises(ValueError, match=r"`max_position_embeddings` \(512\), but it is 513\. Lower it to 512"):
        check_max_length(513, 512)
