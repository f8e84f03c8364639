"""Several shots, each with new curvature and a new update, against one.

python -m examples.research.claims.llm_surgeon_3_shots --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys
from functools import partial

from .claim_command import main
from .claim_results import Claim, SourceResults
from .study import Study
from .surgeon_arms import Arm, draw_rises, lower_in_every_cell, measure, rise_table, surgeon

CLAIM = Claim(
    name="llm_surgeon_3_shots",
    statement="Several shots beat one",
    section="sections 3 and 4",
    note="The surgeon with its update, no training between shots or after. All shots of a draw see the same calibration "
    "text. The paper takes up to 40 shots. Neurons and KV groups go alike in all layers and are few, so that "
    "there is less for further shots to correct.",
)


def arms(settings: dict) -> dict[str, Arm]:
    return {name_of(number): partial(surgeon, num_shots=number) for number in settings["shots"]}


def name_of(num_shots: int) -> str:
    return f"{num_shots} shot" + "s" * (num_shots > 1)


def runs(study: Study) -> None:
    measure(study, arms(study.settings))


def checks(source: SourceResults) -> list:
    one, *several = arms(source.settings)
    return lower_in_every_cell(source, [(name, one) for name in several])


def table(source: SourceResults) -> str:
    return rise_table(source, list(arms(source.settings)))


def draw(source: SourceResults, axes) -> None:
    draw_rises(source, axes, list(arms(source.settings)))


if __name__ == "__main__":
    main(sys.modules[__name__])
