"""Both Kronecker factors against activations alone against magnitude.

python -m examples.research.claims.llm_surgeon_2_curvature --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from functools import partial
from itertools import pairwise

from .claim_command import main
from .claim_results import Claim
from .surgeon_arms import activations, draw_rises, lower_in_every_cell, magnitude, measure, rise_table, surgeon

CLAIM = Claim(
    name="llm_surgeon_2_curvature",
    statement="Curvature of activations and gradients beats activations alone, and these beat magnitude",
    section="sections 3 and 4",
    note="No training after the cut; rows and columns go in several shots. The first two arms differ in the factor G of "
    "the gradients alone, which the second replaces by the identity; both update what stays. Magnitude knows no "
    "text, hence one run and no spread. Neurons and KV groups go alike in all layers, so there G only ranks units "
    "within a layer; rows and columns are ranked over all layers at once, as in the paper, so there G also weighs "
    "the layers against each other, which the squared errors of activations alone cannot. That may be why "
    "activations alone lose to magnitude on stories260k; on family-128, ranked alike, they do not.",
)
ARMS = {"A and G": surgeon, "A alone": activations, "magnitude": magnitude}


runs = partial(measure, arms=ARMS, without_draws=["magnitude"])
checks = partial(lower_in_every_cell, pairs=list(pairwise(ARMS)))
table = partial(rise_table, arms=list(ARMS))
draw = partial(draw_rises, arms=list(ARMS))


if __name__ == "__main__":
    main(sys.modules[__name__])
