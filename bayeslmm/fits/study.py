"""A planned study: rows, model of analysis and what is taken to be true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.planning.studies import (
    Estimator,
    Planned,
    Runs,
    Tests,
    assurance_of,
    power_of,
    size_of,
)
from bayeslmm.planning.truth import simulate_response, truth_at
from bayeslmm.summaries import text
from bayeslmm.summaries.parameters import whole_number

if TYPE_CHECKING:
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.estimation.inference import DfMethod
    from bayeslmm.planning.assurance import Assurance
    from bayeslmm.planning.power import Power, SampleSize
    from bayeslmm.planning.targets import TestKind

Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """A study that is planned: its rows, the model it will be analysed by, and the truth.

    Made by :meth:`LMM.planned` from parameters, by ``reml.study()`` from the estimate of a pilot
    study, by ``post.study()`` from draws of its posterior, and by ``model.study()`` from draws of
    the prior. Where the truth is draws, each data set has another one, and power is the average
    over them: the assurance of a test.

    Attributes
    ----------
    planned : Planned
        Design and truth.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy")).reml()
    >>> study = reml.study({"Days": 5.0}).extend(along="Subject", size=24)
    >>> study.design.n, study.truth.loc["beta[Days]", "value"].item()
    (240, 5.0)
    """

    planned: Planned

    @property
    def design(self) -> Design:
        """Rows and model; the response is not used."""
        return self.planned.design

    @property
    def data(self) -> pd.DataFrame:
        """The rows, without the response."""
        return self.planned.frame().drop(columns=list(self.design.formula.left.variables))

    @property
    def truth(self) -> pd.DataFrame:
        """Value by parameter; mean and sd where the truth is draws."""
        return self.planned.truth.table(self.design)

    def with_effects(self, effects: Mapping[str, float]) -> Study:
        """The study with other true fixed effects.

        Parameters
        ----------
        effects : mapping of str to float
            Values by the labels of coefficients.

        Raises
        ------
        PriorError
            If there is no such coefficient.
        """
        truth = truth_at(self.planned.truth, effects, self.design)
        return Study(replace(self.planned, truth=truth))

    def extend(self, *, along: str | None = None, within: str | None = None, size: int) -> Study:
        """The study with more or fewer levels, or rows of each level.

        Parameters
        ----------
        along : str, optional
            A grouping variable, which then has `size` levels. Those there are are taken in turn,
            those of different arms and other variables between levels alternating, and copied with
            their rows under new names where there are too few. Variables whose levels are nested in
            them by their names get new names with them.
        within : str, optional
            A variable, each level of which then has `size` rows: its own in turn, copied where
            there are too few.
        size : int
            Number of levels or rows.

        Raises
        ------
        DataError
            If not one of the two is given, the variable is no grouping variable, or the columns of
            the model would change.

        References
        ----------
        ``simr::extend``.
        """
        return Study(self.planned.resized(along, within, size))

    def simulate(self, n: int = 1, *, random_seed: Seed = None) -> pd.DataFrame:
        """Responses simulated from the truth, on the scale of the model.

        Parameters
        ----------
        n : int
            Number of data sets.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            One column per data set, one row per row of `data`.
        """
        rng, truth = seeded(random_seed), self.planned.truth
        columns = [
            simulate_response(self.design, truth.draw(rng), rng)
            for _ in range(whole_number(n, "n"))
        ]
        return pd.DataFrame(np.array(columns).T)

    def power(
        self,
        effects: str | Sequence[str] | None = None,
        n: int = 1000,
        *,
        alpha: float = 0.05,
        df: DfMethod | None = None,
        test: TestKind = "auto",
        method: Estimator = "REML",
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> Power:
        """Power of tests of fixed effects, by simulation.

        Parameters
        ----------
        effects : str or sequence of str, optional
            What is tested: a coefficient ("Days"), a hypothesis that is linear in coefficients and
            marginal means ("arm[b] - arm[a] = 0"; with ``>`` or ``<`` a one-sided test), or a term
            ("arm:visit", a type III F test). All coefficients but the intercept by default.
        n : int
            Number of simulated data sets.
        alpha : float
            Level of the tests.
        df : {"satterthwaite", "kenward-roger", "residual", "asymptotic"}, optional
            Degrees of freedom, as in :meth:`bayeslmm.Estimate.with_df`; by default those of the
            pilot estimate, else Satterthwaite's.
        test : {"auto", "t", "F"}
            "F": names are those of terms, also where a coefficient has the name.
        method : {"REML", "ML"}
            The estimate.
        random_seed : int or numpy.random.Generator, optional
            Seed. Each data set has its own stream: the first 100 of 200 are those of ``n=100``.
        executor : concurrent.futures.Executor or the like, optional
            Where data sets are analysed: threads, processes, or those of joblib, Dask or mpi4py.
            The result does not depend on it.
        progressbar : bool
            Whether to show a progress bar.

        Returns
        -------
        Power
            Power with the interval of its Monte Carlo error, errors of type S and M, coverage,
            numbers of failed and singular fits.

        Raises
        ------
        DataError
            If an effect is unknown or cannot be estimated.
        SamplingError
            If all fits failed, or a worker of the executor died.

        References
        ----------
        ``simr::powerSim``; Green, MacLeod (2016), doi:10.1111/2041-210X.12504.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> power = reml.study({"Days": 5.0}).power("Days", 50, random_seed=1, progressbar=False)
        >>> bool(0.5 < power.power["Days"] < 1.0)
        True
        """
        tests = Tests(alpha=alpha, df=df or self.planned.df, test=test, method=method)
        runs = Runs(n=n, random_seed=random_seed, executor=executor, progressbar=progressbar)
        return power_of(self.planned.sized(None, None, None), effects, tests, runs)

    def power_curve(
        self,
        effects: str | Sequence[str] | None = None,
        sizes: Sequence[int] = (),
        *,
        along: str | None = None,
        within: str | None = None,
        n: int = 1000,
        alpha: float = 0.05,
        df: DfMethod | None = None,
        test: TestKind = "auto",
        method: Estimator = "REML",
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> Power:
        """Power by the number of levels, or of rows in each level.

        Parameters
        ----------
        effects
            As in :meth:`power`.
        sizes : sequence of int
            Numbers of levels or rows.
        along, within : str, optional
            What they count, one of the two: see :meth:`extend`.
        n : int
            Number of simulated data sets of each size.
        alpha, df, test, method, random_seed, executor, progressbar
            As in :meth:`power`.

        Returns
        -------
        Power
            With a picture, ``plot()``, and ``sample_size()``.

        Raises
        ------
        DataError
            As :meth:`power` and :meth:`extend`.

        References
        ----------
        ``simr::powerCurve``.
        """
        tests = Tests(alpha=alpha, df=df or self.planned.df, test=test, method=method)
        runs = Runs(n=n, random_seed=random_seed, executor=executor, progressbar=progressbar)
        return power_of(self.planned.sized(sizes, along, within), effects, tests, runs)

    def sample_size(
        self,
        effect: str,
        power: float = 0.8,
        *,
        along: str | None = None,
        within: str | None = None,
        largest: int = 1000,
        n: int = 500,
        alpha: float = 0.05,
        df: DfMethod | None = None,
        test: TestKind = "auto",
        method: Estimator = "REML",
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> SampleSize:
        """Number of levels, or of rows in each level, that a power takes.

        Parameters
        ----------
        effect : str
            As in :meth:`power`.
        power : float
            The power wanted.
        along, within : str, optional
            What is counted, one of the two: see :meth:`extend`.
        largest : int
            Largest size that is tried, at least 3.
        n : int
            Number of simulated data sets of each size tried, of which there are some six.
        alpha, df, test, method, random_seed, executor, progressbar
            As in :meth:`power`.

        Returns
        -------
        SampleSize
            The size with the interval of its Monte Carlo error, and the curve it is read from.

        Raises
        ------
        DataError
            If the largest size has less power, or power does not rise with the size.
        """
        tests = Tests(alpha=alpha, df=df or self.planned.df, test=test, method=method)
        runs = Runs(n=n, random_seed=random_seed, executor=executor, progressbar=progressbar)
        return size_of(
            self.planned,
            effect,
            tests,
            runs,
            power=power,
            along=along,
            within=within,
            largest=largest,
        )

    def assurance(
        self,
        effects: str | Sequence[str] | None = None,
        n: int = 300,
        *,
        sizes: Sequence[int] | None = None,
        along: str | None = None,
        within: str | None = None,
        threshold: float = 0.95,
        prob: float = 0.95,
        rope: float | tuple[float, float] | None = None,
        priors: Literal["default", "flat"] | Mapping[str, Any] | None = None,
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> Assurance:
        """Chances that the posterior of the study shows something, and the width of its intervals.

        Parameters
        ----------
        effects : str or sequence of str, optional
            Hypotheses with a sign ("Days > 5"), which are shown by a posterior probability above
            `threshold`; or coefficients and hypotheses with ``=``, which are shown by an interval
            that excludes zero. All coefficients but the intercept by default.
        n : int
            Number of simulated data sets, of each size.
        sizes, along, within
            Sizes of the study, as in :meth:`power_curve`; the study as it is by default.
        threshold : float
            Posterior probability from which on a hypothesis counts as shown.
        prob : float
            Coverage of the posterior intervals, equal-tailed.
        rope : float or pair of float, optional
            Region of practical equivalence: how often intervals lie inside it, and outside.
        priors : {"default", "flat"} or mapping, optional
            Priors of the analysis, as of :class:`LMM`; defaults are those of each data set.
        random_seed, executor, progressbar
            As in :meth:`power`.

        Returns
        -------
        Assurance

        Raises
        ------
        DataError
            If an effect is unknown or cannot be estimated.
        PriorError
            If a prior does not fit its parameter.
        SamplingError
            If all analyses failed.

        Notes
        -----
        Posteriors are averages over 256 draws of the covariance parameters from the Laplace
        approximation of their posterior, with smoothed importance weights; given them, effects are
        normal, exactly.

        References
        ----------
        O'Hagan, Stevens, Campbell (2005), doi:10.1002/pst.175.
        """
        runs = Runs(n=n, random_seed=random_seed, executor=executor, progressbar=progressbar)
        return assurance_of(
            self.planned.sized(sizes, along, within),
            effects,
            runs,
            threshold=threshold,
            prob=prob,
            rope=rope,
            priors=priors,
        )

    def __repr__(self) -> str:
        return "\n".join([self._heading(), text.frame_text(self.truth)])

    def _repr_html_(self) -> str:
        return text.html_page(self._heading(), self.truth, ())

    def _heading(self) -> str:
        known = "Truth" if self.planned.truth.known else "Truth, in draws"
        return (
            f"Planned study of {self.design.n} rows\nFormula: {self.design.formula.source}\n"
            f"{text.groups_line(self.design)}\n{known}:"
        )
