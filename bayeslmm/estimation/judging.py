"""The choice of how fixed effects of an estimate are judged, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bayeslmm.data.design import Design
from bayeslmm.estimation.adjusting import kenward_roger
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import (
    Asymptotic,
    DfMethod,
    Inference,
    Residual,
    Satterthwaite,
    default_inference,
)
from bayeslmm.estimation.robust import Clusters, robust_inference
from bayeslmm.exceptions import check_choice

MODE = (
    "{} is for REML and ML estimates. The covariance matrix of a MAP estimate is a posterior "
    "one, and its tests are normal ones: take model.reml() for tests with degrees of freedom."
)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """How the fixed effects of an estimate are to be judged.

    Attributes
    ----------
    df : str or None
        Method of the degrees of freedom; None for the default.
    clusters : Clusters or None
        Those of cluster-robust standard errors; None for model-based ones.
    """

    df: DfMethod | None = None
    clusters: Clusters | None = None


DEFAULT = Choice()
"""Satterthwaite's, or of a MAP estimate posterior standard deviations."""

MAKERS: dict[str, Callable[[Design, Fit], Inference]] = {
    "satterthwaite": lambda _, fit: Satterthwaite(fit),
    "residual": lambda _, fit: Residual(fit),
    "asymptotic": lambda _, fit: Asymptotic(fit),
    "kenward-roger": kenward_roger,
    "kenward-roger-linear": partial(kenward_roger, form="linear"),
}


def inference_of(choice: Choice, design: Design, fit: Fit) -> Inference:
    """What judges the fixed effects of an estimate.

    Raises
    ------
    ValueError
        If the method is unknown, or is not for this estimate.
    """
    if choice.clusters is None and choice.df is None:
        return default_inference(fit)
    if choice.df is not None:
        check_choice(choice.df, tuple(MAKERS), "df")
    if fit.method == "MAP":
        raise ValueError(
            MODE.format(f"df={choice.df!r}" if choice.clusters is None else "robust()")
        )
    if choice.clusters is not None:
        return robust_inference(design, fit, choice.clusters, choice.df)
    return MAKERS[str(choice.df)](design, fit)
