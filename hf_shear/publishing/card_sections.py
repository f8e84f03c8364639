"""The sections of a card, one function each. All numbers come from the facts, formatted here."""

from __future__ import annotations

import shlex

from ..core import TARGET_NAMES
from ..core.markdown import fenced_code, inline_code, markdown_text
from ..masks import STRATEGIES
from ..report import markdown_table
from .card_facts import CardFacts, short_count
from .card_picture import PICTURE_NAME
from .citations import citations
from .engine_rules import ACCEPTED, EVIDENCE

FOLDER_COMMENT = "  # the folder of that name in the run's folder"
PUSH_COMMAND = "hf-shear push RUN_FOLDER YOUR_NAME/MODEL_NAME --private"
MADE_AGAIN = "These commands make it again, in a POSIX shell with git and Python:"
NO_COMMAND = "The command that made this model was not recorded."
NOT_PUBLISHED = f"\n\nThis model is not published. This command publishes it:\n\n```bash\n{PUSH_COMMAND}\n```"
ENGINE_COMMANDS = {
    "vLLM on a CPU": "vllm serve {name}",
    "vLLM on a GPU": "vllm serve {name}",
    "llama.cpp": "python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {file}.gguf && llama-cli -m {file}.gguf",
}
"""How a checkpoint is run in an engine whose rules accept it; {name} may be on the Hub, {folder} is one here."""
RECOVERY_METHODS = {
    "full": "all weights were trained",
    "lora": "low-rank adapters were trained and merged",
    "norms_and_biases": "norms and biases were trained",
}


def summary(facts: CardFacts) -> str:
    """What it is, in one paragraph."""
    own, source = facts.record["num_parameters"], facts.results["source"]["num_parameters"]
    text = (
        f"A language model with {own:,} parameters, cut out of {facts.source_in_prose} ({source:,} parameters) by"
        f" structured pruning: {100 * own / source:.1f} % of the source is left."
    )
    if facts.is_interleaved:
        return f"{text} It was trained for {facts.results['tokens']['mask_learning']:,} tokens while it was pruned."
    if facts.arm == "pruned":
        return f"{text} It has not been trained after the cut: it is a start for training, not for use."
    return f"{text} It was trained for {facts.results['tokens']['recovery']:,} more tokens after the cut."


def removed(facts: CardFacts) -> str:
    """The shape before and after."""
    before, after = facts.results["source"]["shape"], facts.record["shape"]
    lines = ["| | source | this model | kept |", "|---|---|---|---|"]
    for name in (*TARGET_NAMES, "head_dim"):
        if name in before and name in after:
            lines.append(
                f"| `{name}` | {before[name]:,} | {after[name]:,} | {100 * after[name] / before[name]:.1f} % |"
            )
    own, source = facts.record["num_parameters"], facts.results["source"]["num_parameters"]
    lines.append(f"| parameters | {source:,} | {own:,} | {100 * own / source:.1f} % |")
    picture = f"\n\n![Heads, MLP neurons and hidden dimensions that were kept]({PICTURE_NAME})"
    return "\n".join(lines) + (picture if facts.has_picture else "")


def made(facts: CardFacts) -> str:
    """Method, tokens, and data with weights."""
    tokens = facts.results["tokens"]
    lines = [_choice(facts, tokens)]
    if tokens.get("calibration"):
        purpose = "scores and compensation" if facts.provenance.get("prune_config") else "the start of the masks"
        lines.append(f"- Calibration, for {purpose}: {tokens['calibration']:,} tokens.")
    if facts.arm == "recovered":
        lines.append(_recovery(facts, tokens["recovery"]))
    elif facts.is_interleaved:
        lines.append(f"- Training between and after the shots: all weights, {tokens['mask_learning']:,} tokens.")
    else:
        lines.append("- Recovery: none yet.")
    if "seed" in facts.results:
        lines.append(f"- Seed: {facts.results['seed']}.")
    data = _data(facts)
    return "\n".join(lines) + (f"\n\n{data}" if data else "")


def _choice(facts: CardFacts, tokens: dict) -> str:
    config = facts.provenance.get("prune_config")
    if config:
        return f"- What to keep was chosen by scores: {chosen_by(config)}. `prune_config.json` has these choices."
    masks = (facts.provenance.get("mask_settings") or {}).get("method")
    if masks is None and not tokens.get("mask_learning"):
        return "- What to keep was chosen before this run; by which method was not recorded."
    how = STRATEGIES[masks].in_words if masks in STRATEGIES else "learned masks (the method was not recorded)"
    return (
        f"- What to keep was learned with {how}, in {tokens['mask_learning']:,} training tokens."
        " The masked model and the cut one compute the same function."
    )


def chosen_by(config: dict) -> str:
    """The choices of a ``PruneConfig``, as its ``to_dict`` has them, in a phrase."""
    criterion = config.get("criterion") or "not recorded"
    if isinstance(criterion, dict):
        criterion = " ".join(choice if kind == "default" else f"{kind}={choice}" for kind, choice in criterion.items())
    named = {"criterion": criterion, **{name: config.get(name) for name in ("compensation", "allocation")}}
    parts = [f"{name} {inline_code(value)}" for name, value in named.items() if value]
    if config.get("units"):
        parts.append(f"units {inline_code(' '.join(config['units']))}")
    if config.get("protect"):
        layers = config["protect"]
        layers = layers if isinstance(layers, str) else ",".join(map(str, layers))
        parts.append(f"layers {inline_code(layers)} protected")
    shots = config.get("num_shots", 1)
    parts.append("in one shot" if shots == 1 else f"in {shots} shots")
    if config.get("pruning_share"):
        parts.append(f"taken in the first {100 * config['pruning_share']:.3g} % of the training steps")
    return ", ".join(parts)


def _recovery(facts: CardFacts, tokens: int) -> str:
    recovery = facts.results.get("recovery") or {}
    text = f"- Recovery (continued pre-training): {_recovery_method(facts)}"
    rate = facts.record.get("learning_rate")
    text += f", {tokens:,} tokens" + (f", learning rate {rate:g}" if rate is not None else "")
    if recovery.get("distillation"):
        text += ", with distillation from the source"
    return text + "."


def _recovery_method(facts: CardFacts) -> str:
    method = (facts.results.get("recovery") or {}).get("method", "full")
    return RECOVERY_METHODS.get(method) or inline_code(method)


def _data(facts: CardFacts) -> str:
    """Weights of the domains at the end of each stage, and how often recovery passed over each."""
    last = {row["stage"]: row.get("mixture_weights") for row in facts.results.get("history", []) if "stage" in row}
    passes = facts.results.get("passes", {})
    columns = []
    first = "training" if facts.is_interleaved else "mask learning"
    for stage, heading in (("mask_learning", first), ("recovery", "recovery")):
        if stage == "recovery" and facts.arm == "pruned":
            continue
        if last.get(stage):
            columns.append((f"last weight in {heading}", last[stage], ".3f"))
        if passes.get(stage):
            columns.append((f"passes in {heading}", passes[stage], ".3g"))
    domains = list(facts.record["loss"])
    if not columns:
        return f"Domains of the text: {', '.join(map(markdown_text, domains))}."
    lines = ["| domain | " + " | ".join(heading for heading, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for domain in domains:
        cells = [format(values[domain], form) if domain in values else "-" for _, values, form in columns]
        lines.append(f"| {markdown_text(domain)} | " + " | ".join(cells) + " |")
    return "Share of each domain in the batches, which follows what the model finds hard:\n\n" + "\n".join(lines)


def measured(facts: CardFacts) -> str:
    """The run's table with its verdict, and the evaluation's tables if there is one."""
    parts = [markdown_table(facts.results).strip()]
    evaluation = facts.evaluation or {}
    if (evaluation.get("pruned") or {}).get("perplexity"):
        parts.append(_perplexity(evaluation))
    if (evaluation.get("pruned") or {}).get("tasks"):
        parts.append(_tasks(evaluation))
    return "\n\n".join(parts)


def _perplexity(evaluation: dict) -> str:
    protocol = evaluation["pruned"]["perplexity"].get("protocol") or {}
    listed = ", ".join(
        f"{markdown_text(name)} {_plain(value)}"
        for name, value in protocol.items()
        if not isinstance(value, dict | list)
    )
    columns = "| domain | source loss | loss | interval of the loss | perplexity | bits per byte |"
    lines = [f"Evaluated again on held-out text{f' ({listed})' if listed else ''}:", "", columns, "|---" * 6 + "|"]
    source = (evaluation["source"].get("perplexity") or {}).get("domains", {})
    for domain, row in evaluation["pruned"]["perplexity"]["domains"].items():
        interval = " to ".join(f"{bound:.3f}" for bound in row.get("loss_interval") or ()) or "-"
        before = f"{source[domain]['loss']:.3f}" if domain in source else "-"
        cells = (f"{row[name]:.3f}" if name in row else "-" for name in ("perplexity", "bits_per_byte"))
        lines.append(f"| {markdown_text(domain)} | {before} | {row['loss']:.3f} | {interval} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _tasks(evaluation: dict) -> str:
    lines = ["| task | metric | items | source | this model |", "|---|---|---|---|---|"]
    source = evaluation["source"].get("tasks") or {}
    for task, row in evaluation["pruned"]["tasks"].items():
        cells = [_value(source[task]) if task in source else "-", _value(row)]
        names = f"{markdown_text(task)} | {markdown_text(row['metric'])}"
        lines.append(f"| {names} | {_plain(row.get('num_items', '-'))} | {' | '.join(cells)} |")
    return "\n".join(["Tasks (± standard error):", "", *lines])


def _value(row: dict) -> str:
    if row.get("value") is None:
        return "-"
    error = row.get("standard_error")
    return f"{row['value']:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def speed(facts: CardFacts) -> str:
    """Tokens per second of both models side by side, and what they need of memory."""
    evaluation = facts.evaluation or {}
    parts = [_memory(evaluation)] if "weight_bytes" in (evaluation.get("pruned") or {}) else []
    found = evaluation.get("speed")
    if not found:
        return "\n\n".join([*parts, "Speed was not measured."])
    lines = ["| | source | this model | ratio (median, low to high) |", "|---|---|---|---|"]
    for stage in ("prefill", "decode"):
        key, ratio = f"{stage}_tokens_per_second", found[f"{stage}_ratio"]
        lines.append(
            f"| {stage}, tokens per second | {found['source'][key]:,.1f} | {found['pruned'][key]:,.1f} |"
            f" {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) |"
        )
    device, dtype = markdown_text(found["device"]), markdown_text(found["dtype"])
    setting = (
        f"Measured on {device} in {dtype}, batch {found['batch_size']}, prompt"
        f" {found['prompt_length']:,}, {found['new_tokens']:,} new tokens, {found['rounds']} rounds:"
    )
    return "\n\n".join([*parts, setting, "\n".join(lines)])


def _memory(evaluation: dict) -> str:
    lines = ["| | source | this model |", "|---|---|---|"]
    for name, text in (("weight_bytes", "bytes of weights"), ("kv_cache_bytes_per_token", "KV cache, bytes per token")):
        if name in evaluation["source"] and name in evaluation["pruned"]:
            lines.append(f"| {text} | {evaluation['source'][name]:,} | {evaluation['pruned'][name]:,} |")
    return "\n".join(lines)


def license_text(facts: CardFacts) -> str:
    """The source's licence, named, or that it was not found."""
    if facts.license is None:
        return (
            "**The licence of the source was not found.** A pruned model is a derivative of its source and stays under the"
            " source's licence. Whoever publishes this model must look it up and add it to this card."
        )
    name = markdown_text(facts.license.name or facts.license.identifier)
    link = f" ({facts.license.link})" if facts.license.link else ""  # checked: an address or the name of a file
    found_in = markdown_text(facts.license.found_in)
    return f"This model stays under the licence of its source: **{name}**{link}, as {found_in} says."


def load(facts: CardFacts) -> str:
    """A snippet that loads the model and writes some words, and commands of the engines that take it."""
    name = facts.repo_id or facts.arm
    comment = "" if facts.repo_id else FOLDER_COMMENT
    if facts.has_chat_template:
        inputs = """messages = [{"role": "user", "content": "Tell me a story."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
    else:
        inputs = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"{comment}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
{inputs}
tokens = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=20)
print(tokenizer.decode(tokens[0]))
```

It is a plain checkpoint: `hf_shear` is not needed to load it.{_engines(facts)}"""


def _engines(facts: CardFacts) -> str:
    """Commands of the engines whose rules accept the checkpoint; nothing where there is none."""
    blocks, shown = [], set()
    for row in facts.engines:
        if ENGINE_COMMANDS.get(row.engine) in (None, *shown) or row.verdict != ACCEPTED:
            continue
        shown.add(ENGINE_COMMANDS[row.engine])
        command = _engine_command(row.engine, facts.arm, facts.repo_id)
        blocks.append(f"{row.engine} ({row.version}) takes it ({EVIDENCE[row.evidence]}):\n\n{command}")
    return "".join(f"\n\n{block}" for block in blocks)


def _engine_command(engine: str, arm: str, repo_id: str | None) -> str:
    """Fenced; of a repository, or of a run's folder."""
    folder = (repo_id or arm).split("/")[-1]
    command = ENGINE_COMMANDS[engine].format(name=repo_id or arm, folder=folder, file=folder)
    if repo_id and "{folder}" in ENGINE_COMMANDS[engine]:
        command = f"hf download {repo_id} --local-dir {folder}\n{command}"
    return fenced_code(command, "bash")


def again(facts: CardFacts) -> str:
    """The commands that make the model, and the one that publishes it where that has not been done."""
    text = NO_COMMAND
    if facts.rebuild_command:
        commands = "\n".join([*_install(facts), facts.rebuild_command])
        text = f"{MADE_AGAIN}\n\n{fenced_code(commands, 'bash')}"
        text += "\n\nFolders in it stand without their paths: text and models of these names must be in the folder."
    return text + ("" if facts.repo_id is not None else NOT_PUBLISHED)


def _install(facts: CardFacts) -> list[str]:
    """Lines that install the code of the commit that made the model; none where that was not noted."""
    code = facts.results.get("made_by") or {}
    commit = code.get("commit")
    if not commit:
        return []
    url, changed = code.get("url"), code.get("changed")
    torch = str((facts.results.get("versions") or {}).get("torch", "")).partition("+")[0]
    lines = ["# Files had been changed since this commit."] if changed else []
    lines += [f"git clone {url} hf_shear && cd hf_shear"] if url else ["# In a clone of hf_shear:"]
    packages = shlex.join([*([f"torch=={torch}"] if torch else []), "-e", ".[plots]"])
    environment = "python3 -m venv .venv && . .venv/bin/activate"
    return [*lines, f"git checkout {shlex.quote(commit)}", f"{environment} && pip install {packages}"]


def as_published(card: str, repo_id: str) -> str:
    """A card that was written before the model was published, perhaps edited since, as it reads afterwards."""
    for arm in ("recovered", "pruned"):
        card = card.replace(f'name = "{arm}"{FOLDER_COMMENT}', f'name = "{repo_id}"')
        for engine in ENGINE_COMMANDS:
            card = card.replace(_engine_command(engine, arm, None), _engine_command(engine, arm, repo_id))
    return card.replace(NOT_PUBLISHED, "")


def versions(facts: CardFacts) -> str:
    """Versions of what made it, and how long that took."""
    found = facts.results.get("versions") or facts.provenance.get("versions") or {}
    text = ", ".join(f"{markdown_text(name)} {markdown_text(version)}" for name, version in found.items())
    text = text or "not recorded"
    seconds = (facts.results.get("seconds") or {}).get("total")
    return text + "." + (f" The whole run, with its baselines, took {seconds:,.0f} seconds." if seconds else "")


def cited(facts: CardFacts) -> str:
    """BibTeX."""
    return f"```bibtex\n{citations(facts.results, facts.provenance)}\n```"


def title(facts: CardFacts) -> str:
    """The heading."""
    return f"{markdown_text(facts.name)}: {short_count(facts.record['num_parameters'])} parameters"


def _plain(value) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else markdown_text(value)
