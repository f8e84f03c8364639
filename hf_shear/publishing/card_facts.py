"""What a card is written from, checked once; every section reads it and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import UsageError, check_record
from ..core.markdown import inline_code, link, markdown_text
from .engine_rules import Row
from .run_files import check_judged
from .source_model import SourceLicense, hub_source, source_name

SIZE_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


@dataclass(frozen=True)
class CardFacts:
    """Arguments of ``model_card``, with what follows from them.

    Attributes:
        results, provenance, evaluation: contents of results.json, shear_provenance.json ({} if unknown), evaluation.json.
        arm: the record of ``results`` that the card is of: "recovered" or "pruned".
        license: of the source, None if it was not found.
        repo_id: where the model is (being) published, None if nowhere.
        base_model: id of the source on the Hub, None if it is not there.
        source: the source's name in prose.
        rebuild_command: the command that made the model, None if it was not recorded.
        given_name: what to call a model that is not published.
        has_chat_template: whether its tokenizer has one.
        engines: what is known of it in engines besides transformers; empty where its files were not looked at.
        has_picture: whether the picture of what was kept lies beside the card.
    """

    results: dict
    provenance: dict
    evaluation: dict | None
    arm: str
    license: SourceLicense | None
    repo_id: str | None
    base_model: str | None
    source: str
    rebuild_command: str | None
    given_name: str | None = None
    has_chat_template: bool = False
    engines: tuple[Row, ...] = ()
    has_picture: bool = False

    @property
    def record(self) -> dict:
        """The model's record in the results."""
        return self.results[self.arm]

    @property
    def is_interleaved(self) -> bool:
        """Whether it was trained while it was pruned."""
        return "interleaved" in self.provenance

    @property
    def source_in_prose(self) -> str:
        """The source as a sentence names it: linked where the Hub has it, and as a folder where it was one."""
        if self.base_model:
            return link(self.base_model, f"https://huggingface.co/{self.base_model}")
        is_folder = self.source == source_name(self.provenance) and self.source != source_name(None)
        return f"the model of the local folder {inline_code(self.source)}" if is_folder else markdown_text(self.source)

    @property
    def name(self) -> str:
        """The model's name: the repository's, or one made of the source's and the size."""
        given = self.repo_id or self.given_name
        if given:
            return given.split("/")[-1]
        source = "model" if not self.provenance else (self.base_model or source_name(self.provenance)).split("/")[-1]
        return f"{source}-sheared-{short_count(self.record['num_parameters'])}"


def check_facts(
    results: dict, provenance: dict | None, evaluation: dict | None, arm: str, base_model, source
) -> tuple[dict, str | None, str]:
    """Check that the files are of one model; return the provenance, the base model and the source's name.

    Raises:
        ValueError: there are no results, they lack a record, or the evaluation is of a model of another size.
    """
    if not results:
        raise UsageError(
            "A card needs results: there is no results.json with this model. A run that ends writes it; a card without"
            " measured numbers is not written. Finish the run first."
        )
    check_record(results, "results")
    check_record({} if provenance is None else provenance, "provenance")
    check_record({} if evaluation is None else evaluation, "evaluation")
    needed = [*dict.fromkeys(("source", "pruned", arm)), "tokens"]
    missing = [name for name in needed if not results.get(name)]
    missing += [f"tokens.{name}" for name in ("mask_learning", "recovery") if name not in (results.get("tokens") or {})]
    if missing:
        raise UsageError(f"The results lack `{missing[0]}`, which the card needs. Finish the run first.")
    if evaluation is not None:
        _check_evaluation(evaluation, results, arm)
    return provenance or {}, base_model or hub_source(provenance), source or base_model or source_name(provenance)


def _check_evaluation(evaluation: dict, results: dict, arm: str) -> None:
    check_judged(evaluation, arm)
    for name, record in (("source", results["source"]), ("pruned", results[arm])):
        if not evaluation.get(name):
            raise UsageError(f"The evaluation lacks the model `{name}`. Evaluate again, or move evaluation.json away.")
        measured = evaluation[name].get("num_parameters", record["num_parameters"])
        if measured != record["num_parameters"]:
            raise UsageError(
                f"The evaluation is of another model: its `{name}` has {measured:,} parameters, the results'"
                f" {record['num_parameters']:,}. Evaluate this one, or move evaluation.json away."
            )


def short_count(number: float) -> str:
    """A count in two or three digits: 553824 -> "554K"."""
    for size, unit in SIZE_UNITS:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def arm_name(arm: str) -> str:
    """What the record is called in prose."""
    return {"recovered": "after recovery", "pruned": "after the cut"}[arm]
