"""Cross-validation: methods of posteriors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bayeslmm.assessment import loo
from bayeslmm.inference.log_densities import log_likelihood
from bayeslmm.results import random_tables
from bayeslmm.results.posterior_base import PosteriorBase

if TYPE_CHECKING:
    from arviz_stats import ELPDData


class PosteriorCrossValidation(PosteriorBase):
    """Cross-validation of a posterior."""

    def loo(
        self,
        by: str | None = None,
        *,
        conditional: bool = False,
        draws: int | None = None,
        progressbar: bool = False,
    ) -> ELPDData:
        """Leave-one-out or leave-one-group-out cross-validation, without refits.

        Given the covariance parameters, the density of a row (or of all rows of a level) given all
        other rows is normal in closed form, with random and fixed effects integrated out. So
        importance weights are needed for the covariance parameters only, which seldom depend much
        on a row or a level. Where they do (Pareto k above 0.5), the posterior of the covariance
        parameters without these rows is sampled instead.

        Parameters
        ----------
        by : str, optional
            Grouping factor or variable whose levels are left out one at a time, which tells how
            well new levels are predicted; single rows by default, which tells how well further
            rows of the same levels are.
        conditional : bool
            Score rows given draws of the random effects, as ``arviz.loo`` does with the group
            log_likelihood. Each draw of a level's effects has seen the row that is left out, so
            the weights are often unreliable.
        draws : int, optional
            Use at most so many draws; by default all that memory and time allow.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        arviz_stats.ELPDData
            Expected log predictive density `elpd`, its standard error `se`, effective number of
            parameters `p` (log density in the sample less `elpd`), pointwise `elpd_i` and
            `pareto_k`; ``arviz.compare`` takes it.

        Raises
        ------
        DataError
            If the model has no grouping factor or variable `by`.
        ValueError
            If `by` is asked for together with `conditional`.
        SamplingError
            If flat priors leave the fixed effects undetermined without some rows, or draws of the
            random effects, which `conditional` needs, are not stored.

        References
        ----------
        Vehtari, Gelman, Gabry (2017), doi:10.1007/s11222-016-9696-4.
        Vehtari, Mononen, Tolvanen, Sivula, Winther (2016), JMLR 17(103).
        Merkle, Furr, Rabe-Hesketh (2019), doi:10.1007/s11336-019-09679-0, on conditional and
        marginal scores.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> rows, subjects = post.loo(), post.loo(by="Subject")
        >>> int(rows.n_data_points), int(subjects.n_data_points)
        (180, 18)
        >>> bool(max(rows.pareto_k.max(), subjects.pareto_k.max()) < 0.7)
        True
        """
        if conditional:
            if by is not None:
                raise ValueError("conditional=True scores single rows: leave by= out.")
            random_tables.require_draws(self.data, self.design)
            tree = self.with_groups(log_likelihood=log_likelihood(self.data, self.design)).data
            return loo.conditional_loo(tree)
        joint = self._joint if draws is None else self._joint.thin(draws)
        return loo.integrated_loo(
            self.design, self._plan, self.priors, joint, by, progressbar=progressbar
        )

    def loo_pit(self, *, draws: int | None = None, progressbar: bool = False) -> pd.Series:
        """Probability integral transform of each row by its leave-one-out predictive distribution.

        Uniform on (0, 1) where the model predicts well: near 0 or 1 too often means too narrow
        predictions, near 1/2 too often too wide ones.

        Parameters
        ----------
        draws : int, optional
            Use at most so many draws.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        pandas.Series
            One value per row.

        References
        ----------
        Gelfand, Dey, Chang (1992), Bayesian Statistics 4.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pit = model.fit(random_seed=1).loo_pit()
        >>> bool(pit.between(0, 1).all())
        True
        """
        joint = self._joint if draws is None else self._joint.thin(draws)
        values = loo.loo_pit(self.design, self._plan, self.priors, joint, progressbar=progressbar)
        return pd.Series(values, index=self.design.index, name="loo_pit")
