"""Cross-validation: methods of posteriors."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks import loo
from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.log_densities import log_likelihood
from bayeslmm.summaries import posterior_tables

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
        progressbar: bool = True,
    ) -> ELPDData:
        """Leave-one-out or leave-one-group-out cross-validation, without refits.

        Given the covariance parameters, the density of a row (or of all rows of a level) given all
        other rows is normal in closed form, with random and fixed effects integrated out. So
        importance weights are needed for the covariance parameters only, which seldom depend much
        on a row or a level. Where they do (Pareto k above 0.3), the posterior of the covariance
        parameters without these rows is sampled instead, and `pareto_k` is 0. Draws of a Laplace
        approximation are weighted so that the scores are those of the posterior it approximates.

        Parameters
        ----------
        by : str, optional
            Grouping factor or variable of the formula (``"batch:cask"`` for the cells of two)
            whose levels are left out one at a time, which tells how well new levels are
            predicted; single rows by default, which tells how well further rows of the same
            levels are.
        conditional : bool
            Score rows given draws of the random effects, as ``arviz.loo`` does with the group
            log_likelihood. Each draw of a level's effects has seen the row that is left out, so
            the weights are often unreliable.
        draws : int, optional
            Use at most so many draws; by default all that memory and time allow.
        progressbar : bool
            Whether to show one, on a terminal.

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
            If `by` or `draws` is given together with `conditional`, or `draws` is no positive
            whole number.
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
            if by is not None or draws is not None:
                raise ValueError(
                    "conditional=True scores single rows by all draws: leave by= and draws= out."
                )
            posterior_tables.require_draws(self.data, self.design)
            tree = self.with_groups(log_likelihood=log_likelihood(self.data, self.design)).data
            return loo.conditional_loo(tree)
        joint, log_ratio = self._thinned(draws)
        return loo.integrated_loo(
            self.design,
            self._plan,
            self.priors,
            joint,
            by,
            log_ratio=log_ratio,
            progressbar=progressbar,
        )

    def loo_pit(self, *, draws: int | None = None, progressbar: bool = True) -> pd.Series:
        """Probability integral transform of each row by its leave-one-out predictive distribution.

        Uniform on (0, 1) where the model predicts well: near 0 or 1 too often means too narrow
        predictions, near 1/2 too often too wide ones.

        Parameters
        ----------
        draws : int, optional
            Use at most so many draws.
        progressbar : bool
            Whether to show one, on a terminal.

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
        joint, log_ratio = self._thinned(draws)
        values = loo.loo_pit(
            self.design,
            self._plan,
            self.priors,
            joint,
            log_ratio=log_ratio,
            progressbar=progressbar,
        )
        return pd.Series(values, index=self.design.index, name="loo_pit")

    def _thinned(self, draws: int | None) -> tuple[JointDraws, NDArray[np.float64] | None]:
        """At most so many draws, and their log importance ratios where they are approximate."""
        if draws is not None:
            _check_draws(draws)
        log_ratio = None
        if self.data.attrs["method"] == "laplace":
            log_ratio = self.data["sample_stats"]["log_weight"].to_numpy().ravel()
        return loo.thin(self._joint, log_ratio, self._joint.size if draws is None else draws)


def _check_draws(draws: Any) -> None:
    if isinstance(draws, bool) or not isinstance(draws, Integral) or draws < 1:
        raise ValueError(f"draws={draws!r}: a whole number of at least 1 is expected.")
