"""The result of ``model.reml()``, ``model.ml()`` and ``model.map()``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args, overload, override

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks.accessors import EstimateChecks
from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import require_random
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation import effects as random_effects
from bayeslmm.estimation.estimate import points_of_fits
from bayeslmm.estimation.judging import DEFAULT, Choice, inference_of
from bayeslmm.estimation.robust import clusters_of
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.fits.base import NO_EFFECTS
from bayeslmm.fits.predictions import Names, Seed
from bayeslmm.fits.term_tests import EstimateTests
from bayeslmm.plots.accessors import EstimatePlots
from bayeslmm.summaries import estimate_tables, text
from bayeslmm.summaries.parameters import KINDS, Kind, VarcorrStyle, whole_number

if TYPE_CHECKING:
    from bayeslmm.effects.heterogeneity import Df, Heterogeneity
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.sources import Source
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.estimation.inference import DfMethod, Inference
    from bayeslmm.estimation.robust import Kind as ClusterKind
    from bayeslmm.planning.truth import Truth
    from bayeslmm.prediction.past import ResidualsOf
    from bayeslmm.prediction.predict import Kind as PredictionKind
    from bayeslmm.prediction.rows import Target, Terms
    from bayeslmm.report.broom import Column, Incomplete
    from bayeslmm.sampling.joint_draws import JointDraws, Uncertainty
    from bayeslmm.summaries.parameters import Effects
    from bayeslmm.summaries.variance_explained import R2Method, Spread

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate(EstimateTests):
    """A REML, ML or MAP fit of a linear mixed model.

    Made by :meth:`LMM.reml`, :meth:`LMM.ml` and :meth:`LMM.map`. Pictures are in `plot`
    (``reml.plot.caterpillar()``), checks in `check` (``reml.check.influence()``).

    Attributes
    ----------
    model : Model
        Design and priors, shared by all fits of the model.
    fit : Fit
        Parameters and their uncertainty as arrays.
    choice : Choice
        How fixed effects are judged, which :meth:`with_df` changes.
    tried : tuple of str
        Models that were tried before this one, and why they were not kept; see :meth:`LMM.reml`.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    >>> round(reml.sigma, 2)
    49.51
    """

    choice: Choice = DEFAULT
    tried: tuple[str, ...] = ()

    @property
    def plot(self) -> EstimatePlots:
        """Pictures: ``plot.caterpillar()``, ``fitted``, ``covariance``, ``residuals``."""
        return EstimatePlots(self)

    @property
    def check(self) -> EstimateChecks:
        """Checks: ``check.influence()``, ``residuals``, ``singularity``."""
        return EstimateChecks(self)

    # --- how fixed effects are judged ---------------------------------------------------

    @cached_property
    def inference(self) -> Inference:
        """Standard errors and tests of the fixed effects, which all tables and verbs go through."""
        return inference_of(self.choice, self.design, self.fit)

    @override
    def _judged(self, df: DfMethod | None) -> Inference:
        if df is None:
            return self.inference
        return inference_of(replace(self.choice, df=df), self.design, self.fit)

    def with_df(self, df: DfMethod) -> Estimate:
        """Judge the fixed effects by other degrees of freedom and what goes along with them.

        Parameters
        ----------
        df : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "residual", "asymptotic"}
            "satterthwaite": the default. "residual": rows less fixed effects, as in least squares.
            "asymptotic": infinite, so that tests are normal and chi-square tests.
            "kenward-roger": Kenward and Roger's, with their standard errors and scaled F tests, for
            REML. "kenward-roger-linear": the same without second derivatives of the covariance
            matrix, which differs where residuals have a pattern (SAS' ``FIRSTORDER``).

        Returns
        -------
        Estimate
            The same estimate, whose tables, tests, means, contrasts, slopes, prints and methods
            paragraph follow. Each of these verbs also takes `df` for itself alone.

        Raises
        ------
        ValueError
            If `df` is unknown, the estimate is a MAP one, or Kenward and Roger's method is asked
            for and it is not a REML one or a pattern is at the boundary of its parameters.
        DataError
            If Kenward and Roger's method is asked for and random effects or rows that are tied to
            each other are too many for a dense matrix (4,000), or parameters other than sigma are
            known.

        Notes
        -----
        Where residuals are independent with one variance, Kenward and Roger's method is that of
        pbkrtest: the expected information about the variances and covariances, also where they are
        estimated at zero. It needs sums over the rows only. Where residuals have a structure, or
        variances differ, it is that of SAS: the observed information, and in the full form second
        derivatives by SAS' parameters (variances and covariances of ``us``, ``cs`` and ``toep``,
        else variances and correlations, ranges of exponential fields).

        References
        ----------
        Kenward, Roger (1997), doi:10.2307/2533558; Halekoh, Hojsgaard (2014),
        doi:10.18637/jss.v059.i09 (pbkrtest).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.with_df("residual").fixef()["df"].tolist()
        [178.0, 178.0]
        >>> reml.fixef(df="satterthwaite")["df"].round(3).tolist()
        [17.0, 17.0]
        """
        return self._with_choice(replace(self.choice, df=df))

    def robust(
        self, cluster: Any, kind: ClusterKind = "CR2", *, df: DfMethod | None = None
    ) -> Estimate:
        """Judge the fixed effects by cluster-robust ("sandwich") standard errors.

        They hold whatever the covariances of rows within clusters are; the model's own, the
        working covariance matrix, decides how efficient the estimates are.

        Parameters
        ----------
        cluster : str, sequence of str, or array-like of labels
            A variable of the model, several whose combinations are the clusters, or a label for
            each row of the data. Clusters contain the levels of every grouping factor and the
            groups of correlated residuals.
        kind : {"CR0", "CR1", "CR2", "CR3"}
            Correction of the residuals: none (SAS' ``EMPIRICAL``, mmrm's "Empirical"); times J / (J
            - 1) for J clusters; such that variances are unbiased if the model is right
            ("Empirical-Bias-Reduced"); those of the fit without the cluster
            ("Empirical-Jackknife").
        df : {"satterthwaite", "residual", "asymptotic"}, optional
            Degrees of freedom: those of Bell and McCaffrey, with approximate Hotelling's T^2 tests
            of several coefficients (HTZ), by default.

        Returns
        -------
        Estimate
            The same estimate, whose tables, tests, means, contrasts, slopes, prints and methods
            paragraph follow.

        Raises
        ------
        DataError
            If clusters are unknown, missing, all one, do not contain what the model ties together,
            or are larger than 4,000 rows; if the rows are beyond memory and more than a batch; or
            if "CR3" is not defined.
        ValueError
            If an option is unknown, or the estimate is a MAP one.

        Notes
        -----
        A combination of coefficients that does not vary between clusters has NaN degrees of freedom
        and p-value. So has a joint test of more coefficients than the clusters tell apart.

        References
        ----------
        Bell, McCaffrey (2002), Survey Methodology 28, 169-181; Pustejovsky, Tipton (2018),
        doi:10.1080/07350015.2016.1247004 (``clubSandwich::coef_test``, ``Wald_test``).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.robust("Subject").fixef()["std_error"].round(3).tolist()
        [6.825, 1.546]
        """
        clusters = clusters_of(self.design, cluster, kind)
        return self._with_choice(Choice(df=df, clusters=clusters))

    def _with_choice(self, choice: Choice) -> Estimate:
        other = replace(self, choice=choice)
        other.inference  # noqa: B018 - refuses what cannot be, before any use
        return other

    # --- values -----------------------------------------------------------------------

    @property
    @override
    def _beta(self) -> Array:
        return self.fit.beta

    @cached_property
    @override
    def _u(self) -> list[Array]:
        return estimate_tables.mode_arrays(self.fit)

    @property
    @override
    def _covariances(self) -> list[Array]:
        return estimate_tables.covariances(self.fit)

    @property
    @override
    def _points(self) -> Points:
        return points_of_fits([self.fit])

    @property
    @override
    def method(self) -> str:
        return self.fit.method

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        notes = (*self.tried, *text.estimate_notes(self.fit, self.design))
        return (*notes, self.inference.note) if self.inference.note else notes

    @property
    @override
    def sds(self) -> dict[str, pd.Series]:
        return estimate_tables.sds_table(self.fit, self.design)

    @property
    @override
    def corrs(self) -> dict[str, pd.DataFrame]:
        return estimate_tables.correlation_table(self.fit, self.design)

    @property
    def vcov(self) -> pd.DataFrame:
        """Covariance matrix of the fixed effects, as they are judged."""
        labels = list(self.design.coefs)
        return pd.DataFrame(self.inference.vcov, index=labels, columns=labels)

    @property
    def criterion(self) -> float:
        """Minimised criterion: -2 log (restricted) likelihood; "MAP": -2 log posterior density."""
        return self.fit.criterion

    @property
    def loglik(self) -> float:
        """Log (restricted) likelihood at the estimate; NaN for "MAP"."""
        return self.fit.log_likelihood

    @property
    def n_parameters(self) -> int:
        """Parameters counted by AIC and BIC: fixed effects, covariance parameters and sigma."""
        return estimate_tables.information_criteria(self.fit)[0]

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``-2 loglik + 2 n_parameters``."""
        return estimate_tables.information_criteria(self.fit)[1]

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``-2 loglik + log(n) n_parameters``, as lme4 counts."""
        return estimate_tables.information_criteria(self.fit)[2]

    @property
    def singular(self) -> bool:
        """Whether a covariance matrix of random effects is estimated at a boundary."""
        return self.fit.singular

    @property
    def converged(self) -> bool:
        """Whether gradient and curvature prove a minimum."""
        return self.fit.optimum.converged

    # --- tables -----------------------------------------------------------------------

    @override
    def summary(self, level: float = 0.95, *, df: DfMethod | None = None) -> pd.DataFrame:
        return estimate_tables.summary_table(self._judged(df), self.design, level)

    @override
    def fixef(self, level: float = 0.95, *, df: DfMethod | None = None) -> pd.DataFrame:
        return estimate_tables.fixed_table(self._judged(df), self.design, level)

    @override
    def varcorr(self, level: float = 0.95, *, style: VarcorrStyle = "default") -> pd.DataFrame:
        check_choice(style, get_args(VarcorrStyle), "style")
        if style == "nlme":
            from bayeslmm.summaries.nlme import nlme_quantity
            from bayeslmm.summaries.variance_explained import Uncertainty, estimate_table

            alone = Uncertainty(method=None, level=level, draws=2, random_seed=None)
            return estimate_table(nlme_quantity(self.design), self.design, self.fit, self._u, alone)
        return estimate_tables.variance_table(self.fit, self.design, level)

    @override
    def _level_tables(
        self, prob: float | None, level: float | None, *, with_fixed: bool
    ) -> dict[str, pd.DataFrame]:
        if prob is not None:
            raise ValueError(
                f"prob={prob!r} is of a posterior: an estimate's intervals have level=."
            )
        level = 0.95 if level is None else level
        return estimate_tables.level_tables(self.fit, self.design, level, with_fixed=with_fixed)

    @override
    def ranef_sd(self, *, given_beta: bool = False) -> dict[str, pd.DataFrame]:
        require_random(self.design, NO_EFFECTS)
        sds = estimate_tables.mode_sds(self.fit, given_beta=given_beta)
        return random_effects.effect_frames(self.design, sds)

    @override
    def tidy(
        self,
        effects: Effects | Sequence[Effects] = ("fixed", "ran_pars"),
        level: float = 0.95,
        *,
        df: DfMethod | None = None,
    ) -> pd.DataFrame:
        return estimate_tables.tidy_table(self._judged(df), self.design, effects, level)

    @override
    def icc(
        self,
        level: float = 0.95,
        *,
        at: Any = None,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        from bayeslmm.summaries.variance_explained import Uncertainty, estimate_table, icc_quantity

        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        quantity = icc_quantity(self.design, at)
        return estimate_table(quantity, self.design, self.fit, self._u, chosen)

    @override
    def r2(
        self,
        method: R2Method = "nakagawa",
        level: float = 0.95,
        *,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        from bayeslmm.summaries.variance_explained import Uncertainty, estimate_table, r2_quantity

        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        quantity = r2_quantity(self.design, method)
        return estimate_table(quantity, self.design, self.fit, self._u, chosen)

    @override
    def variance_partition(
        self,
        level: float = 0.95,
        *,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        from bayeslmm.summaries.variance_explained import Uncertainty, estimate_partition

        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        return estimate_partition(self.design, self.fit, self._u, chosen)

    def confint(
        self,
        method: Literal["wald", "profile", "bootstrap"] = "wald",
        level: float = 0.95,
        *,
        kinds: Sequence[Kind] = KINDS,
        df: DfMethod | None = None,
        draws: int = 500,
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> pd.DataFrame:
        """Confidence intervals of the parameters.

        Parameters
        ----------
        method : {"wald", "profile", "bootstrap"}
            Wald intervals (t intervals for fixed effects, symmetric on the unconstrained scale
            for covariance parameters), profile likelihood intervals, or percentiles of a parametric
            bootstrap.
        level : float
            Coverage.
        kinds : sequence of {"beta", "sd", "cor", "sigma", "power_residual", "cor_residual"}
            Which parameters; all by default.
        df : str, optional
            Of "wald", as in :meth:`with_df`.
        draws, random_seed, progressbar
            Of "bootstrap", as in :meth:`bootstrap`.
        executor : concurrent.futures.Executor or the like, optional
            Where refits of "bootstrap", or profiles parameter by parameter, run; intervals are the
            same everywhere. Where parameters are known (``fixed=``), profiles run here.

        Returns
        -------
        pandas.DataFrame
            Columns conf_low and conf_high; for profiles also lower_at_bound, upper_at_bound and
            the criterion profiled. Covariance parameters are profiled on the criterion of the
            fit; fixed effects always on the likelihood, for a restricted likelihood has none.

        Raises
        ------
        ValueError
            If the method or a kind is unknown, or a profile of a "MAP" fit is asked for.
        SamplingError
            If a bootstrap of a "MAP" fit is asked for.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.confint().loc["sd[Batch, Intercept]"].round(1).tolist()
        [18.9, 93.1]
        >>> profile = reml.confint("profile")[["conf_low", "conf_high"]]
        >>> profile.loc["sd[Batch, Intercept]"].round(1).tolist()
        [15.7, 101.1]
        """
        from bayeslmm.prediction import predict

        return predict.confidence_intervals(
            self.design,
            self._judged(df),
            method,
            level,
            kinds,
            draws,
            random_seed,
            executor=executor,
            progressbar=progressbar,
        )

    # --- predictions ------------------------------------------------------------------

    @override
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: PredictionKind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        residuals: ResidualsOf | None = None,
        uncertainty: Uncertainty = "laplace",
        draws: int = 1000,
        level: float = 0.95,
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
        out: str | PathLike[str] | None = None,
    ) -> Any:
        from bayeslmm.prediction import predict
        from bayeslmm.prediction.in_batches import predict_to_file, predictions_of

        options = predict.options_of(target, kind, terms, observed, weights, residuals)
        rng = seeded(random_seed)

        def table(rows: Any) -> pd.DataFrame:
            return predict.estimate_predictions(
                self.design,
                self.inference,
                self._u,
                rows,
                options,
                uncertainty,
                draws,
                level,
                rng,
                executor=executor,
                progressbar=progressbar,
            )

        source = predictions_of(new, out)
        if source is None or out is None:
            return table(new)
        predict_to_file(self.design, source, out, weights, draws, table)
        return None

    def bootstrap(
        self,
        n: int = 500,
        *,
        random_seed: Seed = None,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> pd.DataFrame:
        """Parametric bootstrap: refit the model to responses simulated from the estimate.

        Parameters
        ----------
        n : int
            Number of refits.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        executor : concurrent.futures.Executor or the like, optional
            Where the refits run, as in :meth:`bayeslmm.LMM.check_calibration`; they are the same
            everywhere.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        pandas.DataFrame
            One row per refit, one column per parameter (``beta[Days]``, ``sd[Subject, Days]``,
            ...); its quantiles are percentile intervals, which ``confint("bootstrap")`` gives.

        Raises
        ------
        SamplingError
            If the estimate is a "MAP" one, too many refits fail, or a worker of the executor died.

        References
        ----------
        lme4's ``bootMer``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.bootstrap(20, random_seed=1, progressbar=False).columns.tolist()
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        from bayeslmm.prediction import predict

        return predict.bootstrap_table(
            self.design, self.fit, n, random_seed, executor=executor, progressbar=progressbar
        )

    @property
    @override
    def _truth(self) -> Truth:
        from bayeslmm.planning.truth import truth_of_fit

        return truth_of_fit(self.fit)

    @property
    @override
    def _tests_by(self) -> DfMethod:
        if self.choice.clusters is not None:
            raise DataError(
                "Planned studies are tested with model-based standard errors: take study() of the "
                "estimate itself, not of robust()."
            )
        return self.choice.df or "satterthwaite"

    @override
    def _simulation_draws(self, n: Any, rng: np.random.Generator) -> JointDraws:
        from bayeslmm.sampling.joint_draws import point_draws

        repeated = np.zeros(whole_number(n, "n"), dtype=np.intp)
        return point_draws(self.fit, self._u).take(repeated)

    # --- effects ----------------------------------------------------------------------

    @override
    def _source_by(self, df: DfMethod | None) -> Source:
        from bayeslmm.effects.sources import source_of_estimate

        return source_of_estimate(self.design, self._judged(df))

    @override
    def _row_draws(self, target: str) -> None:
        from bayeslmm.effects.averages import check_estimate_target

        check_estimate_target(self.design, target)

    @override
    def heterogeneity(
        self, level: float = 0.95, *, at: Any = None, df: Df | float = "residual"
    ) -> Heterogeneity:
        from bayeslmm.effects.heterogeneity import estimate_heterogeneity

        if self.choice.clusters is not None or str(self.choice.df).startswith("kenward"):
            raise DataError(
                "heterogeneity() has model-based standard errors: take it of the estimate itself, "
                "without with_df() and robust()."
            )
        return estimate_heterogeneity(self.design, self.fit, self._u, level=level, at=at, df=df)

    @override
    def hypothesis(
        self, expressions: Names, *, level: float = 0.95, df: DfMethod | None = None
    ) -> Hypotheses:
        from bayeslmm.effects.hypothesis import estimate_hypotheses

        return estimate_hypotheses(self.design, self._judged(df), expressions, level)

    # --- papers and prints ------------------------------------------------------------

    @override
    def _column(self, level: float) -> Column:
        from bayeslmm.report.broom import estimate_column

        return estimate_column(self.inference, self.design, self._u, level)

    @override
    def glance(self) -> pd.DataFrame:
        from bayeslmm.report.broom import glance_estimate

        return glance_estimate(self.fit, self.design)

    @overload
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        influence: bool = False,
        out: None = None,
    ) -> pd.DataFrame: ...

    @overload
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        influence: bool = False,
        out: str | PathLike[str],
    ) -> None: ...

    @override
    def augment(
        self,
        data: Any = None,
        *,
        incomplete: Incomplete = "omit",
        influence: bool = False,
        out: str | PathLike[str] | None = None,
    ) -> pd.DataFrame | None:
        from bayeslmm.report.broom import augment, estimate_values

        return augment(
            self.design,
            data,
            incomplete,
            lambda rows: estimate_values(rows, self.fit, self._u, influence=influence),
            out,
        )

    @override
    def methods_paragraph(self, *, references: bool = False) -> str:
        from bayeslmm.report.methods import estimate_paragraph

        return estimate_paragraph(
            self.inference,
            self.design,
            self.priors,
            text.estimate_notes(self.fit, self.design),
            references=references,
        )

    def __repr__(self) -> str:
        fit, names = self.fit, {"REML": "REML criterion", "ML": "-2 log likelihood"}
        criterion = names.get(fit.method, "-2 log posterior density")
        return text.fit_text(
            [
                f"{text.model_name(self.design)} fit by {fit.method}",
                f"{criterion} at convergence: {fit.criterion:.4f}",
            ],
            self.design,
            f"{text.covariance_heading(self.design)}:",
            text.random_effects_block(self.design, self.sds, self.corrs, self._residual_parameters),
            self.fixef()[["estimate", "std_error", "df", "statistic", "p_value"]],
            self.notes,
        )
