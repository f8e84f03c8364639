"""What a card must say against its model: sentences that follow from the numbers."""

from __future__ import annotations

from ..core.markdown import markdown_text
from .card_facts import CardFacts


def limits(facts: CardFacts) -> str:
    """A list; every sentence is there because of a fact in the files."""
    found = [_measured_on(facts), _loss(facts), *_training(facts), *_baselines(facts)]
    if not ((facts.evaluation or {}).get("pruned") or {}).get("tasks"):
        found.append("No downstream task was evaluated.")
    if "seed" in facts.results:
        found.append(f"These are numbers of one run (seed {facts.results['seed']}); another seed gives others.")
    found.append(
        f"It has the limits of {facts.source_in_prose}, whose weights it is made of: what that model does not know,"
        " gets wrong or should not say, this one does not do better. Nothing was done here for safety or"
        " for following instructions."
    )
    return "\n".join(f"- {sentence}" for sentence in found)


def _measured_on(facts: CardFacts) -> str:
    domains = list(facts.record["loss"])
    return (
        f"Losses were measured on {facts.record['eval_tokens']:,} held-out tokens of"
        f" {'these domains' if len(domains) > 1 else 'this domain'} only: {_listed(domains)}. Nothing is known of"
        " other text or other languages."
    )


def _loss(facts: CardFacts) -> str:
    source, own = facts.results["source"], facts.record
    gap = own["mean"] - source["mean"]
    worse = [domain for domain in own["loss"] if own["loss"][domain] > source["loss"].get(domain, float("inf"))]
    if gap <= 0:
        ending = f", although it is worse on {_listed(worse)}" if worse else ""
        return f"Its mean loss is not above the source's on this text{ending}; that says nothing of other abilities."
    return f"It is worse than its source: the mean loss is {gap:.3f} nats per token higher."


def _training(facts: CardFacts) -> list[str]:
    if facts.arm == "pruned":
        return ["It was not trained after the cut."]
    tokens, parameters = facts.results["tokens"]["recovery"], facts.record["num_parameters"]
    ratio = tokens / parameters
    digits = ",.0f" if ratio >= 10 else ".2g" if ratio < 0.1 else ".2f"
    return [f"Recovery was {tokens:,} tokens, {ratio:{digits}} per parameter of this model."]


def _baselines(facts: CardFacts) -> list[str]:
    """Where a baseline did better: on the mean, or else on single domains."""
    baselines = facts.results.get("baselines") or {}
    if not baselines:
        return ["No baseline was trained, so it is not known whether a simpler method does as well."]
    if facts.arm == "pruned":
        return []
    found = []
    for foreign_name, record in baselines.items():
        name = markdown_text(foreign_name)
        if record["mean"] < facts.record["mean"]:
            found.append(
                f"The baseline {name} did better: {record['mean']:.3f} against {facts.record['mean']:.3f} nats per token."
            )
            continue
        losses = facts.record["loss"]
        better = [domain for domain in losses if record["loss"].get(domain, float("inf")) < losses[domain]]
        if better:
            found.append(f"The baseline {name} did better on {_listed(better)}.")
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(map(markdown_text, names))
