"""Leave-one-out and leave-one-group-out cross-validation without refits."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from bayeslmm.assessment.integrated import LeaveOut, affordable, leave_out
from bayeslmm.assessment.resampled import Resampler
from bayeslmm.design.design import Design
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.inference.tree import RESPONSE, SAMPLE_DIMS, obs_coord
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.prediction.checks import row_groups
from bayeslmm.priors.record import Priors
from bayeslmm.schema import OBS_DIM

if TYPE_CHECKING:
    from arviz_stats import ELPDData

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)


RESAMPLE_K = 0.5
"""Pareto k from which on the posterior without the rows is sampled: weights of finite variance."""


def integrated_loo(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    by: str | None = None,
    *,
    progressbar: bool = False,
) -> ELPDData:
    """Expected log predictive density of rows, or of groups of rows, each left out.

    Parameters
    ----------
    design, plan, priors : Design, Plan, Priors
        The model.
    joint : JointDraws
        Its posterior draws.
    by : str, optional
        Grouping factor or variable whose levels are left out one by one; rows by default.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    arviz_stats.ELPDData
        With pointwise values. `p` is the difference to the log predictive density in the sample.
    """
    codes, labels = group_codes(design, by)
    joint = _affordable_draws(design, plan, joint, len(labels))
    scores = leave_out(design, plan, priors, joint, codes, progressbar=progressbar)
    dim = OBS_DIM if by is None else by
    result = _psis(scores, joint, labels, dim)
    _resample(result, Resampler(design, plan, priors, joint, np.random.default_rng(0)), codes)
    _report(result, by)
    return result


def conditional_loo(tree: xr.DataTree) -> ELPDData:
    """Score rows given draws of the random effects, with the warning that deserves."""
    result = _quiet_loo(tree)
    bad = int(np.sum(np.asarray(result.pareto_k) > result.good_k))
    _log.warning(
        "Conditional scores: each row is predicted from random effects that have seen it, so "
        "importance sampling has to undo that; %d of %d rows have a Pareto k above %.2f. loo() "
        "integrates the random effects out.",
        bad,
        result.n_data_points,
        result.good_k,
    )
    return result


def group_codes(design: Design, by: str | None) -> tuple[Indices | None, NDArray[Any]]:
    """Group of each row (None where each is its own) and the labels of the groups.

    Raises
    ------
    DataError
        If the model has no such grouping factor or variable.
    """
    if by is None:
        return None, obs_coord(design)
    groups = row_groups(design, by)
    codes = np.empty(design.n, dtype=np.intp)
    for place, rows in enumerate(groups.values()):
        codes[rows] = place
    return codes, np.array([str(label) for label in groups])


def loo_pit(
    design: Design, plan: Plan, priors: Priors, joint: JointDraws, *, progressbar: bool = False
) -> Array:
    """Probability (n,) of a value below each row's in its leave-one-out predictive distribution."""
    joint = _affordable_draws(design, plan, joint, design.n)
    scores = leave_out(design, plan, priors, joint, progressbar=progressbar)
    weights = loo_weights(scores.log_density)
    assert scores.mean is not None and scores.sd is not None
    below = norm.cdf((design.y - scores.mean) / scores.sd)
    return np.asarray(np.sum(weights * below, axis=0))


def loo_weights(log_density: Array) -> Array:
    """Pareto-smoothed importance weights (S, m) of the posterior without each row or group."""
    from arviz_stats.base import array_stats

    log_weights, _ = array_stats.psislw(log_density.T, axis=-1)
    return np.exp(np.asarray(log_weights)).T


def _affordable_draws(design: Design, plan: Plan, joint: JointDraws, scores: int) -> JointDraws:
    size = affordable(design, plan, joint.size, scores)
    if size < joint.size:
        _log.info("Leave-out densities use %d of %d draws, equally spaced.", size, joint.size)
    return joint.thin(size)


def _psis(scores: LeaveOut, joint: JointDraws, labels: NDArray[Any], dim: str) -> ELPDData:
    chains, draws = joint.shape
    coords = {SAMPLE_DIMS[0]: np.arange(chains), SAMPLE_DIMS[1]: np.arange(draws)}
    values = scores.log_density.reshape(chains, draws, -1)
    likelihood = xr.Dataset({RESPONSE: ((*SAMPLE_DIMS, dim), values)}, {**coords, dim: labels})
    parameters = xr.Dataset({"sigma": (SAMPLE_DIMS, joint.sigma.reshape(chains, draws))}, coords)
    for place, sds in enumerate(joint.points.sds):
        shaped = sds.reshape(chains, draws, -1)
        parameters[f"sd_{place}"] = ((*SAMPLE_DIMS, f"coef_{place}"), shaped)
    tree = xr.DataTree.from_dict({"posterior": parameters, "log_likelihood": likelihood})
    result = _quiet_loo(tree)
    in_sample = logsumexp(scores.in_sample, axis=0) - np.log(joint.size)
    result.p = float(np.sum(in_sample - np.asarray(result.elpd_i)))
    return result


def _resample(result: ELPDData, resampler: Resampler, codes: Indices | None) -> None:
    """Replace scores with a large Pareto k by those from the posterior without the rows."""
    poor = np.flatnonzero(np.asarray(result.pareto_k) > RESAMPLE_K)
    if not len(poor) or not resampler.affordable:
        return
    elpd, k = result.elpd_i.copy(deep=True), result.pareto_k.copy(deep=True)
    for place in poor:
        rows = np.array([place]) if codes is None else np.flatnonzero(codes == place)
        score = resampler.score(rows)
        if score is not None:
            elpd[place], k[place] = score.log_density, score.pareto_k
    result.p += float((result.elpd_i - elpd).sum())
    result.elpd_i, result.pareto_k = elpd, k
    result.elpd = float(elpd.sum())
    result.se = float(np.sqrt(len(elpd) * np.var(elpd.to_numpy())))
    result["log_weights"] = None  # those of the resampled rows are of other draws
    result.warning = bool((k > result.good_k).any())
    _log.info("%d of %d scores come from the posterior without the rows.", len(poor), len(elpd))


def _quiet_loo(tree: xr.DataTree) -> ELPDData:
    """ArviZ's loo; what it would warn of is reported in this package's words."""
    from arviz_stats import loo

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        result: ELPDData = loo(tree, pointwise=True, var_name=RESPONSE)
    return result


def _report(result: ELPDData, by: str | None) -> None:
    bad = int(np.sum(np.asarray(result.pareto_k) > result.good_k))
    if bad:
        what = "rows" if by is None else f"levels of {by}"
        _log.warning(
            "%d of %d %s have a Pareto k above %.2f: leaving them out changes the posterior of the "
            "covariance parameters so much that their scores are unreliable. Use more draws, or "
            "refit without them.",
            bad,
            result.n_data_points,
            what,
            result.good_k,
        )
