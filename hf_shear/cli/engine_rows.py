"""Where a checkpoint loads besides transformers, as lines: all of it for ``inspect``, warnings for verbs that write one."""

from __future__ import annotations

import os
import textwrap

from ..publishing import ENGINES, REFUSED, WRONG, Row, read_facts, where_it_loads

NOTE_WIDTH = 110  # characters
PAGE = "examples/docs/engines.md has the commands, model_cards/engines.md the measurements."


def engine_lines(rows: list[Row], of_what: str) -> list[str]:
    """One line per engine, and its notes below it."""
    lines = [f"Where {of_what} loads besides transformers (run: compared here; read: in the engine's source):"]
    for row in rows:
        known = "" if row.evidence == "none" else f" ({row.evidence})"
        lines.append(f"  {row.engine:<30}{row.verdict}{known}")
        lines += [f"      {line}" for note in row.notes for line in textwrap.wrap(note, NOTE_WIDTH)]
    return [*lines, PAGE]


def engine_warnings(checkpoint: str | os.PathLike) -> list[str]:
    """The engines that refuse what was written, or compute something else from it; nothing where there is none."""
    facts = read_facts(checkpoint)
    bad, said = [], set()
    for engine, row in zip(ENGINES, where_it_loads(ENGINES, facts), strict=True):
        if row.verdict in (WRONG, REFUSED) and (engine.base is None or engine.base.name not in said):
            said.add(engine.name)
            text = f"{row.engine}: {row.verdict} ({'; '.join(row.notes)})"
            bad += textwrap.wrap(text, NOTE_WIDTH, initial_indent="  ", subsequent_indent="      ")
    if not bad:
        return []
    return ["Engines that refuse this checkpoint, or load it and compute something else (wrong):", *bad, PAGE]
