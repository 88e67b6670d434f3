"""What a model says before it is fitted: its priors, and how well a method does for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.data.design import Design
from bayeslmm.estimation.model import Model
from bayeslmm.plots.model_accessor import ModelPlots
from bayeslmm.priors.record import Priors

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.checks.implied_priors import ImpliedPriors
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.fits.study import Study
    from bayeslmm.report.calibration import CalibrationCheck
    from bayeslmm.sampling.engine import FitMethod


@dataclass(frozen=True, eq=False)
class Planning:
    """What priors imply, and studies of data that are simulated from a model."""

    model: Model

    @property
    def design(self) -> Design:
        """Response, X, random effects and what was dropped."""
        return self.model.design

    @property
    def priors(self) -> Priors:
        """The priors; prints as a table."""
        return self.model.priors

    @property
    def plot(self) -> ModelPlots:
        """Pictures: ``plot.priors()``, ``implied_priors``, ``prior_predictive``, ..."""
        return ModelPlots(self.model)

    def prior_predictive(
        self, draws: int = 500, *, random_seed: int | np.random.Generator | None = None
    ) -> xr.DataTree:
        """Draw parameters and responses from the prior.

        Parameters
        ----------
        draws : int
            Number of draws.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        xarray.DataTree
            Groups prior, prior_predictive, observed_data and constant_data.

        Raises
        ------
        PriorError
            If a prior is flat.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> model.prior_predictive(10, random_seed=1)["prior_predictive"]["y"].shape
        (1, 10, 30)
        """
        from bayeslmm.sampling.groups import prior_predictive

        return prior_predictive(self.design, self.priors, draws, random_seed)

    def implied_priors(
        self, draws: int = 4000, *, random_seed: int | np.random.Generator | None = None
    ) -> ImpliedPriors:
        """What the priors say of the intraclass correlation, R^2 and the response's spread.

        Parameters
        ----------
        draws : int
            Number of draws from the prior.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        ImpliedPriors
            Table of quantiles, with advice in words.

        Raises
        ------
        PriorError
            If a prior is flat.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> len(model.implied_priors(random_seed=1).table) > 0
        True
        """
        from bayeslmm.checks.implied_priors import implied_priors

        return implied_priors(self.design, self.priors, draws, random_seed)

    def check_calibration(
        self,
        n: int = 200,
        *,
        method: FitMethod = "auto",
        draws: int = 250,
        alpha: float = 0.01,
        random_seed: int | np.random.Generator | None = None,
        executor: Executor | None = None,
        progressbar: bool = True,
        **fit_kwargs: Any,
    ) -> CalibrationCheck:
        """Check a method on data simulated from this model: simulation-based calibration.

        `n` times, parameters are drawn from the priors, a response is simulated from them at the
        rows of this model, the same priors are fitted to it, and the true value of every parameter,
        of random effects of a few levels and of the log likelihood is ranked among the draws.

        Parameters
        ----------
        n : int
            Number of simulations.
        method : {"auto", "collapsed", "nuts", "laplace"}
            As in :meth:`fit`. "nuts" is compiled once for all simulations unless it has
            ``form="marginal"`` or arguments of ``pymc.sample``.
        draws : int
            Draws per chain. 99 draws of all chains are kept, thinned by effective sample size.
        alpha : float
            Probability with which a correct sampler has any parameter called miscalibrated, at
            most: each is tested at level alpha / number of parameters by whether the empirical
            distribution function of its ranks leaves its simultaneous band.
        random_seed : int or numpy.random.Generator, optional
            Seed. Each simulation has its own stream: the first 100 of 200 are those of ``n=100``.
        executor : concurrent.futures.Executor or the like, optional
            Where the simulations run: threads, processes, or those of joblib, Dask or mpi4py. Ranks
            do not depend on it, but for NUTS.
        progressbar : bool
            Whether to show a progress bar.
        **fit_kwargs
            Passed on to :meth:`fit`.

        Returns
        -------
        CalibrationCheck
            Verdict by parameter, ranks and their plot; fits that failed are listed.

        Raises
        ------
        PriorError
            If a prior is flat.
        SamplingError
            If every fit failed, or a worker of the executor died.
        TypeError
            If the executor has no ``submit``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("travel ~ 1 + (1 | Rail)", blm.load_dataset("Rail"))
        >>> check = model.check_calibration(
        ...     5, method="laplace", draws=100, random_seed=1, progressbar=False
        ... )
        >>> list(check.table().index[:3])
        ['beta[Intercept]', 'sd[Rail, Intercept]', 'sigma']
        """
        from bayeslmm.report.calibration import check_calibration
        from bayeslmm.sampling.engine import refit_function, require_method, require_positive

        require_method(method)
        require_positive(n=n, draws=draws)
        options = {"draws": draws, **fit_kwargs}
        return check_calibration(
            self.design,
            self.priors,
            partial(refit_function, self.design.without_data(), self.priors, method, options),
            n=n,
            method=method,
            alpha=alpha,
            random_seed=random_seed,
            executor=executor,
            progressbar=progressbar,
        )

    def study(self) -> Study:
        """A study with the rows of this model whose truth is drawn from the priors.

        Returns
        -------
        Study
            Its power is the average over the priors: the assurance of a test.

        Raises
        ------
        PriorError
            If a prior is flat.
        DataError
            If the model keeps no rows, or its residuals do not let random effects be integrated
            out.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("travel ~ 1 + (1 | Rail)", blm.load_dataset("Rail"))
        >>> model.study().truth.columns.tolist()
        ['mean', 'sd']
        """
        from bayeslmm.fits.study import Study
        from bayeslmm.planning.studies import Planned
        from bayeslmm.planning.truth import truth_of_priors

        return Study(Planned(self.design, truth_of_priors(self.priors)))
