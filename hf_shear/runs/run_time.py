"""How long the rest of a run takes, from what its finished stages took."""

from __future__ import annotations

from collections.abc import Mapping

_SECONDS_OF = ((1.0, 90, "s"), (60.0, 90, "min"), (3600.0, 48, "h"), (86_400.0, None, "days"))


def seconds_left(planned: Mapping[str, float], taken: Mapping[str, float]) -> float | None:
    """Seconds of the stages that are not finished; None if no stage is.

    A stage takes its share of the planned work. The speed is that of the finished stages, all together.

    Args:
        planned: work by stage, in FLOPs.
        taken: seconds by finished stage.
    """
    done = {name: seconds for name, seconds in taken.items() if planned.get(name)}
    work = sum(planned[name] for name in done)
    if not work:
        return None
    return (sum(planned.values()) - work) * sum(done.values()) / work


def duration_text(seconds: float) -> str:
    """Such as "40 s", "12 min", "30 h" or "4 days"."""
    for length, limit, unit in _SECONDS_OF:
        if limit is None or seconds < limit * length:
            return f"{max(round(seconds / length), 1)} {unit}"
    raise AssertionError("the last unit has no limit")
