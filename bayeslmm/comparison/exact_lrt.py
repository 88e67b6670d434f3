"""Likelihood-ratio test of a variance by the finite-sample distribution of its statistic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.comparison.boundary import boundary_p_value, lacks_one_effect
from bayeslmm.comparison.models import check_nested, check_same_data, check_same_fixed, in_order
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError
from bayeslmm.summaries import EstimateLike
from bayeslmm.summaries.parameters import whole_number

Array = NDArray[np.float64]

GRID = np.linspace(-14.0, 14.0, 141)
"""Logs of the ratio of variances over which the likelihood is maximised.

In units in which the largest eigenvalue is one. A parabola through the best one and its neighbours
gives the maximum to 1e-3.
"""

NO_EIGENVALUE = 1e-10
"""Eigenvalue over the largest one that counts as zero."""

EQUAL = 1e-9
"""Relative difference up to which eigenvalues are taken together."""

NO_STATISTIC = 1e-7
"""Likelihood-ratio statistic that counts as zero."""

MOST_LEVELS = 5000
"""Levels of the tested term, whose matrix (levels, levels) has to be diagonalised."""

CHUNK = 2_000_000
"""Values of draws times grid held at a time."""

PSEUDO = (
    "The models have other random effects too: the distribution is that of the model with the "
    "tested term alone, as Greven et al. (2008) approximate it."
)


def exact_lrt(
    null: EstimateLike,
    alternative: EstimateLike,
    *,
    draws: int = 10_000,
    random_seed: int | np.random.Generator | None = None,
) -> pd.DataFrame:
    """Test that the variance of a random-effects term is zero, without large-sample theory.

    The distribution of the likelihood-ratio statistic under the null hypothesis is simulated from
    its spectral representation [1]_: a few chi-squared variables for each draw, and no refits.

    Parameters
    ----------
    null, alternative : Estimate
        Both by REML with the same fixed effects, or both by ML. The null model lacks one term of
        one variance, such as ``(1 | g)`` or ``(0 + x | g)``, and may be a model without random
        effects. Fits by ML may differ in fixed effects too, which are then tested along.
    draws : int
        Simulated values of the statistic.
    random_seed : int or numpy.random.Generator, optional
        Seed.

    Returns
    -------
    pandas.DataFrame
        One row: chisq, the statistic; p_value, (values as large + 1) / (draws + 1), and mc_error,
        its Monte Carlo standard error; p_zero, the probability of a statistic of zero; and
        p_boundary of the mixture for large samples, as in :func:`lrt`. ``attrs["note"]`` says
        what is approximate.

    Raises
    ------
    TypeError, ValueError
        As :func:`lrt`, or if the models differ by more than one variance: a slope that is
        correlated with an intercept has a covariance too. :meth:`Estimate.bootstrap` of the null
        model is for those.
    DataError
        If rows are not in memory, residuals have a structure, or some parameters are known.

    Notes
    -----
    Exact, but for the number of draws, where the tested term is the only one. With other random
    effects it is the pseudo-likelihood approximation [2]_, for REML: good where these are not
    next to zero.

    References
    ----------
    R's ``RLRsim::exactRLRT`` and ``exactLRT``.

    .. [1] Crainiceanu, Ruppert (2004), Likelihood ratio tests in linear mixed models with one
       variance component, doi:10.1111/j.1467-9868.2004.00438.x.
    .. [2] Greven, Crainiceanu, Kuechenhoff, Peters (2008), Restricted likelihood ratio testing for
       zero variance components in linear mixed models, doi:10.1198/106186008X386599.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> rail = blm.load_dataset("Rail")
    >>> plain, mixed = blm.LMM("travel ~ 1", rail), blm.LMM("travel ~ 1 + (1 | Rail)", rail)
    >>> blm.exact_lrt(plain.reml(), mixed.reml(), random_seed=1)["p_value"].round(4).tolist()
    [0.0001]
    """
    draws = whole_number(draws, "draws")
    small, large = in_order((null, alternative))
    check_same_data(small.design, large.design)
    if small.method == "REML":
        check_same_fixed(small.design, large.design)
    _check_kind(small, large)
    check_nested(small.design, large.design)
    spectrum = _spectrum(small.design, large.design, reml=small.method == "REML")
    statistic = max(0.0, 2.0 * (large.loglik - small.loglik))
    values = spectrum.simulate(draws, seeded(random_seed))
    return _table(small, large, statistic, values)


def _table(
    small: EstimateLike, large: EstimateLike, statistic: float, values: Array
) -> pd.DataFrame:
    draws = len(values)
    as_large = draws if statistic <= NO_STATISTIC else int(np.sum(values >= statistic))
    p_value = (as_large + 1) / (draws + 1)
    df = large.n_parameters - small.n_parameters
    interior = not small.fit.singular
    row = {
        "chisq": statistic,
        "p_value": p_value,
        "mc_error": float(np.sqrt(p_value * (1.0 - p_value) / draws)),
        "p_zero": float(np.mean(values <= NO_STATISTIC)),
        "p_boundary": boundary_p_value(
            small.design, large.design, statistic, df, interior=interior
        ),
    }
    table = pd.DataFrame([row], index=pd.Index([large.design.formula.source], name="formula"))
    table.attrs = {"method": small.method, "draws": draws}
    if small.design.random:
        table.attrs["note"] = PSEUDO
    return table


# --- what can be tested ----------------------------------------------------------------


def _check_kind(small: EstimateLike, large: EstimateLike) -> None:
    design = large.design
    if any(isinstance(one.design, SummarisedDesign) for one in (small, large)):
        raise DataError(
            "exact_lrt() needs the rows of the model, which data beyond memory do not keep: "
            "lrt() has the p-value of large samples."
        )
    if design.spec.structured or design.spec.has_errors:
        raise DataError("exact_lrt() is for independent residuals of one unknown variance.")
    if design.spec.known or small.design.spec.known:
        raise DataError("exact_lrt() is for models without known covariance parameters (fixed=).")
    if small.method == "ML" and small.design.random:
        raise ValueError(
            "With other random effects the distribution is known, approximately, for restricted "
            "likelihoods: fit both models with reml()."
        )
    if not lacks_one_effect(small.design, design) or _tested(small.design, design) is None:
        raise ValueError(
            f"`{small.design.formula.source}` is not `{design.formula.source}` less one term of "
            "one variance, such as (1 | g) or (0 + x | g). Where more is zero, bootstrap the "
            "smaller model."
        )


def _tested(small: Design, large: Design) -> tuple[int, int] | None:
    """Place of the grouping factor in the larger model, and of the coefficient in it."""
    own = {factor.spec.identity: factor for factor in small.random}
    for place, factor in enumerate(large.random):
        there = own.get(factor.spec.identity)
        known = set() if there is None else set(there.coefs)
        missing = [block for block in factor.blocks if not {factor.coefs[i] for i in block} & known]
        if missing:
            return (place, missing[0][0]) if len(missing[0]) == 1 else None
    return None


# --- the distribution ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spectrum:
    """What the distribution of the statistic depends on.

    Attributes
    ----------
    projected : ndarray (m,)
        Distinct eigenvalues mu of Z'(I - P)Z, P projecting on the fixed effects.
    counts : ndarray (m,)
        How often they occur.
    penalty : ndarray (g,)
        Sum of log(1 + lambda mu) (REML), or log(1 + lambda xi), xi those of Z'Z (ML), over `GRID`.
    rest : int
        Dimensions of the residuals that Z does not reach.
    df : int
        Rows (ML) less fixed effects (REML).
    restrictions : int
        Fixed effects that the null model lacks.
    """

    projected: Array
    counts: NDArray[np.intp]
    penalty: Array
    rest: int
    df: int
    restrictions: int

    def simulate(self, draws: int, rng: np.random.Generator) -> Array:
        """Values (draws,) of the statistic under the null hypothesis."""
        share = _shares(self.projected)  # (m, g)
        size = max(1, CHUNK // len(GRID))
        parts = []
        for start in range(0, draws, size):
            n = min(size, draws - start)
            reached = rng.chisquare(self.counts, (n, len(self.counts)))
            total = reached.sum(axis=1) + rng.chisquare(self.rest, n)
            gains = -self.df * np.log1p(-(reached @ share) / total[:, None]) - self.penalty
            values = np.maximum(_maxima(gains), 0.0)
            if self.restrictions:
                values += self.df * np.log1p(rng.chisquare(self.restrictions, n) / total)
            parts.append(values)
        return np.concatenate(parts)


def _shares(eigenvalues: Array) -> Array:
    products = np.exp(GRID) * eigenvalues[:, None]
    return products / (1.0 + products)


def _maxima(gains: Array) -> Array:
    """Maxima (n,) of curves (n, g) by the parabola through the best point and its neighbours."""
    rows = np.arange(len(gains))
    best = np.clip(np.argmax(gains, axis=1), 1, gains.shape[1] - 2)
    before, here, after = (gains[rows, best + shift] for shift in (-1, 0, 1))
    bend = before - 2.0 * here + after
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(bend < 0.0, -((after - before) ** 2) / (8.0 * bend), 0.0)
    inside = (here >= before) & (here >= after)
    return np.where(inside, here + lift, np.maximum(np.maximum(before, here), after))


def _spectrum(small: Design, large: Design, *, reml: bool) -> Spectrum:
    roots = np.sqrt(large.row_weights)
    Z = _tested_columns(small, large) * roots[:, None]
    fixed = np.linalg.qr(large.X * roots[:, None])[0]
    gram = Z.T @ Z
    along = fixed.T @ Z
    projected, plain = np.linalg.eigvalsh(gram - along.T @ along), np.linalg.eigvalsh(gram)
    scale = plain[-1]
    projected = projected[projected > NO_EIGENVALUE * scale] / scale
    plain = plain[plain > NO_EIGENVALUE * scale] / scale
    rest = large.n - large.p - len(projected)
    if not len(projected) or rest < 1:
        raise DataError(
            "The tested term and the fixed effects together have as many columns as there are "
            "rows, or the term varies within none of them: its variance cannot be tested."
        )
    distinct, counts = _grouped(projected)
    logs = np.log1p(np.exp(GRID) * (projected if reml else plain)[:, None])
    return Spectrum(
        projected=distinct,
        counts=counts,
        penalty=logs.sum(axis=0),
        rest=rest,
        df=large.n - (large.p if reml else 0),
        restrictions=0 if reml else large.p - small.p,
    )


def _tested_columns(small: Design, large: Design) -> Array:
    """Columns (n, J) of the tested term, times a root of the known covariance of its levels."""
    found = _tested(small, large)
    assert found is not None
    place, coef = found
    factor = large.random[place]
    if factor.n_levels > MOST_LEVELS:
        raise DataError(
            f"exact_lrt() is for terms of at most {MOST_LEVELS} levels, {factor.name} has "
            f"{factor.n_levels}: with so many, p_boundary of lrt() is as good."
        )
    start = sum(other.n_levels * other.n_coefs for other in large.random[:place])
    places = start + coef + factor.n_coefs * np.arange(factor.n_levels)
    columns = large.full_Z_matrix()[:, places]
    root = factor.effects(np.eye(factor.n_levels)[:, :, None])[:, :, 0].T
    return np.asarray(columns @ root)


def _grouped(values: Array) -> tuple[Array, NDArray[np.intp]]:
    """Distinct values, equal but for rounding ones taken together, and their counts."""
    ordered = np.sort(values)
    starts = np.flatnonzero(np.append(True, np.diff(ordered) > EQUAL * ordered[-1]))
    counts = np.diff(np.append(starts, len(ordered)))
    return np.add.reduceat(ordered, starts) / counts, counts
