"""Both Kronecker factors against activations alone against magnitude.

python examples/claims/llm_surgeon_2_curvature.py --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
"""

import sys

from study import Claim, SourceResults, Study, compare, main
from surgeon_arms import activations, cell_name, cells, draw_rises, magnitude, measure, rise_table, rises, surgeon

CLAIM = Claim(
    name="llm_surgeon_2_curvature",
    statement="Curvature of activations and gradients beats activations alone, and these beat magnitude",
    section="sections 3 and 4",
    note="No training after the cut; rows and columns go in several shots. The first two arms differ in the factor G of "
    "the gradients alone, which the second replaces by the identity; both update what stays. Magnitude knows no text, "
    "hence one run and no spread. Neurons and KV groups go alike in all layers, so there G only ranks units within a "
    "layer; rows and columns are ranked over all layers at once, as in the paper, so there G also weighs the layers "
    "against each other, which the squared errors of activations alone cannot.",
)
ARMS = {"A and G": surgeon, "A alone": activations, "magnitude": magnitude}


def runs(study: Study) -> None:
    measure(study, ARMS, without_draws=["magnitude"])


def checks(source: SourceResults) -> list:
    names = list(ARMS)
    return [
        compare(f"{cell_name(*cell)}: {better} below {worse}", rises(source, better, cell), rises(source, worse, cell))
        for cell in cells(source.settings)
        for better, worse in zip(names, names[1:], strict=False)
    ]


def table(source: SourceResults) -> str:
    return rise_table(source, list(ARMS))


def draw(source: SourceResults, axes) -> None:
    draw_rises(source, axes, list(ARMS))


if __name__ == "__main__":
    main(sys.modules[__name__])
