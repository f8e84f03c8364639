"""What each kind of unit buys in speed: the share of time that goes for each share of parameters that goes.

    python -m examples.research.speed_by_unit measure  # some five minutes on one CPU core
    python -m examples.research.speed_by_unit table    # the table of examples/docs/search.md anew, measuring nothing

Models have SmolLM2-135M's shape and random weights; each loses one kind of unit. Each takes turns with the source, in
pairs of rounds of which either begins one, and times are compared within a pair, so that other work on the machine strikes
both. 1.0: 10 % fewer parameters are 10 % less time.

Layers of different widths are timed against a uniform shape of as many parameters (claim of Sheared LLaMA, section 4).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear.core import write_text_atomically
from hf_shear.evaluation import SpeedProtocol, measure_speed
from hf_shear.shapes import TargetShape, config_for_shape

from .claims.claim_results import markdown_table
from .provenance import code_digest, code_record, stale_note
from .shared import EXAMPLES, ROOT, put_between

RESULTS, PAGE = ROOT / "model_cards" / "speed_by_unit.json", EXAMPLES / "docs" / "search.md"
CONFIG = LlamaConfig(
    hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
    vocab_size=49_152, tie_word_embeddings=True,
)  # fmt: skip
CUTS: dict[str, dict[str, int]] = {
    "layers": {"num_hidden_layers": 20},
    "heads": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "MLP neurons": {"intermediate_size": 1024},
    "hidden dimensions": {"hidden_size": 360},
}
"""A third of each; of hidden dimensions the multiple of 8 and of 9 heads that is next to it."""
UNIFORM, WIDTHS = "MLP neurons", (512, 1536)
"""The cut that layers of different widths are timed against, and these, which take turns: as many neurons in all."""
PAIRS, PROTOCOL = 5, SpeedProtocol(batch_size=1, prompt_length=128, new_tokens=12, rounds=2)
STAGES = ("prefill", "decode")
UNEVEN = "uneven"
MARKS = ("<!-- speed by unit: start -->\n", "<!-- speed by unit: end -->")


def measure() -> dict:
    """Times of each cut against the source's: [pair] of each stage, as shares."""
    torch.manual_seed(0)
    source, cuts = LlamaForCausalLM(CONFIG).eval(), {}
    models = {
        name: LlamaForCausalLM(config_for_shape(CONFIG, TargetShape.from_source(CONFIG, **sizes))).eval()
        for name, sizes in CUTS.items()
    }
    pairs = {name: (source, model) for name, model in models.items()} | {
        UNEVEN: (uneven(models[UNIFORM]), models[UNIFORM])
    }
    found: dict[str, list[dict]] = {name: [] for name in pairs}
    for number in range(PAIRS):
        for name, pair in pairs.items():
            found[name].append(measure_speed(*pair, PROTOCOL))
            print(number, name, *(f"{stage} {found[name][-1][f'{stage}_ratio']}" for stage in STAGES), flush=True)
    for name, model in models.items():
        kept = model.num_parameters() / source.num_parameters()
        cuts[name] = {"sizes": CUTS[name], "parameters": kept, "times": times(found[name])}
    first = next(iter(found.values()))[0]
    machine = {
        name: first[name] for name in ("device", "threads", "dtype", "batch_size", "prompt_length", "new_tokens")
    }
    return {"code": [code_record(todays_code())], "machine": machine, "cuts": cuts, UNEVEN: times(found[UNEVEN])}


def times(measured: list[dict]) -> dict[str, list[float]]:
    """Of the second model of a pair, in those of the first: [pair] of each stage."""
    return {stage: [1 / one[f"{stage}_ratio"]["median"] for one in measured] for stage in STAGES}


def uneven(uniform: LlamaForCausalLM) -> LlamaForCausalLM:
    """A model whose MLPs have ``WIDTHS`` in turns."""
    model = copy.deepcopy(uniform)
    for number, layer in enumerate(model.model.layers):
        width, mlp = WIDTHS[number % len(WIDTHS)], layer.mlp
        mlp.gate_proj, mlp.up_proj = (nn.Linear(CONFIG.hidden_size, width, bias=False) for _ in range(2))
        mlp.down_proj = nn.Linear(width, CONFIG.hidden_size, bias=False)
    if model.num_parameters() != uniform.num_parameters():
        raise AssertionError(f"{model.num_parameters():,} parameters are not the uniform {uniform.num_parameters():,}.")
    return model


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


def worth(cut: dict, stage: str) -> tuple[float, float, float]:
    """Of a cut, the share of time that goes for each share of parameters that goes: quartiles over pairs."""
    return quartiles([(1 - time) / (1 - cut["parameters"]) for time in cut["times"][stage]])


def verdict(cuts: dict[str, dict], stage: str) -> str:
    """Which kinds of units are known to differ: their quartiles do not overlap."""
    found = {name: worth(cut, stage) for name, cut in cuts.items()}
    order = sorted(found, key=lambda name: -found[name][1])
    apart = [
        f"{one} above {other}" for one in order for other in order if found[one][0] > found[other][2]
    ]  # fmt: skip
    return "; ".join(apart) if apart else "no kind is apart from another: noise hides it"


def table(kept: dict) -> str:
    """For the page."""
    rows = []
    for name, cut in kept["cuts"].items():
        cells = [
            f"{median:.2f} ({low:.2f} to {high:.2f})" for low, median, high in (worth(cut, stage) for stage in STAGES)
        ]
        rows.append((name, f"{1 - cut['parameters']:.1%}", *cells))
    machine, pairs = kept["machine"], len(next(iter(kept["cuts"].values()))["times"][STAGES[0]])
    return "\n\n".join(
        [
            markdown_table(("a third of the", "parameters removed", *STAGES), rows),
            "Time saved for each share of parameters removed (1.0: a tenth of the parameters is a tenth of the time),"
            f" medians and quartiles of {pairs} pairs:"
            f" SmolLM2-135M's shape, random weights, {machine['dtype']}, {machine['threads']} thread,"
            f" {machine['prompt_length']} tokens of prompt, one sequence.",
            *(f"- {stage}: {verdict(kept['cuts'], stage)}" for stage in STAGES),
            uniform_against_uneven(kept),
        ]
    )


def uniform_against_uneven(kept: dict) -> str:
    """What a uniform shape gains over layers of different widths, as a sentence for each stage."""
    width = CUTS[UNIFORM]["intermediate_size"]
    words = []
    for stage in STAGES:
        low, median, high = quartiles(kept[UNEVEN][stage])
        state = "faster" if high < 1 else "slower" if low > 1 else "neither faster nor slower"
        words.append(f"{state} in {stage} ({median:.2f} of the time, {low:.2f} to {high:.2f})")
    return (
        f"A uniform shape is {' and '.join(words)} than MLPs of {' and '.join(map(str, WIDTHS))} neurons in turns, with as"
        f" many parameters as {width:,} everywhere. Sheared LLaMA (section 4) says that uniform shapes are faster; its"
        " reason, kernels on a GPU, was not tried here."
    )


def todays_code() -> str:
    """Digest of the code that makes the numbers."""
    return code_digest("examples.research.speed_by_unit", ("measure", "CUTS", "CONFIG", "PAIRS", "PROTOCOL"))


def page() -> str:
    """The page of the documentation, with the table of what is kept."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    note = stale_note(kept["code"], todays_code(), "python -m examples.research.speed_by_unit measure")
    inner = "\n\n".join(filter(None, (note, table(kept)))) + "\n"
    return put_between(PAGE.read_text(encoding="utf-8"), MARKS, inner)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table"))
    if parser.parse_args(command_line).what == "measure":
        torch.set_num_threads(1)
        write_text_atomically(RESULTS, json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
