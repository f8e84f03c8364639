"""The methods of compensation: each turns what a linear layer falls short of into updates of its weight and bias.

A method is a function of a ``Gap`` and a row of ``COMPENSATIONS``; its options are its keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from transformers import PretrainedConfig

from ..calibration import DAMPING
from ..core import UsageError, keyword_options, named_entry, options_from_text
from ..shapes import family_of
from .add_biases import check_biases
from .gap import Gap, damping_for, ridge

MODULE, SOURCE, AUTO = "module", "source", "auto"
TOWARDS = (MODULE, SOURCE, AUTO)
Update = Callable[..., tuple[Tensor | None, Tensor | None]]


def bias(gap: Gap) -> tuple[Tensor | None, Tensor | None]:
    """The mean of what the removed inputs gave, as a bias (FLAP, arXiv 2312.11983, section 3.4).

    No update of the weight, and E[d] for the bias: W[:, removed] mu_removed where the inputs are those of the source.
    """
    return None, gap.mean


def least_squares(gap: Gap, *, damping: float = DAMPING) -> tuple[Tensor | None, Tensor | None]:
    """The kept columns take over what can be told of the gap from the kept inputs; the bias is left alone.

    It is the LLM Surgeon's joint update of columns (arXiv 2312.17244, section 3.3), in which the curvature of the outputs
    cancels: W_K + W_S A_SK A_KK^-1, with A = E[a a^T], kept inputs K and removed ones S.

    Args:
        damping: a share of the mean diagonal of A_KK, added to its diagonal: the least, where held-out tokens choose it.
    """
    chosen = damping_for(gap, float(damping * gap.gram.diagonal().mean()))
    return None if chosen is None else ridge(gap.cross, gap.gram, chosen), None


def least_squares_bias(gap: Gap, *, damping: float = DAMPING) -> tuple[Tensor | None, Tensor | None]:
    """Least squares with a constant 1 among the inputs: what ``least_squares`` and ``bias`` can do, together.

    The constant is solved for first, so that no damping reaches it: the weight is fitted to what varies (covariances),
    the bias then makes the means equal.

    Args:
        damping: as in ``least_squares``, of the same A_KK.
    """
    chosen = damping_for(gap, float(damping * gap.gram.diagonal().mean()), centred=True)
    if chosen is None:
        return None, gap.mean
    covariance = gap.gram - gap.input_mean.outer(gap.input_mean)
    update = ridge(gap.cross - gap.mean.outer(gap.input_mean), covariance, chosen)
    return update, gap.mean - update @ gap.input_mean


@dataclass(frozen=True)
class Compensation:
    """A method with its options.

    Attributes:
        name: with its options, as a user names it.
        update: from the gap of a layer to the updates of its weight and its bias, None where it changes none. None:
            nothing is made up for.
        needs_bias: whether it updates biases.
        towards: what a layer's outputs are fitted to, "module", "source" or "auto"; see ``compensate``.
        store: where hidden states wait between layers, such as "cpu"; None: the model's device.
        holds_out: whether part of the calibration text chooses the damping.
    """

    name: str
    update: Update | None
    needs_bias: bool = False
    towards: str = MODULE
    store: str | None = None
    holds_out: bool = False

    @property
    def does_nothing(self) -> bool:
        """Whether nothing is made up for."""
        return self.update is None

    @property
    def reads_source(self) -> bool:
        """Whether modules are, or may be, fitted to those of the source."""
        return not self.does_nothing and self.towards in (SOURCE, AUTO)

    @property
    def reads_own_inputs(self) -> bool:
        """Whether modules are fitted from the inputs that they have before anything more is removed.

        They are what a criterion that shares its inputs has just collected. With ``towards=source`` inputs are those of
        the pruned and compensated layers below, which nobody knows before.
        """
        return not self.does_nothing and self.towards == MODULE

    def resolved(self, stream_changes: bool, config: PretrainedConfig) -> Compensation:
        """The method with "auto" replaced: by "source" where that is what helps and the family admits it, else "module".

        A module whose inputs alone were removed is best fitted to what it gave. Where hidden dimensions or layers go, what
        they gave is missing for all that follows, and only a fit to the source's residual stream makes up for that.

        Args:
            stream_changes: whether hidden dimensions or whole layers are removed.
            config: of a model of the family.
        """
        if self.towards != AUTO:
            return self
        return replace(self, towards=SOURCE if stream_changes and _adds_plainly(config) else MODULE)

    def check(self, config: PretrainedConfig) -> None:
        """Raise UsageError where models of this config's family do not admit the method."""
        if self.does_nothing:
            return
        family = family_of(config)
        if family.has_experts:
            raise UsageError(
                f"`compensation` must be 'none' for a {family.model_type}, but it is {self.name!r}: what removed experts"
                " gave depends on the routing, which no linear layer can make up for. Say `compensation='none'`."
            )
        if self.needs_bias:
            check_biases(config)
        if self.towards == SOURCE and not _adds_plainly(config):
            raise UsageError(
                f"`compensation` with towards=source fits what o_proj and down_proj add to the residual stream, but in the"
                f" family {family.model_type!r} that is normalised or scaled in between. Leave `towards` out."
            )


def _adds_plainly(config: PretrainedConfig) -> bool:
    """Whether o_proj and down_proj add what they give to the residual stream as it is."""
    return not family_of(config).post_norms and getattr(config, "residual_multiplier", 1.0) == 1.0


COMPENSATIONS: dict[str, Compensation] = {
    found.name: found
    for found in (
        Compensation("none", None),
        Compensation("bias", bias, needs_bias=True),
        Compensation("least_squares", least_squares, holds_out=True),
        Compensation("least_squares_bias", least_squares_bias, needs_bias=True, holds_out=True),
    )
}
"""Every method by its name."""


def resolve_compensation(choice: str | Compensation) -> Compensation:
    """The method that a name with options stands for, such as ``"least_squares:damping=0.1"``.

    Raises:
        UsageError: an unknown name or option.
    """
    if isinstance(choice, Compensation):
        return choice
    name, method, text = named_entry(COMPENSATIONS, choice, "compensation")
    known = {} if method.update is None else keyword_options(method.update) | {"towards": method.towards, "store": ""}
    known |= {"holds_out": True} if method.holds_out else {}
    options = options_from_text(text, known, f"Compensation {name!r}")
    if method.update is None:
        return method
    towards, store = options.pop("towards", method.towards), options.pop("store", None)
    holds_out = options.pop("holds_out", method.holds_out)
    if towards not in TOWARDS:
        raise UsageError(f"Option 'towards' of `compensation` must be one of {', '.join(TOWARDS)}: {towards!r}.")
    update = partial(method.update, **options)
    return replace(method, name=choice, update=update, towards=towards, store=store or None, holds_out=holds_out)
