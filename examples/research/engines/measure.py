"""Convert and run checkpoints of every form in engines that are not transformers, and compare with transformers.

    python -m examples.research.engines.measure --source path/to/stories260K --shapes stories260K --data_dir path/to/text \\
        --output model_cards/engines/stories260K.json --engines llama_cpp ctranslate2 \\
        --python openvino=/other/venv/bin/python

    python -m examples.research.engines.measure --families --source path/to/stories260K --data_dir path/to/text \\
        --output model_cards/engines/families.json

The source is pruned by Taylor scores to each shape of `forms.SHAPES`, changed into each form, and run by each engine with
the same token ids: greedy text, the logits of held-out text, and the loss that follows with its standard error. An engine
that needs other packages than hf_shear does gets a Python of its own by ``--python``. CONVERT_HF_TO_GGUF names
llama.cpp's converter. Without ``--data_dir`` the text is that of `examples/embedded`.

Each record names the code that made it. With ``--engines`` and no name, nothing runs in an engine: the checkpoints are made
again, and if their losses are those that are kept, the results note that today's code makes the same checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_shear.core import collect_versions
from hf_shear.data import load_domains, pack_domains, split_domains

from ..provenance import BEFORE, check_made_again, code_digest, code_record, note_confirmed, with_record
from ..shared import ROOT
from .family_forms import FAMILIES, make_family
from .forms import FORMS, NEMOTRON_NAS, PADDED, SHAPES, forms_of, make_form
from .runner import ACCEPTED, OPENING, REFUSED, without_paths

PRECISIONS = {
    "llama_cpp": ["f32", "q8_0", "f16", "q4_0", "q4_k_m"],
    "ctranslate2": ["float32", "int8"],
    "openvino": ["f32", "int8", "int4"],
    "onnx": ["f32", "int8", "int4"],
    "mlx": ["float32", "int8", "int4"],
    "vllm": ["float32", "int8"],
}
QUANTIZED_FORMS = (
    "uniform", "narrow_attention", "odd_rows", "indivisible_mistral", "narrow_hidden", "hidden_mistral", PADDED,
    NEMOTRON_NAS,
)  # fmt: skip
"""The rest differ from these in nothing that blocks of weights depend on, and run in floats only."""
NUM_PROMPTS, NUM_TEXTS, PROMPT_TOKENS, NEW_TOKENS, TEXT_TOKENS = 8, 128, 16, 32, 128
CALIBRATION_BATCHES, BATCH = 16, 8
EMBEDDED = "examples/embedded"  # the text where no folder is given
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside of a process: the system sends the first where memory runs out."""


def text_of(
    source: str, data_dir: str | None, num_batches: int, num_prompts: int, num_texts: int
) -> tuple[list[dict], dict]:
    """Batches to score units on, and the held-out part of a job: texts in ids, prompts (how the first texts begin), and
    strings to tokenise."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if data_dir is None:
        from examples.embedded.stdlib_domains import stdlib_domains

        domains = stdlib_domains()
    else:
        domains = load_domains(data_dir)
    train, held_out = split_domains(domains)
    names = list(train)
    packed = {
        side: pack_domains(part, tokenizer, max_length=TEXT_TOKENS) for side, part in (("t", train), ("h", held_out))
    }
    batches = []
    for number in range(num_batches):
        name, start = names[number % len(names)], number // len(names) * BATCH
        ids = torch.tensor(packed["t"][name][start : start + BATCH]["input_ids"])
        batches.append({"input_ids": ids, "labels": ids})
    texts = [
        list(packed["h"][names[number % len(names)]][number // len(names)]["input_ids"]) for number in range(num_texts)
    ]
    strings = [held_out[names[number % len(names)]][number]["text"][:300] for number in range(num_prompts)]
    prompts = [text[:PROMPT_TOKENS] for text in texts[:num_prompts]]
    job = {"prompts": prompts, "new_tokens": NEW_TOKENS, "texts": texts}
    job |= {"strings": strings, "tokenized": [tokenizer(text).input_ids for text in strings]}
    return batches, job | {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}


@torch.no_grad()
def reference(checkpoint: Path, job: dict) -> dict:
    """What transformers gives for the job, in float32: logits of the texts, greedy continuations of the prompts."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    logits = [model(torch.tensor([text])).logits[0].numpy() for text in job["texts"]]
    greedy = []
    for prompt in job["prompts"]:
        ids = torch.tensor([prompt])
        done = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=job["new_tokens"], do_sample=False,
                              pad_token_id=0)  # fmt: skip
        greedy.append(done[0, len(prompt) :].tolist())
    losses = [text_loss(log_probabilities(own), text) for own, text in zip(logits, job["texts"], strict=True)]
    deviation = float(np.sqrt(np.mean([np.var(each) for each in logits])))
    return {"logits": logits, "greedy": greedy, "loss": float(np.mean(losses)), "logit_deviation": deviation}


def kept_reference(checkpoint: Path, job: dict, folder: Path) -> dict:
    """The reference, computed once for a working folder; engines may come one after another."""
    logits, rest = folder / "logits.npz", folder / "reference.json"
    if not rest.exists():
        found = reference(checkpoint, job)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(logits, *found.pop("logits"))
        rest.write_text(json.dumps(found), encoding="utf-8")
    return {"logits": StoredLogits(logits), **json.loads(rest.read_text(encoding="utf-8"))}


class StoredLogits:
    """The arrays of a file, read one by one each time they are gone through: those of all texts are large."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self):
        with np.load(self.path) as stored:
            for number in range(len(stored.files)):
                yield stored[stored.files[number]]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of logits [tokens, vocabulary]: what all engines can be compared by, since some give no logits."""
    return torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy()


def text_loss(scores: np.ndarray, text: list[int]) -> float:
    """Nats per predicted token of a text, from log-probabilities [tokens, vocabulary]."""
    return float(-np.take_along_axis(scores[:-1], np.array(text[1:])[:, None], 1).mean())


def compare(record: dict, logits: Iterable[np.ndarray], expected: dict, job: dict) -> dict:
    """How far the engine is from transformers: equal greedy texts, log-probabilities of all tokens, equal next tokens after
    given text, and the change of the loss, a mean over texts of one length, with the standard error of that mean."""
    differences, same_argmax, changes = [], [], []
    for own, theirs, text in zip(logits, expected["logits"], job["texts"], strict=True):
        own, theirs = log_probabilities(own), log_probabilities(theirs)
        differences.append(np.abs(own - theirs).max())
        same_argmax.append(np.mean(own.argmax(-1) == theirs.argmax(-1)))
        changes.append(text_loss(own, text) - text_loss(theirs, text))
    same = [_until(own, job["eos"]) == _until(theirs, job["eos"])
            for own, theirs in zip(record["greedy"], expected["greedy"], strict=True)]  # fmt: skip
    return {
        "greedy_equal": sum(same),
        "max_logit_difference": _rounded(max(differences)),
        "argmax_equal": round(float(np.mean(same_argmax)), 4),
        "loss_difference": round(float(np.mean(changes)), 5),
        "loss_difference_se": round(float(np.std(changes, ddof=1)) / len(changes) ** 0.5, 5),
    }


def compare_tokens(own: list[list[int]], theirs: list[list[int]], bos: int) -> dict:
    """How many strings become the same pieces, BOS aside, and whether the engine adds a BOS where transformers does not."""
    pieces = [[ids[1:] if ids[:1] == [bos] else ids for ids in each] for each in (own, theirs)]
    return {
        "same_tokens": sum(map(list.__eq__, *pieces)),
        "adds_bos": own[0][0] == bos and theirs[0][0] != bos,
    }


def _until(tokens: list[int], eos: int) -> list[int]:
    """The tokens before EOS: engines differ in whether they return it."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _rounded(value: float) -> float:
    return float(f"{float(value):.3g}")


def strings_of(form: str, job: dict) -> list[str]:
    """The texts to tokenise. Readers of other families than Llama and Mistral expect another kind of tokenizer."""
    return job["strings"] if form in FORMS and not form.startswith("qwen") else []


def precisions(engine: str, form: str, most: int | None = None) -> list[str]:
    """What a form, or a family, is run in."""
    return PRECISIONS[engine][: most if form in QUANTIZED_FORMS else 1]


def run_engine(engine: str, python: str, folders: list[Path]) -> None:
    """Let the engine do the jobs in the folders, in one process as long as none of them ends it.

    Raises:
        RuntimeError: the process failed for another reason than a checkpoint, or was killed from outside. What was open
            then runs again the next time.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    if engine == "llama_cpp":  # the converter brings a gguf of its own, newer than the published one
        folder = Path(os.environ["CONVERT_HF_TO_GGUF"]).resolve().parent
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder / "gguf-py")])
    command = [python, "-m", f"{__package__}.run_{engine}", *(str(folder.resolve()) for folder in folders)]
    while any(
        not (folder / f"{precision}.json").exists() for folder in folders for precision in _job(folder)["precisions"]
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        if done.returncode == 0:
            return
        broken = [path for folder in folders for path in folder.glob("*.json") if _status(path) == OPENING]
        if done.returncode in [code for stop in STOPS for code in (-stop, 128 + stop)]:
            for path in broken:
                path.unlink()
            names = " and ".join(f"{path.stem} of {path.parent.name}" for path in broken) or "no checkpoint"
            raise RuntimeError(f"run_{engine}.py was killed ({done.returncode}) with {names} open. That is no refusal: "
                               "give it more memory or time, and start again.")  # fmt: skip
        if not broken:
            raise RuntimeError(f"run_{engine}.py failed with no checkpoint open:\n{done.stderr[-2000:]}")
        record, folder = json.loads(broken[0].read_text(encoding="utf-8")), broken[0].parent
        record |= {"status": REFUSED, "reason": without_paths(_last_words(done), folder.resolve(), _job(folder))}
        broken[0].write_text(json.dumps(record), encoding="utf-8")


def read_records(folder: Path, job: dict, expected: dict) -> dict[str, dict]:
    """What the results file says of each precision that ran in the folder; ``code`` is the digest of what made it."""
    records = {}
    for precision in job["precisions"]:
        record = json.loads((folder / f"{precision}.json").read_text(encoding="utf-8"))
        facts = {"status": record["status"], "versions": record["versions"], "date": record["date"]}
        facts["code"] = todays_code()
        if record["status"] == ACCEPTED:
            logits = StoredLogits(folder / f"{precision}.npz")
            facts |= compare(record, logits, expected, job)
            if job["strings"] and record["tokenized"][0] is not None:
                facts |= compare_tokens(record["tokenized"], job["tokenized"], job["bos"])
            dequantized = folder / f"{precision}.dequantized"
            if dequantized.exists():
                facts["same_weights"] = compare(record, logits, reference(dequantized, job), job)
        else:
            facts["reason"] = record["reason"]
        records[precision] = facts
    return records


def _job(folder: Path) -> dict:
    return json.loads((folder / "job.json").read_text(encoding="utf-8"))


def _status(path: Path) -> str | None:
    return json.loads(path.read_text(encoding="utf-8")).get("status")


def _last_words(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return f"the process ended with {done.returncode}: {lines[-1][:300] if lines else ''}"


def check_checkpoints(results: dict, expected: dict[str, dict]) -> None:
    """Note that today's code makes the checkpoints whose records are kept, so that new records may stand beside them.

    Raises:
        ValueError: the loss of one differs.
    """
    made = [form for form in expected if form in results["runs"]]
    for form in made:
        check_made_again(form, [results["runs"][form]["loss"]], [expected[form]["loss"]])
    if made:
        note_confirmed([one for one in results["code"] if one["digest"] != todays_code()], todays_code())


def used_code(results: dict) -> list[dict]:
    """The records of the code that made what is kept."""
    used = {facts.get("code") for run in results["runs"].values() for engine in PRECISIONS
            for facts in run.get(engine, {}).values()}  # fmt: skip
    return [one for one in results["code"] if one["digest"] in used] + ([BEFORE] if None in used else [])


def todays_code() -> str:
    """Digest of the code that makes the numbers."""
    return code_digest("examples.research.engines.measure", ("main",))


def write(output: Path, results: dict) -> None:
    """Keep the results, without code that made nothing of them."""
    named = [one for one in used_code(results) if one["digest"]]
    output.write_text(json.dumps(results | {"code": named}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--shapes", choices=list(SHAPES), help="of the source, as in forms.py")
    parser.add_argument("--families", action="store_true", help="in place of forms: those of family_forms.py")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", required=True, help="JSON; records of other engines and forms in it are kept")
    parser.add_argument("--work_dir", help="for checkpoints and converted files; a temporary one by default")
    parser.add_argument("--engines", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help="by default all that the shapes allow")
    parser.add_argument("--calibration_batches", type=int, default=CALIBRATION_BATCHES, help=f"of {BATCH} samples")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="to continue")
    parser.add_argument(
        "--texts", type=int, default=NUM_TEXTS, help=f"held-out, of {TEXT_TOKENS} tokens; the loss is theirs"
    )
    parser.add_argument("--precisions", type=int, help="of each engine only so many, in the order of PRECISIONS")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PATH")
    arguments = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in arguments.python)
    work = Path(arguments.work_dir or tempfile.mkdtemp())
    batches, job = text_of(
        arguments.source, arguments.data_dir, arguments.calibration_batches, arguments.prompts, arguments.texts
    )
    output = Path(arguments.output)
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"code": [], "runs": {}}
    results |= {"source": "families" if arguments.families else arguments.shapes, "versions": collect_versions()}
    results |= {
        "prompts": arguments.prompts,
        "texts": arguments.texts,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "text_tokens": TEXT_TOKENS,
        "calibration_batches": arguments.calibration_batches,
        "precisions": arguments.precisions,
        "text": Path(arguments.data_dir).name if arguments.data_dir else EMBEDDED,
    }
    if arguments.families:
        checkpoints = {name: make_family(name, arguments.source, work / "families") for name in FAMILIES}
    else:
        shapes = SHAPES[arguments.shapes]
        checkpoints = {
            form: make_form(form, arguments.source, shapes, batches, work / "forms")
            for form in arguments.forms or forms_of(arguments.shapes)
        }
    # transformers has no class for a nemotron-nas: the same model, padded, stands for it
    computed = {form: path.with_name(PADDED) if form == NEMOTRON_NAS else path for form, path in checkpoints.items()}
    expected = {form: kept_reference(path, job, work / "reference" / form) for form, path in computed.items()}
    check_checkpoints(results, expected)
    output.parent.mkdir(parents=True, exist_ok=True)
    for engine in arguments.engines:
        results["code"] = with_record(results["code"], code_record(todays_code()))
        jobs = {
            form: {**job, "checkpoint": str(path.absolute()), "strings": strings_of(form, job),
                   "precisions": precisions(engine, form, arguments.precisions)}
            for form, path in checkpoints.items()
        }  # fmt: skip
        folders = {form: work / engine / form for form in checkpoints}
        for form, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(json.dumps(jobs[form]), encoding="utf-8")
        run_engine(engine, pythons.get(engine, sys.executable), list(folders.values()))
        for form, folder in folders.items():
            records = read_records(folder, jobs[form], expected[form])
            config = json.loads((checkpoints[form] / "config.json").read_text(encoding="utf-8"))
            run = results["runs"].setdefault(form, {})
            run |= {"config": config, "loss": round(expected[form]["loss"], 5), engine: records}
            run["logit_deviation"] = _rounded(expected[form]["logit_deviation"])
            for name, facts in records.items():
                print(form, engine, name, {key: value for key, value in facts.items() if key != "versions"}, flush=True)
        write(output, results)
    write(output, results)


if __name__ == "__main__":
    main()
