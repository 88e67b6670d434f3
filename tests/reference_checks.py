"""Differences between bayeslmm and the reference fits, one function per quantity.

Shared by test_reference.py, test_profile.py and benchmarks/reference_table.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from reference_data import load_fit, load_reference_data
from reference_formulas import STANDS_FOR, r_levels, translated

from bayeslmm.comparison.names import from_r, group_from_r
from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.building import build_design
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.optimise import hessian
from bayeslmm.estimation.profile import Kind, profile_intervals
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.factorise import Factorisation, factorise
from bayeslmm.likelihood.marginal import (
    marginal_system,
    ml_criterion,
    reml_criterion,
    score,
    to_user_gradient,
)
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes


@dataclass(frozen=True)
class Term:
    """One random-effects term of lme4: its entry, and its place among our grouping factors."""

    lme4: dict[str, Any]
    factor: int
    coefs: list[int]


@dataclass(frozen=True)
class Case:
    """A reference fit (`lme4`) beside ours."""

    name: str
    lme4: dict[str, Any]
    frame: pd.DataFrame
    design: Design
    fit: Fit

    @property
    def restricted(self) -> bool:
        return self.lme4["REML"]

    @property
    def terms(self) -> list[Term]:
        """lme4's terms, in its order."""
        return [self._term(entry) for entry in self.lme4["random"]]

    def _term(self, entry: dict[str, Any]) -> Term:
        groups = [factor.name for factor in self.design.random]
        f = 0 if self.name in STANDS_FOR else groups.index(self.group(entry["grouping"]))
        coefs = self.design.random[f].coefs
        return Term(entry, f, [coefs.index(from_r(name, coefs)) for name in entry["names"]])

    def group(self, name: str) -> str:
        """Our name of a grouping factor of lme4."""
        return group_from_r(name, [factor.name for factor in self.design.random])

    def factorisation(self) -> Factorisation:
        return factorise(self.fit.plan, self.fit.factors)

    def factors_at(self, theta: list[float]) -> list[np.ndarray]:
        """Relative factors at lme4's theta."""
        factors = [np.zeros((r.n_coefs, r.n_coefs)) for r in self.design.random]
        rest = iter(theta)
        for term in self.terms:
            for col, coef in enumerate(term.coefs):
                for row in term.coefs[col:]:
                    factors[term.factor][row, coef] = next(rest)
        return factors

    def lme4_theta(self, factors: list[np.ndarray]) -> np.ndarray:
        """Entries of factors, or of gradients, in lme4's order."""
        return np.array(
            [
                factors[term.factor][row, coef]
                for term in self.terms
                for col, coef in enumerate(term.coefs)
                for row in term.coefs[col:]
            ]
        )


def load_case(name: str) -> Case:
    """Fit a reference model."""
    own = load_fit(name)
    lme4 = load_fit(STANDS_FOR.get(name, name))
    frame = load_reference_data(own["dataset"])
    design = build_design(parse(translated(own)), frame, weights=own["weights"])
    fit = fit_likelihood(marginal_system(design), "REML" if own["REML"] else "ML")
    return Case(name, lme4, frame.loc[design.index], design, fit)


# --- the design ------------------------------------------------------------------------


def design_matrix(case: Case) -> float:
    """Worst relative difference in the first rows of X; infinite where a name differs."""
    head = case.lme4["X_head"]
    if [from_r(name, case.design.coefs) for name in head["names"]] != list(case.design.coefs):
        return np.inf
    expected = np.array(head["values"], dtype=float)
    size = np.maximum(np.abs(case.design.X).max(axis=0), 1e-300)
    return float(np.max(np.abs(case.design.X[: len(expected)] - expected) / size, initial=0.0))


def rows_dropped(case: Case) -> list[int]:
    """Rows left out, counted from 1."""
    return [int(row) + 1 for row in case.design.dropped]


def columns_dropped(case: Case) -> list[str]:
    """Columns of X that lme4 leaves out, by our names."""
    return [from_r(name, case.design.coefs_full) for name in case.lme4["columns_dropped"]]


def group_sizes(case: Case) -> dict[str, int]:
    """Levels per grouping factor, by lme4's names."""
    return {term.lme4["grouping"]: case.design.random[term.factor].n_levels for term in case.terms}


# --- the likelihood --------------------------------------------------------------------


def criterion(case: Case) -> float:
    """Our criterion less lme4's: negative where ours is the better optimum."""
    return case.fit.criterion - case.lme4["criterion"]["value"]


def criterion_at(case: Case) -> float:
    """Worst relative difference of the criterion at given theta."""
    differences = []
    for point in case.lme4["criterion_at"]:
        fact = factorise(case.fit.plan, case.factors_at(point["theta"]))
        value = reml_criterion(fact) if case.restricted else ml_criterion(fact)
        differences.append(abs(value - point["value"]) / abs(point["value"]))
    return max(differences)


def derivatives(case: Case) -> tuple[float, float] | None:
    """Differences of gradient and Hessian at lme4's optimum, relative to the curvature there."""
    expected = case.lme4["derivatives"]
    if not expected:
        return None
    theta = np.array(case.lme4["theta"], dtype=float)
    curvature = np.array(expected["hessian"], dtype=float)
    size = np.sqrt(np.diag(curvature))
    gradient = _gradient(case, theta) - np.array(expected["gradient"], dtype=float)
    found = hessian(lambda x: _gradient(case, x), theta)
    return (
        float(np.max(np.abs(gradient) / size)),
        float(np.max(np.abs(found - curvature) / np.outer(size, size))),
    )


def _gradient(case: Case, theta: np.ndarray) -> np.ndarray:
    plan = case.fit.plan
    fact = factorise(plan, case.factors_at(list(theta)))
    dof = case.design.n - case.restricted * case.design.p
    gradients = score(fact, dof / fact.rss, restricted=case.restricted).factors
    return case.lme4_theta(to_user_gradient(plan, gradients))


# --- fixed effects ---------------------------------------------------------------------


def beta(case: Case) -> float:
    """Worst difference of the fixed effects in standard errors."""
    fixed = case.lme4["fixed"]
    return _worst(case.fit.beta - np.array(fixed["estimate"]), np.array(fixed["se"]))


def standard_errors(case: Case) -> float:
    """Worst relative difference of the covariance matrix of the fixed effects."""
    fixed = case.lme4["fixed"]
    se = np.array(fixed["se"])
    return _worst(case.fit.vcov - np.array(fixed["vcov"]), np.outer(se, se))


def satterthwaite(case: Case) -> float | None:
    """Worst relative difference of Satterthwaite's degrees of freedom."""
    expected = case.lme4["fixed"].get("df_satterthwaite")
    if not expected:
        return None
    df = np.array(
        [
            2.0 * case.fit.vcov[i, i] ** 2 / (g @ case.fit.internal_cov @ g)
            for i, g in enumerate(np.diagonal(case.fit.vcov_gradient, axis1=1, axis2=2).T)
        ]
    )
    return _worst(df - np.array(expected, dtype=float), np.array(expected, dtype=float))


# --- covariance parameters -------------------------------------------------------------


def covariances(case: Case) -> float:
    """Worst difference of the covariance matrices of the random effects, in units of `_size`."""
    worst = 0.0
    for term in case.terms:
        root = case.fit.sigma * case.fit.factors[term.factor][np.ix_(term.coefs, term.coefs)]
        difference = root @ root.T - np.array(term.lme4["cov"], dtype=float)
        size = _size(case, term)
        worst = max(worst, _worst(difference, np.outer(size, size)))
    return worst


def _size(case: Case, term: Term) -> np.ndarray:
    """Standard deviations of a term, or a hundredth of what would equal sigma if that is more.

    Near a boundary the likelihood does not determine the digits of a negligible sd.
    """
    z = case.design.random[term.factor].Z[:, term.coefs]
    floor = 0.01 * case.lme4["sigma"] / np.sqrt(np.mean(z**2, axis=0))
    return np.maximum(np.array(term.lme4["sd"], dtype=float), floor)


def sds(case: Case) -> float:
    """Worst relative difference of the standard deviations."""
    return max(
        _worst(
            case.fit.sigma * np.linalg.norm(case.fit.factors[term.factor][term.coefs], axis=1)
            - np.array(term.lme4["sd"]),
            np.array(term.lme4["sd"]),
        )
        for term in case.terms
    )


def correlations(case: Case) -> float:
    """Worst difference of the correlations; lme4 has NaN, or none, where a sd is zero."""
    worst = 0.0
    for term in case.terms:
        if len(term.coefs) > 1:
            _, corr = sds_and_correlation(case.fit.factors[term.factor])
            found = corr[np.ix_(term.coefs, term.coefs)]
            worst = max(worst, _worst(found - np.array(term.lme4["corr"], dtype=float), 1.0))
    return worst


def sigma(case: Case) -> float:
    """Relative difference of the residual standard deviation."""
    return abs(case.fit.sigma / case.lme4["sigma"] - 1.0)


def parameter_cov(case: Case) -> float | None:
    """Worst difference of the asymptotic covariance matrix of the covariance parameters.

    lme4's, of theta and sigma, is carried over to log standard deviations and inverse hyperbolic
    tangents of correlations; the difference is in standard errors of those.
    """
    expected = case.lme4["vcov_varpar"]
    if not expected or case.lme4["singular_scale_free"]:
        return None
    point = np.append(case.lme4["theta"], case.lme4["sigma"])
    jacobian = np.array(
        [
            (_parameters(case, point + h) - _parameters(case, point - h)) / (2.0 * np.max(h))
            for h in np.diag(1e-5 * np.maximum(np.abs(point), 1e-2 * np.max(np.abs(point[:-1]))))
        ]
    ).T
    cov = jacobian @ np.array(expected["vcov"], dtype=float) @ jacobian.T
    se = np.sqrt(np.diag(cov))
    return _worst(case.fit.parameter_cov - cov, np.outer(se, se))


def _parameters(case: Case, point: np.ndarray) -> np.ndarray:
    """Log sds and atanh correlations of each grouping factor, then log sigma."""
    parts = []
    structures = case.fit.plan.products.structures
    for structure, factor in zip(structures, case.factors_at(list(point[:-1])), strict=True):
        found, corr = sds_and_correlation(factor)
        parts.append(np.log(found * point[-1]))
        parts.append(np.arctanh([corr[pair] for pair in structure.pairs]))
    return np.append(np.concatenate(parts), np.log(point[-1]))


def information_criteria(case: Case) -> float:
    """Difference of AIC and BIC, given lme4's criterion: nonzero where parameters are counted
    differently.
    """
    structures = case.fit.plan.products.structures
    count = case.design.p + sum(s.n_theta for s in structures) + 1
    value = case.lme4["criterion"]["value"]
    return max(
        abs(value + 2.0 * count - case.lme4["AIC"]),
        abs(value + np.log(case.design.n) * count - case.lme4["BIC"]),
    )


# --- random effects --------------------------------------------------------------------


def modes(case: Case) -> float:
    """Worst difference of the conditional modes, in units of `_size`."""
    found, _ = conditional_modes(case.factorisation())
    worst = 0.0
    for term, expected, levels in _ranef(case):
        basis = case.fit.plan.products.basis.random[term.factor]
        values = (found[term.factor] @ basis.T)[levels][:, term.coefs]
        reference = np.array(expected["modes"], dtype=float)
        worst = max(worst, _worst(values - reference, _size(case, term)))
    return worst


def conditional_sds(case: Case, *, given_beta: bool) -> float:
    """Worst relative difference of the standard deviations of the random effects given the data.

    In units of a tenth of `_size` where they are smaller than that.
    """
    found = conditional_covariances(case.factorisation(), given_beta=given_beta)
    worst = 0.0
    for term, expected, levels in _ranef(case):
        basis = case.fit.plan.products.basis.random[term.factor]
        cov = basis @ found[term.factor][levels] @ basis.T
        values = case.fit.sigma * np.sqrt(np.diagonal(cov, axis1=1, axis2=2)[:, term.coefs])
        reference = np.array(expected["cond_sd" if given_beta else "pred_se"], dtype=float)
        size = np.maximum(reference, 0.1 * _size(case, term))
        worst = max(worst, _worst(values - reference, size))
    return worst


def fitted(case: Case) -> float:
    """Worst difference of the first fitted values, in residual standard deviations."""
    expected = np.array(case.lme4["fitted"]["values"], dtype=float)
    rows = slice(0, len(expected))
    values = case.design.offset[rows] + case.design.X[rows] @ case.fit.beta
    found, _ = conditional_modes(case.factorisation())
    bases = case.fit.plan.products.basis.random
    for factor, working, basis in zip(case.design.random, found, bases, strict=True):
        effects = (working @ basis.T)[factor.codes[rows]]
        values = values + np.sum(factor.Z[rows] * effects, axis=1)
    return _worst(values - expected, case.lme4["sigma"])


def _ranef(case: Case) -> Iterator[tuple[Term, dict[str, Any], np.ndarray]]:
    """lme4's terms with their table of random effects and our numbers of its levels."""
    for term, expected in zip(case.terms, case.lme4["ranef"], strict=True):
        codes = case.design.random[term.factor].codes
        number = dict(zip(r_levels(term.lme4["grouping"], case.frame), codes, strict=True))
        levels = expected["levels"]
        yield term, expected, np.array([number[level] for level in levels], dtype=np.intp)


# --- profile intervals -----------------------------------------------------------------


def has_own_profile(name: str) -> bool:
    """Whether there are limits by root finding on the criterion of the fit."""
    own = load_fit(STANDS_FOR.get(name, name))["profile_ci_own"]
    return bool(own and own["available"])


def has_lme4_profile(name: str) -> bool:
    """Whether there are limits by lme4, always on the likelihood, that ours compare with.

    It leaves the fixed effects out where there are more than ten.
    """
    fit = load_fit(STANDS_FOR.get(name, name))
    lme4 = fit["profile_ci"]
    if not lme4["available"] or lme4["suspect"]:
        return False
    return not fit["REML"] or fit["fixed"]["names"][0] in lme4["names"]


def profile(case: Case) -> float | None:
    """Worst difference of the limits of the covariance parameters, in widths of the intervals.

    Infinite where a limit is at a bound in one and not in the other.
    """
    if not has_own_profile(case.name):
        return None
    own = case.lme4["profile_ci_own"]
    return _profile_difference(case, own, ("sd", "cor", "sigma"), flags=True)


def profile_ml(case: Case) -> float | None:
    """The same against lme4's own intervals: fixed effects, and all parameters of ML fits."""
    if not has_lme4_profile(case.name):
        return None
    lme4 = case.lme4["profile_ci"]
    kinds: tuple[Kind, ...] = ("beta",) if case.restricted else ("sd", "cor", "sigma", "beta")
    return _profile_difference(case, lme4, kinds, flags=False)


def _profile_difference(
    case: Case, expected: dict[str, Any], kinds: tuple[Kind, ...], *, flags: bool
) -> float | None:
    differences = []
    for interval in profile_intervals(case.fit, kinds=kinds):
        name = _profile_name(case, interval.kind, interval.factor, interval.coefs)
        if name not in expected["names"]:
            continue
        place = expected["names"].index(name)
        lower, upper = expected["lower"][place], expected["upper"][place]
        difference = max(abs(interval.lower - lower), abs(interval.upper - upper))
        differences.append(difference / (upper - lower))
        bounds = [interval.lower_at_bound, interval.upper_at_bound]
        if flags and bounds != [expected[f"{side}_at_bound"][place] for side in ("lower", "upper")]:
            differences.append(np.inf)
    return max(differences, default=None)


def _profile_name(case: Case, kind: Kind, factor: int | None, coefs: tuple[int, ...]) -> str:
    if kind == "sigma":
        return "sigma"
    if factor is None:
        return case.lme4["fixed"]["names"][coefs[0]]
    terms = [term for term in case.terms if term.factor == factor]
    names = {i: n for term in terms for i, n in zip(term.coefs, term.lme4["names"], strict=True)}
    return f"{kind}_{'.'.join(names[i] for i in coefs)}|{terms[0].lme4['grouping']}"


def _worst(difference: np.ndarray, size: np.ndarray | float) -> float:
    """Largest absolute difference over size; a difference of zero counts nothing."""
    difference, size = np.broadcast_arrays(np.abs(difference), np.asarray(size, dtype=float))
    off = difference > 0.0
    with np.errstate(divide="ignore"):
        return float(np.max(difference[off] / size[off], initial=0.0))
