"""A licence is carried over from where the source says it, and paths of a machine go nowhere."""

from __future__ import annotations

import pytest

from hf_shear.publishing.local_paths import last_part, without_local_paths, without_source_path
from hf_shear.publishing.source_model import license_file, source_license, source_name

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
    found = source_license(provenance(tmp_path))
    assert found.identifier == identifier and found.found_in == "the file LICENSE of the source"
    assert (found.name, found.link) == (("Licence of my own", "LICENSE") if identifier == "other" else (None, None))
    assert license_file(provenance(tmp_path)) == tmp_path / "LICENSE"


def test_the_card_of_the_source_comes_first(tmp_path):
    (tmp_path / "LICENSE").write_text(APACHE)
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# Model\n")
    found = source_license(provenance(tmp_path))
    assert (found.identifier, found.name, found.link) == ("other", "odd", "LICENSE")


def test_nothing_is_guessed(tmp_path):
    assert source_license(None) is None
    assert source_license(provenance(tmp_path)) is None
    assert source_license(provenance(tmp_path / "gone")) is None
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n# No licence\n")
    assert source_license(provenance(tmp_path)) is None


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
    assert without_local_paths(text) == expected
    assert without_local_paths({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_configs_lose_only_the_path_they_came_from():
    config = {"name_or_path": "/a/b", "chat_template": "/a/b", "size": 3}
    assert without_source_path(config) == {"name_or_path": "b", "chat_template": "/a/b", "size": 3}
    assert last_part("C:\\a\\b\\") == "b"
