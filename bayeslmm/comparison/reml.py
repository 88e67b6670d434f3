"""A posterior beside a REML estimate, parameter by parameter, and how far the prior moves it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.checks.sensitivity import unbounded_parameters
from bayeslmm.comparison.estimates import Reported, own_fit, read_estimate
from bayeslmm.data.design import Design, require_marginal
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.map_estimate import fit_map
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.sampling.diagnostics import MAX_RHAT, MIN_ESS_PER_CHAIN
from bayeslmm.summaries import PosteriorLike, is_estimate, is_posterior
from bayeslmm.summaries.parameters import (
    Parameter,
    known_labels,
    natural,
    parameters,
    slope,
    unconstrained,
)
from bayeslmm.summaries.posterior_tables import (
    interval_defaults,
    parameter_matrix,
    summarise,
    summary_table,
)

Array = NDArray[np.float64]

MAX_ATANH = 6.0
"""Inverse hyperbolic tangent of a correlation that counts as one: 0.99999."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reference:
    """Our own maximum and what the prior does to it.

    Attributes
    ----------
    values, errors : ndarray (m,)
        The maximum that an estimate should be at, and its standard errors, on the unconstrained
        scale; NaN or infinite at a boundary.
    prior_shift : ndarray (m,)
        Posterior mode less REML estimate in standard errors, on that scale; NaN where either is
        not known.
    width : ndarray (m,)
        Standard error at the posterior mode over that at the REML estimate.
    """

    values: Array
    errors: Array
    prior_shift: Array
    width: Array


def reference_modes(
    model: Model,
    reported: Reported,
    rows: Sequence[Parameter],
    own: Fit | None = None,
) -> Reference:
    """Find the REML or ML estimate and the posterior mode of a model.

    Parameters
    ----------
    model : Model
        The model.
    reported : Reported
        An estimate made elsewhere, which says what was maximised or is close to it.
    rows : sequence of Parameter
        Its parameters: all, or the fixed effects.
    own : Fit, optional
        The estimate itself where it was made here on this design.

    Returns
    -------
    Reference
    """
    restricted = own if own and own.method == "REML" else model.reml
    if own is None:
        own = _closest(reported, rows, restricted)
    values, errors = _unconstrained(own, rows)
    center, spread = _unconstrained(restricted, rows)
    prior_shift, width = np.full((2, len(rows)), np.nan)
    try:
        mode = fit_map(restricted.plan, model.priors, restricted)
    except SamplingError:  # no mode inside the support of the priors
        return Reference(values=values, errors=errors, prior_shift=prior_shift, width=width)
    moved, narrowed = _unconstrained(mode, rows)
    # A mode joint in beta differs from REML by more than the prior.
    if mode.optimum.converged and not mode.given_beta:
        with np.errstate(invalid="ignore"):
            prior_shift = (moved - center) / spread
    with np.errstate(invalid="ignore"):
        width = narrowed / spread
    return Reference(values=values, errors=errors, prior_shift=prior_shift, width=width)


def on_scale(values: Array, rows: Sequence[Parameter]) -> Array:
    """Values (m, ...) of the parameters on their unconstrained scales."""
    return np.array([unconstrained(p.kind, v) for p, v in zip(rows, values, strict=True)])


def at_boundary(
    values: Array, rows: Sequence[Parameter], singular: bool | NDArray[np.bool_] = True
) -> NDArray[np.bool_]:
    """Whether values (m,) on the unconstrained scale mean an sd of zero or a correlation of one.

    A correlation is only near one, by the origin of a covariate, where the fit is not `singular`.
    """
    correlation = np.array([p.kind == "cor" for p in rows]) & singular
    return ~np.isfinite(values) | (correlation & (np.abs(values) > MAX_ATANH))


def _closest(reported: Reported, rows: Sequence[Parameter], restricted: Fit) -> Fit:
    """The fit by the estimate's method or, where that is not known, the nearer one."""
    if reported.method == "REML":
        return restricted
    full = fit_likelihood(restricted.plan, "ML")
    estimates = on_scale(reported.table["estimate"].to_numpy(), rows)

    def distance(fit: Fit) -> float:
        values, errors = _unconstrained(fit, rows)
        with np.errstate(invalid="ignore"):
            return float(np.nansum(np.abs((estimates - values) / errors)))

    return full if reported.method == "ML" or distance(full) < distance(restricted) else restricted


def _unconstrained(fit: Fit, rows: Sequence[Parameter]) -> tuple[Array, Array]:
    """Parameters and standard errors on the unconstrained scale; no error at a boundary."""
    values = np.concatenate([fit.beta, fit.parameters])[: len(rows)]
    variances = np.concatenate([np.diag(fit.vcov), np.diag(fit.parameter_cov)])[: len(rows)]
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(variances)
    return values, np.where(at_boundary(values, rows, fit.singular), np.nan, errors)


# --- a posterior beside a REML estimate; likelihood-ratio tests between estimates ---

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
KNOWN = "fixed"

MAX_DIFFERENCE = 0.1
"""Standard errors between an estimate and this package's own from which on it "differs"."""

MIN_SHIFT = 0.5
"""Standard errors from which on a shift that is due to the prior counts as shrinkage."""

FAR_SHIFT = 1.0
"""Standard errors from which on a shift of unknown cause counts."""

MAX_WIDTH = 0.8
"""Standard error under the prior over that without it, below which the prior counts as felt."""


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
    - "fixed": the parameter is known and held; it has no standard error and no shift.
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
    require_marginal(post.design, "compare_reml()")
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
    known = known_labels(post.design)
    table.loc[table.index.isin(known), "flag"] = KNOWN
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
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = (means - centers) / errors
    return np.where(at_boundary(centers, rows) | (errors == 0.0), np.nan, shift)


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
    own = np.array([natural(p.kind, v) for p, v in zip(rows, reference.values, strict=True)])
    slopes = np.array([slope(p.kind, v) for p, v in zip(rows, own, strict=True)])
    with np.errstate(invalid="ignore"):
        unit = reference.errors / slopes
    unit = np.where(np.isfinite(unit), unit, table["sd"])  # at a boundary the posterior's sd
    shift, prior = table["shift"].to_numpy(), reference.prior_shift
    unmeasured = np.isnan(reference.errors)
    boundary = unmeasured | at_boundary(on_scale(estimates, rows), rows, unmeasured)
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
