"""2:4 and single weights: the surgeon against K-OBD and activations alone, and these against magnitude.

python examples/claims/llm_surgeon_5_semi_structured.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from functools import partial

from study import Claim, main
from surgeon_arms import activations, draw_rises, kobd, lower_in_every_cell, magnitude, measure, rise_table, surgeon

CLAIM = Claim(
    name="llm_surgeon_5_semi_structured",
    statement="For 2:4 and for single weights the surgeon beats K-OBD and activations alone, and both beat magnitude",
    section="section 4",
    note="One shot, no training after it. K-OBD has both factors and no update; activations alone have the update and "
    "the identity for the factor of the gradients. All rank over all layers at once, magnitude too. Costs by "
    "activations alone are squared errors of a layer's outputs and not nats, so over layers they compare unlike "
    "things; in 2:4 at 50 %, where every group of four has lost two, layers no longer compete. Magnitude knows no "
    "text, hence no spread. On family-128 they are the best for single weights all the same; we do not know why.",
)
ARMS = {"surgeon": surgeon, "K-OBD": kobd, "A alone": activations, "magnitude": magnitude}
ORDER = [("surgeon", "K-OBD"), ("surgeon", "A alone"), ("K-OBD", "magnitude"), ("A alone", "magnitude")]


runs = partial(measure, arms=ARMS, without_draws=["magnitude"])
checks = partial(lower_in_every_cell, pairs=ORDER)
table = partial(rise_table, arms=list(ARMS))
draw = partial(draw_rises, arms=list(ARMS))


if __name__ == "__main__":
    main(sys.modules[__name__])
