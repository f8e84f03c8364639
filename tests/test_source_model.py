"""A licence is carried over from where the source says it, and paths of a machine go nowhere."""

from __future__ import annotations

import pytest
from huggingface_hub import CardData

from hf_shear.publishing.local_paths import last_part, publishable, without_source_path
from hf_shear.publishing.source_model import _named_by_card, source_license, source_name

APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


def provenance(path, revision=None) -> dict:
    return {"source": {"name_or_path": str(path), "revision": revision}}


@pytest.mark.parametrize(
    "text, identifier",
    [
        (APACHE, "apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining", "mit"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date", "llama2"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "llama3.2"),
        ("Licence of my own\nDo nothing.", "other"),
    ],
)
def test_a_licence_file(tmp_path, text, identifier):
    (tmp_path / "LICENSE").write_text(text)
    found = source_license(provenance("gone"), tmp_path)
    assert found.identifier == identifier and found.found_in == "the file LICENSE"
    assert (found.name, found.link) == (("Licence of my own", "LICENSE") if identifier == "other" else (None, None))


def test_the_folder_that_a_record_names_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "LICENSE").write_text(APACHE)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("a file was opened"))
    assert source_license(provenance(tmp_path)) is None


@pytest.mark.parametrize(
    "link, kept",
    [
        ("LICENSE", "LICENSE"),
        ("https://example.org/terms", "https://example.org/terms"),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("https://user:password@example.org", None),
        ("https://example.org/a\nb", None),
        ("../../secrets", None),
    ],
)
def test_a_link_of_a_card_of_others_is_passed_on_only_if_it_is_an_address(link, kept):
    data = CardData(license="other", license_name="odd", license_link=link)
    assert _named_by_card(data, "the model card of a/b").link == kept
    assert _named_by_card(CardData(license="<script>"), "the model card of a/b") is None


def test_nothing_is_guessed(tmp_path):
    assert source_license(None) is None
    assert source_license(provenance(tmp_path)) is None
    assert source_license(provenance(tmp_path / "gone"), tmp_path) is None


def test_names_in_prose(tmp_path):
    assert source_name(provenance("/home/x/llama/")) == "llama"
    assert source_name(provenance("runs/001/recovered")) == "recovered"
    assert source_name(provenance("a/llama", "0" * 40)) == "a/llama"
    assert source_name(None) == "the source model"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("python /home/x/shear.py --data_dir=/data/text --lr 1e-4", "python shear.py --data_dir=text --lr 1e-4"),
        ("~/models/a and C:\\models\\b", "a and b"),
        (
            "https://huggingface.co/a/b and/or 3/4, tokens / second",
            "https://huggingface.co/a/b and/or 3/4, tokens / second",
        ),
        ("examples/shear.py ./x ../y </s> a/b", "examples/shear.py ./x ../y </s> a/b"),
        ('{"a": "/x/y"}', '{"a": "y"}'),
    ],
)
def test_absolute_paths_keep_their_last_part(text, expected):
    assert publishable(text) == expected
    assert publishable({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_configs_lose_only_the_path_they_came_from():
    config = {"name_or_path": "/a/b", "chat_template": "/a/b", "size": 3, "token": "hf_x", "use_auth_token": "y"}
    assert without_source_path(config) == {"name_or_path": "b", "chat_template": "/a/b", "size": 3}
    assert last_part("C:\\a\\b\\") == "b"
