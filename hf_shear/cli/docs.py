"""``hf-shear docs``: the pages of documentation, which come with the package."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from ..core import UsageError

SUMMARY = "List the pages of documentation, or print one; they come with the package, so no network is needed."
EXAMPLE = "hf-shear docs engines"
POSITIONAL = ("page",)
INDEX = "README"


def docs_folder() -> Path:
    """Where the pages are: in the package once it is installed, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "docs"
    return installed if installed.is_dir() else package.parent / "examples" / "docs"


def page_names() -> list[str]:
    """Of all pages but the index."""
    return sorted(path.stem for path in docs_folder().glob("*.md") if path.stem != INDEX)


@dataclass
class Arguments:
    """Which page."""

    page: str | None = field(default=None, metadata={"help": "Name of a page; without one, the pages are listed."})

    def __post_init__(self):
        if self.page is None:
            return
        self.page, known = self.page.removesuffix(".md"), page_names()
        if self.page not in known:
            near = difflib.get_close_matches(self.page, known, n=1)
            fix = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"`page` must be one of {', '.join(known)}, but it is {self.page!r}.{fix}")


def run(arguments: Arguments) -> None:
    """Print the page, or each page's name and title, and the folder."""
    folder = docs_folder()
    if arguments.page is not None:
        print((folder / f"{arguments.page}.md").read_text(encoding="utf-8").rstrip())
        return
    for name in page_names():
        title = (folder / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{name:<20}{title}")
    print(f"\nhf-shear docs NAME prints one. They are in {folder}")
