"""What running a claim's script does: flags, the sources that were asked for, their arms, the picture, the page.

``--confirm`` makes the cheapest arm of each source again, after a change of the code, and says so if it is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from hf_shear.report import require_matplotlib

from ..provenance import MadeAgain
from ..shared import save_picture
from .claim_results import CONFIGS, RESULTS, Claim, code_of, confirm_results, results_of
from .claims_page import claim_page
from .study import Study, settings_of, sources_of

SMALL_FOLDER = Path("claims_small")


def parse(claim: Claim, command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=claim.statement, allow_abbrev=False)
    parser.add_argument("--data_dir", help="text of the seven domains, a folder each; for the family's members")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "TEXT"), help="stories260K and TinyStories")
    parser.add_argument("--small", action="store_true", help="minutes: fewer tokens and seeds; proves nothing")
    parser.add_argument("--confirm", action="store_true", help="make one arm of each source again, and compare")
    parser.add_argument("--output", type=Path, help=f"folder (default: model_cards/claims; --small: {SMALL_FOLDER})")
    options = parser.parse_args(command_line)
    if options.data_dir is None and options.stories is None:
        parser.error("give --data_dir, --stories, or both: each is measured on its own source.")
    options.output = options.output or (SMALL_FOLDER if options.small else RESULTS)
    return options


class OneArm(Study):
    """A study that takes every kept arm as it is, and can make the cheapest that it asks for again."""

    @cached_property
    def asked(self) -> list[tuple[dict, dict, Callable[[], dict]]]:
        """Kept arms that the study asks for, their keys, what makes them; kept rates of a sweep are not asked for."""
        return []

    def run(self, key: dict, make: Callable[[], dict]) -> dict:
        kept = next((run for run in self.runs if key.items() <= run.items()), None)
        if kept is None:
            raise ValueError(f"{self.output.name} lacks {key}, which the study makes today. Measure it anew.")
        self.asked.append((kept, key, make))
        return kept

    def made_again(self) -> MadeAgain:
        """The cheapest of them."""
        kept, key, make = min(self.asked, key=lambda one: one[0]["run_seconds"])
        made = make()
        names = [name for name in made if isinstance(kept.get(name), float)]
        was, now = ([run[name] for name in names] for run in (kept, made))
        return f"{self.claim.name}, {self.name}, {key}: {', '.join(names)}", was, now


def made_again(module, studies: Sequence[OneArm]) -> Iterator[MadeAgain]:
    """The cheapest arm of each source."""
    for study in studies:
        module.runs(study)
        yield study.made_again()


def draw(module, path: Path) -> None:
    """The claim's picture: a panel per source."""
    require_matplotlib()
    from matplotlib.figure import Figure

    sources = results_of(path)
    figure = Figure(figsize=(6.0 * len(sources), 4.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        axes.set_title(source.name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        module.draw(source, axes)
    save_picture(figure, path.with_suffix(".png"), dpi=110)


def main(module, command_line: Sequence[str] | None = None) -> None:
    """Run a claim's script."""
    claim, options = module.CLAIM, parse(module.CLAIM, command_line)
    path, config = options.output / f"{claim.name}.json", CONFIGS / f"{claim.name}.yaml"
    sources = sources_of(config, options.stories, options.data_dir)
    if not sources:
        raise SystemExit(f"{claim.name} is measured on what {config} names as sources; give what that needs (--help).")
    kind = OneArm if options.confirm else Study
    studies = [
        kind(claim, name, *place, settings_of(config, name, options.small), path) for name, place in sources.items()
    ]
    if options.confirm:
        confirm_results(path, code_of(claim), made_again(module, studies), sources)
    else:
        for study in studies:
            module.runs(study)
    draw(module, path)
    path.with_suffix(".md").write_text(claim_page(module, results_of(path)), encoding="utf-8")
    for source in results_of(path):
        for check in module.checks(source):
            print(f"{source.name}: {check.state}: {check.text}")
