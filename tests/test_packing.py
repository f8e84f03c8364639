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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_shear.data.domains import load_domains, split_domains
from hf_shear.data.packing import PACK_BATCH, check_max_length, check_tokenizer_fits, pack_domains

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
    check_tokenizer_fits(tokenizer, {"models/stories260K": 512, "tokenizers/llama2_hf": 32_000}[name])


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
    with pytest.raises(ValueError, match=r"column 'text', but domain 'x' has \['body'\]"):
        pack_domains({"x": Dataset.from_dict({"body": ["w2"]})}, tokenizer, 2)


def test_checks_against_the_model(tokenizer):
    check_tokenizer_fits(tokenizer, 200)
    with pytest.raises(ValueError, match=r"`vocab_size` \(199\), but its token 'w199' has id 199"):
        check_tokenizer_fits(tokenizer, 199)
    check_max_length(512, 512)
    with pytest.raises(ValueError, match=r"`max_position_embeddings` \(512\), but it is 513\. Lower it to 512"):
        check_max_length(513, 512)
