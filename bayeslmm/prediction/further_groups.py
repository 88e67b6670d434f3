"""Groups of ArviZ's schema that a posterior has on request."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bayeslmm.data.design import Design
from bayeslmm.estimation.model import Model
from bayeslmm.prediction.checks import predictive_dataset
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.log_densities import log_likelihood, log_prior
from bayeslmm.sampling.prior_predictive import prior_predictive
from bayeslmm.summaries.random_tables import has_draws, require_draws

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Group",
    "further_groups",
    "log_likelihood_group",
    "log_prior",
    "predictive_dataset",
    "prior_groups",
]

Group = Literal["log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive"]
"""Groups that are computed on request."""

_log = logging.getLogger(__name__)


def further_groups(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    groups: Literal["all"] | Group | Iterable[Group],
    rng: np.random.Generator,
) -> dict[str, xr.Dataset]:
    """Groups asked for that draws do not have: see :meth:`bayeslmm.Posterior.to_arviz`.

    Parameters
    ----------
    model : Model
        The model.
    data : xarray.DataTree
        Its draws.
    joint : JointDraws
        The same, with random effects.
    groups : "all" or str or iterable of str
        Which to have.
    rng : numpy.random.Generator
        For the predictive groups and the prior.
    """
    wanted = _possible(model, data) if groups == "all" else _checked(groups)
    wanted = [name for name in wanted if name not in data.children]
    found: dict[str, xr.Dataset] = {}
    if "log_likelihood" in wanted:
        found["log_likelihood"] = log_likelihood_group(data, model.design)
    if "log_prior" in wanted:
        found["log_prior"] = log_prior(data, model.priors)
    if "posterior_predictive" in wanted:
        predictive = predictive_dataset(model.design, joint, "conditional", rng)
        found["posterior_predictive"] = predictive
    if {"prior", "prior_predictive"} & set(wanted):
        prior = prior_groups(model.design, model.priors, random_seed=rng)
        found |= {name: prior[name] for name in wanted if name in prior}
    return found


def log_likelihood_group(data: xr.DataTree, design: Design) -> xr.Dataset:
    """Group log_likelihood: pointwise, given the random effects, whose draws it needs."""
    require_draws(data, design)
    return log_likelihood(data, design)


def prior_groups(
    design: Design,
    priors: Priors,
    draws: int = 500,
    random_seed: int | np.random.Generator | None = None,
) -> dict[str, xr.Dataset]:
    """Groups prior and prior_predictive."""
    tree = prior_predictive(design, priors, draws, random_seed)
    return {name: tree[name].to_dataset() for name in ("prior", "prior_predictive")}


def _possible(model: Model, data: xr.DataTree) -> list[str]:
    """Groups that a posterior can have; says which not."""
    missing = {}
    if not has_draws(data, model.design):
        missing["log_likelihood"] = "draws of the random effects are not stored"
    if improper := model.priors.improper():
        reason = f"flat priors cannot be drawn from ({', '.join(improper)})"
        missing |= {"prior": reason, "prior_predictive": reason}
    for name, reason in missing.items():
        if name not in data.children:
            _log.warning("The group %s is left out: %s", name, reason)
    return [name for name in get_args(Group) if name not in missing]


def _checked(groups: Any) -> list[str]:
    names = [groups] if isinstance(groups, str) else list(groups)
    if unknown := [name for name in names if name not in get_args(Group)]:
        known = ", ".join(map(repr, get_args(Group)))
        raise ValueError(f"groups={unknown!r}: 'all' or any of {known} are expected.")
    return names
