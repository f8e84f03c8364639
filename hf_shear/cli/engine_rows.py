"""Where a checkpoint loads besides transformers, as lines: all of it for ``inspect``, warnings for verbs that write one."""

from __future__ import annotations

import os
import textwrap

from ..publishing import ENGINES, EVIDENCE, REFUSED, UNTESTED, WRONG, Row, read_facts, where_it_loads

NOTE_WIDTH = 110  # characters
PAGE = "`hf-shear docs engines` has the commands, and all rules."


def engine_lines(rows: list[Row], of_what: str) -> list[str]:
    """One line per engine, and its notes below it."""
    meanings = "; ".join(f"{word}: {meaning}" for word, meaning in EVIDENCE.items())
    lines = [f"Engines other than transformers, and whether they load {of_what}:", f"  ({meanings})"]
    for row in rows:
        known = row.evidence if row.evidence == UNTESTED else f"{row.verdict:<10}{row.evidence}, {row.date}"
        lines.append(f"  {row.engine:<26}{known:<28}{row.version}")
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
