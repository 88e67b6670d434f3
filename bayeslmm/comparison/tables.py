"""A posterior beside a REML estimate; likelihood-ratio tests between estimates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.few_levels import unbounded_parameters
from bayeslmm.comparison.frequentist import natural, own_fit, read_estimate, slope
from bayeslmm.comparison.modes import Reference, at_boundary, on_scale, reference_modes
from bayeslmm.comparison.nesting import check_nested, check_same_data, check_same_fixed
from bayeslmm.data.design import Design
from bayeslmm.sampling.diagnostics import MAX_RHAT, MIN_ESS_PER_CHAIN
from bayeslmm.summaries.fits import EstimateLike, PosteriorLike, is_estimate, is_posterior
from bayeslmm.summaries.parameters import Parameter, parameters
from bayeslmm.summaries.posterior_tables import (
    interval_defaults,
    parameter_matrix,
    summarise,
    summary_table,
)

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

AGREES = "agrees"
PRIOR = "mostly the prior"
PULLED_UP = "pulled up by the prior"
PULLED_DOWN = "pulled down by the prior"
NARROWED = "narrowed by the prior"
FAR = "far from the estimate"
BOUNDARY = "at the boundary"
DIFFERS = "differs"
POORLY_SAMPLED = "poorly sampled"

MAX_DIFFERENCE = 0.1
"""Standard errors between an estimate and this package's own from which on it "differs"."""

MIN_SHIFT = 0.5
"""Standard errors from which on a shift that is due to the prior counts as shrinkage."""

FAR_SHIFT = 1.0
"""Standard errors from which on a shift of unknown cause counts."""

MAX_WIDTH = 0.8
"""Standard error under the prior over that without it, below which the prior counts as felt."""

LOSS = 1e-4
"""Deviance by which a larger model may be worse: what optimisers leave."""


def compare_reml(
    post: PosteriorLike,
    reml: Any,
    *,
    prob: float | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Put a posterior beside a REML or ML estimate, parameter by parameter.

    Parameters
    ----------
    post : Posterior
        The posterior.
    reml : Estimate, statsmodels MixedLMResults, DataFrame, str or path
        The estimate: ``model.reml()`` or ``model.ml()``; the results of statsmodels' ``MixedLM``;
        or a table, or the path of a CSV file, with broom.mixed's columns, as R's
        ``broom.mixed::tidy(fit)`` makes it from lme4, nlme or glmmTMB fits.
    prob : float, optional
        Probability of both intervals; ArviZ's ``rcParams["stats.ci_prob"]`` by default. Their kind
        for the posterior is ``rcParams["stats.ci_kind"]``.
    names : mapping of str to str, optional
        Coefficients and grouping factors as the estimate names them, to our names. R's own
        spelling, such as ``SexFemale`` for ``Sex[T.Female]``, is understood without.

    Returns
    -------
    pandas.DataFrame
        One row per parameter (``beta[Days]``, ``sd[Subject, Days]``,
        ``cor[Subject, Intercept, Days]``, ``sigma``). Its ``attrs`` say what was compared. Columns:

        - estimate, std_error, conf_low, conf_high: the estimate, NaN where it has none. Limits of a
          table are used if `prob` is 0.95, broom.mixed's level; else they come from std_error.
        - mean, sd, median and the bounds of the interval (``eti89_lb``, ...): the posterior.
        - shift: posterior mean less estimate in standard errors, on the scale on which the
          confidence interval is symmetric (the log of an sd, the inverse hyperbolic tangent of a
          correlation). Where a table has no standard error, that of this package's own fit is
          taken. NaN at a boundary.
        - prior_shift: what the prior does of it, the posterior mode less the REML estimate, both of
          this package. The rest is the shape of the posterior, whose mean is not its mode: with
          few levels, the mean of an sd lies well above. NaN where the posterior has no mode inside
          the support of its priors, or one in beta besides, which is another mode.
        - flag: see the notes.

    Raises
    ------
    DataError
        If the parameters are not the same; both lists are shown.
    TypeError
        If `post` is no posterior or `reml` no estimate.

    Notes
    -----
    The first of these that applies is the flag of a parameter.

    - "poorly sampled": R-hat above 1.01, or a bulk or tail effective sample size below 100 per
      chain: look at the draws before anything else.
    - "differs": the estimate is 0.1 standard errors or more from the maximum that this package
      finds, so the other fit is one of other data or of another model, or did not converge.
    - "mostly the prior": too few levels (two, beside an intercept), so that the data do not bound
      this standard deviation above; and the correlations of its coefficient.
    - "at the boundary": an sd is estimated at zero or a correlation at one, where the estimate has
      no standard error and the posterior is the better summary.
    - "pulled up by the prior", "pulled down by the prior": prior_shift is half a standard error or
      more in this direction and the mean went along by as much.
    - "narrowed by the prior": the prior takes 20 % or more off the standard error at the mode.
    - "far from the estimate": prior_shift is not known, and the mean is a standard error or more
      away, because of the priors or of the shape of the posterior.
    - "agrees": none of these. A mean above the mode of a skewed posterior agrees.

    The flags are about the whole effect of the priors, with them or without;
    ``post.check.sensitivity()`` is about making them slightly stronger or weaker, and may well find
    little of what is pulled.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    >>> post = model.fit(method="laplace", random_seed=1)
    >>> table = blm.compare_reml(post, model.reml())
    >>> table["flag"].unique().tolist()
    ['agrees']
    """
    _check_posterior(post)
    prob, kind = interval_defaults(prob)
    reported = read_estimate(reml, post.design, prob, names)
    rows = [p for p in parameters(post.design) if p.label in reported.table.index]
    dataset = post.data["posterior"].to_dataset()
    draws = parameter_matrix(dataset, post.design, rows)
    summary = summarise(draws, reported.table.index, prob, kind)
    own = own_fit(reml, post.design)
    reference = reference_modes(post.model, reported, rows, own)
    table = pd.concat([reported.table, summary], axis=1)
    table["shift"] = _shift(reported.table, rows, draws, reference)
    table["prior_shift"] = reference.prior_shift
    sampled = _poorly_sampled(dataset, post.design)
    unbounded = table.index.isin(list(unbounded_parameters(post.design)))
    table["flag"] = _flags(table, rows, reference, sampled, unbounded)
    table.attrs = {
        "formula": post.design.formula.source,
        "posterior": str(post.data.attrs.get("method", "")),
        "estimate": reported.source,
        "prob": prob,
        "ci_kind": kind,
        "nobs": post.design.n,
    }
    if reported.nobs not in (None, post.design.n):
        _log.warning(
            "The estimate uses %d rows and the posterior %d.", reported.nobs, post.design.n
        )
    return table


def _check_posterior(post: Any) -> None:
    if is_estimate(post):
        raise TypeError("The posterior comes first: compare_reml(model.fit(), model.reml()).")
    if not is_posterior(post):
        raise TypeError(f"A posterior from model.fit() is expected, got {type(post).__name__}.")


def _shift(table: pd.DataFrame, rows: list[Parameter], draws: Array, reference: Reference) -> Array:
    estimates = table["estimate"].to_numpy()
    slopes = np.array([slope(p.kind, v) for p, v in zip(rows, estimates, strict=True)])
    with np.errstate(invalid="ignore"):
        errors = table["std_error"].to_numpy() * slopes
    errors = np.where(np.isfinite(errors), errors, reference.errors)
    centers = on_scale(estimates, rows)
    means = on_scale(draws.T, rows).mean(axis=1)
    with np.errstate(invalid="ignore"):
        shift = (means - centers) / errors
    return np.where(at_boundary(centers, rows), np.nan, shift)


def _poorly_sampled(dataset: xr.Dataset, design: Design) -> pd.Series:
    summary = summary_table(dataset, design)
    needed = MIN_ESS_PER_CHAIN * dataset.sizes["chain"]
    ess = summary[["ess_bulk", "ess_tail"]].min(axis=1)
    return (summary["r_hat"] > MAX_RHAT) | (ess < needed)


def _flags(
    table: pd.DataFrame,
    rows: list[Parameter],
    reference: Reference,
    sampled: pd.Series,
    unbounded: NDArray[np.bool_],
) -> Array:
    estimates = table["estimate"].to_numpy()
    unit = _natural_errors(table, rows, reference)
    own = np.array([natural(p.kind, v) for p, v in zip(rows, reference.values, strict=True)])
    shift, prior = table["shift"].to_numpy(), reference.prior_shift
    boundary = at_boundary(on_scale(estimates, rows), rows) | np.isnan(reference.errors)
    with np.errstate(invalid="ignore"):
        conditions = {
            POORLY_SAMPLED: sampled.loc[table.index].to_numpy(),
            DIFFERS: np.abs(estimates - own) >= MAX_DIFFERENCE * unit,
            PRIOR: unbounded,
            BOUNDARY: boundary,
            PULLED_UP: np.minimum(prior, shift) >= MIN_SHIFT,
            PULLED_DOWN: np.maximum(prior, shift) <= -MIN_SHIFT,
            NARROWED: reference.width <= MAX_WIDTH,
            FAR: np.isnan(prior) & (np.abs(shift) >= FAR_SHIFT),
        }
    return np.select(list(conditions.values()), list(conditions), AGREES)


def _natural_errors(table: pd.DataFrame, rows: list[Parameter], reference: Reference) -> Array:
    """Own standard errors as tables show them; at a boundary the posterior's sd."""
    own = [natural(p.kind, v) for p, v in zip(rows, reference.values, strict=True)]
    slopes = np.array([slope(p.kind, v) for p, v in zip(rows, own, strict=True)])
    with np.errstate(invalid="ignore"):
        errors = reference.errors / slopes
    return np.where(np.isfinite(errors), errors, table["sd"].to_numpy())


def lrt(*estimates: EstimateLike) -> pd.DataFrame:
    """Compare nested models by likelihood-ratio tests.

    Parameters
    ----------
    *estimates : Estimate
        Two or more fits of the same data, each a special case of the next larger one: ML fits, or
        REML fits with the same fixed effects, which differ in their random effects only.

    Returns
    -------
    pandas.DataFrame
        One row per model, by increasing number of parameters, with its formula as the index.
        Columns n_parameters, aic, bic and loglik; chisq, df and p_value test the model against the
        row above. ``attrs["method"]`` is "ML" or "REML".

    Raises
    ------
    TypeError
        If something else than an estimate is given.
    ValueError
        If the likelihoods cannot be compared: posterior modes, REML beside ML, REML with different
        fixed effects, different data, models that are not nested.

    Notes
    -----
    Where the smaller model sets a variance to zero, it is on the boundary of the larger one and
    the chi-squared distribution is too wide: the p-value is conservative, for a single variance
    about twice too large [1]_. The posterior of the standard deviation has no such difficulty.

    References
    ----------
    .. [1] Self, Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
       ratio tests under nonstandard conditions, doi:10.1080/01621459.1987.10478472.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> formulas = ["Reaction ~ Days + (1 | Subject)", "Reaction ~ Days + (Days | Subject)"]
    >>> table = blm.lrt(*(blm.LMM(formula, sleep).ml() for formula in formulas))
    >>> table["chisq"].round(2).tolist()
    [nan, 42.14]
    """
    ordered = _ordered(estimates)
    for small, large in pairwise(ordered):
        check_same_data(small.design, large.design)
        if small.method == "REML":
            check_same_fixed(small.design, large.design)
        check_nested(small.design, large.design)
    counts = np.array([estimate.n_parameters for estimate in ordered])
    loglik = np.array([estimate.loglik for estimate in ordered])
    df = np.diff(counts)
    chisq = _statistics(loglik, ordered)
    table = pd.DataFrame(
        {
            "n_parameters": counts,
            "aic": [estimate.aic for estimate in ordered],
            "bic": [estimate.bic for estimate in ordered],
            "loglik": loglik,
            "chisq": np.append(np.nan, chisq),
            "df": pd.array([pd.NA, *df], dtype="Int64"),
            "p_value": np.append(np.nan, stats.chi2.sf(chisq, df)),
        },
        index=pd.Index([e.design.formula.source for e in ordered], name="formula"),
    )
    table.attrs = {"method": ordered[0].method, "nobs": ordered[0].design.n}
    return table


def _ordered(estimates: tuple[EstimateLike, ...]) -> list[EstimateLike]:
    """By increasing number of parameters, if all were fitted by the same likelihood."""
    for estimate in estimates:
        if not is_estimate(estimate):
            raise TypeError(
                f"Estimates are expected, got {type(estimate).__name__}: lrt(small.ml(), "
                "large.ml())."
            )
    if len(estimates) < 2:
        raise ValueError("Two or more estimates are expected: lrt(small.ml(), large.ml()).")
    methods = sorted({estimate.method for estimate in estimates})
    if "MAP" in methods:
        raise ValueError("Posterior modes have no likelihood-ratio test: refit with ml().")
    if len(methods) > 1:
        raise ValueError("REML and ML fits have different likelihoods: refit all with ml().")
    ordered = sorted(estimates, key=lambda estimate: estimate.n_parameters)
    for small, large in pairwise(ordered):
        if small.n_parameters == large.n_parameters:
            raise ValueError(
                f"`{small.design.formula.source}` and `{large.design.formula.source}` have the "
                f"same number of parameters ({small.n_parameters}), so neither is a special case "
                "of the other: compare their AIC or BIC."
            )
    return ordered


def _statistics(loglik: Array, ordered: list[EstimateLike]) -> Array:
    """Twice the gains in log likelihood; a larger model can lose only by failing to converge."""
    for estimate in ordered:
        if not estimate.fit.optimum.converged:
            _log.warning("`%s` did not converge.", estimate.design.formula.source)
    gains = 2.0 * np.diff(loglik)
    for gain, large in zip(gains, ordered[1:], strict=True):
        if gain < -LOSS:
            _log.warning(
                "`%s` has a lower likelihood than the smaller model: it is not at its maximum.",
                large.design.formula.source,
            )
    return np.maximum(gains, 0.0)
