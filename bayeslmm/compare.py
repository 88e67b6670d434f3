"""A posterior beside a REML estimate; likelihood-ratio tests between estimates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.design import Design
from bayeslmm.diagnostics import MAX_RHAT, MIN_ESS_PER_CHAIN
from bayeslmm.estimate import Fit, fit_likelihood
from bayeslmm.frequentist import Reported, read_estimate, slope, unconstrained
from bayeslmm.map_estimate import fit_map
from bayeslmm.marginal import marginal_system
from bayeslmm.nesting import check_comparable, check_nested
from bayeslmm.parameters import Parameter, parameters
from bayeslmm.point import Estimate
from bayeslmm.posterior_tables import (
    interval_defaults,
    parameter_matrix,
    summarise,
    summary_table,
)
from bayeslmm.prior_set import Priors

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

AGREES = "agrees"
SHRUNK = "shrunk by the prior"
BOUNDARY = "at the boundary"
DIFFERS = "differs"
POORLY_SAMPLED = "poorly sampled"

MAX_DIFFERENCE = 0.1
"""Standard errors between an estimate and this package's own from which on it "differs"."""

MIN_SHIFT = 0.5
"""Standard errors from which on a shift that is due to the prior counts as shrinkage."""

MAX_WIDTH = 0.8
"""Standard error under the prior over that without it, below which the prior counts as felt."""


class Draws(Protocol):
    """What is needed of a posterior: its model, its priors and its draws."""

    @property
    def design(self) -> Design:
        """Design of the model."""

    @property
    def priors(self) -> Priors:
        """Priors of the model."""

    @property
    def data(self) -> xr.DataTree:
        """Draws in the ArviZ schema."""


def compare_reml(
    post: Draws,
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
          few levels, the mean of an sd lies well above.
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
    - "at the boundary": an sd is estimated at zero or a correlation at one, where the estimate has
      no standard error and the posterior is the better summary.
    - "shrunk by the prior": prior_shift is half a standard error or more and the mean went along
      by as much, or the prior takes 20 % or more off the standard error at the mode.
    - "agrees": none of these. A mean above the mode of a skewed posterior agrees.

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
    reference = _reference(post, reml, reported, rows)
    table = pd.concat([reported.table, summary], axis=1)
    table["shift"] = _shift(reported.table, rows, draws, reference)
    table["prior_shift"] = reference.prior_shift
    sampled = _poorly_sampled(dataset, post.design)
    table["flag"] = _flags(table, rows, reference, sampled)
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
    if isinstance(post, Estimate):
        raise TypeError("The posterior comes first: compare_reml(model.fit(), model.reml()).")
    if not all(hasattr(post, name) for name in ("design", "priors", "data")):
        raise TypeError(f"A posterior from model.fit() is expected, got {type(post).__name__}.")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Reference:
    """This package's own maximum and what the prior does to it, on the unconstrained scale.

    `values` and `errors` are those of the maximum the estimate should be; `prior_shift` and
    `width` compare the posterior mode with REML, in standard errors and as a ratio of them.
    """

    values: Array
    errors: Array
    prior_shift: Array
    width: Array


def _reference(
    post: Draws, reml: Any, reported: Reported, rows: list[Parameter]
) -> _Reference:
    own = reml.fit if isinstance(reml, Estimate) and reml.design is post.design else None
    plan = marginal_system(post.design) if own is None else own.plan
    restricted = own if own and own.method == "REML" else fit_likelihood(plan, "REML")
    mode = fit_map(plan, post.priors)
    count = len(rows)
    if own is None:
        full = None if reported.method == "REML" else fit_likelihood(plan, "ML")
        own = _closest(reported, rows, [fit for fit in (restricted, full) if fit is not None])
    values, errors = _unconstrained(own, count)
    center, spread = _unconstrained(restricted, count)
    moved, narrowed = _unconstrained(mode, count)
    with np.errstate(invalid="ignore"):
        prior_shift = (moved - center) / spread
    if not mode.optimum.converged:
        prior_shift[:] = np.nan
    return _Reference(
        values=values, errors=errors, prior_shift=prior_shift, width=narrowed / spread
    )


def _closest(reported: Reported, rows: list[Parameter], fits: list[Fit]) -> Fit:
    """The fit of the estimate's method or, where that is not known, the nearest one."""
    named = [fit for fit in fits if fit.method == reported.method]
    estimates = _on_scale(reported.table["estimate"].to_numpy(), rows)

    def distance(fit: Fit) -> float:
        values, errors = _unconstrained(fit, len(rows))
        with np.errstate(invalid="ignore"):
            return float(np.nansum(np.abs((estimates - values) / errors)))

    return min(named or fits, key=distance)


def _unconstrained(fit: Fit, count: int) -> tuple[Array, Array]:
    """Parameters and standard errors on the unconstrained scale, fixed effects first."""
    values = np.concatenate([fit.beta, fit.parameters])[:count]
    with np.errstate(invalid="ignore"):
        variances = np.concatenate([np.diag(fit.vcov), np.diag(fit.parameter_cov)])[:count]
        errors = np.sqrt(variances)
    return values, np.where(np.isfinite(values), errors, np.nan)


def _on_scale(values: Array, rows: list[Parameter]) -> Array:
    return np.array([unconstrained(p.kind, v) for p, v in zip(rows, values, strict=True)])


def _shift(
    table: pd.DataFrame, rows: list[Parameter], draws: Array, reference: _Reference
) -> Array:
    estimates = table["estimate"].to_numpy()
    slopes = np.array([slope(p.kind, v) for p, v in zip(rows, estimates, strict=True)])
    with np.errstate(invalid="ignore"):
        errors = table["std_error"].to_numpy() * slopes
    errors = np.where(np.isfinite(errors), errors, reference.errors)
    centers = _on_scale(estimates, rows)
    means = _on_scale(draws.T, rows).mean(axis=1)
    with np.errstate(invalid="ignore"):
        shift = (means - centers) / errors
    return np.where(np.isfinite(centers), shift, np.nan)


def _poorly_sampled(dataset: xr.Dataset, design: Design) -> pd.Series:
    summary = summary_table(dataset, design)
    needed = MIN_ESS_PER_CHAIN * dataset.sizes["chain"]
    ess = summary[["ess_bulk", "ess_tail"]].min(axis=1)
    return (summary["r_hat"] > MAX_RHAT) | (ess < needed)


def _flags(
    table: pd.DataFrame, rows: list[Parameter], reference: _Reference, sampled: pd.Series
) -> Array:
    estimates = table["estimate"].to_numpy()
    unit = _natural_errors(table, rows, reference)
    own = np.array([_natural(p, v) for p, v in zip(rows, reference.values, strict=True)])
    shift, prior = table["shift"].to_numpy(), reference.prior_shift
    boundary = ~np.isfinite(_on_scale(estimates, rows)) | np.isnan(reference.errors)
    with np.errstate(invalid="ignore"):
        moved = (np.abs(prior) >= MIN_SHIFT) & (shift * np.sign(prior) >= MIN_SHIFT)
        conditions = [
            sampled.loc[table.index].to_numpy(),
            np.abs(estimates - own) >= MAX_DIFFERENCE * unit,
            boundary,
            moved | (reference.width <= MAX_WIDTH),
        ]
    return np.select(conditions, [POORLY_SAMPLED, DIFFERS, BOUNDARY, SHRUNK], AGREES)


def _natural(parameter: Parameter, value: float) -> float:
    back = {"beta": float, "cor": np.tanh}.get(parameter.kind, np.exp)
    return float(back(value))


def _natural_errors(table: pd.DataFrame, rows: list[Parameter], reference: _Reference) -> Array:
    """Own standard errors as tables show them; at a boundary the posterior's sd."""
    own = [_natural(p, v) for p, v in zip(rows, reference.values, strict=True)]
    slopes = np.array([slope(p.kind, v) for p, v in zip(rows, own, strict=True)])
    with np.errstate(invalid="ignore"):
        errors = reference.errors / slopes
    return np.where(np.isfinite(errors), errors, table["sd"].to_numpy())
