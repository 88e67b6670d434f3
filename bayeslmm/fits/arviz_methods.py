"""Everything that ArviZ can read of a posterior, in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.prediction.checks import predictive_dataset
from bayeslmm.sampling.log_densities import log_likelihood, log_prior
from bayeslmm.sampling.prior_predictive import prior_predictive
from bayeslmm.summaries import posterior_tables

_log = logging.getLogger(__name__)

Group = Literal["log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive"]
"""Groups that are computed on request."""


class PosteriorArviz(PosteriorBase):
    """Continuing in ArviZ."""

    def to_arviz(
        self,
        groups: Literal["all"] | Group | Iterable[Group] = "all",
        *,
        random_seed: int | np.random.Generator | None = None,
    ) -> xr.DataTree:
        """Return the draws with further groups, for ArviZ's functions.

        Parameters
        ----------
        groups : "all" or str or iterable of str
            Groups to have beside those of `data`, among ``"log_likelihood"``, ``"log_prior"``,
            ``"posterior_predictive"``, ``"prior"`` and ``"prior_predictive"``. Those that `data`
            has already stay as they are. "all" leaves out, and logs, what does not exist: prior
            groups under flat priors, the log likelihood where draws of the random effects are not
            stored.
        random_seed : int or numpy.random.Generator, optional
            Seed of the predictive groups and of the prior.

        Returns
        -------
        xarray.DataTree

        Raises
        ------
        ValueError
            If there is no such group.
        PriorError
            If prior groups are asked for and a prior is flat.
        SamplingError
            If the log likelihood is asked for and draws of the random effects are not stored.

        Notes
        -----
        The log likelihood takes 8 bytes per draw and row, as does the posterior predictive.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> tree = model.fit(random_seed=1).to_arviz("all", random_seed=2)
        >>> "log_likelihood" in tree, "prior" in tree, "posterior_predictive" in tree
        (True, True, True)
        """
        wanted = self._possible() if groups == "all" else _checked(groups)
        wanted = [name for name in wanted if name not in self.data.children]
        rng = np.random.default_rng(random_seed)
        found: dict[str, xr.Dataset] = {}
        if "log_likelihood" in wanted:
            posterior_tables.require_draws(self.data, self.design)
            found["log_likelihood"] = log_likelihood(self.data, self.design)
        if "log_prior" in wanted:
            found["log_prior"] = log_prior(self.data, self.priors)
        if "posterior_predictive" in wanted:
            predictive = predictive_dataset(self.design, self._joint, "conditional", rng)
            found["posterior_predictive"] = predictive
        if {"prior", "prior_predictive"} & set(wanted):
            tree = prior_predictive(self.design, self.priors, random_seed=rng)
            found |= {name: tree[name].to_dataset() for name in wanted if name in tree.children}
        return self.with_groups(**found).data

    def _possible(self) -> list[str]:
        """Groups that this posterior can have; says which not."""
        missing = {}
        if not posterior_tables.has_draws(self.data, self.design):
            missing["log_likelihood"] = "draws of the random effects are not stored"
        if improper := self.priors.improper():
            reason = f"flat priors cannot be drawn from ({', '.join(improper)})"
            missing |= {"prior": reason, "prior_predictive": reason}
        for name, reason in missing.items():
            if name not in self.data.children:
                _log.warning("The group %s is left out: %s", name, reason)
        return [name for name in get_args(Group) if name not in missing]


def _checked(groups: Any) -> list[str]:
    names = [groups] if isinstance(groups, str) else list(groups)
    if unknown := [name for name in names if name not in get_args(Group)]:
        known = ", ".join(map(repr, get_args(Group)))
        raise ValueError(f"groups={unknown!r}: 'all' or any of {known} are expected.")
    return names
