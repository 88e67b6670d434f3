"""The result of ``model.reml()``, ``model.ml()`` and ``model.map()``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from bayeslmm.estimation import effects
from bayeslmm.fits.assessment_methods import EstimateAssessment
from bayeslmm.fits.diagnosis_methods import EstimateDiagnosis
from bayeslmm.fits.effects_methods import EstimateMeans
from bayeslmm.fits.plots_methods import EstimatePlots
from bayeslmm.fits.prediction_methods import EstimatePrediction
from bayeslmm.fits.report_methods import EstimateReporting
from bayeslmm.summaries import estimate_tables, matrices, text
from bayeslmm.summaries.matrices import variance_frame
from bayeslmm.summaries.parameters import Kind, check_kinds, parameters, probability
from bayeslmm.summaries.tidy import Effects, tidy_fit


@dataclass(frozen=True, eq=False)
class Estimate(
    EstimatePrediction,
    EstimateAssessment,
    EstimateDiagnosis,
    EstimateMeans,
    EstimatePlots,
    EstimateReporting,
):
    """A REML, ML or MAP fit of a linear mixed model.

    Made by :meth:`LMM.reml`, :meth:`LMM.ml` and :meth:`LMM.map`.

    Attributes
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Parameters and their uncertainty as arrays.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    >>> round(reml.sigma, 2)
    49.51
    """

    @property
    def method(self) -> str:
        """What was maximised: "REML", "ML" or "MAP"."""
        return self.fit.method

    @property
    def beta(self) -> pd.Series:
        """Fixed effects by coefficient."""
        return pd.Series(self.fit.beta, index=list(self.design.coefs), name="beta")

    @property
    def vcov(self) -> pd.DataFrame:
        """Covariance matrix of the fixed effects."""
        labels = list(self.design.coefs)
        return pd.DataFrame(self.fit.vcov, index=labels, columns=labels)

    @property
    def sigma(self) -> float:
        """Residual standard deviation (of a row with weight one)."""
        return self.fit.sigma

    @property
    def sds(self) -> dict[str, pd.Series]:
        """Random-effect standard deviations by grouping factor."""
        return estimate_tables.sds_table(self.fit, self.design)

    @property
    def corrs(self) -> dict[str, pd.DataFrame]:
        """Random-effect correlation matrices by grouping factor."""
        return estimate_tables.correlation_table(self.fit, self.design)

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
    def nobs(self) -> int:
        """Number of rows used."""
        return self.design.n

    @property
    def singular(self) -> bool:
        """Whether a covariance matrix of random effects is estimated at a boundary."""
        return self.fit.singular

    @property
    def converged(self) -> bool:
        """Whether gradient and curvature prove a minimum."""
        return self.fit.optimum.converged

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a reader should know: dropped columns, singular fit, failed convergence."""
        return text.estimate_notes(self.fit, self.design)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """All parameters but the random effects, with standard errors and Wald intervals.

        Parameters
        ----------
        level : float
            Coverage of the intervals.

        Returns
        -------
        pandas.DataFrame
            Rows ``beta[Days]``, ``sd[Subject, Days]``, ``cor[Subject, Intercept, Days]``,
            ``sigma``; columns estimate, std_error, conf_low, conf_high and, for fixed effects,
            Satterthwaite df, t statistic and p-value. Standard errors of covariance parameters
            come by the delta method from the log and inverse hyperbolic tangent scales, on which
            their intervals are symmetric; NaN at a boundary (use profile intervals there).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> list(reml.summary().index)
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        return estimate_tables.summary_table(self.fit, self.design, level)

    def fixef(self, level: float = 0.95) -> pd.DataFrame:
        """Fixed effects: estimate, std_error, Satterthwaite df, statistic, p_value, interval.

        Parameters
        ----------
        level : float
            Coverage of the intervals.

        Returns
        -------
        pandas.DataFrame
            One row per coefficient.

        References
        ----------
        Kuznetsova, Brockhoff, Christensen (2017), doi:10.18637/jss.v082.i13 (lmerTest).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.fixef()["estimate"].round(3).tolist()
        [251.405, 10.467]
        """
        return estimate_tables.fixed_table(self.fit, self.design, level)

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Conditional modes of the random effects: levels by coefficients, per grouping factor.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.ranef()["Batch"].shape
        (6, 1)
        """
        return effects.effect_frames(self.design, self._modes)

    def ranef_sd(self, *, given_beta: bool = False) -> dict[str, pd.DataFrame]:
        """Standard deviations of the random effects at the estimated covariance parameters.

        Parameters
        ----------
        given_beta : bool
            Take the fixed effects as known, as lme4's ``ranef(condVar = TRUE)`` does. By default
            their uncertainty counts (the standard error of prediction).

        Returns
        -------
        dict of str to pandas.DataFrame
            Levels by coefficients, per grouping factor.
        """
        sds = estimate_tables.mode_sds(self.fit, given_beta=given_beta)
        return effects.effect_frames(self.design, sds)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Fixed plus random effects: levels by coefficients, per grouping factor."""
        return effects.coefficient_frames(self.design, self.fit.beta, self._modes)

    def varcorr(self, level: float = 0.95) -> pd.DataFrame:
        """Variances, covariances, standard deviations and correlations of the random effects.

        Returns
        -------
        pandas.DataFrame
            Columns group, term, term_2, vcov, sdcor (as lme4's ``as.data.frame(VarCorr())``) and
            std_error, conf_low, conf_high of sdcor.
        """
        frame = variance_frame(self.design, self._covariances, self.sigma)
        table = estimate_tables.covariance_table(self.fit, self.design, level)
        numbers = table[["std_error", "conf_low", "conf_high"]].reset_index(drop=True)
        return pd.concat([frame, numbers], axis=1)

    def confint(
        self,
        method: Literal["wald", "profile", "bootstrap"] = "wald",
        level: float = 0.95,
        *,
        kinds: Sequence[Kind] = ("beta", "sd", "cor", "sigma"),
        draws: int = 500,
        random_seed: int | np.random.Generator | None = None,
        progressbar: bool = True,
    ) -> pd.DataFrame:
        """Confidence intervals of the parameters.

        Parameters
        ----------
        method : {"wald", "profile", "bootstrap"}
            Wald intervals (Satterthwaite t for fixed effects, symmetric on the unconstrained scale
            for covariance parameters), profile likelihood intervals, or percentiles of a parametric
            bootstrap.
        level : float
            Coverage.
        kinds : sequence of {"beta", "sd", "cor", "sigma"}
            Which parameters; all by default.
        draws, random_seed, progressbar
            Of "bootstrap", as in :meth:`bootstrap`.

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
        """
        probability(level, "level")
        kinds = check_kinds(kinds)
        labels = [p.label for p in parameters(self.design) if p.kind in kinds]
        if method == "wald":
            return self.summary(level).loc[labels, ["conf_low", "conf_high"]]
        if method == "bootstrap":
            frame = self.bootstrap(draws, random_seed=random_seed, progressbar=progressbar)
            return estimate_tables.percentile_table(frame[labels], level)
        if method != "profile":
            raise ValueError(f"method={method!r}: 'wald', 'profile' or 'bootstrap' is expected")
        return estimate_tables.profile_table(self.fit, self.design, level, kinds).loc[labels]

    def G(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Covariance matrix of all random effects, labelled by group, level and term."""
        return matrices.random_covariance(self.design, self._covariances, sparse=sparse)

    def R(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Covariance matrix of the residuals."""
        return matrices.residual_covariance(self.design, self.sigma**2, sparse=sparse)

    def V(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Marginal covariance matrix of the response, ZGZ' + R."""
        return matrices.response_covariance(
            self.design, self._covariances, self.sigma**2, sparse=sparse
        )

    def fitted(self, *, random_effects: bool = True) -> pd.Series:
        """Fitted values: offset + X beta, plus Zu unless `random_effects` is false."""
        u = self._modes if random_effects else None
        values = effects.linear_predictor(self.design, self.fit.beta, u)
        return pd.Series(values, index=self.design.index, name="fitted")

    def residuals(self, *, random_effects: bool = True) -> pd.Series:
        """Response less fitted values."""
        values = self.design.y - self.fitted(random_effects=random_effects)
        return values.rename("residual")

    def tidy(
        self, effects: Effects | Sequence[Effects] = ("fixed", "ran_pars"), level: float = 0.95
    ) -> pd.DataFrame:
        """Tidy table with broom.mixed's columns.

        Parameters
        ----------
        effects : {"fixed", "ran_pars", "ran_vals", "ran_coefs"} or sequence of them
            Which parts.
        level : float
            Coverage of the intervals.

        Returns
        -------
        pandas.DataFrame
            Columns effect, group, level, term, estimate, std_error, conf_low, conf_high, and df,
            statistic, p_value where fixed effects are asked for.
        """
        return tidy_fit(self.fit, self.design, effects, level)

    def __repr__(self) -> str:
        criterion = {"REML": "REML criterion", "ML": "-2 log likelihood"}.get(
            self.method, "-2 log posterior density"
        )
        fixed = self.fixef()[["estimate", "std_error", "df", "statistic", "p_value"]]
        parts = [
            f"Linear mixed model fit by {self.method}",
            f"Formula: {self.design.formula.source}",
            f"{criterion} at convergence: {self.criterion:.4f}",
            "Random effects:",
            text.random_effects_block(self.design, self.sds, self.corrs, self.sigma),
            text.groups_line(self.design),
            "Fixed effects:",
            text.frame_text(fixed.rename_axis(None)),
            *self.notes,
        ]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        return text.html_page(repr(self).split("Random effects:")[0], self.summary(), self.notes)
