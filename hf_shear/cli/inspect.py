"""``hf-shear inspect``: what a checkpoint is, what a target would remove of it, where it loads; reads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import TARGET_NAMES, UsageError, of_file
from ..core.defaults import MASKED_PREFIX, PROVENANCE_NAME, PRUNE_CONFIG_NAME
from ..runs import TargetArguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..publishing import CheckpointFacts
    from ..shapes import ModelShape
    from ..sources import Source

SUMMARY = "Show a checkpoint's shape, what a target would remove, and which engines take it; reads no weights."
EXAMPLE = "hf-shear inspect path/to/llama --hidden_size 2048 --num_attention_heads 16 --num_key_value_heads 16"
POSITIONAL = ("checkpoint",)

GIB = 2**30
LONGEST = 4096  # tokens of a sequence, where nobody says how many


@dataclass(kw_only=True)
class Arguments(TargetArguments):
    """Which checkpoint, towards which shape."""

    checkpoint: str = field(metadata={"help": "Folder or Hub name; only its config is read."})
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a sequence, for memory and FLOPs. Default: the model's positions, up to 4096."},
    )
    json: bool = field(default=False, metadata={"help": "Write one JSON object in place of the table."})

    @property
    def names_a_target(self) -> bool:
        """Whether any size, preset or budget is given."""
        return any(getattr(self, name) is not None for name in (*TARGET_NAMES, "preset", "target_num_parameters"))


def run(arguments: Arguments) -> None:
    """Print the checkpoint, and the target beside it."""
    from ..publishing import ENGINES, where_it_loads
    from ..shapes import ModelShape, check_supported_source
    from ..sources import open_source
    from .engine_rows import engine_lines

    source = open_source("checkpoint", arguments.checkpoint, as_family=arguments.as_family, masked=None,
                         nemotron_nas=True, unwrap=True, fetch=False)  # fmt: skip
    config, masked = source.config, source.has_masks
    if not masked:
        check_supported_source(config)
    target = reasons = None
    if source.is_nemotron_nas and arguments.names_a_target:
        raise UsageError(
            f"`checkpoint` {source.name!r} is a nemotron-nas export, which is cut already. Name no target."
        )
    if masked:
        target = config.resolved_target()
    elif arguments.names_a_target:
        from ..runs import choose_target

        target, reasons = choose_target(arguments, config)
    model_type = source.fields["model_type"] if source.is_nemotron_nas else config.model_type
    facts = {"checkpoint": arguments.checkpoint, "model_type": model_type, "has_masks": masked}
    facts["notes"] = [*source.notes, *([] if reasons is None else [reasons])]
    length = arguments.sequence_length or min(LONGEST, config.max_position_embeddings)
    facts["sequence_length"] = length
    facts["now"] = describe(config, ModelShape.from_config(config), length)
    if source.is_nemotron_nas:
        facts["now"] |= _of_uneven_layers(source, length)
    provenance = Path(arguments.checkpoint) / PROVENANCE_NAME
    if provenance.exists():
        from ..slicing import read_provenance

        record = read_provenance(arguments.checkpoint)
        with of_file(provenance):
            facts["kept_per_layer"] = widths_of_layers(record.get("kept") or {})
    if (Path(arguments.checkpoint) / PRUNE_CONFIG_NAME).exists():
        from ..pruning import PruneConfig
        from ..publishing.card_sections import chosen_by

        facts["prune_config"] = PruneConfig.from_pretrained(arguments.checkpoint).to_dict()
        facts["notes"].append(f"Pruned by scores: {chosen_by(facts['prune_config'])}.".replace("`", ""))
    if target is not None:
        facts["target"] = describe(config, target, length)
        if target.num_experts is None:
            facts["training_memory_bytes"] = _training_memory(config, length)
    known = engine_facts(source)
    if target is not None:
        known = known.resized(**target.sizes())
    rows = where_it_loads(ENGINES, known)
    facts["engines"] = [row.to_dict() for row in rows]
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    of_what = "the target once it is cut and saved" if target is not None else "this checkpoint"
    print("\n".join([_table(facts, config, arguments), "", *engine_lines(rows, of_what)]))


def describe(config: PretrainedConfig, shape: ModelShape, sequence_length: int) -> dict:
    """Sizes and costs of a shape: parameters, also those of embedding and head; bytes in bfloat16, KV-cache bytes and
    forward FLOPs per token."""
    from ..shapes import count_parameters, forward_flops_per_token
    from ..shapes.parameter_count import count_embedding_parameters

    count = count_parameters(config, shape)
    return {
        "shape": shape.to_dict(),
        "num_parameters": count,
        "embedding_parameters": count_embedding_parameters(config, shape),
        "bfloat16_bytes": 2 * count,
        "kv_cache_bytes_per_token": shape.kv_cache_bytes_per_token(2),
        "forward_flops_per_token": forward_flops_per_token(config, sequence_length, shape),
    }


def widths_of_layers(kept: dict) -> list[dict[str, int]]:
    """Sizes of each layer without padding, from the kept units of a provenance record; 0: no such sub-layer."""
    for name in ("layers", "heads", "key_value_heads", "intermediate"):
        lacking = {"any"} if name not in kept else {str(layer) for layer in kept["layers"]} - set(kept.get(name, ()))
        if name not in kept or (name != "layers" and lacking):
            where = "" if name not in kept else f" of layer {min(lacking)}"
            raise UsageError(f"`provenance.kept` lacks `{name}`{where}. Put back the file that was written with it.")
    return [
        {
            "source_layer": layer,
            "num_attention_heads": len(kept["heads"][str(layer)]),
            "num_key_value_heads": len(kept["key_value_heads"][str(layer)]),
            "intermediate_size": len(kept["intermediate"][str(layer)]),
        }
        for layer in kept["layers"]
    ]


def _widths_table(layers: list[dict[str, int]]) -> list[str]:
    """Lines for a checkpoint whose layers differ; the rest of their shape is zeros."""
    if len({tuple(layer.values())[1:] for layer in layers}) < 2:
        return []
    lines = ["", "Layers differ, and are padded with zeros to the shape above:"]
    lines.append(f"{'layer of the source':<22}{'heads':>8}{'KV heads':>10}{'neurons':>10}")
    for source_layer, heads, groups, neurons in (layer.values() for layer in layers):
        lines.append(f"{source_layer:<22}{heads:>8,}{groups:>10,}{neurons:>10,}")
    return lines


def _of_uneven_layers(source: Source, sequence_length: int) -> dict:
    """What ``describe`` says, of a nemotron-nas export: of its own layers in place of the largest one, repeated."""
    from ..shapes import ModelShape, forward_flops_per_token

    shape = replace(ModelShape.from_config(source.config), num_hidden_layers=1)

    def flops(**sizes: int) -> float:
        return forward_flops_per_token(source.config, sequence_length, replace(shape, **sizes))

    neuron = flops(intermediate_size=2) - flops(intermediate_size=1)
    attention = flops(num_hidden_layers=2) - flops() - neuron * shape.intermediate_size
    total = flops() - attention - neuron * shape.intermediate_size
    cache = 0
    for block in source.fields["block_configs"]:
        if not block["ffn"].get("no_op"):
            total += neuron * round(2 * block["ffn"]["ffn_mult"] * shape.hidden_size / 3)
        if not block["attention"].get("no_op"):
            total += attention
            cache += shape.kv_cache_bytes_per_token(2)
    facts = {"kv_cache_bytes_per_token": cache, "forward_flops_per_token": total}
    if source.weights is not None:
        count = source.weights.num_parameters
        facts |= {"num_parameters": count, "bfloat16_bytes": 2 * count}
    return facts


def engine_facts(source: Source) -> CheckpointFacts:
    """What engines look at. A config without masks stands for the checkpoint that is cut out of a masked one."""
    from ..publishing import facts_of_config, has_byte_fallback

    # As written, since transformers moves what older readers look for; what is not written is what transformers assumes.
    fields, config = dict(source.fields), source.config
    for name in ("layer_types", "no_rope_layers", "query_pre_attn_scalar"):
        if fields.get(name) is None:
            fields[name] = getattr(config, name, None)
    if not source.is_nemotron_nas:
        fields["model_type"] = config.model_type.removeprefix(MASKED_PREFIX)
        fields["tie_word_embeddings"] = config.tie_word_embeddings
    folder = Path(source.name)
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else ()
    return facts_of_config(fields, files, has_byte_fallback(folder))


def _training_memory(config: PretrainedConfig, sequence_length: int) -> dict[str, int]:
    """Peak bytes of mask learning on one device: one sequence, bf16 autocast, AdamW, checkpointed activations."""
    from ..training.memory import estimate_memory
    from ..training.memory_setup import TrainingSetup

    setup = TrainingSetup(1, sequence_length, autocast=True, activation_checkpointing=True)
    return {"mask_learning_one_device": estimate_memory(config, setup).peak}


def _table(facts: dict, config: PretrainedConfig, arguments: Arguments) -> str:
    now, target = facts["now"], facts.get("target")
    rows = [(name, size, target and target["shape"][name]) for name, size in now["shape"].items()]
    rows += [
        ("parameters", now["num_parameters"], target and target["num_parameters"]),
        ("of them in embeddings", now["embedding_parameters"], target and target["embedding_parameters"]),
        ("MiB in bfloat16", now["bfloat16_bytes"] / 2**20, target and target["bfloat16_bytes"] / 2**20),
        ("KV-cache bytes per token", now["kv_cache_bytes_per_token"], target and target["kv_cache_bytes_per_token"]),
        ("forward MFLOPs per token", now["forward_flops_per_token"] / 1e6,
         target and target["forward_flops_per_token"] / 1e6),
    ]  # fmt: skip
    title = f"{arguments.checkpoint}: {facts['model_type']}" + (", with masks" if facts["has_masks"] else "")
    tied = "tied" if config.tie_word_embeddings else "untied"
    vocabulary = f"vocabulary {config.vocab_size:,}, {tied}, {config.max_position_embeddings:,} positions"
    lines = [title, vocabulary, *facts["notes"], ""]
    lines.append(f"{'':<26}{'now':>18}" + (f"{'target':>18}{'kept':>9}" if target else ""))
    for name, before, after in rows:
        line = f"{name:<26}{_number(before):>18}"
        lines.append(line + (f"{_number(after):>18}{after / before:>9.1%}" if after is not None else ""))
    lines += ["", f"FLOPs are those of a sequence of {facts['sequence_length']:,} tokens (`--sequence_length`)."]
    lines += _widths_table(facts.get("kept_per_layer", []))
    if target:
        decode = now["bfloat16_bytes"] / target["bfloat16_bytes"]
        prefill = now["forward_flops_per_token"] / target["forward_flops_per_token"]
        lines += [
            "",
            f"Expected, not measured: decoding up to {decode:.2f} x as fast (bytes of weights), prefill up to"
            f" {prefill:.2f} x (FLOPs).",
        ]
    if "training_memory_bytes" in facts:
        peak = facts["training_memory_bytes"]["mask_learning_one_device"] / GIB
        lines += [
            f"Mask learning needs about {peak:.1f} GiB on one device (bf16 autocast, AdamW, checkpointing, one sequence of"
            f" {facts['sequence_length']:,} tokens);",
            "`hf-shear docs memory` has the ways to shard it.",
        ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
