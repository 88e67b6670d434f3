"""Several models of the same data side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from bayeslmm.comparison.evidence import log_evidence
from bayeslmm.comparison.nesting import check_same_data, check_same_fixed
from bayeslmm.comparison.tables import lrt
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.summaries.fits import EstimateLike, PosteriorLike, is_estimate, is_posterior

Weights = Literal["stacking", "BB-pseudo-BMA", "pseudo-BMA"]
WEIGHTS: tuple[Weights, ...] = ("stacking", "BB-pseudo-BMA", "pseudo-BMA")

NO_WEIGHT = 1e-10
"""Stacking weights below this are what the optimiser leaves of zero."""


def compare(
    fits: Mapping[str, Any],
    *,
    by: str | None = None,
    weights: Weights = "stacking",
    progressbar: bool = True,
) -> pd.DataFrame:
    """Compare models of the same data: posteriors, or REML or ML estimates.

    Parameters
    ----------
    fits : mapping of str to Posterior or Estimate
        Two or more fits by name, all posteriors or all estimates.
    by : str, optional
        For posteriors: grouping factor whose levels are left out one at a time; single rows by
        default.
    weights : {"stacking", "BB-pseudo-BMA", "pseudo-BMA"}
        For posteriors: how model weights are computed.
    progressbar : bool
        Whether to show one for each cross-validation.

    Returns
    -------
    pandas.DataFrame
        One row per model. For posteriors, the best first: rank, elpd (integrated leave-one-out or
        leave-one-group-out), p, elpd_diff and its standard error dse, se, weight, worst_k (largest
        Pareto k), log_evidence, its error, and model_prob (posterior probability under equal prior
        probabilities; missing where a model has no evidence). For estimates, by increasing number
        of parameters: formula, n_parameters, loglik, aic, bic, aic_weight, and chisq, df, p_value
        of the likelihood-ratio test against the row above where all are nested (attribute
        ``lrt`` says why not otherwise).

    Raises
    ------
    TypeError
        If something else than fits is given, or posteriors and estimates together.
    ValueError
        If there are fewer than two fits, the data differ, or the estimates are REML fits with
        different fixed effects, or maximise different criteria.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman (2018), doi:10.1214/17-BA1091, for stacking.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> slopes = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
    >>> intercepts = blm.LMM("Reaction ~ Days + (1 | Subject)", sleep)
    >>> fits = {"slopes": slopes.fit(random_seed=1), "intercepts": intercepts.fit(random_seed=1)}
    >>> blm.compare(fits, by="Subject").index.tolist()
    ['slopes', 'intercepts']
    >>> blm.compare({"slopes": slopes.ml(), "intercepts": intercepts.ml()})["df"].tolist()
    [<NA>, 2]
    """
    if not isinstance(fits, Mapping) or len(fits) < 2:
        raise ValueError("Two or more fits by name are expected: compare({'a': fit, 'b': other}).")
    if weights not in WEIGHTS:
        allowed = ", ".join(map(repr, WEIGHTS))
        raise ValueError(f"weights={weights!r}: one of {allowed} is expected.")
    _check_kinds(fits)
    for (_, first), (_, second) in pairwise(fits.items()):
        check_same_data(first.design, second.design)
    if all(is_estimate(fit) for fit in fits.values()):
        if by is not None:
            raise ValueError(
                f"by={by!r} needs posteriors: estimates are compared by their likelihood, which "
                "leaves nothing out."
            )
        return _compare_estimates(fits)
    return _compare_posteriors(fits, by, weights, progressbar)


def _check_kinds(fits: Mapping[str, Any]) -> None:
    for name, fit in fits.items():
        if not (is_posterior(fit) or is_estimate(fit)):
            raise TypeError(
                f"{name!r} is {type(fit).__name__}; posteriors (model.fit()) or estimates "
                "(model.ml()) are expected."
            )
    if len({is_estimate(fit) for fit in fits.values()}) > 1:
        raise TypeError(
            "Posteriors and estimates have no criterion in common: compare posteriors with each "
            "other and estimates with each other; compare_reml() puts one beside the other."
        )


def _compare_posteriors(
    fits: Mapping[str, Any], by: str | None, weights: Weights, progressbar: bool
) -> pd.DataFrame:
    from arviz_stats import compare as arviz_compare

    scores = {name: fit.loo(by, progressbar=progressbar) for name, fit in fits.items()}
    table = pd.DataFrame(arviz_compare(scores, method=weights, round_to="none"))
    if weights == "stacking":
        table["weight"] = table["weight"].where(table["weight"] > NO_WEIGHT, 0.0)
    table["worst_k"] = [float(scores[name].pareto_k.max()) for name in table.index]
    evidence = pd.DataFrame(
        [_evidence(fits[name]) for name in table.index],
        index=table.index,
        columns=["log_evidence", "evidence_error"],
    )
    table = table.join(evidence)
    relative = np.exp(table["log_evidence"] - table["log_evidence"].max())
    known = table["log_evidence"].notna().all()
    table["model_prob"] = relative / relative.sum() if known else np.nan
    table.index.name = "model"
    table.attrs = {"by": by}
    return table


def _evidence(fit: PosteriorLike) -> tuple[float, float]:
    """Log evidence and its error; NaN where the priors or the engine give none."""
    try:
        found = log_evidence(fit.data.attrs, fit.priors)
    except (PriorError, SamplingError):
        return np.nan, np.nan
    return found.value, found.error


def _compare_estimates(fits: Mapping[str, EstimateLike]) -> pd.DataFrame:
    methods = {fit.method for fit in fits.values()}
    if len(methods) > 1 or "MAP" in methods:
        raise ValueError(
            f"Fits by {' and '.join(sorted(methods))} cannot be compared: refit all with ml()."
        )
    ordered = dict(sorted(fits.items(), key=lambda item: item[1].n_parameters))
    if methods == {"REML"}:
        for first, second in pairwise(ordered.values()):
            check_same_fixed(first.design, second.design)
    aic = np.array([fit.aic for fit in ordered.values()])
    relative = np.exp(-0.5 * (aic - aic.min()))
    table = pd.DataFrame(
        {
            "formula": [fit.design.formula.source for fit in ordered.values()],
            "n_parameters": [fit.n_parameters for fit in ordered.values()],
            "loglik": [fit.loglik for fit in ordered.values()],
            "aic": aic,
            "bic": [fit.bic for fit in ordered.values()],
            "aic_weight": relative / relative.sum(),
        },
        index=pd.Index(list(ordered), name="model"),
    )
    return _with_tests(table, ordered, methods.pop())


def _with_tests(table: pd.DataFrame, fits: Mapping[str, EstimateLike], method: str) -> pd.DataFrame:
    columns = ["chisq", "df", "p_value"]
    try:
        tests = lrt(*fits.values())[columns].set_axis(table.index)
        said = "Each row is tested against the row above."
    except ValueError as error:
        tests = pd.DataFrame(np.nan, index=table.index, columns=columns)
        tests["df"] = pd.array([pd.NA] * len(tests), dtype="Int64")
        said = str(error)
    table = table.join(tests)
    table.attrs = {"method": method, "lrt": said}
    return table
