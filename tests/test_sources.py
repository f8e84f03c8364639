"""A source is what its config says, or refused: before any text is read or any weight is loaded."""

import json
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import get_hf_file_metadata
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.shapes import count_parameters
from hf_shear.slicing import slice_model
from hf_shear.sources import open_source, quantised

DOWN = "model.layers.2.mlp.down_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tied(build_llama):
    return build_llama(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def plain(tied, tmp_path_factory):
    """A tied checkpoint, in one file."""
    folder = tmp_path_factory.mktemp("plain")
    tied.save_pretrained(folder)
    return folder


@pytest.fixture
def variant(plain, tmp_path):
    """``variant(change, **config)``: a copy whose weights ``change`` has changed in place, and whose config has more."""

    def make(change=lambda weights: None, **config):
        folder = tmp_path / "variant"
        shutil.copytree(plain, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        change_json(folder / "config.json", **config)
        return folder

    return make


def change_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(folder, **options) -> str:
    """The text of the refusal: one line that begins with the argument."""
    with pytest.raises(UsageError) as raised:
        open_source("model_name_or_path", folder, **options)
    text = str(raised.value)
    assert text.startswith("`model_name_or_path`") and "\n" not in text
    return text


def assert_loads_as(model, folder):
    """``folder`` gives exactly ``model``, plain and with masks, and what is saved of both has plain names."""
    source = open_source("model_name_or_path", folder, unwrap=True)
    masked = AutoShearingModelForCausalLM.from_pretrained(source, target_shape={"intermediate_size": 8})
    for loaded in (source.load_model(), masked):
        state = loaded.state_dict()
        for name, weight in model.state_dict().items():
            assert torch.equal(state[name], weight), name
    source.load_model().save_pretrained(folder / "again")
    masked.save_pretrained(folder / "masked")
    plain_names = set(model.state_dict())
    assert set(load_file(folder / "again" / "model.safetensors")) <= plain_names
    names = load_file(folder / "masked" / "model.safetensors")
    assert {name for name in names if not name.startswith("masks.")} <= plain_names
    return source


BROKEN = {
    "missing": (lambda weights: weights.pop(DOWN), {}, f"missing weights ['{DOWN}']"),
    "surplus": (
        lambda weights: weights.update({"model.layers.0.extra.weight": torch.ones(3)}),
        {},
        "weights that the config does not name ['model.layers.0.extra.weight']",
    ),
    "misfit": (
        lambda weights: weights.update({DOWN: torch.ones(18, 21)}),
        {},
        f"weights of another shape ['{DOWN} ([18, 21], not [18, 22])']",
    ),
    "no tensors": (lambda weights: weights.clear(), {}, "holds no weights at all"),
    "a layer more": (None, {"num_hidden_layers": 3}, "weights that the config does not name ['model.layers.3."),
    "a layer fewer": (None, {"num_hidden_layers": 5}, "missing weights ['model.layers.4."),
    "whole numbers": (
        lambda weights: weights.update({DOWN: weights[DOWN].to(torch.int8)}),
        {},
        f"has weights of type int8 and no quantization_config that says what they stand for: ['{DOWN}']",
    ),
    "eight bits": (
        lambda weights: weights.update({DOWN: weights[DOWN].to(torch.float8_e4m3fn)}),
        {},
        "has weights of type float8_e4m3fn and no quantization_config",
    ),
    "no head": (None, {"tie_word_embeddings": False}, f"missing weights ['{HEAD}']"),
    "twice": (
        lambda weights: weights.update({f"module.{DOWN}": weights[DOWN].clone()}),
        {},
        f"holds 1 weights more than once, such as {DOWN}",
    ),
    "heads": (None, {"num_attention_heads": -9}, "`num_attention_heads` in the config.json"),
    "size of a word": (None, {"hidden_size": "many"}, "can not be read by transformers"),
    "activation": (None, {"hidden_act": "nosuch"}, "`hidden_act` in the config.json"),
    "no family": (None, {"model_type": "nosuch"}, "has model_type 'nosuch', which transformers"),
    "no model_type": (None, {"model_type": None}, "must have a `model_type`"),
    "weights outside": (None, {"transformers_weights": "../other.safetensors"}, "has weights outside its folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(variant, case):
    change, config, message = BROKEN[case]
    folder = variant(change or (lambda weights: None), **config)
    assert message in refusal(folder)
    with pytest.raises(UsageError):
        AutoShearingModelForCausalLM.from_pretrained(folder, target_shape={"intermediate_size": 8})


def test_every_verb_and_every_role_refuses_it_before_text_is_read(variant, plain, tmp_path, capsys):
    folder, shape = str(variant(lambda weights: weights.pop(DOWN))), ["--intermediate_size", "8"]
    no_text, out = ["--data_dir", str(tmp_path / "none")], ["--output_dir", str(tmp_path / "out")]
    run = [*no_text, *out, "--max_length", "16"]
    distilled = ["--distillation", "forward_kl", "--teacher_name_or_path", folder]
    verbs = [
        ["inspect", folder],
        ["prune", folder, *shape, *run],
        ["learn", folder, *shape, *run, "--mask_tokens", "64"],
        ["interleave", folder, *shape, *run, "--num_tokens", "640"],
        ["evaluate", folder, *no_text, "--output", str(tmp_path / "e.json")],
        ["evaluate", str(plain), "--pruned", folder, *no_text, "--output", str(tmp_path / "e.json")],
        ["recover", folder, "--pruned", str(plain), *run, "--recovery_tokens", "64"],
    ]
    for words in verbs:
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert f"missing weights ['{DOWN}']" in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists() and not (tmp_path / "e.json").exists()
    shutil.copy(Path(__file__).parents[1] / "examples/embedded/model/tokenizer.json", plain)
    assert main(["learn", str(plain), *shape, *run, "--mask_tokens", "64", *distilled]) == 2
    error = capsys.readouterr().err
    assert "`teacher_name_or_path`" in error and f"missing weights ['{DOWN}']" in error
    (plain / "tokenizer.json").unlink()


def wrapped(rename):
    def change(weights):
        for name in list(weights):
            weights[rename(name)] = weights.pop(name)

    return change


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "_orig_mod." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        lambda name: "_orig_mod." + name.replace("layers.1.", "layers.1._orig_mod."),
    ],
    ids=["single", "nested", "of a block", "of both"],
)
def test_names_of_wrappers_are_understood_and_not_saved_again(variant, tied, rename):
    folder = variant(wrapped(rename))
    source = assert_loads_as(tied, folder)
    assert any("have names of a wrapper" in note for note in source.notes)
    text = refusal(folder)
    assert "has weights under the names of a wrapper" in text
    assert f"hf-shear export {folder} --output_dir PLAIN" in text


def test_export_writes_weights_plainly(variant, tied, plain, tmp_path, capsys):
    folder = variant(wrapped(lambda name: "_orig_mod." + name))
    assert main(["inspect", str(folder)]) == 0
    assert "such as '_orig_mod." in capsys.readouterr().out
    assert main(["export", str(folder), "--output_dir", str(tmp_path / "out")]) == 0
    for name, weight in open_source("x", tmp_path / "out").load_model().state_dict().items():
        assert torch.equal(weight, tied.state_dict()[name])
    assert main(["export", str(plain), "--output_dir", str(tmp_path / "again")]) == 2
    assert "it is a plain checkpoint already" in capsys.readouterr().err


def sharded(folder, suffix="safetensors"):
    """The checkpoint as two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files, names = [f"{stem}-0000{part}-of-00002.{suffix}" for part in (1, 2)], sorted(weights)
    shards = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        shard = {name: weights[name] for name in names if shards[name] == file}
        if suffix == "safetensors":
            save_file(shard, folder / file, {"format": "pt"})
        else:
            torch.save(shard, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_names_of_wrappers_load(variant, tied, suffix):
    folder = variant(wrapped(lambda name: "module." + name))
    sharded(folder, suffix)
    assert_loads_as(tied, folder)


def test_an_index_is_whole_and_names_files_of_its_folder_only(variant):
    folder = variant()
    index = sharded(folder)
    good = json.loads(index.read_text())
    first = next(iter(good["weight_map"]))
    for name in ("../elsewhere.safetensors", "/etc/elsewhere.safetensors", "..\\elsewhere.safetensors", "x.bin"):
        index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | {first: name}}))
        assert f"names {name!r}, which is no .safetensors file in its folder" in refusal(folder)
    index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | {first: "gone.safetensors"}}))
    assert "names 'gone.safetensors', which does not exist" in refusal(folder)
    for text in ("{", "[]", '{"weight_map": {}}', json.dumps({"weight_map": good["weight_map"]})):
        index.write_text(text)
        assert str(index) in refusal(folder)


def test_files_that_are_cut_off_are_named(variant):
    file = variant() / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-100], whole[:100], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        file.write_bytes(content)
        text = refusal(file.parent)
        assert f"{str(file)!r} is cut off or no file of weights" in text
    assert "git lfs pull" in text
    (file.parent / "config.json").write_text("{")
    assert "config.json' is not valid JSON" in refusal(file.parent)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_are_read_without_running_code(variant, tied, tmp_path):
    folder = variant()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    assert any("weights-only loader" in note for note in assert_loads_as(tied, folder).notes)
    torch.save(weights | {"payload": Payload(tmp_path / "ran")}, file)
    assert f"{str(file)!r} holds more than weights, which may be code" in refusal(folder)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": weights}, file)
    assert "it holds no weights by name" in refusal(folder)
    file.write_bytes(b"PK\x03\x04" + bytes(50))
    assert "is cut off or no file of weights" in refusal(folder)


def test_the_weights_decide_whether_the_head_is_tied(variant, tied, capsys):
    def add_head(weights):
        weights[HEAD] = weights[EMBEDDING].flip(0).clone()

    folder = variant(add_head)
    source = open_source("model_name_or_path", folder)
    assert source.config.tie_word_embeddings is False
    assert count_parameters(source.config) == count_parameters(tied.config) + 40 * 18
    model = source.load_model()
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight.flip(0))
    masked = AutoShearingModelForCausalLM.from_pretrained(folder, target_shape={"intermediate_size": 8})
    assert masked.config.tie_word_embeddings is False and torch.equal(masked.lm_head.weight, model.lm_head.weight)
    cut, _ = slice_model(masked)
    assert cut.config.tie_word_embeddings is False and torch.equal(cut.lm_head.weight, model.lm_head.weight)
    masked.save_pretrained(folder / "masked")
    again = AutoShearingModelForCausalLM.from_pretrained(folder / "masked")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert main(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["now"]["num_parameters"] == count_parameters(source.config)
    assert any("it is read untied" in note for note in facts["notes"])


def test_an_equal_head_beside_a_tied_flag_stays_tied(variant):
    source = open_source("x", variant(lambda weights: weights.update({HEAD: weights[EMBEDDING].clone()})))
    model = source.load_model()
    assert source.config.tie_word_embeddings is True and model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "fields, method",
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "nosuch"}, "nosuch"),
        ({"bits": 4}, "an unknown method"),
    ],
)
def test_quantised_sources_are_refused_by_method(variant, fields, method):
    text = refusal(variant(quantization_config=fields))
    assert f"is quantised by {method} (quantization_config of its config.json)" in text
    assert "Give the checkpoint that it was quantised from" in text


def quantise_fp8(weights, block, exact):
    """Every projection in blocks of ``block`` with a scale each; ``exact`` gets what they stand for."""
    for name in [name for name in weights if "_proj" in name]:
        weight = weights[name]
        rows, columns = (-(-size // block) for size in weight.shape)
        scales = torch.rand(rows, columns) + 0.5
        spread = scales.repeat_interleave(block, 0)[: weight.shape[0]].repeat_interleave(block, 1)[:, : weight.shape[1]]
        weights[name] = (weight / spread).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales
        exact[name] = weights[name].float() * spread


def test_fp8_is_dequantised_exactly_or_refused(variant, tied, plain):
    exact = dict(tied.state_dict())
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [2, 2]}
    folder = variant(lambda weights: quantise_fp8(weights, 2, exact), quantization_config=config)
    source = open_source("model_name_or_path", folder)
    assert source.notes == ("It is quantised by fp8, and dequantised as it is loaded.",)
    assert not hasattr(source.config, "quantization_config")
    masked = AutoShearingModelForCausalLM.from_pretrained(
        folder, target_shape={"intermediate_size": 8}, dtype="float32"
    )
    for model in (source.load_model(torch.float32), masked):
        assert getattr(model.config, "quantization_config", None) is None
        for name, weight in model.state_dict().items():
            assert name.startswith("masks.") or torch.equal(weight, exact[name]), name
    weights = load_file(plain / "model.safetensors")
    quantise_fp8(weights, 4, {})  # 18 is no multiple of 4: transformers would spread the scales wrongly
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", quantization_config=config | {"weight_block_size": [4, 4]})
    assert "in blocks of [4, 4], which do not divide" in refusal(folder)


def test_compressed_tensors_are_dequantised_exactly(variant, tied):
    pytest.importorskip("compressed_tensors")
    exact = dict(tied.state_dict())

    def quantise(weights):
        for name in [name for name in weights if "_proj" in name]:
            scale = weights[name].abs().amax(1, keepdim=True) / 448
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale"] = scale
            exact[name] = weights[name].float() * scale

    kind = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": kind}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    folder = variant(
        quantise, quantization_config=config | {"ignore": ["lm_head"], "config_groups": {"group_0": group}}
    )
    masked = AutoShearingModelForCausalLM.from_pretrained(
        folder, target_shape={"intermediate_size": 8}, dtype="float32"
    )
    for model in (open_source("x", folder).load_model(torch.float32), masked):
        for name, weight in model.state_dict().items():
            assert name.startswith("masks.") or torch.equal(weight, exact[name]), name


def test_compressed_tensors_need_their_package(variant, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    text = refusal(variant(quantization_config={"quant_method": "compressed-tensors"}))
    assert "is quantised by compressed-tensors" in text and "pip install 'hf-shear[compressed-tensors]'" in text


def test_experts_are_checked_under_the_names_of_their_files(tmp_path):
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "bos_token_id": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    model.save_pretrained(tmp_path)
    loaded = open_source("x", tmp_path).load_model()
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "experts.1" in name and "layers.1" in name)
    weights.pop(gone)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert "does not fit" in refusal(tmp_path) or "can not be read" in refusal(tmp_path)


def test_code_of_its_own_is_refused_and_never_advised(variant, tmp_path):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    custom = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    folder = variant(auto_map=custom)
    (folder / "code.py").write_text(code)
    for model_type in ("llama", "own"):
        change_json(folder / "config.json", model_type=model_type)
        text = refusal(folder)
        assert "computes by code of its own (auto_map in its config.json), which hf-shear never runs" in text
        assert "trust" not in text
    native = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}  # that transformers has itself by now
    change_json(folder / "config.json", model_type="llama", auto_map=native)
    open_source("x", folder).load_model()
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Own", None]}}))
    with pytest.raises(UsageError, match="has a tokenizer with code of its own") as raised:
        open_source("x", folder).load_tokenizer()
    assert "trust" not in str(raised.value) and not ran.exists()


@pytest.mark.parametrize("answers", [False, True], ids=["nobody", "late"])
def test_a_name_fails_at_once_only_where_nobody_can_be_reached(answers, monkeypatch):
    asked = []

    def given_up(*args, **kwargs):
        asked.append(args)
        raise OSError("we waited long.")

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        if not answers:
            server.close()
        monkeypatch.setattr("hf_shear.sources.config.hf_hub_url", lambda *args, **kwargs: url)
        monkeypatch.setattr("hf_shear.sources.config.get_hf_file_metadata", partial(get_hf_file_metadata, timeout=0.2))
        monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", given_up)
        text = refusal("nobody/nothing")
    if answers:  # late, which is left to transformers and its retries
        assert asked and "could not be loaded from the Hub: we waited long." in text
    else:
        assert not asked and "is no folder here, and the Hub, where it would be a name, can not be reached" in text
        assert "Correct the path, or run the same command when there is a network." in text


def test_what_can_be_no_name_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Cannot have -- or .. in repo_id: 'no--x'" in refusal("no--x")


def test_what_is_no_checkpoint_says_what_to_do(plain, tmp_path):
    assert "does not exist" in refusal(tmp_path / "none")
    assert "could not be loaded from the Hub" in refusal("nobody/nothing", local_files_only=True)
    assert "has no config.json" in refusal(tmp_path)
    shutil.copy(plain / "config.json", tmp_path)
    assert "holds no weights: none of model.safetensors" in refusal(tmp_path)
    assert open_source("x", tmp_path, fetch=False).weights is None  # its shape can be told
    (tmp_path / "adapter_config.json").write_text("{}")
    text = refusal(tmp_path)
    assert "holds an adapter. Merge it" in text and f"hf-shear export {tmp_path} --base" in text
    (tmp_path / "adapter_config.json").unlink()
    shutil.copy(plain / "model.safetensors", tmp_path / "shard-00001-model-00001-of-00001.safetensors")
    assert "holds the weights of several processes" in refusal(tmp_path)
    with pytest.raises(UsageError, match="holds no tokenizer"):
        open_source("x", plain).load_tokenizer()
    (tmp_path / "parts").mkdir()
    for part in ("a", "b"):
        (tmp_path / "parts" / f"{part}.gguf").write_bytes(b"GGUF")
    assert "holds several GGUF files, a.gguf, b.gguf" in refusal(tmp_path / "parts")


def test_a_name_on_the_hub_is_read_from_the_cache(plain, tied, tmp_path, monkeypatch):
    """What was downloaded before is checked as a folder is, and its commit is the revision."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--some--model"
    shutil.copytree(plain, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path / "hub"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what tries a network waits for it
    source = open_source("x", "some/model", **options)
    assert (source.name, source.revision) == ("some/model", commit)
    loaded = source.load_model().state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in tied.state_dict().items())
    masked = AutoShearingModelForCausalLM.from_pretrained(source, target_shape={"intermediate_size": 8})
    assert (masked.config.source_name_or_path, masked.config.source_revision) == ("some/model", commit)
    weights = load_file(repo / "snapshots" / commit / "model.safetensors")
    weights.pop(DOWN)
    save_file(weights, repo / "snapshots" / commit / "model.safetensors", {"format": "pt"})
    assert f"missing weights ['{DOWN}']" in refusal("some/model", **options)
    (repo / "snapshots" / commit / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal("some/model", **options)


def test_a_broken_tokenizer_is_one_line(plain, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    broken = {"{": "is not valid JSON", "{}": "lacks `model`", '{"model": {"type": "nosuch"}}': "can not be read by"}
    for text, message in broken.items():
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(UsageError, match=message) as raised:
            open_source("x", folder).load_tokenizer()
        assert "\n" not in str(raised.value)


def test_a_llama_whose_heads_do_not_divide_is_a_mistral(variant, build_llama, token_ids, capsys):
    """LlamaConfig refuses 9 heads at a hidden size of 20, though head_dim is given."""
    from transformers import MistralConfig, MistralForCausalLM

    fields = build_llama(tie_word_embeddings=True).config.to_dict()
    dropped = ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp")
    fields = {name: value for name, value in fields.items() if name not in dropped}
    model = MistralForCausalLM(MistralConfig(**fields | {"hidden_size": 20, "sliding_window": None})).eval()
    folder = variant(hidden_size=20)
    save_file({name: weight.clone() for name, weight in model.state_dict().items() if name != HEAD},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    assert "9 heads do not divide its hidden size 20" in (text := refusal(folder)) and "`--as_family mistral`" in text
    loaded = open_source("x", folder, as_family="mistral").load_model()
    masked = AutoShearingModelForCausalLM.from_pretrained(folder, as_family="mistral", target_shape={"hidden_size": 12})
    with torch.no_grad():
        expected = model(token_ids).logits
        assert torch.equal(loaded(token_ids).logits, expected)
        with masked.use_gates({}):
            torch.testing.assert_close(masked(token_ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert main(["inspect", str(folder), "--as_family", "mistral", "--hidden_size", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"]["shape"]["hidden_size"] == 12
    assert "attention_bias" not in LlamaConfig.attribute_map
    change_json(folder / "config.json", attention_bias=True)
    assert "Without biases" in refusal(folder, as_family="mistral")
