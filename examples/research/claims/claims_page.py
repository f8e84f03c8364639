"""The page of a claim, and the table of all of them.

    python -m examples.research.claims.claims_page    # all pages, and model_cards/claims.md

Every number comes from model_cards/claims/*.json; a test builds the pages anew and compares.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ..provenance import noted, stale_note
from .claim_results import (
    CONFIGS,
    RESULTS,
    STORIES,
    WORKS,
    Claim,
    SourceResults,
    code_of,
    markdown_table,
    results_of,
    verdict,
)

INDEX = RESULTS.parent / "claims.md"
INTRODUCTION = """# The papers' claims, in miniature

Headline claims of Sheared LLaMA and of the LLM Surgeon, measured on models that anyone can make or get: members of
[`examples/research/family`](../examples/research/family) (`family-128` is the one of 128 hidden dimensions; seven text
domains) and stories260K (TinyStories), which we did not train. Arms have equal tokens and shapes unless a page says
otherwise. Arms are compared in pairs of one seed each: a comparison is held if the 95 % interval of Student's t of the
differences lies on the claimed side of 0, and a tie if 0 is in it, unless its line names another limit; a claim is held if
all of its comparisons are, partly if some are; a tie counts as not held. With three seeds only large and steady
differences pass. Sheared LLaMA 2 sweeps learning rates for each arm: it chooses on one half of the held-out text and
reports the other. Sheared LLaMA 6 takes the rates of 2; the other pages that train have one rate for all arms. These models
are small and have seen little text: what does not hold here may hold at the papers' size, and the other way round.

Other claims are measured on pages of their own: learned masks against one-shot criteria (Sheared LLaMA 3), and the tokens
and FLOPs of each way, on [the main job's page](main_job.md); the speed of uniform shapes (Sheared LLaMA 7) in
[search.md](../examples/docs/search.md#what-each-kind-of-unit-buys-in-speed); the P2 law on
[its page](scaling_law.md).

What to give:

- `SEVEN_DOMAINS`: text in folders arxiv, book, c4-rp, cc, github, stackexchange and wiki, in all 24 MB here. Samples of
  RedPajama from [LLM-Shearing](https://github.com/princeton-nlp/LLM-Shearing) (MIT), filled up with test data of
  [llm-foundry](https://github.com/mosaicml/llm-foundry) and [dolma](https://github.com/allenai/dolma), books in the public
  domain and permissive code; wiki is Bulgarian. The mix itself is not published; any text in such folders does, and gives
  other numbers.
- `STORIES260K`: `stories260K` of [tinyllamas](https://huggingface.co/karpathy/tinyllamas), the model of 260,032 parameters
  of [llama2.c](https://github.com/karpathy/llama2.c), converted to a Hugging Face checkpoint, with its tokenizer of 512
  tokens.
- `TINYSTORIES`: a folder with 2 MiB of [TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) as text,
  stories separated by a line `<|endoftext|>`.

Mixtures start uniform. What was tried and did not help is on [a page of its own](tried.md)."""
GPU_SECONDS_PER_STEP = 0.05
"""A guess, said to be one: models this small leave a GPU waiting for its kernels to be launched."""


def claim_page(module, sources: list[SourceResults]) -> str:
    """A claim's page."""
    claim: Claim = module.CLAIM
    title, paper = WORKS[claim.work]
    where = (
        f" ([{paper}](https://arxiv.org/abs/{paper})" + (f", {claim.section})" if claim.section else ")")
        if paper
        else ""
    )
    checks = [module.checks(source) for source in sources]
    parts = [f"# {title} {claim.number}: {verdict(sum(checks, []))}", f"> {claim.statement}{where}"]
    if claim.note:
        parts.append(claim.note)
    for source, found in zip(sources, checks, strict=True):
        parts.append(f"## {source.name}: {verdict(found)}")
        if claim.work != "llm_surgeon":  # whose tables tell of their draws
            parts.append(
                f"{len(source.settings['seeds'])} seeds; ± is the sample standard deviation over them; differences by seed"
                " have 95 % intervals."
            )
        parts.append(module.table(source))
        parts.append("\n".join(f"- {check.state}: {check.text}." for check in found))
        if passes := passes_line(source):
            parts.append(passes)
    parts += [f"![{claim.statement}]({claim.name}.png)", "## Again", again(claim, sources)]
    return noted(note_of(claim, sources), "\n\n".join(parts) + "\n")


def note_of(claim: Claim, sources: list[SourceResults]) -> str:
    """Whether the code has moved since; "" if not."""
    return stale_note(sources[0].code, code_of(claim), command(claim, sources))


def passes_line(source: SourceResults) -> str:
    """Passes over each domain in the longest stage of training; learning masks is another one than recovery."""
    trained = [run for run in source.runs if run.get("passes")]
    if not trained:
        return ""
    longest = max(trained, key=lambda run: sum(run["passes"].values()))
    tokens = longest["stage_tokens"] if "stage_tokens" in longest else longest["tokens"] - longest.get("mask_tokens", 0)
    passes = ", ".join(f"{name} {number:.2g}" for name, number in longest["passes"].items())
    return f"Passes over the text in the longest stage of training ({tokens:,} tokens): {passes}."


def command(claim: Claim, sources: list[SourceResults]) -> str:
    """That measures a claim again."""
    names = [source.name for source in sources]
    flags = ["--data_dir SEVEN_DOMAINS"] if set(names) - {STORIES} else []
    flags += ["--stories STORIES260K TINYSTORIES"] if STORIES in names else []
    return f"python -m examples.research.claims.{claim.name} {' '.join(flags)} --output again"


def again(claim: Claim, sources: list[SourceResults]) -> str:
    """The command, and how long it takes."""
    seconds = sum(run["run_seconds"] for source in sources for run in source.runs)
    steps = sum(
        run.get("tokens", 0) / (run.get("batch", source.settings["batch_size"]) * source.settings["max_length"])
        for source in sources
        for run in source.runs
    )
    time = f"{max(1, round(seconds / 60))} min of one CPU thread, beside other work: at most that on two cores"
    if steps:
        minutes = max(1, round(steps * GPU_SECONDS_PER_STEP / 60))
        gpu = f"On one GPU, where it was not run: about {minutes} min if a step takes {GPU_SECONDS_PER_STEP} s."
    else:
        gpu = "On one GPU, where it was not run: at most that, we guess, as its matrices are small."
    return (
        f"```bash\n{command(claim, sources)}\n```\n\n"
        f"took {time}. {gpu} Without `--output` the kept arms are read, and only missing ones are run."
        f" [What to give, and where to get it](../claims.md). `--small` finishes in minutes and proves nothing."
        f" Settings: [`{claim.name}.yaml`](../../examples/research/claims/configs/{claim.name}.yaml)."
        f" Numbers: [`{claim.name}.json`]({claim.name}.json)."
    )


def modules() -> list:
    """The scripts of all claims, in the order of works and numbers."""
    found = [importlib.import_module(f"{__package__}.{path.stem}") for path in CONFIGS.glob("*.yaml")]
    return sorted(found, key=lambda module: (list(WORKS).index(module.CLAIM.work), module.CLAIM.number))


def is_finished(path: Path) -> bool:
    """Whether all arms of a results file are there: its picture is drawn after the last one."""
    return path.is_file() and path.with_suffix(".png").is_file()


def claims_table() -> str:
    """A row for every claim that was measured."""
    rows = []
    for module in modules():
        claim, path = module.CLAIM, RESULTS / f"{module.CLAIM.name}.json"
        if not is_finished(path):
            continue
        sources = results_of(path)
        found = verdict([check for source in sources for check in module.checks(source)])
        link = f"[{WORKS[claim.work][0]} {claim.number}](claims/{claim.name}.md)"
        rows.append((link, claim.statement, found))
    return markdown_table(("claim", "what", "verdict"), rows)


def index() -> str:
    """The text of model_cards/claims.md."""
    return f"{INTRODUCTION}\n\n{claims_table()}\n"


def main() -> None:
    for module in modules():
        path = RESULTS / f"{module.CLAIM.name}.json"
        if is_finished(path):
            path.with_suffix(".md").write_text(claim_page(module, results_of(path)), encoding="utf-8")
    INDEX.write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main()
