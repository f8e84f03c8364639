"""What this project writes is read by transformers 4 as by transformers 5: the same ids, the same logits.

transformers 4 lives in an environment of its own, which finds torch in this one. It is made once, in a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.research.engines import family_forms
from hf_shear import AutoShearingModelForCausalLM, slice_model
from hf_shear.slicing import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "embedded" / "model"
VERSION = "4.57.6"
TEXTS = ["A red house, 42.", "  two  blanks\nand a line", "Ünïcödé </s> <s> text", "<x> marked"]
READER = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
ids, logits, output = torch.tensor(json.loads(sys.argv[1])), {}, sys.argv[2]
found = {}
for folder in sys.argv[3:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.chat_template and tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    found[folder] = [tokenizer(json.loads(open(output + "/texts.json").read())).input_ids, chat]
    model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    found[folder].append(str(model.dtype))
    with torch.no_grad():
        logits[folder] = model.float()(ids).logits.contiguous()
save_file(logits, output + "/logits.safetensors")
open(output + "/found.json", "w").write(json.dumps(found))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def older_python() -> str:
    """The python of an environment with transformers 4."""
    folder = Path(tempfile.gettempdir()) / f"hf_shear_transformers_{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", f"transformers=={VERSION}", "jinja2"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"transformers {VERSION} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        inner = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        outer = sysconfig.get_path("purelib")
        (Path(inner) / "outer.pth").write_text(outer)  # behind its own packages: torch, which is large
        (folder / "complete").write_text("")
    return str(python)


def read_by_transformers_4(python: str, ids: torch.Tensor, folders: list[Path], output: Path) -> tuple[dict, dict]:
    """Per folder [ids of TEXTS, a chat as text, dtype], and logits."""
    (output / "texts.json").write_text(json.dumps(TEXTS))
    words = [python, "-c", READER, json.dumps(ids.tolist()), str(output), *map(str, folders)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output / "found.json").read_text()), load_file(output / "logits.safetensors")


def family(model_type: str, tokenizer):
    """A model of examples/research/engines, with thetas that no reader takes for its default."""
    model = family_forms.build(model_type, tokenizer)
    rope = model.config.rope_parameters
    for number, part in enumerate([rope] if "rope_theta" in rope else rope.values()):
        part["rope_theta"] = 30_000.0 + 5_000 * number
    changed = type(model)(model.config).eval()
    changed.load_state_dict(model.state_dict(), strict=True)
    return changed


def tokenizers(folder: Path) -> dict[str, PreTrainedTokenizerFast]:
    """The small model's tokenizer as sources of several kinds have it."""
    found = {}
    for name, changes in {
        "PreTrainedTokenizerFast": {"chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"},
        "LlamaTokenizer": {"add_prefix_space": None},
        "CodeLlamaTokenizer": {},
        "GemmaTokenizer": {},
        "extra": {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["<x>"]},
    }.items():
        source = folder / f"source of {name}"
        AutoTokenizer.from_pretrained(MODEL).save_pretrained(source)
        path = source / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name} | changes))
        found[name] = AutoTokenizer.from_pretrained(source)
    return found


FAMILIES = ("llama", "qwen3", "gemma3_text", "mistral", "smollm3", "olmo2", "granite", "exaone4")
"""Gemma 2 is left out: its attention caps scores here, and not by default there."""


def test_exports_compute_in_transformers_4_what_they_compute_here(older_python, tmp_path):
    kinds = tokenizers(tmp_path)
    exports = {}
    for number, model_type in enumerate(FAMILIES):
        tokenizer = list(kinds.values())[number % len(kinds)]
        model = family(model_type, tokenizer)
        masked = AutoShearingModelForCausalLM.from_model(model, {"intermediate_size": 160, "num_hidden_layers": 2})
        folder = save_checkpoint(slice_model(masked)[0], tmp_path / model_type, tokenizer, dtype=torch.bfloat16)
        exports[folder] = tokenizer
    ids = torch.tensor([AutoTokenizer.from_pretrained(MODEL)("A red house stands by the sea.").input_ids * 3])
    found, logits = read_by_transformers_4(older_python, ids, list(exports), tmp_path)
    for folder, tokenizer in exports.items():
        here = AutoModelForCausalLM.from_pretrained(folder)
        assert found[str(folder)][0] == tokenizer(TEXTS).input_ids, folder
        assert AutoTokenizer.from_pretrained(folder)(TEXTS).input_ids == tokenizer(TEXTS).input_ids, folder
        assert (found[str(folder)][1] is None) == (tokenizer.chat_template is None), folder
        assert found[str(folder)][2] == str(here.dtype) == "torch.bfloat16"
        with torch.no_grad():
            expected = here.float()(ids).logits
        gap = (logits[str(folder)] - expected).abs().max().item()
        assert gap < 1e-4 * expected.abs().max(), (folder, gap)
