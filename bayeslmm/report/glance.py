"""One row per fit: broom.mixed's ``glance``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.priors.record import Priors
from bayeslmm.report.columns import evidence_of
from bayeslmm.sampling.diagnostics import Diagnostics
from bayeslmm.summaries.estimate_tables import information_criteria
from bayeslmm.summaries.posterior_tables import sigma_draws


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
