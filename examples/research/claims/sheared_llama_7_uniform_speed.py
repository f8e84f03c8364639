"""Speed of a uniform shape against layers of different widths, at equal parameters.

python -m examples.research.claims.sheared_llama_7_uniform_speed --data_dir SEVEN_DOMAINS
"""

import sys
from statistics import fmean

import torch
from torch import nn

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.evaluation import SpeedProtocol, measure_speed
from hf_shear.shapes import count_parameters

from ..shared import mean_and_spread
from .claim_command import main
from .claim_results import Claim, SourceResults, compare, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_7_uniform_speed",
    statement="A uniform shape is faster than layers of different widths with as many parameters",
    section="section 4",
    note="The uneven model is cut from the same source by a global ranking to no more parameters, and runs in two forms: "
    "with its layers as narrow as they are, which no stock class loads, and as the stock checkpoint that it is "
    "saved as, padded with zeros to its widest layer. Models take turns in one run; ratios are taken round by "
    "round. Seeds are draws of calibration text. What is judged is the first form, which has as many parameters; "
    "the second shows what a stock checkpoint of the same layers costs, with the parameters that padding adds. One "
    "CPU thread, one sequence. At equal parameters there is no difference here: matrices this small cost what their "
    "sizes add up to. The paper's reason, kernels on a GPU, was not tried.",
)
FORMS = ("as narrow as they are", "padded")
MEASURES = ("prefill", "decode")


def runs(study: Study) -> None:
    for seed in study.seeds:
        for form in FORMS:
            study.run({"form": form, "seed": seed}, lambda form=form, seed=seed: timed(study, form, seed))


def timed(study: Study, form: str, seed: int) -> dict:
    uniform = study.prune(study.target(), seed, criterion="taylor", compensation="none", num_shots=1)
    budget = count_parameters(uniform.config)
    config = PruneConfig("taylor", compensation="none", num_shots=1, allocation="global")
    found = prune_one_shot(study.source(), budget, study.calibration(seed), config)
    uneven = narrowed(found.model) if form == FORMS[0] else found.model
    protocol = SpeedProtocol(
        batch_size=study.timed_batch, prompt_length=256, new_tokens=study.new_tokens, rounds=study.rounds
    )
    speed = measure_speed(uneven.eval(), uniform.eval(), protocol)
    ratios = {name: speed[f"{name}_ratio"]["median"] for name in MEASURES}
    return {
        "num_parameters": {"uniform": budget, "uneven": found.num_parameters, "run": parameters(uneven)},
        "relative_time": {name: 1 / ratio for name, ratio in ratios.items()},
        "widths": [layer.mlp.down_proj.in_features for layer in uneven.model.layers],
        "speed": speed,
    }  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def narrowed(model) -> nn.Module:
    """The model with neurons and heads that are all zeros taken out, layer by layer."""
    for layer in model.model.layers:
        mlp, attention = layer.mlp, layer.self_attn
        neurons = mlp.down_proj.weight.abs().sum(0) > 0
        mlp.gate_proj, mlp.up_proj = (rows_of(linear, neurons) for linear in (mlp.gate_proj, mlp.up_proj))
        mlp.down_proj = columns_of(mlp.down_proj, neurons)
        width = attention.head_dim * attention.num_key_value_groups  # channels of a group of heads
        groups = attention.o_proj.weight.abs().sum(0).view(-1, width).sum(1) > 0
        heads, keys = groups.repeat_interleave(width), groups.repeat_interleave(attention.head_dim)
        attention.q_proj, attention.o_proj = rows_of(attention.q_proj, heads), columns_of(attention.o_proj, heads)
        attention.k_proj, attention.v_proj = rows_of(attention.k_proj, keys), rows_of(attention.v_proj, keys)
    return model


def rows_of(linear: nn.Linear, kept: torch.Tensor) -> nn.Linear:
    narrow = nn.Linear(linear.in_features, int(kept.sum()), bias=False)
    narrow.weight.copy_(linear.weight[kept])
    return narrow


def columns_of(linear: nn.Linear, kept: torch.Tensor) -> nn.Linear:
    narrow = nn.Linear(int(kept.sum()), linear.out_features, bias=False)
    narrow.weight.copy_(linear.weight[:, kept])
    return narrow


def times(source: SourceResults, form: str, measure: str) -> list[float]:
    """Time of the uniform model in that of the uneven one, per seed."""
    return [run["relative_time"][measure] for run in source.select(form=form)]


def checks(source: SourceResults) -> list:
    own = [(measure, times(source, FORMS[0], measure)) for measure in MEASURES]
    return [
        compare(f"{measure}: time of the uniform shape, in that of the uneven", found, [1.0]) for measure, found in own
    ]


def table(source: SourceResults) -> str:
    rows = []
    for form in FORMS:
        run = source.select(form=form)[0]
        counts = run["num_parameters"]
        relative = [mean_and_spread(times(source, form, measure)) for measure in MEASURES]
        rows.append(
            (form, f"{counts['uniform']:,}", f"{counts['run']:,}", ", ".join(map(str, run["widths"])), *relative)
        )
    headings = ("uneven layers", "parameters, uniform", "as run, uneven", "MLP widths, first draw")
    return markdown_table((*headings, *(f"{measure}: time uniform / uneven" for measure in MEASURES)), rows)


def draw(source: SourceResults, axes) -> None:
    for number, measure in enumerate(MEASURES):
        for place, form in enumerate(FORMS):
            values = times(source, form, measure)
            axes.bar(
                place + 0.4 * number, fmean(values), width=0.38, color=f"C{number}", label="" if place else measure
            )
            axes.plot([place + 0.4 * number] * len(values), values, "k.", markersize=4)
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set_xticks([0.2, 1.2], [f"against layers {form}" for form in FORMS], fontsize=8)
    axes.set_ylabel("time of the uniform shape / of the uneven one (ratio)")
    axes.set_ylim(top=1.3)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
