"""The family of small sources: shapes follow one rule, the page shows what was measured, the weights are those measured."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.research import train_source
from examples.research.family import train_family as script
from hf_shear.data import load_domains, pack_domains, split_domains

FAMILY = Path(__file__).resolve().parent.parent / "examples" / "research" / "family"
MODELS = [FAMILY / "models" / name for name in ("64", "96", "128")]


def facts(folder):
    return json.loads((folder / "source.json").read_text(encoding="utf-8"))


def all_facts() -> dict[str, dict]:
    """By size, with the member whose weights are not kept."""
    return {f.name: facts(f) for f in MODELS} | {"192": json.loads((FAMILY / "source-192.json").read_text())}


@pytest.mark.parametrize("size", [0, 48, 100])
def test_sizes_off_the_rule_are_refused(size):
    with pytest.raises(ValueError, match=f"must be multiples of 32 of at least 64.*but one is {size}"):
        script.shape_of(size)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_member_has_the_shape_of_its_size_and_the_family_s_tokenizer(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = script.shape_of(int(folder.name))
    assert {name: getattr(model.config, name) for name in shape} == shape
    assert {name: facts(folder)["shape"][name] for name in shape} == shape
    assert model.num_parameters() == facts(folder)["num_parameters"] and model.dtype == torch.bfloat16
    assert (folder / "tokenizer.json").read_bytes() == (MODELS[0] / "tokenizer.json").read_bytes()
    assert facts(folder)["tokens"] == facts(MODELS[0])["tokens"]


def test_larger_members_are_better_and_all_beat_a_unigram_model():
    losses = [found["mean"] for found in all_facts().values()]
    assert losses == sorted(losses, reverse=True)
    for found in all_facts().values():
        assert all(loss < found["unigram_loss"][name] for name, loss in found["loss"].items())


def test_the_page_shows_what_was_measured():
    lines = (FAMILY / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| `models/")}
    assert set(rows) == {f"`models/{name}`" for name in all_facts()}
    for name, found in all_facts().items():
        row = rows[f"`models/{name}`"]
        assert f"| {found['num_parameters']:,} | {found['mean']:.3f} |" in row


def test_the_weights_are_those_that_were_measured(shared_data):
    """Losses of the first held-out samples of two domains, by the smallest member."""
    folder, source = MODELS[0], train_source
    found = facts(folder)
    arguments = found["arguments"]
    domains = load_domains(shared_data / "data" / "redpajama_sample")
    _, held_out = split_domains(domains, arguments["held_out_fraction"], arguments["seed"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = {name: held_out[name] for name in ("cc", "wiki")}
    packed = source.as_tensors(pack_domains(held_out, tokenizer, arguments["max_length"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, samples in packed.items():
        probe = found["probe"][name]
        own = samples[: probe["samples"]]
        assert source.digest(own) == probe["sha256"]
        assert source.mean_loss(model, own) == pytest.approx(probe["loss"], abs=1e-4)
