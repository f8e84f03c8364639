"""Build every page of results anew from what is kept: python -m examples.research.pages

Nothing is measured. After a change of the code that results depend on, this writes on the pages concerned that they are
stale; a test says which.
"""

from __future__ import annotations

from pathlib import Path

from . import (
    bench_page,
    kept_runs,
    layer_search,
    main_job,
    model_cards,
    nested_sizes,
    p2_law_page,
    real_models,
    recovery,
    shape_search,
    speed_by_unit,
    surgeon_tables,
)
from .claims import claims_page
from .claims.claim_results import RESULTS as CLAIMS
from .claims.claim_results import results_of
from .engines import page as engines_page


def pages() -> dict[Path, str]:
    """The text of each page of results, and of each other page that takes a part from them."""
    found = {
        bench_page.PAGE: bench_page.page(),
        claims_page.INDEX: claims_page.index(),
        p2_law_page.PAGE: p2_law_page.page(),
        speed_by_unit.PAGE: speed_by_unit.page(),
        surgeon_tables.PAGE: surgeon_tables.documented(),
    }
    for module in claims_page.modules():
        path = CLAIMS / f"{module.CLAIM.name}.json"
        if claims_page.is_finished(path):
            found[path.with_suffix(".md")] = claims_page.claim_page(module, results_of(path))
    if sources := main_job.sources_of_page():
        found[main_job.PAGE] = main_job.page(sources)
        found[main_job.README] = model_cards.readme(main_job.readme(sources))
    if sources := results_of(recovery.RESULTS):
        found[recovery.PAGE], found[recovery.DOCS] = recovery.page(sources), recovery.documented(sources)
    for study in (real_models, shape_search, layer_search, nested_sizes):
        if kept := kept_runs.read(study.RESULTS):
            found[study.PAGE] = study.page(kept)
    return (
        found
        | engines_page.pages()
        | {folder / "README.md": model_cards.noted_card(folder) for folder in model_cards.models()}
    )


def main() -> None:
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
