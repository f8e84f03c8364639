"""The LLM Surgeon's tables (arXiv 2312.17244): perplexity by size, for the paper's own structures and rivals.

    python -m examples.research.surgeon_tables --model meta-llama/Llama-2-7b-hf --data_dir WIKITEXT2 --device cuda
    python -m examples.research.surgeon_tables --model facebook/opt-125m --data_dir WIKITEXT2 --structure unstructured
    python -m examples.research.surgeon_tables --model LLAMA --data_dir stories.txt --small
    python -m examples.research.surgeon_tables --model LLAMA --data_dir stories.txt --confirm KEPT.json ...

`--data_dir` is a folder of text files, of which `--calibration` names the one that curvature is estimated on and
`--evaluation` the one that is judged on (WikiText-2: train and test); or one .txt file, whose last tenth is judged on.
Documents are joined by blank lines and cut into samples of `--max_length` tokens without overlap, as in the paper's
code. Each method passes through all sizes in one run: `--num_shots` shots in all, spread evenly over what is removed.

Sizes are the paper's: weights of the decoder's linear layers that are not zero, over all of them. Zeros make a model
neither smaller nor faster; `hf_shear.prune_one_shot` does. Writes OUTPUT.json and OUTPUT.md. `--confirm` makes the first
size of each structure in such files again, after a change of the code, and notes in them whether it is the same.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from hf_shear.core import collect_versions, write_results
from hf_shear.data import Calibration, load_domains
from hf_shear.sources import open_source
from hf_shear.sparsity import STRUCTURES, SurgeonSettings, prune_to_zeros

from .provenance import BEFORE, MadeAgain, code_digest, code_record, confirm, made_by, stale_note
from .shared import ROOT, put_between

METHODS = {
    "magnitude": {"curvature": "none", "update": "none"},
    "kobd": {"update": "none"},
    "surgeon": {},
}
PAPER = {"max_length": 2048, "num_samples": 128, "num_shots": 40, "max_evaluated": None}
SMALL = {"max_length": 256, "num_samples": 64, "num_shots": 5, "max_evaluated": 32}
PAGE = ROOT / "examples" / "docs" / "surgeon_structures.md"
RESULTS = ROOT / "model_cards" / "surgeon" / "stories260k.json"
SHORT = RESULTS.with_name("stories260k-32-samples.json")
"""Of half the calibration text and half the shots: the page tells of it."""
COMMAND = (
    "python -m examples.research.surgeon_tables --model STORIES260K --data_dir TINYSTORIES.txt --small --num_shots 10"
    " --batch_size 8 --structure rows_and_columns 2:4 unstructured --output stories260k"
)
MARKS = "<!-- results: start -->\n", "<!-- results: end -->"
HELD_OUT = 0.1  # of a single text file
TEXT_BLOCK = 10_000  # documents tokenised at once: bounds memory


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder or hub name of a causal language model of linear layers")
    add("--data_dir", required=True, type=Path, help="folder of text files, or one .txt file")
    add("--text_field", default="text", help="field or column that holds the text (%(default)s)")
    add("--calibration", default="train", help="file in --data_dir, without its suffix, for curvature")
    add("--evaluation", default="test", help="file in --data_dir, without its suffix, for the perplexities")
    add("--structure", nargs="+", default=["rows_and_columns"], choices=STRUCTURES)
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    add("--sizes", nargs="+", type=float, default=[90, 80, 70, 60, 50], help="percent of the weights that remain")
    add("--num_shots", type=int, help=f"in all, over the sizes (default: {PAPER['num_shots']}, the paper's)")
    add("--num_samples", type=int, help=f"calibration samples (default: {PAPER['num_samples']})")
    add("--max_length", type=int, help=f"tokens of a sample (default: {PAPER['max_length']}, or the model's positions)")
    add("--max_evaluated", type=int, help="judge on the first samples only (default: all)")
    add("--small", action="store_true", help=f"other defaults, for a try in a minute: {SMALL}")
    add("--batch_size", type=int, default=1, help="samples of one forward and backward")
    add("--layers_at_once", type=int, help="linear layers per pass over the text, factors on the CPU (default: all)")
    add(
        "--update", default="joint", choices=["joint", "blocks", "independent"], help="of the surgeon's entries and 2:4"
    )
    add("--damping", type=float, default=0.01, help="of the factors, times their mean diagonal")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    add("--device", default="cpu")
    add("--seed", type=int, default=0, help="of the draw of the calibration samples")
    add(
        "--confirm", nargs="+", type=Path, metavar="JSON", help="kept results to compare with, whose options then apply"
    )
    add("--output", type=Path, default=Path("surgeon_tables"), help="path of the results without suffix")
    options = parser.parse_args(arguments)
    for name, value in (SMALL if options.small else PAPER).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if any(not 0 < size < 100 for size in options.sizes) or sorted(set(options.sizes), reverse=True) != options.sizes:
        parser.error(f"--sizes must be percentages between 0 and 100 that fall, but they are {options.sizes}")
    return options


def read_texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Documents for curvature and for the perplexities."""
    if options.data_dir.is_dir():
        domains = load_domains(options.data_dir, options.text_field)
        for name in (options.calibration, options.evaluation):
            if name not in domains:
                raise ValueError(f"--data_dir holds {', '.join(sorted(domains))}, but not {name!r}.")
        return list(domains[options.calibration]["text"]), list(domains[options.evaluation]["text"])
    documents = options.data_dir.read_text(encoding="utf-8").split("<|endoftext|>")
    if len(documents) < 2:  # one document: its lines
        documents = options.data_dir.read_text(encoding="utf-8").splitlines()
    end = round(len(documents) * (1 - HELD_OUT))
    return documents[:end], documents[end:]


def samples_of(documents: list[str], tokenizer, length: int, enough: int | None = None) -> torch.Tensor:
    """[samples, length]: the documents, joined by blank lines and cut; the first ``enough`` or all."""
    ids: list[int] = []
    for start in range(0, len(documents), TEXT_BLOCK):
        joined = "\n\n".join(document.strip() for document in documents[start : start + TEXT_BLOCK])
        ids += tokenizer(joined, add_special_tokens=start == 0, verbose=False, split_special_tokens=True)["input_ids"]
        if enough is not None and len(ids) >= enough * length:
            ids = ids[: enough * length]
            break
    if len(ids) < length:
        raise ValueError(f"The text holds {len(ids)} tokens, fewer than one sample of --max_length ({length}).")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def draw_calibration(documents: list[str], tokenizer, options: argparse.Namespace) -> Calibration:
    samples = samples_of(documents, tokenizer, options.max_length)
    if len(samples) < options.num_samples:
        raise ValueError(
            f"--num_samples must be at most the text's samples ({len(samples)}), but it is {options.num_samples}."
        )
    generator = torch.Generator().manual_seed(options.seed)
    samples = samples[torch.randperm(len(samples), generator=generator)[: options.num_samples]]
    return Calibration.from_batches([{"input_ids": samples, "labels": samples}], options.batch_size, options.seed)


@torch.no_grad()
def perplexity(model, samples: torch.Tensor, batch_size: int) -> float:
    """Of all predicted tokens: no sample sees another."""
    total = 0.0
    for batch in samples.split(batch_size):
        batch = batch.to(model.device)
        total += float(model(input_ids=batch, labels=batch, use_cache=False).loss) * len(batch)
    return math.exp(total / len(samples))


def shots_of(sizes: list[float], num_shots: int) -> list[int]:
    """Shots before each size: in proportion to what is removed, at least one each."""
    ends = [round(num_shots * (100 - size) / (100 - sizes[-1])) for size in sizes]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def opened(options: argparse.Namespace):
    """The model, the calibration text, and the samples that are judged."""
    source = open_source("model", options.model)
    tokenizer, model = source.load_tokenizer(), source.load_model(options.dtype)
    positions = getattr(model.config, "max_position_embeddings", None)
    options.max_length = min(options.max_length, positions or options.max_length)
    calibration_documents, documents = read_texts(options)
    text = draw_calibration(calibration_documents, tokenizer, options)
    return model, text, samples_of(documents, tokenizer, options.max_length, options.max_evaluated)


def dense(model, samples, options: argparse.Namespace) -> float:
    """Perplexity without zeros."""
    found = perplexity(model.to(options.device), samples, options.batch_size)
    model.to("cpu")
    return found


def run(source, structure: str, method: str, text: Calibration, samples, options) -> Iterator[dict]:
    """One record per size."""
    model = copy.deepcopy(source).to(options.device)
    settings = {"structure": structure, "damping": options.damping, "layers_at_once": options.layers_at_once}
    settings |= METHODS[method]
    if method == "surgeon" and not SurgeonSettings(structure).is_grid:
        settings["update"] = options.update
    settings = SurgeonSettings(**settings)
    sizes = [size for size in options.sizes if size / 100 >= settings.smallest_size]
    masks = None
    for size, num_shots in zip(sizes, shots_of(sizes, options.num_shots), strict=True):
        start = time.perf_counter()
        done = prune_to_zeros(model, size / 100, text, settings, num_shots, masks)
        masks, seconds = done.masks, time.perf_counter() - start
        perplexed = perplexity(model, samples, options.batch_size)
        print(f"{structure:17}{method:11}{100 * done.size:7.2f} %{perplexed:12.3f}{seconds:9.1f} s", flush=True)
        yield {
            "structure": structure, "method": method, "target_size": size, "size": 100 * done.size,
            "perplexity": perplexed, "calibration_loss": done.loss_after, "seconds": seconds,
            "shots": [asdict(shot) for shot in done.shots],
        }  # fmt: skip


def todays_code() -> str:
    """Digest of the code that makes the numbers."""
    return code_digest("examples.research.surgeon_tables", ("opened", "dense", "run"))


def confirm_tables(options: argparse.Namespace, path: Path) -> None:
    """By what a structure's last method, the surgeon as a rule, gives at its first size."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    applied = {"num_samples": kept["num_calibration_samples"], "max_evaluated": kept["num_evaluated"]}
    applied |= kept["options"] | {"max_length": kept["max_length"]}
    options = argparse.Namespace(**vars(options) | applied)

    def made_again() -> Iterator[MadeAgain]:
        source, text, samples = opened(options)
        yield f"{path.name}, dense", [kept["dense_perplexity"]], [dense(source, samples, options)]
        for structure, method in {row["structure"]: row["method"] for row in kept["records"]}.items():
            was = next(row for row in kept["records"] if (row["structure"], row["method"]) == (structure, method))
            now = next(run(source, structure, method, text, samples, options))
            yield f"{path.name}, {structure}, {method}", [was["perplexity"]], [now["perplexity"]]

    kept.setdefault("code", [dict(BEFORE)])
    confirm(kept, todays_code(), made_again())
    write_results(path, kept)


def documented() -> str:
    """The docs' page with the kept table between its marks, under a note where the code has moved since."""
    kept, short = (json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, SHORT))
    code = [*kept.get("code", [BEFORE]), *short.get("code", [BEFORE])]
    parts = (
        stale_note(code, todays_code(), COMMAND),
        table(kept).rstrip(),
        made_by(code, "the first size of each structure"),
    )
    return put_between(PAGE.read_text(encoding="utf-8"), MARKS, "\n\n".join(filter(None, parts)) + "\n")


def table(results: dict) -> str:
    """Markdown: one row per structure and method, one column per size."""
    sizes = results["options"]["sizes"]
    lines = [f"Perplexity of `{results['model']}` by size (weights of linear layers that are not zero), dense "
             f"{results['dense_perplexity']:.3f}.", "",
             "| structure | method | " + " | ".join(f"{size:g} %" for size in sizes) + " |",
             "|---" * (len(sizes) + 2) + "|"]  # fmt: skip
    found = {(row["structure"], row["method"], row["target_size"]): row["perplexity"] for row in results["records"]}
    for structure, method in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((structure, method, size)) for size in sizes]
        cells = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        lines.append(f"| {structure} | {method} | " + " | ".join(cells) + " |")
    drawn = f"{results['num_calibration_samples']} samples of {results['max_length']} tokens"
    lines += ["", f"Curvature on {drawn}, {results['options']['num_shots']} shots in all; judged on "
              f"{results['num_evaluated']} samples of the same length."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    for path in options.confirm or ():
        confirm_tables(options, path)
    if options.confirm:
        PAGE.write_text(documented(), encoding="utf-8")
        return
    source, text, samples = opened(options)
    whole, records = dense(source, samples, options), []
    for structure in options.structure:
        for method in options.methods:
            records += run(source, structure, method, text, samples, options)
    kept = ("sizes", "num_shots", "batch_size", "layers_at_once", "update", "damping", "dtype", "seed")
    results = {
        "model": Path(options.model).name, "dense_perplexity": whole, "records": records,
        "num_calibration_samples": text.num_samples, "max_length": options.max_length, "num_evaluated": len(samples),
        "options": {name: getattr(options, name) for name in kept}, "code": [code_record(todays_code())],
        "versions": collect_versions(),
    }  # fmt: skip
    write_results(f"{options.output}.json", results)
    Path(f"{options.output}.md").write_text(table(results), encoding="utf-8")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
