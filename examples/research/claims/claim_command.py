"""What running a claim's script does: flags, the sources that were asked for, their arms, the picture, the page.

``--confirm`` makes the cheapest arm of each source again, after a change of the code, and says so if it is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from hf_shear.report import require_matplotlib

from ..provenance import check_made_again, note_confirmed
from ..shared import RESEARCH, save_picture
from .claim_results import CONFIGS, RESULTS, STORIES, Claim, code_of, read, results_of, write
from .claims_page import claim_page
from .study import Study

SMALL_FOLDER = Path("claims_small")


def read_settings(claim: Claim, source: str, small: bool) -> dict:
    """The claim's config for one source: its own entries over the common ones, those of ``small`` over all."""
    config = yaml.safe_load((CONFIGS / f"{claim.name}.yaml").read_text(encoding="utf-8"))
    settings = config["settings"] | config["sources"][source]
    return settings | config["small"] if small else settings


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


def sources_of(claim: Claim, options: argparse.Namespace) -> list[tuple[str, str | Path, str]]:
    """Name, checkpoint and text of the sources that were asked for and that the config has."""
    config = yaml.safe_load((CONFIGS / f"{claim.name}.yaml").read_text(encoding="utf-8"))
    found = []
    for name in config["sources"]:
        if name == STORIES and options.stories:
            found.append((name, *options.stories))
        elif name != STORIES and options.data_dir:
            found.append((name, RESEARCH / "family" / "models" / name.rpartition("-")[2], options.data_dir))
    if not found:
        raise SystemExit(f"{claim.name} is measured on {', '.join(config['sources'])}; give what that needs (--help).")
    return found


class OneArm(Study):
    """A study that takes every kept arm as it is, but makes the cheapest one again."""

    def run(self, key: dict, make: Callable[[], dict]) -> dict:
        kept = next((run for run in self.runs if key.items() <= run.items()), None)
        if kept is None:
            raise ValueError(f"{self.output.name} lacks {key}, which the study makes today. Measure it anew.")
        if kept is min(self.runs, key=lambda run: run["run_seconds"]):
            made = make()
            names = [name for name in made if isinstance(kept.get(name), float)]
            numbers = ([run[name] for name in names] for run in (kept, made))
            check_made_again(f"{self.claim.name}, {self.name}, {key}: {', '.join(names)}", *numbers)
        return kept


def confirm(module, path: Path, compared: Sequence[str]) -> None:
    """Note that the code of today made one arm of each source again, and found the same.

    Raises:
        ValueError: a source was not compared.
    """
    kept = read(path)
    if left := sorted(kept["sources"].keys() - set(compared)):
        raise ValueError(f"{path.name} holds {', '.join(left)}, too, which was not compared. Give its text.")
    note_confirmed(kept["code"], code_of(module.CLAIM))
    write(path, kept["sources"], kept["code"])


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
    options = parse(module.CLAIM, command_line)
    path = options.output / f"{module.CLAIM.name}.json"
    sources = sources_of(module.CLAIM, options)
    for name, checkpoint, data_dir in sources:
        settings = read_settings(module.CLAIM, name, options.small)
        study = (OneArm if options.confirm else Study)(module.CLAIM, name, checkpoint, data_dir, settings, path)
        module.runs(study)
    if options.confirm:
        confirm(module, path, [name for name, *_ in sources])
    draw(module, path)
    path.with_suffix(".md").write_text(claim_page(module, results_of(path)), encoding="utf-8")
    for source in results_of(path):
        for check in module.checks(source):
            print(f"{source.name}: {check.state}: {check.text}")
