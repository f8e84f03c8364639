"""A push is one commit of everything, to a server that speaks the Hub's protocol; what fails loses nothing and says why."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from hub_server import serving
from huggingface_hub import ModelCard
from launching import free_port
from publishing_helpers import SECRET_PATH, contents, make_run
from training_helpers import assert_equal_weights, full_disk, letter_tokenizer, masked_model
from training_helpers import weights_of as weights_by_name
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_shear import PruneConfig
from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.publishing import files_left_out, planned_push, push_to_hub
from hf_shear.publishing.checkpoint_files import other_files
from hf_shear.publishing.hub_access import PushError
from hf_shear.report import write_html_report

ROOT = Path(__file__).resolve().parent.parent
NAME = "tester/small"
# The Hub's client hands files to its HTTP library in a way that the library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def plain_client(monkeypatch):
    """Large files the LFS way, no token of whoever runs the tests, no waiting between retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture
def hub():
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "sharded", shards=True)


@pytest.fixture(scope="module")
def masked_checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "checkpoint-10"
    model = masked_model()
    model.config.source_name_or_path = SECRET_PATH
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "training_args.bin").write_bytes(b"arguments")
    return folder


def push(hub, folder, repo_id=NAME, token=None, **options):
    return push_to_hub(folder, repo_id, token=token or hub.token, endpoint=hub.endpoint, **options)


def weights_of(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def test_everything_goes_in_one_commit(hub, run):
    before = contents(run)
    commit = push(hub, run)
    commits = hub.repos[NAME].branches["main"]
    assert [c.message for c in commits] == ["initial commit", "Publish small with hf_shear"]
    assert commit.oid == commits[-1].oid
    files = hub.files(NAME)
    recovered = run / "recovered"
    assert len(weights_of(recovered)) > 2
    assert set(files) == weights_of(recovered) | {
        ".gitattributes", "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json", "README.md", "report.html", "shear_provenance.json", "results.json", "evaluation.json",
    }  # fmt: skip
    for name in weights_of(recovered):
        assert files[name] == (recovered / name).read_bytes()
    assert json.loads(files["config.json"]) == json.loads((recovered / "config.json").read_text())
    assert f'name = "{NAME}"'.encode() in files["README.md"]
    assert contents(run) == before
    assert not hub.repos[NAME].private


def test_a_dry_run_shows_what_a_push_would_send_without_a_network(hub, run, monkeypatch, capsys):
    push(hub, run)
    before, sent = contents(run), hub.files(NAME)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a dry run asked the network"))
    planned = planned_push(run, NAME)
    planned = {name: one if isinstance(one, bytes) else Path(one).read_bytes() for name, one in planned.items()}
    assert planned == {name: content for name, content in sent.items() if name != ".gitattributes"}
    assert main(["push", str(run), NAME, "--private", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"Repository: {NAME}, branch main; private, if it is new" in said and "nothing was sent" in said
    assert all(re.search(rf"^{name} +{len(content):,} bytes$", said, re.M) for name, content in planned.items())
    assert "\n  # small: " in said and "model-index" not in said
    assert main(["push", str(run), "a/b/c", "--dry_run"]) == 2
    assert contents(run) == before


def test_the_choices_of_pruning_are_published_as_the_record_has_them(hub, tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "recovered" / "shear_provenance.json"
    config = PruneConfig("taylor", num_shots=2)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prune_config": config.to_dict()}))
    push(hub, run)
    assert PruneConfig.from_dict(json.loads(hub.files(NAME)["prune_config.json"])) == config
    assert b"criterion `taylor`, compensation `least_squares:towards=auto`" in hub.files(NAME)["README.md"]


def test_no_path_of_the_machine_is_published(hub, run):
    push(hub, run)
    for name, content in hub.files(NAME).items():
        assert b"secret-place" not in content and str(run.parent).encode() not in content, name
    assert json.loads(hub.files(NAME)["shear_provenance.json"])["source"]["name_or_path"] == "my-llama"
    assert json.loads(hub.files(NAME)["results.json"])["command"].split()[4] == "my-llama"


def test_private_where_asked_and_never_public_by_mistake(hub, run):
    push(hub, run, private=True)
    assert hub.repos[NAME].private
    hub.add("tester/open", {})
    with pytest.raises(ValueError, match="exists and is public.*settings"):
        push(hub, run, "tester/open", private=True)
    assert len(hub.repos["tester/open"].branches["main"]) == 2


def test_a_name_without_an_owner_is_the_users(hub, run):
    push(hub, run, "small")
    assert NAME in hub.repos


def test_a_branch_is_made(hub, run):
    push(hub, run, revision="seed-1")
    branches = hub.repos[NAME].branches
    assert len(branches["main"]) == 1 and "config.json" in branches["seed-1"][-1].files


def test_the_same_again_makes_no_commit(hub, run):
    first = push(hub, run)
    sent = len(hub.puts)
    assert push(hub, run).oid == first.oid
    assert len(hub.repos[NAME].branches["main"]) == 2 and len(hub.puts) == sent


def test_a_card_edited_by_hand_is_published_as_it_is(hub, tmp_path):
    run = make_run(tmp_path / "run")
    text = '---\nlicense: mit\n---\n\n# Mine\n\nname = "recovered"  # the folder of that name in the run\'s folder\n'
    (run / "recovered" / "README.md").write_text(text)
    push(hub, run)
    card = hub.files(NAME)["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n\n# Mine\n") and f'name = "{NAME}"' in card


def test_a_licence_file_goes_along(hub, tmp_path):
    run, text = make_run(tmp_path / "run"), "Apache License\n  Version 2.0, January 2004\n"
    (tmp_path / "terms.txt").write_text(text)
    push(hub, run, license_file=tmp_path / "terms.txt")
    assert hub.files(NAME)["LICENSE"] == text.encode() and b"license: apache-2.0" in hub.files(NAME)["README.md"]
    (run / "recovered" / "LICENSE").write_text(text.replace("Apache", "apache"))
    push(hub, run)
    assert hub.files(NAME)["LICENSE"] == text.replace("Apache", "apache").encode()
    with pytest.raises(ValueError, match="`license_file` must be a file"):
        push(hub, run, license_file=tmp_path / "gone")


def test_no_file_is_taken_from_the_folder_that_a_provenance_record_names(hub, tmp_path):
    run, elsewhere = make_run(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("LICENSE", "README.md", "NOTICE", "tokenizer.model"):
        (elsewhere / name).write_text("---\nlicense: mit\n---\nprivate words")
    path = run / "recovered" / "shear_provenance.json"
    provenance = json.loads(path.read_text())
    provenance["source"]["name_or_path"] = str(elsewhere)
    path.write_text(json.dumps(provenance))
    push(hub, run)
    assert not {"LICENSE", "NOTICE", "tokenizer.model"} & set(hub.files(NAME))
    assert not any(b"private words" in content for content in hub.files(NAME).values())
    assert b"license: mit" not in hub.files(NAME)["README.md"]


LINKED = ("model.safetensors", "config.json", "tokenizer.json", "LICENSE", "README.md", "shear_provenance.json",
          "../results.json", "../evaluation.json", "../report.html")  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("inside", [False, True])
def test_a_symbolic_link_is_refused_wherever_it_leads(hub, tmp_path, name, inside):
    run = make_run(tmp_path / "run")
    path = run / "recovered" / name
    target = (run / "recovered" if inside else tmp_path) / "private.txt"
    target.write_bytes(path.read_bytes() if path.exists() else b"private words")
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(UsageError, match="is a symbolic link.*Replace it with a copy"):
        push(hub, run)
    assert not hub.requests


def test_a_linked_folder_is_refused(hub, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "recovered").rename(tmp_path / "private")
    (run / "recovered").symlink_to(tmp_path / "private")
    with pytest.raises(UsageError, match="recovered' is a symbolic link"):
        push(hub, run)
    assert not hub.requests


def test_a_linked_shard_and_one_in_another_folder_are_refused(hub, tmp_path):
    run = make_run(tmp_path / "run", shards=True)
    shard = min((run / "recovered").glob("model-*.safetensors"))
    shard.rename(tmp_path / shard.name)
    index = run / "recovered" / "model.safetensors.index.json"
    whole = index.read_text()
    for name in (f"../../{shard.name}", str(tmp_path / shard.name), "sub/model.safetensors", "model.bin", 3, None):
        content = json.loads(whole)
        content["weight_map"] = {
            key: name if file == shard.name else file for key, file in content["weight_map"].items()
        }
        index.write_text(json.dumps(content))
        with pytest.raises(UsageError, match="weights lie beside their index"):
            push(hub, run)
    index.write_text(whole)
    shard.symlink_to(tmp_path / shard.name)
    with pytest.raises(UsageError, match="is a symbolic link"):
        push(hub, run)
    assert not hub.requests


def test_only_files_of_known_kinds_are_published_and_the_others_are_named(hub, tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run")
    unknown = (
               ".env", "id_rsa", "modeling_llama.py", "weights.pkl", "training_args.bin", "optimizer.pt",
               "model.gguf", "pytorch_model.bin", "notes.txt", "config.json.bak", "other.safetensors",
               "configuration_decilm.py",
    )  # fmt: skip
    for name in unknown:
        (run / "recovered" / name).write_text("private words")
    (run / "recovered" / ".git").mkdir()
    os.mkfifo(run / "recovered" / "chat_template.jinja")
    assert files_left_out(run / "recovered") == sorted([*unknown, ".git/", "chat_template.jinja"])
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    before = contents(run)
    push(hub, run)
    assert not {*unknown, "chat_template.jinja"} & set(hub.files(NAME))
    assert not any(b"private words" in content for content in hub.files(NAME).values())
    assert contents(run) == before


def test_the_code_of_nemotron_nas_is_published_only_as_this_package_writes_it(tmp_path):
    run = make_run(tmp_path / "run") / "recovered"
    own = ROOT / "hf_shear" / "slicing" / "configuration_decilm.py"
    (run / own.name).write_bytes(own.read_bytes())
    assert own.name in other_files(run) and files_left_out(run) == []
    (run / own.name).write_bytes(own.read_bytes() + b"\nimport os\n")
    assert own.name not in other_files(run) and files_left_out(run) == [own.name]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "../results.json", "../evaluation.json",
                                  "shear_provenance.json", "tokenizer_config.json"])  # fmt: skip
@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": ' * 500 + "1" + "}" * 500, "more than 64 objects and lists"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ('{"model_type": NaN}', "NaN, which is not a finite number"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_a_broken_file_is_one_sentence(hub, tmp_path, name, content, message):
    run = make_run(tmp_path / "run", shards=True)
    path = run / "recovered" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=f"{path.name}.*{message}") as caught:
        push(hub, run)
    assert "\n" not in str(caught.value) and not hub.requests


def test_tokens_in_files_of_the_run_are_not_published(hub, tmp_path):
    run, token = make_run(tmp_path / "run"), "hf_" + "aB3" * 11
    results = json.loads((run / "results.json").read_text())
    results["command"] += f" --hub_token abc123 --run_name x{token} && WANDB_API_KEY=0123abcd run"
    results["note"] = {"error": f"401 for https://me:word@host/x?token=abcde and Bearer {token}"}
    (run / "results.json").write_text(json.dumps(results))
    (run / "report.html").write_text(f"<p>{token}</p>")
    config = json.loads((run / "recovered" / "tokenizer_config.json").read_text())
    (run / "recovered" / "tokenizer_config.json").write_text(json.dumps(config | {"token": token}))
    push(hub, run)
    for name, content in hub.files(NAME).items():
        for secret in (token, "abc123", "0123abcd", "me:word", "abcde"):
            assert secret.encode() not in content, (name, secret)


def test_the_report_is_published_without_the_paths_of_the_command(hub, tmp_path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["command"] += " --data_dir /srv/secret/text --pruned /srv/secret/pruned --teacher_name_or_path ~/secret/big"
    (run / "results.json").write_text(json.dumps(results))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["source"]["name"] = "/srv/secret/customers/" + 40 * "long" + "/llama"  # of which a page shows both ends
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_html_report(run).read_text()
    assert "/srv/secret/text" in page and ">/srv/secret/customers/" in page
    push(hub, run)
    published = hub.files(NAME)["report.html"].decode()
    assert "secret" not in published
    assert "--data_dir text " in published and published.count("/svg>") == page.count("/svg>")


@pytest.mark.parametrize("asked, found", [(None, b"license: llama3.2"), ("mit", b"license: mit")])
def test_the_licence_of_a_source_on_the_hub(hub, tmp_path, monkeypatch, asked, found):
    hub.add("somebody/llama", {"README.md": b"---\nlicense: llama3.2\n---\n# Llama\n"})
    run = make_run(tmp_path / "run")
    path = run / "recovered" / "shear_provenance.json"
    provenance = json.loads(path.read_text())
    provenance["source"] |= {"name_or_path": "somebody/llama", "revision": "a" * 40}
    path.write_text(json.dumps(provenance))
    monkeypatch.chdir(tmp_path)
    push(hub, run, license=asked)
    card = hub.files(NAME)["README.md"]
    assert found in card and b"base_model: somebody/llama\n" in card and b"base_model_relation: finetune\n" in card


def test_the_card_of_the_source_gives_language_and_data(hub, tmp_path, monkeypatch):
    card = b"---\nlicense: mit\nlanguage: [en, zz_broken, code]\ndatasets: [me/text, 'not an id']\n---\n# Llama\n"
    hub.add("somebody/llama", {"README.md": card})
    run = make_run(tmp_path / "run")
    path = run / "recovered" / "shear_provenance.json"
    provenance = json.loads(path.read_text())
    provenance["source"] |= {"name_or_path": "somebody/llama", "revision": "a" * 40}
    path.write_text(json.dumps(provenance))
    monkeypatch.chdir(tmp_path)
    push(hub, run)
    data = ModelCard(hub.files(NAME)["README.md"].decode()).data
    assert data.language == ["en", "code"] and data.datasets == ["me/text"] and data.license == "mit"
    assert (data.base_model, data["base_model_relation"]) == ("somebody/llama", "finetune")


def test_scores_and_the_picture_go_along(hub, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    run = make_run(tmp_path / "run")
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["pruned"]["tasks"]["piqa"]["dataset"] = {"id": "baber/piqa", "config": None, "num_fewshot": 0}
    path.write_text(json.dumps(evaluation))
    results = json.loads((run / "results.json").read_text())
    layers = {name: {"0": [0, 1], "2": [0, 1]} for name in ("heads", "key_value_heads", "intermediate")}
    results["kept"] = {"layers": [0, 2], "hidden": [1, 2, 3], **layers}
    (run / "results.json").write_text(json.dumps(results))
    push(hub, run)
    files = hub.files(NAME)
    assert b"id: baber/piqa" in files[".eval_results/piqa.yaml"]
    assert files["kept.png"].startswith(b"\x89PNG") and b"](kept.png)" in files["README.md"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_push_that_stops_goes_on(hub, run, failing):
    before = contents(run)
    hub.failing_put = failing
    with pytest.raises(PushError, match="(?s)stopped.*Nothing here was changed.*Run the same command again"):
        push(hub, run)
    assert contents(run) == before
    assert len(hub.repos[NAME].branches["main"]) == 1
    arrived, sent = set(hub.large_files), len(hub.puts)
    hub.failing_put = None
    push(hub, run)
    assert not arrived & set(hub.puts[sent:])
    assert len(hub.puts) - sent == len(hub.large_files) - len(arrived) > 0
    assert weights_of(run / "recovered") <= set(hub.files(NAME))


def test_a_commit_that_fails_sends_no_large_file_twice(hub, run):
    hub.failing_commits = 1
    with pytest.raises(PushError, match="HTTP 500.*Run the same command again"):
        push(hub, run)
    sent = len(hub.puts)
    push(hub, run)
    assert len(hub.puts) == sent > 0 and len(hub.repos[NAME].branches["main"]) == 2


def test_a_push_needs_no_room_on_the_disk_here(hub, run):
    before = contents(run)
    with full_disk(0):
        push(hub, run)
    assert contents(run) == before and weights_of(run / "recovered") <= set(hub.files(NAME))


def test_a_full_disk_of_the_hub_is_said_and_nothing_is_lost(hub, run):
    before, hub.failing_put, hub.failing_status = contents(run), 1, 507
    with pytest.raises(PushError, match="(?s)HTTP 507.*Nothing here was changed, and nothing was committed there"):
        push(hub, run)
    assert contents(run) == before and len(hub.repos[NAME].branches["main"]) == 1
    hub.failing_put = None
    push(hub, run)
    assert weights_of(run / "recovered") <= set(hub.files(NAME))


def test_a_taken_name_is_refused_and_replaced_when_asked(hub, run):
    others = {"config.json": b"{}", "model.safetensors": b"other weights", "adapter_config.json": b"{}"}
    hub.add(NAME, others)
    with pytest.raises(ValueError, match="already holds another model.*--overwrite"):
        push(hub, run)
    assert not hub.puts and len(hub.repos[NAME].branches["main"]) == 2
    push(hub, run, overwrite=True)
    files = hub.files(NAME)
    assert "adapter_config.json" not in files and "model.safetensors" not in files and ".gitattributes" in files
    assert len(hub.repos[NAME].branches["main"]) == 3


def test_weights_under_the_same_names_are_compared(hub, run):
    names = weights_of(run / "recovered")
    hub.add(NAME, {name: b"x" * (run / "recovered" / name).stat().st_size for name in names})
    with pytest.raises(ValueError, match="another model"):
        push(hub, run)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"role": "read"}, "may only read.*write rights"),
        ({"token": "hf_another"}, "does not accept the token.*401.*HF_TOKEN"),
    ],
)
def test_a_token_that_is_of_no_use_is_refused_before_anything(hub, run, change, message):
    token = hub.token
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(ValueError, match=message) as caught:
        push(hub, run, token=token)
    assert token not in str(caught.value)
    assert [path for _, path in hub.requests] == ["/api/whoami-v2"]


def test_no_token(hub, run):
    with pytest.raises(ValueError, match="There is no token.*hf auth login"):
        push_to_hub(run, NAME, endpoint=hub.endpoint)
    assert not hub.requests


def test_rights_for_other_repositories(hub, run):
    hub.refuse_writing = True
    with pytest.raises(PushError, match="HTTP 403.*may not write to 'tester/small'"):
        push(hub, run)


def test_no_network(run):
    with pytest.raises(PushError, match="can not be reached.*same command") as caught:
        push_to_hub(run, NAME, token="hf_x", endpoint=f"http://127.0.0.1:{free_port()}")
    assert "hf_x" not in str(caught.value)


def test_a_masked_checkpoint_only_by_name(hub, masked_checkpoint):
    with pytest.raises(ValueError, match="middle of mask learning.*--masked"):
        push(hub, masked_checkpoint)
    assert not hub.requests
    push(hub, masked_checkpoint, masked=True)
    assert "import_hf_shear.py" in hub.files(NAME)
    files = hub.files(NAME)
    assert "optimizer.pt" not in files and "training_args.bin" not in files
    assert json.loads(files["config.json"])["source_name_or_path"] == "my-llama"
    card = files["README.md"].decode()
    assert "Not a finished model" in card and "secret-place" not in card
    snippet = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1].replace(NAME, str(masked_checkpoint))
    exec(compile(snippet, "card", "exec"), names := {})
    assert_equal_weights(names["model"], weights_by_name(masked_model()))


def break_shard(folder):
    shard = min((folder / "recovered").glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_shard, "damaged or cut short"),
        (lambda folder: min((folder / "recovered").glob("model-*.safetensors")).unlink(), "lacks model-0.*index"),
        (lambda folder: (folder / "recovered" / "model.safetensors.index.json").unlink(), "has no weights"),
        (lambda folder: (folder / "recovered" / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "results.json").unlink(), "no results.json"),
        (lambda folder: [path.unlink() for path in (folder / "recovered").glob("tokenizer*")], "no tokenizer"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_before_the_network(hub, tmp_path, damage, message):
    run = make_run(tmp_path / "run", shards=True)
    damage(run)
    with pytest.raises(ValueError, match=message):
        push(hub, run / "recovered")
    assert not hub.requests


def test_a_malformed_name(hub, run):
    with pytest.raises(ValueError, match="`repo_id` must be 'name/model'"):
        push(hub, run, "a/b/c")
    assert not hub.requests


def test_the_token_is_in_no_file_and_no_log(hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keeper = Keeper(logging.DEBUG)
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(keeper)
        logger.setLevel(logging.DEBUG)
    try:
        push(hub, run)
        hub.refuse_writing, errors = True, []
        (run / "evaluation.json").unlink(missing_ok=True)  # it is of `recovered`
        for options in ({"repo_id": "tester/second"}, {"overwrite": True, "folder": run / "pruned"}):
            with pytest.raises(PushError) as caught:
                push(hub, **({"folder": run} | options))
            errors += traceback.format_exception(caught.value)
    finally:
        for logger, level in before:
            logger.removeHandler(keeper)
            logger.setLevel(level)
    assert any("/commit/main" in line for line in lines), "nothing was logged, so nothing was tested"
    assert hub.token not in "\n".join([*lines, *errors])
    kept = [*contents(run).values(), *contents(tmp_path).values(), *hub.files(NAME).values()]
    assert not any(hub.token.encode() in content for content in kept)


LOAD_BACK = """
import pathlib, sys, torch
from hf_shear import ShearingLlamaForCausalLM
from hf_shear.cli.main import main
code = main(["push", sys.argv[1], "tester/back", "--private"])
assert code == 0, code
from transformers import AutoModelForCausalLM, AutoTokenizer
tokens = AutoTokenizer.from_pretrained("tester/back")("hello there", return_tensors="pt").input_ids
logits = AutoModelForCausalLM.from_pretrained("tester/back").eval()(tokens).logits
masked = ShearingLlamaForCausalLM.from_pretrained("tester/back", target_shape={"intermediate_size": 8})
torch.save({"tokens": tokens, "logits": logits, "revision": masked.config.source_revision}, sys.argv[2])
pathlib.Path(sys.argv[1], "evaluation.json").unlink(missing_ok=True)  # it is of `recovered`
sys.exit(main(["push", sys.argv[1] + "/pruned", "tester/back"]))
"""


def test_the_verb_pushes_and_from_pretrained_loads_the_same_model(hub, run, tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", LOAD_BACK, str(run), str(tmp_path / "loaded.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Published: " in done.stdout and "already holds another model" in done.stderr
    assert hub.token not in done.stdout + done.stderr
    loaded = torch.load(tmp_path / "loaded.pt")
    model = AutoModelForCausalLM.from_pretrained(run / "recovered").eval()
    tokens = AutoTokenizer.from_pretrained(run / "recovered")("hello there", return_tensors="pt").input_ids
    assert torch.equal(loaded["tokens"], tokens)
    assert torch.equal(loaded["logits"], model(tokens).logits)
    assert hub.repos["tester/back"].private
    assert loaded["revision"] == hub.repos["tester/back"].branches["main"][-1].oid  # what hub_source relies on
