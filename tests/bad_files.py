"""Rows of damaged files: results, provenance, evaluation, laws, checkpoints, YAML, text."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from bad_arguments import VERBS
from bad_inputs import Row, a_folder, a_pipe, remove
from safetensors.torch import load_file, save_file

NO_JSON = "not valid JSON"
RUN, CARD, PUSH, PLAN = VERBS["report"], VERBS["card"], VERBS["push"], "plan {run}"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def put(**fields) -> Callable[[Path], None]:
    """Damage to a JSON file: entries by their place, with "__" between keys."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        for place, value in fields.items():
            *outer, last = place.split("__")
            part = content
            for key in outer:
                part = part[int(key) if isinstance(part, list) else key]
            if value is remove:
                del part[last]
            else:
                part[int(last) if isinstance(part, list) else last] = value
        path.unlink()
        path.write_text(json.dumps(content))

    return damage


def _place(record: str, place: str) -> str:
    """How messages name a place in a record."""
    return "`" + re.sub(r"\.(\d+)", r"[\1]", f"{record}.{place.replace('__', '.')}") + "`"


def cut(num_bytes: int) -> Callable[[Path], None]:
    """Damage: the file ends early."""

    def damage(path: Path) -> None:
        content = path.read_bytes()[:num_bytes]
        path.unlink()
        path.write_bytes(content)

    return damage


def tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Damage to a file of weights."""

    def damage(path: Path) -> None:
        content = load_file(path)
        change(content)
        path.unlink()
        save_file(content, path, metadata={"format": "pt"})

    return damage


def renamed(to: str) -> Callable[[Path], None]:
    """Damage: a file has another name."""
    return lambda path: path.rename(path.with_name(to))


HEAD, NORM, GATE = "lm_head.weight", "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"

# Whatever is wrong with a JSON file of a run, for every verb that reads it.
BROKEN = [
    ("", NO_JSON), ("{", NO_JSON), (b"\xff\xfe{}", ("UTF-8", NO_JSON)), ("[]", ("JSON object", "list")), ("null", ("JSON object", "None")),
    ("3", "JSON object"), ("\"x\"", "JSON object"), ("[" * 100_000, ("deep", NO_JSON)), ("{\"source\": NaN}", ("NaN", "finite")),
    ("{\"source\": 1" + "0" * 5000 + "}", ("digits", NO_JSON)), (a_folder, ("not a file", "holds no")), (a_pipe, ("not a file", "neither a file")),
]  # fmt: skip
SIDE_FILES = [
    *[
        Row(line, ("results.json", (*([rule] if isinstance(rule, str) else rule), "not a file", "holds no")), {"run/results.json": content})
        for line in (RUN, CARD, PUSH, PLAN)
        for content, rule in BROKEN
    ],
    *[Row(line, ("evaluation.json", rule), {"run/evaluation.json": content}) for line in (RUN, CARD) for content, rule in BROKEN],
    *[
        Row(line, ("shear_provenance.json", rule), {f"{place}/shear_provenance.json": content})
        for line, place in ((CARD, "run/recovered"), ("inspect {small}", "small"))
        for content, rule in BROKEN
    ],
    *[Row("inspect {small}", ("prune_config.json", rule), {"small/prune_config.json": content}) for content, rule in BROKEN],
    *[
        Row("inspect {small}", (_place("prune_config", place), "prune_config.json", rule), {"small/prune_config.json": json.dumps({place: value})})
        for place, value, rule in (
            ("criterion", 3, "a string"), ("compensation", [], "a string"), ("num_shots", 0, "above 0"), ("units", "layer", "a list"),
            ("protect", {}, "a string"), ("as_family", 3, "a string"), ("pruning_share", "half", "number"),
        )
    ],
    Row("inspect {small}", ("prune_config.json", "'colour'", "num_shots"), {"small/prune_config.json": json.dumps({"colour": "red"})}),
    Row("inspect {small}", ("prune_config.json", "`compensation`", "'magic'", "none, bias"), {"small/prune_config.json": json.dumps({"compensation": "magic"})}),
    Row(CARD, ("`provenance.prune_config`", "shear_provenance.json", "an object"), {"run/recovered/shear_provenance.json": put(prune_config=3)}),
    *[Row("plan {fit} " + "{ask}", ("law.json", rule), {"fit": content}) for content, rule in BROKEN],
    *[Row("plan {list}", ("runs.json", rule), {"list": content}) for content, rule in BROKEN if content not in ("[]",)],
    *[Row("report {unfinished}", (("stages.json", "{unfinished}"), ("whole", "object", "no run wrote")), {"unfinished/stages.json": content}) for content, _ in BROKEN],
    *[
        Row(line, (_place("results", place), "results.json", rule), {"run/results.json": put(**{place: value})})
        for line in (RUN, CARD, PLAN)
        for place, value, rule in (
            ("source", [], "an object"), ("source", "x", "an object"), ("source__loss", [1], "an object"), ("source__loss__books", "2", "number"),
            ("pruned__num_parameters", "many", "whole number"), ("source__num_parameters", -5, "whole number"),
            ("source__num_parameters", True, "whole number"), ("source__num_parameters", 1.5, "whole number"),
            ("recovered__mean", "2.4", "number"), ("recovered__mean", None, "number"), ("source__mean", 10**400, ("number", "finite")),
            ("tokens", [1, 2], "an object"), ("tokens__recovery", "all", "whole number"), ("tokens__mask_learning", -1, "whole number"),
            ("source__shape", [18], "an object"), ("history", {}, "a list"), ("history__0", 3, "an object"),
        )
    ],
    *[
        Row(line, (_place("results", place), "results.json", rule), {"run/results.json": put(**{place: value})})
        for line in (RUN, CARD)
        for place, value, rule in (
            ("source__shape__hidden_size", "18", "whole number"), ("recovered__loss", {}, "empty"), ("baselines", [], "an object"),
            ("baselines__taylor", 3, "an object"), ("baselines__taylor__loss", "x", "an object"), ("baselines__taylor__mean", "x", "number"),
            ("seconds", "x", "an object"), ("seconds__total", "x", "number"), ("versions", ["torch"], "an object"), ("command", 3, "a string"),
            ("passes", [], "an object"), ("seed", "x", "whole number"),
        )
    ],
    *[
        Row(CARD, (f"`{place.split('__')[-1]}`", ("lack", "have no")), {"run/results.json": put(**{place: remove})})
        for place in ("source", "pruned", "recovered", "tokens", "source__loss", "recovered__mean", "recovered__shape",
                      "source__num_parameters", "pruned__eval_tokens")
    ],
    *[
        Row(PLAN, ("results.json", f"`{place.split('__')[-1]}`", "lacks"), {"run/results.json": put(**{place: remove})})
        for place in ("source", "pruned", "recovered", "tokens", "source__num_parameters", "pruned__num_parameters",
                      "tokens__recovery", "recovered__mean")
    ],
    *[
        Row(line, (_place("evaluation", place), "evaluation.json", rule), {"run/evaluation.json": put(**{place: value})})
        for line in (RUN, CARD)
        for place, value, rule in (
            ("source", 3, "an object"), ("pruned", [], "an object"), ("speed", "fast", "an object"), ("speed__decode_ratio", 2, "an object"),
            ("speed__decode_ratio__median", "x", "number"), ("source__tasks", [], "an object"), ("source__tasks__piqa", 3, "an object"),
            ("source__tasks__piqa__value", "x", "number"), ("source__perplexity", 3, "an object"),
            ("source__perplexity__domains", [], "an object"), ("pruned__perplexity__domains__books__loss", "x", "number"),
            ("source__num_parameters", "x", "whole number"), ("pruned__weight_bytes", "x", "whole number"), ("source__name", 3, "a string"),
        )
    ],
    *[
        Row(CARD, (_place("provenance", place), "shear_provenance.json", rule), {"run/recovered/shear_provenance.json": put(**{place: value})})
        for place, value, rule in (
            ("source", [], "an object"), ("source__name_or_path", 3, "a string"), ("source__revision", [], "a string"),
            ("mask_settings", 3, "an object"), ("source__shape", 3, "an object"),
        )
    ],
    *[
        Row("inspect {small}", (_place("provenance", place), "shear_provenance.json", rule), {"small/shear_provenance.json": put(**{place: value})})
        for place, value, rule in (
            ("kept", [], "an object"), ("kept__layers", 3, "a list"), ("kept__layers__0", "x", "whole number"),
            ("kept__heads", [], "an object"), ("kept__heads__x", 3, "a list"),
        )
    ],
    Row(CARD, ("`hidden_size`", "results"), {"run/results.json": put(recovered__shape__hidden_size=13)}),
    Row(CARD, ("{run}", "`hidden_size` is x"), {"run/recovered/config.json": put(hidden_size="x")}),
    Row(CARD, ("config.json", "`model_type`"), {"run/recovered/config.json": put(model_type=3)}),
    Row(CARD, ("README.md", "other content", "--overwrite"), {"run/recovered/README.md": b"\xff\xfe"}),
    Row(CARD, ("evaluation", "7 parameters", "another model"), {"run/evaluation.json": put(pruned__num_parameters=7)}),
    Row(PUSH, ("model.safetensors", ("damaged", "cut short")), {"run/recovered/model.safetensors": cut(1000)}),
    Row(PUSH, ("model.safetensors", ("damaged", "cut short")), {"run/recovered/model.safetensors": ""}),
    Row(PUSH, ("no weights", "model.safetensors"), {"run/recovered/model.safetensors": remove}),
    Row(PUSH, ("README.md",), {"run/recovered/README.md": "---\n- no mapping\n---\n"}),
    Row(PUSH, ("README.md",), {"run/recovered/README.md": "---\na: [\n---\n"}),
    Row(PUSH, ("tokenizer",), {"run/recovered/tokenizer.json": remove, "run/recovered/tokenizer_config.json": remove}),
    Row(PUSH, ("tokenizer_config.json", NO_JSON), {"run/recovered/tokenizer_config.json": "{"}),
    Row(PUSH, ("config.json", NO_JSON), {"run/recovered/config.json": "{"}),
    Row(PUSH, ("model.safetensors.index.json", NO_JSON), {"run/recovered/model.safetensors": remove, "run/recovered/model.safetensors.index.json": "{"}),
    Row(PUSH, ("model.safetensors.index.json", "weight_map"), {"run/recovered/model.safetensors": remove, "run/recovered/model.safetensors.index.json": "{}"}),
    Row(PUSH, ("index.json", "../"), {"run/recovered/model.safetensors": remove, "run/recovered/model.safetensors.index.json": json.dumps({"weight_map": {HEAD: "../../x.safetensors"}})}),
    Row(RUN, ("results.json", "no run"), {"run/results.json": remove}),
    Row("inspect {small}", ("shear_provenance.json", "`heads`", "lacks", "layer 0"), {"small/shear_provenance.json": put(kept__heads__0=remove)}),
    Row("inspect {small}", ("shear_provenance.json", "`intermediate`", "lacks"), {"small/shear_provenance.json": put(kept__intermediate=remove)}),
]  # fmt: skip

HEADER = "run,num_parameters,fraction_removed,source_loss,tokens,loss\n"
LAWS = [
    *[
        Row("plan {law} {ask}", ("runs.csv", *needs), {"law": content})
        for content, needs in (
            ("", ("columns", "run")), (HEADER, ("no rows",)), (b"\xff\xfe", ("UTF-8",)), ("a,b\n1,2\n", ("columns", "unknown: a, b")),
            (HEADER + "a,1e9,.2,2.5,1e6,x\n", ("line 2", "`loss`", "'x'")), (HEADER + "a,1e9,.2,2.5,1e6,nan\n", ("line 2", "`loss`", "finite")),
            (HEADER + "a,1e9,.2,2.5,1e6\n", ("line 2", "`loss`")), (HEADER + "a,1e9,.2,2.5,1e6,2.6,9\n", ("line 2", "more")),
            (HEADER + "a,1e9,20,2.5,1e6,2.6\n", ("`fraction_removed`", "20", "below 1")), (HEADER + "a,1e9,.2,2.5,1.5,2.6\n", ("`tokens`", "whole")),
            (HEADER + ",1e9,.2,2.5,1e6,2.6\n", ("line 2", "`run`")),
            (HEADER + "a,1e9,.2,2.5,1e6,2.6\na,2e9,.2,2.5,2e6,2.5\n", ("`num_parameters`", "same")),
            (HEADER + "a,-1e9,.2,2.5,1e6,2.6\n", ("`num_parameters`", "above 0")), (HEADER + "a,1e9,.2,2.5,1e6,2.6\n" * 2, ("`tokens`", "rise")),
            ("run,run,num_parameters,fraction_removed,source_loss,tokens,loss\n", ("twice", "run")),
            (a_pipe, ("file",)),
        )
    ],
    *[
        Row("plan {fit} {ask}", ("law.json", f"`{place}`", rule), {"fit": put(**{place: value})})
        for place, value, rule in (
            ("theta", "x", "numbers"), ("theta", [1.0], "numbers"), ("theta", [None] * 5, "numbers"), ("theta", {}, "numbers"),
            ("samples", [[1.0]], "numbers"), ("samples", 3, "numbers"), ("samples", [["x"] * 5], "numbers"), ("form", "best", "one of"),
            ("form", 3, "one of"), ("form", remove, "lacks"), ("fitted", [], "a dict"), ("fitted", {}, "num_parameters"),
            ("fitted", {"num_parameters": 3, "fraction_removed": [0.1, 0.2], "tokens": [1, 2]}, "numbers"), ("has_controls", "yes", "true or false"),

        )
    ],
    *[
        Row("plan {list} {ask}", (*needs,) if "no.json" in needs else ("runs.json", *needs), {"list": content})
        for content, needs in (
            ("[]", ("no run",)), ("[3]", ("dict",)), ("[{}]", ("missing: path",)), ("[[]]", ("dict",)), ("{}", ("`source`", "lacks")),
            ("[{\"path\": 3, \"num_parameters\": 1e9, \"fraction_removed\": 0.2, \"source_loss\": 2}]", ("`path`", "3", "string")),
            ("[{\"path\": \"no.json\", \"num_parameters\": 1e9, \"fraction_removed\": 0.2, \"source_loss\": 2}]", ("no.json", "file")),
            ("[{\"path\": \"state.json\", \"num_parameters\": \"1e9\", \"fraction_removed\": 0.2, \"source_loss\": 2}]", ("`num_parameters`", "'1e9'", "number")),
            ("[{\"path\": \"state.json\", \"num_parameters\": 1e9, \"fraction_removed\": \"x\", \"source_loss\": 2}]", ("`fraction_removed`", "'x'", "number")),
            ("[{\"path\": \"state.json\", \"num_parameters\": 1e9, \"fraction_removed\": 0.2, \"source_loss\": null}]", ("`source_loss`", "None", "number")),
            ("{\"log_history\": []}", ("Trainer's state", "List it")),
        )
    ],
    *[
        Row("plan {states}/runs.json {ask}", ("state.json", *needs), {"states/state.json": content})
        for content, needs in (
            ("", (NO_JSON,)), ("[]", ("`log_history`",)), ("{\"log_history\": 3}", ("`log_history`", "a list")), ("{\"log_history\": []}", ("eval_loss",)),
            ("{\"log_history\": [3]}", ("`log_history", "a dict")), ("{\"log_history\": [{\"eval_loss\": \"x\", \"num_tokens\": 5}]}", ("eval_loss", "number")),
            ("{\"log_history\": [{\"eval_loss\": 2.0, \"num_tokens\": \"x\"}]}", ("num_tokens", "number")),
            ("{\"log_history\": [{\"eval_loss\": 2.0}]}", ("tokens_per_step",)), (remove, ("file",)), (a_folder, ("file",)),
        )
    ],
]  # fmt: skip

READERS = ("inspect", "learn", "prune", "interleave", "recover", "evaluate")
LOADERS = READERS[1:]
ONE_CONFIG = [
    # damage of config.json, and the texts of its refusal
    ("", ("config.json", NO_JSON)), ("{", ("config.json", NO_JSON)), ("[]", ("config.json", "JSON object")), ("{}", ("config.json", "model_type")),
    (b"\xff\xfe\x00", ("config.json", ("UTF-8", NO_JSON))), (put(hidden_size="18"), ("hidden_size", "18")), (put(hidden_size=-18), ("hidden_size", "-18")),
    (put(num_hidden_layers=0), ("num_hidden_layers", "0")), (put(num_attention_heads=None), ("num_attention_heads", "None")),
    (put(vocab_size=1.5), ("vocab_size", "1.5")), ('{"model_type": "gpt2"}', ("gpt2", "llama")), (put(model_type="nosuch"), ("nosuch", ("supported", "llama"))),
    (put(model_type=7), ("model_type",)), (put(auto_map={"AutoConfig": "evil.Config"}, model_type="evil"), ("auto_map", "code")),
    (put(num_key_value_heads=4), ("k_proj", "[12, 18]", "[16, 18]", "config")),
    (put(hidden_act="wobble"), ("hidden_act", "wobble")), (a_folder, ("config.json", ("folder", "no config.json"))),
    (put(max_position_embeddings=0), ("max_position_embeddings", "0")), (put(rms_norm_eps="x"), ("rms_norm_eps", "x")), (remove, ("config.json",)),
]  # fmt: skip
SOURCES = [
    *[Row(VERBS["inspect"], needs, {"model/config.json": damage}) for damage, needs in ONE_CONFIG],
    *[Row(VERBS[verb], needs, {"model/config.json": damage}) for verb in LOADERS for damage, needs in ONE_CONFIG[::4]],
    *[
        Row(VERBS[verb], (("{model}", "'model'"), *needs), {f"model/{name}": damage}, reads_weights=True)
        for verb in LOADERS
        for name, damage, needs in (
            ("model.safetensors", remove, ("weights",)), ("model.safetensors", "", ("model.safetensors",)),
            ("model.safetensors", cut(3000), ("model.safetensors",)), ("model.safetensors", b"PK\x03\x04" + b"\0" * 99, ("model.safetensors",)),
            ("model.safetensors", struct.pack("<Q", 2**60) + b"{}", ("model.safetensors",)),
            ("model.safetensors", tensors(lambda all: all.pop(GATE)), (GATE, ("missing", "lacks"))),
            ("model.safetensors", tensors(lambda all: all.update(extra=torch.ones(2))), ("extra",)),
            ("model.safetensors", tensors(lambda all: all.update({GATE: torch.ones(23, 18)})), (GATE, "23", "24")),
            ("model.safetensors", tensors(lambda all: all.update({GATE: torch.ones(24, 18, dtype=torch.int8)})), (GATE, "int8")),
            ("model.safetensors", tensors(dict.clear), ("no weights",)), ("config.json", put(num_hidden_layers=4), ("model.layers.3",)),
            ("config.json", put(num_hidden_layers=2), ("model.layers.2",)),
            ("config.json", put(quantization_config={"quant_method": "gptq", "bits": 4}), ("gptq", "quanti")),
        )
    ],
    *[
        Row(line, needs, damage, reads_weights=True)
        for line, needs, damage in (
            (VERBS["inspect"], ("gptq", "quanti"), {"model/config.json": put(quantization_config={"quant_method": "gptq", "bits": 4})}),
            (VERBS["prune"], ("index.json", NO_JSON), {"model/model.safetensors": renamed("model-00001-of-00001.safetensors"), "model/model.safetensors.index.json": "{"}),
            (VERBS["prune"], ("index.json", "weight_map"), {"model/model.safetensors": renamed("model-00001-of-00001.safetensors"), "model/model.safetensors.index.json": "{}"}),
            (VERBS["prune"], ("index.json", "../"), {"model/model.safetensors": remove, "model/model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {HEAD: "../small/model.safetensors"}})}),
            (VERBS["prune"], ("shard2.safetensors",), {"model/model.safetensors": remove, "model/model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {HEAD: "shard2.safetensors"}})}),
            (VERBS["prune"], ("not finite", "checkpoint"), {"model/model.safetensors": tensors(lambda all: all.update({GATE: torch.full((24, 18), torch.nan)}))}),
            (VERBS["export"], ("model.safetensors",), {"masked/model.safetensors": cut(4000)}),
            (VERBS["export"], (GATE, ("missing", "lacks")), {"masked/model.safetensors": tensors(lambda all: all.pop(GATE))}),
            (VERBS["export"], ("'layer'", "NaN"), {"masked/model.safetensors": tensors(lambda all: [value.fill_(torch.nan) for name, value in all.items() if "layer" in name and "masks" in name])}),
            (VERBS["export"], ("masks", ("missing", "lacks")), {"masked/model.safetensors": tensors(lambda all: [all.pop(name) for name in list(all) if "masks" in name])}),
            (VERBS["export"], ("config.json", NO_JSON), {"masked/config.json": "{"}),
            (VERBS["export"], ("`hidden_size`", "99", "18"), {"masked/config.json": put(target_shape__hidden_size=99)}),
            (VERBS["export"], ("target_shape",), {"masked/config.json": put(target_shape="x")}),
            (VERBS["export"], ("`method`", "'x'", "relaxed_topk"), {"masked/config.json": put(mask_settings__method="x")}),
            ("inspect {masked}", ("`hidden_size`", "99", "18"), {"masked/config.json": put(target_shape__hidden_size=99)}),
            ("export {adapter} --base {model} --output_dir {out}", ("adapter_config.json", NO_JSON), {"adapter/adapter_config.json": "{"}),
            ("export {adapter} --base /nowhere --output_dir {out}", ("`base`", "/nowhere"), {}),
            ("recover {model} {again}", ("pruned", GATE.replace("1", "0"), ("missing", "lacks")), {"small/model.safetensors": tensors(lambda all: all.pop(GATE.replace("1", "0")))}),
            (VERBS["learn"] + " --distillation forward_kl --teacher_name_or_path {small}", ("small", GATE, ("missing", "lacks")), {"small/model.safetensors": tensors(lambda all: all.pop(GATE))}),
        )
    ],
    *[
        Row(VERBS[verb], needs, damage)
        for verb in ("learn", "prune", "interleave", "recover")
        for damage, needs in (
            ({"model/tokenizer.json": remove, "model/tokenizer_config.json": remove}, ("{model}", "tokenizer")),
            ({"model/tokenizer.json": "{"}, ("tokenizer.json",)), ({"model/tokenizer.json": "{}"}, ("tokenizer.json",)),
            ({"model/tokenizer_config.json": "["}, ("tokenizer_config.json", NO_JSON)),
            ({"model/tokenizer_config.json": put(eos_token=3)}, ("{model}", "eos_token", "str")),
        )
    ],
    *[
        Row(VERBS[verb], ("generation_config.json", *needs), {"model/generation_config.json": damage})
        for verb in ("learn", "prune", "interleave", "recover")
        for damage, needs in (("{", (NO_JSON,)), ("[]", ("JSON object",)), (put(max_new_tokens=-3), ("max_new_tokens", "-3")))
    ],
]  # fmt: skip

YAMLS = [
    Row("learn {model} {train} --config {yaml}", ("{yaml}", *needs), {"yaml": content})
    for content, needs in (
        ("a: [", ("YAML",)), ("- 1\n- 2\n", ("list", "names and values")), ("x", ("str", "names and values")), ("hiden_size: 12", ("`--hiden_size`", "`--hidden_size`")),
        ("mask_tokens: 5\nmask_tokens: 6\n", ("mask_tokens", "twice")), ("mask_start_spread: {a: 1}", ("mask_start_spread", "number")),
        (BOMB, ("alias",)), (b"\xff\xfe\x00", ("UTF-8",)), ("!!python/object/apply:os.system [ls]", ("YAML", "python")),
        ("mask_start_spread: .nan", ("mask_start_spread", "nan")), ("warmup_steps: -1", ("warmup_steps", "-1")), ("max_steps: 5", ("max_steps", "mask_tokens")),
        ("seed: 'x'", ("seed", "x")), ("baselines: maybe", ("baselines", "maybe", "true or false")), ("1: 2", ("1", "name")),
        ("? [a]\n: b", ("YAML",)), ("preset: ''", ("preset", "empty")), ("seed: 2024-01-01", ("seed", "2024-01-01", "whole number")), ("seed: [1, 2]", ("seed", "one value")),
        ("config: other.yaml", ("config", "{yaml}")), ("mixture_weights: 3", ("mixture_weights", "3")), ("seed: 0o17x", ("seed", "whole number")), (a_pipe, ("file",)),
    )
]  # fmt: skip

LINE = json.dumps({"text": "abc def"})
TEXTS = [
    Row(f"{line}", ("books", *needs), {"text/books/a.txt": remove, **{f"text/books/{name}": content for name, content in files.items()}})
    for line in ("prune {model} {cut}", "evaluate {model} {judge}")
    for files, needs in (
        ({}, ("none",)), ({"a.txt": ""}, ("a.txt", "a document")), ({"a.txt": b"abc \xff\xfe"}, ("a.txt", "UTF-8")), ({"a.jsonl": "{"}, ("a.jsonl", "line 1", "Json")),
        ({"a.jsonl": LINE + "\nx\n"}, ("a.jsonl", "line 2", "Json")), ({"a.jsonl": "[]\n"}, ("a.jsonl", "line 1", "object")),
        ({"a.jsonl": json.dumps({"content": "x"})}, ("a.jsonl", "line 1", "text_field", "content")), ({"a.jsonl": json.dumps({"text": 3})}, ("a.jsonl", "line 1", "text", "string")),
        ({"a.jsonl": json.dumps({"text": None})}, ("a.jsonl", "line 1", ("null", "None"))), ({"a.parquet": "PAR1xxxx"}, ("a.parquet",)), ({"a.parquet": ""}, ("a.parquet",)),
        ({"a.docx": "x"}, (".docx", ".txt")), ({"a.json.gz": "no gzip"}, ("a.json.gz", "gzip")), ({"a.json.gz": gzip.compress(LINE.encode())[:-9]}, ("a.json.gz",)),
        ({"a.jsonl.zst": b"\x28\xb5\x2f\xfd"}, ("a.jsonl.zst",)), ({"a.json": "[{"}, ("a.json",)), ({"a.json": "[3]"}, ("a.json", "object")),
    )
]  # fmt: skip

ROWS = SIDE_FILES + LAWS + SOURCES + YAMLS + TEXTS
