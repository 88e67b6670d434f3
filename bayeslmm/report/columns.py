"""What one fit has to say in a table of models or in one row: parameters and measures of fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.comparison.models import log_evidence
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.report.methods import wald_scales
from bayeslmm.sampling.diagnostics import Diagnostics
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import information_criteria, parameter_table
from bayeslmm.summaries.parameters import parameters
from bayeslmm.summaries.posterior_tables import as_estimates, interval_defaults, sigma_draws
from bayeslmm.summaries.posterior_tables import parameter_table as draws_table
from bayeslmm.summaries.variance_explained import (
    Quantity,
    Uncertainty,
    estimate_table,
    icc_quantity,
    posterior_table,
    r2_quantity,
)

Array = NDArray[np.float64]

NUMBERS = ["estimate", "std_error", "conf_low", "conf_high", "df", "statistic", "p_value"]

Key = tuple[str, str, str]
"""Part, group and term of a row."""

GOODNESS = ("nobs", "levels", "icc", "r2", "loglik", "aic", "bic", "log_evidence")
"""Measures of fit that a table can show."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Column:
    """One fit of a table of models.

    Attributes
    ----------
    method : str
        "REML", "ML", "MAP" or, for a posterior, its engine.
    bayesian : bool
        Whether it is a posterior.
    parameters : pandas.DataFrame
        Columns estimate, std_error, conf_low, conf_high, df, statistic and p_value, NaN where they
        do not apply; rows by part ("fixed", "random" or "residual"), group and term.
    goodness : pandas.DataFrame
        Columns estimate, std_error, conf_low and conf_high; rows by measure and group.
    estimand, interval : str
        What the numbers are, for the footnote.
    design : Design
        The design of the model: whether fits can be compared depends on its data.
    terms : mapping
        Coefficients that each row of `parameters` is about.
    """

    method: str
    bayesian: bool
    parameters: pd.DataFrame
    goodness: pd.DataFrame
    estimand: str
    interval: str
    design: Design
    terms: Mapping[Key, tuple[str, ...]]

    @property
    def label(self) -> str:
        """How the fit was made."""
        return f"Posterior ({self.method})" if self.bayesian else self.method

    @property
    def at_boundary(self) -> bool:
        """Whether an estimate lacks an interval."""
        return bool(self.parameters["conf_low"].isna().any())


def estimate_column(fit: Fit, design: Design, modes: Sequence[Array], level: float) -> Column:
    """Column of a REML, ML or MAP fit with random effects `modes`."""
    table = parameter_table(fit, design, level)
    _, aic, bic = information_criteria(fit)
    rows = _sizes(design)
    uncertainty = Uncertainty(method=None, level=level, draws=2, random_seed=None)
    for measure, quantity in _shares(design).items():
        shares = estimate_table(quantity, design, fit, modes, uncertainty)["estimate"]
        rows |= {(measure, str(name)): [value] for name, value in shares.items()}
    if fit.method == "MAP":
        table[["df", "statistic", "p_value"]] = np.nan  # tests are not of posteriors
    else:
        rows |= {("loglik", ""): [fit.log_likelihood], ("aic", ""): [aic], ("bic", ""): [bic]}
    return Column(
        method=fit.method,
        bayesian=False,
        parameters=_keyed(table),
        goodness=_goodness(rows),
        estimand=_estimand(fit, design),
        interval=f"{100 * level:g} % {_interval(fit, design)}",
        design=design,
        terms=_terms(design),
    )


def posterior_column(
    data: xr.DataTree,
    design: Design,
    priors: Priors,
    joint: JointDraws,
    prob: float | None,
) -> Column:
    """Column of a posterior with draws `joint`."""
    prob, kind = interval_defaults(prob)
    table = draws_table(data["posterior"].to_dataset(), design, prob, kind)
    measures = _sizes(design)
    for measure, quantity in _shares(design).items():
        shares = as_estimates(posterior_table(quantity, joint, prob))
        for name, row in shares[NUMBERS[:4]].iterrows():
            measures[measure, str(name)] = row.tolist()
    if (evidence := evidence_of(data.attrs, priors)) is not None:
        measures["log_evidence", ""] = list(evidence)
    names = {"eti": "equal-tailed", "hdi": "highest-density"}
    return Column(
        method=str(data.attrs["method"]),
        bayesian=True,
        parameters=_keyed(as_estimates(table)),
        goodness=_goodness(measures),
        estimand="posterior means",
        interval=f"{100 * prob:g} % {names.get(kind, kind)} credible intervals",
        design=design,
        terms=_terms(design),
    )


def evidence_of(attrs: Mapping[Any, Any], priors: Priors) -> tuple[float, float] | None:
    """Log evidence and its Monte Carlo error; None where there is none."""
    try:
        evidence = log_evidence(attrs, priors)
    except (PriorError, SamplingError):
        return None
    return evidence.value, evidence.error


def _estimand(fit: Fit, design: Design) -> str:
    if fit.method == "MAP":
        if fit.given_beta or not design.p:
            return "posterior modes"
        return "posterior modes of the covariance parameters, means of the fixed effects given them"
    restricted = "restricted " if fit.method == "REML" else ""
    return f"{restricted}maximum likelihood estimates"


def _interval(fit: Fit, design: Design) -> str:
    """Kind of the intervals."""
    scales = wald_scales(design)
    if fit.method == "MAP":
        return f"intervals of a normal approximation to the posterior at its mode ({scales})"
    fixed = "Satterthwaite t for fixed effects, else " if design.p else ""
    return f"confidence intervals ({fixed}Wald: {scales})"


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of parameters by part, group and term."""
    columns = (table[name] for name in ("kind", "group", "coef", "coef_2"))
    keys = [_key(*row) for row in zip(*columns, strict=True)]
    index = pd.MultiIndex.from_tuples(keys, names=["part", "group", "term"])
    return table.set_axis(index, axis=0).reindex(columns=NUMBERS)


def _key(kind: str, group: str | None, *coefs: str | None) -> Key:
    if kind == "sigma":
        return "residual", "", "sigma"
    if kind == "beta":
        return "fixed", "", str(coefs[0])
    return "random", group or "", f"{kind}({', '.join(filter(None, coefs))})"


def _terms(design: Design) -> dict[Key, tuple[str, ...]]:
    """Coefficients that the row of each parameter is about."""
    return {_key(p.kind, p.group, *p.terms): p.terms for p in parameters(design)}


def _sizes(design: Design) -> dict[tuple[str, str], list[float]]:
    rows: dict[tuple[str, str], list[float]] = {("nobs", ""): [design.n]}
    return rows | {("levels", factor.name): [factor.n_levels] for factor in design.random}


def _shares(design: Design) -> dict[str, Quantity]:
    """Shares of the variance by measure."""
    if not design.random:
        return {}
    return {"icc": icc_quantity(design), "r2": r2_quantity(design, "nakagawa")}


def _goodness(rows: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
    order = sorted(rows, key=lambda key: GOODNESS.index(key[0]))
    padded = [[*rows[key], *[np.nan] * (4 - len(rows[key]))] for key in order]
    index = pd.MultiIndex.from_tuples(order, names=["measure", "group"])
    return pd.DataFrame(padded, index=index, columns=NUMBERS[:4], dtype=float)


# --- one row per fit ----------------------------------------------------------------


def glance_estimate(fit: Fit, design: Design) -> pd.DataFrame:
    """One row about a REML, ML or MAP fit."""
    count, aic, bic = information_criteria(fit)
    row = {
        "method": fit.method,
        "nobs": design.n,
        "rows_dropped": len(design.dropped),
        "sigma": fit.sigma,
        "loglik": fit.log_likelihood,
        "aic": aic,
        "bic": bic,
        "criterion": fit.criterion,
        "n_parameters": count,
        "df_residual": design.n - count,
        "singular": fit.singular,
        "converged": fit.optimum.converged,
    }
    return pd.DataFrame([row | _groups(design)])


def glance_posterior(
    data: xr.DataTree, design: Design, priors: Priors, found: Diagnostics
) -> pd.DataFrame:
    """One row about a posterior."""
    evidence, error = evidence_of(data.attrs, priors) or (np.nan, np.nan)
    row = {
        "method": str(data.attrs["method"]),
        "nobs": design.n,
        "rows_dropped": len(design.dropped),
        "sigma": float(sigma_draws(data["posterior"].to_dataset()).mean()),
        "log_evidence": evidence,
        "log_evidence_error": error,
        "chains": found.chains,
        "draws": found.chains * found.draws,
        "max_rhat": found.max_rhat,
        "min_ess_bulk": found.min_ess_bulk,
        "min_ess_tail": found.min_ess_tail,
        "pareto_k": found.pareto_k if found.approximate else found.proposal_k,
        "divergences": found.divergences if str(data.attrs["method"]) == "nuts" else np.nan,
        "ok": found.ok,
    }
    return pd.DataFrame([row | _groups(design)])


def _groups(design: Design) -> dict[str, int]:
    return {f"ngrps_{factor.key}": factor.n_levels for factor in design.random}
