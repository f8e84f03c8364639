"""The update of the remaining weights, with against without, at 20 and 30 % of the linear weights removed.

python -m examples.research.claims.llm_surgeon_1_update --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from functools import partial

from .claim_command import main
from .claim_results import Claim
from .study import Study
from .surgeon_arms import UNITS, draw_rises, kobd, lower_in_every_cell, measure, prune_units, rise_table, surgeon

CLAIM = Claim(
    name="llm_surgeon_1_update",
    statement="Updating the weights that stay lowers the loss at 20 to 30 % removed",
    section="sections 3 and 4",
    note="No training after the cut. Neurons and KV groups, in one shot: both arms remove the same units, the cheapest "
    "without an update (K-OBD), and one of them makes up for those by least squares. Rows and columns, set to zero "
    "in several shots as in the paper: K-OBD against the surgeon, each with its own costs, so that the arm without "
    "update has the best choice for it. With four KV groups a layer, 20 and 30 % both remove one of them, and "
    "differ in the neurons alone.",
)


def updated(study: Study, structure: str, fraction: float, seed: int):
    if structure == UNITS:
        return prune_units(study, fraction, seed, "kobd", "least_squares").model
    return surgeon(study, structure, fraction, seed)


ARMS = {"without update": kobd, "with update": updated}


runs = partial(measure, arms=ARMS)
checks = partial(lower_in_every_cell, pairs=[("with update", "without update")])
table = partial(rise_table, arms=list(ARMS))
draw = partial(draw_rises, arms=list(ARMS))


if __name__ == "__main__":
    main(sys.modules[__name__])
