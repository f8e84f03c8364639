"""Stored teacher logits: what is stored, going on after an interruption, and what is refused."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
import torch
from training_helpers import LENGTH, VOCAB_SIZE, full_disk, make_domains, plain_model

from hf_shear.core import UsageError
from hf_shear.distillation import Teacher, check_teacher_logits, load_teacher_logits, store_teacher_logits
from hf_shear.distillation.teacher_logits import _write, bytes_per_token

SIZES = {"books": 5, "code": 3}
TOP_K = 6


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(plain_model(7))


def check(stored, temperature=1.0, vocab_size=VOCAB_SIZE, sample_length=LENGTH):
    check_teacher_logits(stored, temperature, vocab_size, sample_length)


def test_what_is_stored_are_the_likeliest_tokens_and_the_rest(teacher, tmp_path):
    domains = make_domains(SIZES)
    stored = store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K, temperature=2.0, batch_size=2)
    check(stored, 2.0)
    for name, dataset in domains.items():
        assert stored[name]["input_ids"] == dataset["input_ids"]
        logits = teacher.logits(torch.tensor(dataset["input_ids"])) / 2.0
        values, ids = logits.log_softmax(-1).topk(TOP_K)
        found = torch.tensor(stored[name]["teacher_log_probs"]).view(len(dataset), LENGTH, TOP_K + 1)
        assert torch.equal(torch.tensor(stored[name]["teacher_ids"]).view_as(ids), ids)
        # float16 has 11 bits: half of the last one is 2**-11 of a value.
        torch.testing.assert_close(found[..., :-1].float(), values, rtol=2**-11, atol=1e-6)
        rest = (1 - values.exp().sum(-1)).log()
        torch.testing.assert_close(found[..., -1].float(), rest, rtol=2**-10, atol=1e-3)
    columns = stored["books"].data.table  # as on the disk
    values, ids = (columns[name].combine_chunks().flatten() for name in ("teacher_log_probs", "teacher_ids"))
    assert (str(values.type), str(ids.type)) == ("halffloat", "int32")
    assert bytes_per_token(TOP_K) * LENGTH * SIZES["books"] == 2 * len(values) + 4 * len(ids)


def test_an_interrupted_call_goes_on_with_what_is_missing(teacher, tmp_path, monkeypatch):
    domains = make_domains(SIZES)
    written = []

    def write(path, dataset, batches, fail=True):
        written.append(path.stem)
        if fail and path.stem == "code":
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        _write(path, dataset, batches)

    monkeypatch.setattr("hf_shear.distillation.teacher_logits._write", write)
    with pytest.raises(KeyboardInterrupt):
        store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    with pytest.raises(ValueError, match="lacks the teacher logits of code: storing them was interrupted"):
        load_teacher_logits(tmp_path)
    monkeypatch.setattr("hf_shear.distillation.teacher_logits._write", lambda *parts: write(*parts, fail=False))
    found = store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    assert written == ["books", "code", "code"]
    expected = store_teacher_logits(domains, teacher, tmp_path / "whole", top_k=TOP_K)
    for name in SIZES:
        assert found[name].to_dict() == expected[name].to_dict() == load_teacher_logits(tmp_path)[name].to_dict()
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_disk_without_room_is_refused_before_the_teacher_runs(teacher, tmp_path, monkeypatch):
    domains = make_domains(SIZES)
    needed = bytes_per_token(TOP_K) * LENGTH * sum(SIZES.values())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    monkeypatch.setattr("hf_shear.distillation.teacher_logits._batches", lambda *_: pytest.fail("the teacher ran"))
    with pytest.raises(OSError, match=f"books, code take {needed:,} bytes .* but {needed - 1:,} are free") as raised:
        store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_leaves_whole_domains_and_the_next_call_goes_on(teacher, tmp_path):
    domains = make_domains({"books": 5, "code": 60})
    with full_disk(12_000), pytest.raises(OSError, match="'code' were not stored.*run the same again"):
        store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    assert {path.name for path in tmp_path.iterdir()} == {"books.arrow", "teacher_logits.json"}
    books = (tmp_path / "books.arrow").read_bytes()
    found = store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    assert (tmp_path / "books.arrow").read_bytes() == books
    expected = store_teacher_logits(domains, teacher, tmp_path / "whole", top_k=TOP_K)
    for name in domains:
        assert found[name].to_dict() == expected[name].to_dict()


def test_a_folder_is_of_one_teacher_and_one_setting(teacher, tmp_path):
    domains = make_domains(SIZES)
    before = store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)["books"].to_dict()
    for changed, arguments in {
        "top_k": (domains, teacher, {"top_k": TOP_K - 1}),
        "temperature": (domains, teacher, {"top_k": TOP_K, "temperature": 2.0}),
        "samples": (make_domains(SIZES, seed=3), teacher, {"top_k": TOP_K}),
        "teacher": (domains, Teacher(plain_model(8)), {"top_k": TOP_K}),
    }.items():
        with pytest.raises(ValueError, match=f"holds teacher logits of other {changed}"):
            store_teacher_logits(arguments[0], arguments[1], tmp_path, **arguments[2])
    assert load_teacher_logits(tmp_path)["books"].to_dict() == before


def test_what_can_not_be_stored_is_refused(teacher, tmp_path):
    domains = make_domains(SIZES)
    with pytest.raises(ValueError, match="`distillation_top_k` must be at least 1, but it is 0"):
        store_teacher_logits(domains, teacher, tmp_path, top_k=0)
    with pytest.raises(ValueError, match="below the vocabulary's size \\(61\\), but it is 61"):
        store_teacher_logits(domains, teacher, tmp_path, top_k=VOCAB_SIZE)
    with pytest.raises(ValueError, match="`distillation_temperature` must be above 0"):
        store_teacher_logits(domains, teacher, tmp_path, top_k=2, temperature=0)
    stream = {"books": domains["books"].to_iterable_dataset()}
    with pytest.raises(ValueError, match="'books' is a IterableDataset: .* not for streams"):
        store_teacher_logits(stream, teacher, tmp_path, top_k=2)
    with pytest.raises(ValueError, match="can not be the name of a file"):
        store_teacher_logits({"a/b": domains["books"]}, teacher, tmp_path, top_k=2)
    stored = store_teacher_logits(domains, teacher, tmp_path, top_k=2)
    with pytest.raises(ValueError, match="carry teacher logits already"):
        store_teacher_logits(stored, teacher, tmp_path / "again", top_k=2)
    with pytest.raises(ValueError, match="holds no stored teacher logits"):
        load_teacher_logits(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["{}", '{"samp', "[]"])
def test_a_damaged_record_is_named(teacher, tmp_path, damage):
    domains = make_domains(SIZES)
    store_teacher_logits(domains, teacher, tmp_path, top_k=TOP_K)
    (tmp_path / "teacher_logits.json").write_text(damage)
    for again in (load_teacher_logits, lambda folder: store_teacher_logits(domains, teacher, folder, top_k=TOP_K)):
        with pytest.raises(UsageError, match="teacher_logits.json.*Delete the folder, and store"):
            again(tmp_path)


def test_training_compares_with_what_was_stored_or_not_at_all(teacher, tmp_path):
    domains = make_domains(SIZES)
    stored = dict(store_teacher_logits(domains, teacher, tmp_path / "one", top_k=TOP_K))
    shuffled = {name: dataset.shuffle(seed=0).select(range(2)) for name, dataset in stored.items()}
    check(shuffled)
    with pytest.raises(ValueError, match="'books'.* were stored at temperature 1, but `distillation_temperature` is 2"):
        check(shuffled, temperature=2.0)
    with pytest.raises(ValueError, match="over a vocabulary of 61 entries, but the student's has 64"):
        check(stored, vocab_size=64)
    with pytest.raises(ValueError, match="'code'.* has no teacher_log_probs"):
        check(stored | {"code": domains["code"]})
    with pytest.raises(ValueError, match="'code'.* has no teacher_temperature"):
        check(stored | {"code": stored["code"].remove_columns("teacher_temperature")})
    other = store_teacher_logits(domains, teacher, tmp_path / "two", top_k=TOP_K - 1)
    with pytest.raises(ValueError, match="one `top_k` in all domains"):
        check(stored | {"code": other["code"]})
