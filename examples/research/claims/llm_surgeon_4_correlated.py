"""One update for all that is removed together, against the sum of the updates for each removed part alone.

python -m examples.research.claims.llm_surgeon_4_correlated --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from functools import partial

from .claim_command import main
from .claim_results import Claim
from .study import Study
from .surgeon_arms import UNITS, draw_rises, lower_in_every_cell, measure, rise_table, surgeon, units_updated_once

CLAIM = Claim(
    name="llm_surgeon_4_correlated",
    statement="Updates that are correlated over all removed weights beat independent ones",
    section="sections 3 and 4",
    note="One shot, no training after it; both arms of a cell remove the same weights on the same text and differ in the "
    "update alone. Correlated: the exact minimum of the quadratic form under all zeros of a matrix; for single weights the "
    "paper correlates blocks of them. Neurons and KV groups: columns of down_proj and o_proj, updated by the activations "
    "of the unpruned source.",
)


def update(joint: bool):
    def arm(study: Study, structure: str, fraction: float, seed: int):
        if structure == UNITS:
            return units_updated_once(study, fraction, seed, joint)
        return surgeon(study, structure, fraction, seed, update="joint" if joint else "independent")

    return arm


ARMS = {"independent": update(joint=False), "correlated": update(joint=True)}


runs = partial(measure, arms=ARMS)
checks = partial(lower_in_every_cell, pairs=[("correlated", "independent")])
table = partial(rise_table, arms=list(ARMS))
draw = partial(draw_rises, arms=list(ARMS))


if __name__ == "__main__":
    main(sys.modules[__name__])
