"""Residual structures: densities and derivatives against dense algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from dense import Columns, make_case, random_factors
from scipy.linalg import solve_triangular
from slow_cases import one_in

from bayeslmm.covariance.ante_dependence import AnteDependence
from bayeslmm.covariance.compound_symmetry import CompoundSymmetry
from bayeslmm.covariance.distance import OverDistance
from bayeslmm.covariance.moving_average import MovingAverage
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.residual import Residual, ResidualRows
from bayeslmm.covariance.toeplitz import Toeplitz
from bayeslmm.covariance.unstructured import Unstructured
from bayeslmm.data.relationships import Relationship
from bayeslmm.likelihood.batch import reduce_equations, to_working
from bayeslmm.likelihood.draws import draw_random
from bayeslmm.likelihood.factorise import (
    GaussianBeta,
    eliminate_random,
    factorise,
    to_working_beta,
)
from bayeslmm.likelihood.marginal import (
    log_density_given_beta_grad,
    log_density_grad,
    marginal_system,
)
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes

# Backward errors of two orders of the same arithmetic on matrices of condition up to 1e4.
VALUE = 1e-8
# Five-point differences: truncation h^4 and rounding eps / h, both below 1e-9 at h = 1e-3.
SLOPE = 1e-8
SIGMA = 1.3
N, GROUPS, OCCASIONS = 60, 14, 5


def rows_of(seed, *, arms=1, strata=1, hetero=False, powers=0, dims=0, kind="occasions"):
    """Rows of groups that miss occasions, in shuffled order."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(GROUPS * OCCASIONS)[:N]
    group, occasion = np.divmod(cells, OCCASIONS)
    arm = group % arms
    columns = [np.ones(N)]
    if strata > 1:
        stratum = np.append(np.arange(strata), rng.integers(0, strata, N - strata))
        columns = list((stratum[:, None] == np.arange(strata)).T.astype(float))
    if hetero:
        columns = list(
            (occasion + OCCASIONS * arm == np.arange(OCCASIONS * arms)[:, None]).astype(float)
        )
    columns += [np.log(rng.uniform(0.5, 2.0, N)) for _ in range(powers)]
    place = {
        "none": None,
        "occasions": occasion,
        "times": np.round(occasion * 1.5 + rng.integers(0, 3, N) * 0.25, 2),
        "plane": rng.normal(size=(N, dims or 2)),
    }[kind]
    return ResidualRows(
        group=None if kind == "none" else group,
        place=place,
        arm=arm.astype(np.intp),
        log_sd=np.column_stack(columns),
    )


def unstructured(m=OCCASIONS):
    return Unstructured(m, (tuple(range(m)),))


CASES = {
    "strata": ({"strata": 3, "kind": "none"}, None),
    "power": ({"powers": 1, "kind": "none"}, None),
    "strata-powers": ({"strata": 2, "powers": 2, "kind": "none"}, None),
    "us": ({"hetero": True}, OverOccasions(unstructured())),
    "us-arms": ({"hetero": True, "arms": 2}, OverOccasions(unstructured(), 2)),
    "corr-strata-power": ({"strata": 2, "powers": 1}, OverOccasions(unstructured())),
    "ar1": ({}, OverDistance("ar1")),
    "ar1-arms-strata": ({"arms": 2, "strata": 3}, OverDistance("ar1", 1.0, 2)),
    "ar1h": ({"hetero": True}, OverDistance("ar1")),
    "car1": ({"kind": "times"}, OverDistance("car1", 1.5)),
    "car1-power": ({"kind": "times", "powers": 1}, OverDistance("car1", 1.5)),
    "exp": ({"kind": "plane"}, OverDistance("exp", 0.7)),
    "cs": ({}, OverOccasions(CompoundSymmetry(OCCASIONS, True))),
    "ma1h": ({"hetero": True}, OverOccasions(MovingAverage(OCCASIONS, True))),
    "toeph": ({"hetero": True}, OverOccasions(Toeplitz(OCCASIONS, True))),
    "adh-arms": ({"hetero": True, "arms": 2}, OverOccasions(AnteDependence(OCCASIONS, True), 2)),
    "gau-strata": ({"kind": "plane", "strata": 2}, OverDistance("gau", 0.2)),
}
# levels and blocks of the random-effects terms; "groups" are the groups of the residuals
TERMS = {
    "none": (),
    "lead": ("groups",),
    "slopes": ("groups-slope",),
    "lead-tail": ("groups", 4),
    "crossing": (6,),
    "tail-slopes": ("groups-slope", 3, 2),
    "related": ("groups-related",),
    "related-slopes-crossing": (6, "groups-related-slope"),
}


def structure_of(name):
    given, correlation = CASES[name]
    rows = rows_of(11, **given)
    powers = given.get("powers", 0)
    scales = rows.log_sd.shape[1] - powers
    structure = Residual(
        scales=tuple(map(str, range(scales))),
        powers=tuple(map(str, range(powers))),
        correlation=correlation,
    )
    return structure, rows


def case_of(name, terms, weighted):
    structure, rows = structure_of(name)
    rng = np.random.default_rng(5)
    case = make_case(3, N, (), (), weighted)
    random = []
    for term in TERMS[terms]:
        k = 2 if str(term).endswith("slope") else 1
        Z = np.column_stack([np.ones(N), rng.normal(size=N)])[:, :k]
        if isinstance(term, int):
            codes, levels = rng.integers(0, term, N), term
        else:
            group = rows.group
            codes = np.arange(N) % GROUPS if group is None else group
            levels = GROUPS
        columns = Columns(codes.astype(np.intp), Z, (tuple(range(k)),), levels)
        if "related" in str(term):  # of two levels more than there are groups
            root = rng.normal(size=(levels + 2, levels + 2)) / 4.0 + np.eye(levels + 2)
            known = Relationship(root @ root.T, range(levels + 2))
            columns = replace(columns, n_levels=levels + 2, relationship=known)
        random.append(columns)
    return replace(case, random=tuple(random), residual=structure.bind(rows)), structure, rows


def correlations(structure, rows, z):
    """Correlations (n, n) by their definitions."""
    n, law = rows.n, structure.correlation
    if law is None:
        return np.eye(n)
    same = rows.group[:, None] == rows.group
    parts = z.reshape(law.n_arms, -1)
    if isinstance(law, OverOccasions):
        lower = law.structure.cholesky(parts)
        at, arm = rows.place.astype(int), rows.arm
        full = (lower @ lower.swapaxes(1, 2))[arm[:, None], at[:, None], at]
    else:
        place = rows.place.reshape(n, -1)
        distance = np.linalg.norm(place[:, None] - place, axis=2) / law.unit
        own = parts[rows.arm, 0][:, None]
        rho = np.tanh(own) if law.decay == "ar1" else 1.0 / (1.0 + np.exp(-own))
        power = distance**2 if law.decay == "gau" else distance
        full = np.where(same, rho, 0.5) ** np.where(same, power, 0.0)
    return np.where(same, full, 0.0)


def relative(structure, rows, weights, shape):
    """R over sigma^2."""
    sds = structure.n_shape - structure.n_cors
    sd = np.exp(rows.log_sd[:, 1:] @ shape[:sds])
    sd = sd if weights is None else sd / np.sqrt(weights)
    return sd[:, None] * correlations(structure, rows, shape[sds:]) * sd


def dense_density(case, r, zs, factors, sigma, prior=None, beta=None):
    """With R over sigma^2 and the matrices Z of the random effects."""
    n, p = case.X.shape
    v = sigma**2 * r
    for columns, z, t in zip(case.random, zs, factors, strict=True):
        v = v + sigma**2 * z @ np.kron(columns.between, t @ t.T) @ z.T
    if prior is not None:
        v = v + case.X @ np.linalg.inv(prior.root.T @ prior.root) @ case.X.T
    root = np.linalg.cholesky(v)
    log_det = 2.0 * np.log(np.diag(root)).sum()
    white = solve_triangular(root, np.column_stack([case.X, case.y]), lower=True)
    X, y = white[:, :p], white[:, p]
    if beta is not None or prior is not None:
        rest = y - X @ (prior.mean if beta is None else beta)
        return -0.5 * (n * np.log(2 * np.pi) + log_det + rest @ rest)
    inner = X.T @ X
    rest = y - X @ np.linalg.solve(inner, X.T @ y)
    quadratic = rest @ rest + np.linalg.slogdet(inner)[1]
    return -0.5 * ((n - p) * np.log(2 * np.pi) + log_det + quadratic)


def differences(function, x):
    """Five-point derivatives."""
    h, result = 1e-3, np.empty(x.size)
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = h
        near = function(x + step) - function(x - step)
        far = function(x + 2 * step) - function(x - 2 * step)
        result[i] = (8.0 * near - far) / (12.0 * h)
    return result


SETUPS = [
    *((name, terms, False) for name in CASES for terms in ("none", "lead", "lead-tail")),
    *(("us", terms, True) for terms in TERMS),
    *(("ar1", terms, True) for terms in TERMS),
    *(("strata-powers", terms, True) for terms in TERMS),
    ("car1", "crossing", False),
    ("us-arms", "tail-slopes", True),
]


@pytest.mark.parametrize(("name", "terms", "weighted"), SETUPS)
@pytest.mark.parametrize("beta", ["flat", "normal", "given"])
def test_density_and_derivatives_are_those_of_dense_algebra(name, terms, weighted, beta):
    case, structure, rows = case_of(name, terms, weighted)
    factors = random_factors(case, 2, singular=False) if case.random else []
    rng = np.random.default_rng(8)
    shape = rng.normal(0.0, 0.4, structure.n_shape)
    p = case.X.shape[1]
    prior = GaussianBeta(np.ones(p), np.eye(p) + 0.1) if beta == "normal" else None
    given = np.array([1.2, 1.9, 2.8]) if beta == "given" else None
    plan = marginal_system(case)

    def ours(shape, sigma, factors):
        here = plan.at(shape)
        if given is not None:
            return log_density_given_beta_grad(here, factors, sigma, given)
        return log_density_grad(here, factors, sigma, prior)

    zs = [case.z_matrix(f) for f in range(len(factors))]
    here = relative(structure, rows, case.weights, shape)

    def dense(r, sigma, factors):
        return dense_density(case, r, zs, factors, sigma, prior, given)

    def bent(x):
        return dense(relative(structure, rows, case.weights, x), SIGMA, factors)

    found = ours(shape, SIGMA, factors)
    assert found.value == pytest.approx(dense(here, SIGMA, factors), abs=VALUE, rel=VALUE)
    assert found.shape == pytest.approx(differences(bent, shape), abs=SLOPE * N, rel=SLOPE)
    slope = differences(lambda x: dense(here, x[0], factors), np.array([SIGMA]))
    assert found.sigma == pytest.approx(slope[0], abs=SLOPE * N)
    for f, t in enumerate(factors):

        def moved(x, f=f):
            return dense(
                here, SIGMA, [*factors[:f], x.reshape(factors[f].shape), *factors[f + 1 :]]
            )

        slope = differences(moved, t.ravel()).reshape(t.shape)
        assert np.tril(found.factors[f]) == pytest.approx(np.tril(slope), abs=SLOPE * N)


@dataclass(frozen=True)
class PointsAt:
    """Points as the equations see them."""

    factors: list
    sigma: np.ndarray
    shapes: np.ndarray


BATCHES = [(n, t, w) for n, t, w in SETUPS if t in ("lead-tail", "crossing", "tail-slopes")]


@pytest.mark.parametrize(
    ("name", "terms", "weighted"),
    [*one_in(3, BATCHES), ("strata", "related-slopes-crossing", True)],
)
def test_many_points_at_once_are_those_one_by_one(name, terms, weighted):
    """In small models the equations of a batch are solved whole."""
    case, structure, _ = case_of(name, terms, weighted)
    rng, count = np.random.default_rng(4), 5
    stacks = [random_factors(case, seed, singular=False) for seed in range(count)]
    shapes = rng.normal(0.0, 0.4, (count, structure.n_shape))
    sigma = rng.uniform(0.5, 2.0, count)
    plan = marginal_system(case)
    assert (plan.whole is None) == plan.leads_alone
    points = PointsAt([np.stack(t) for t in zip(*stacks, strict=True)], sigma, shapes)
    found = reduce_equations(plan, points)
    for i in range(count):
        here = plan.at(shapes[i])
        one = eliminate_random(here, to_working(here, [t[i] for t in points.factors]))
        log_det = one.log_det - here.products.log_weights
        assert found.log_det[i] == pytest.approx(log_det, abs=VALUE, rel=VALUE)
        size = np.abs(one.fixed).max()
        assert found.fixed[i] == pytest.approx(one.fixed, abs=VALUE * size)
    beta = np.array([[1.2, 1.9, 2.8]])
    many = PointsAt(
        [np.repeat(t[:1], 4000, axis=0) for t in points.factors],
        np.repeat(sigma[:1], 4000),
        np.repeat(shapes[:1], 4000, axis=0),
    )
    drawn = draw_random(plan, many, np.repeat(beta, 4000, axis=0), rng)
    fact = factorise(plan.at(shapes[0]), [t[0] for t in points.factors])
    modes, _ = conditional_modes(fact, to_working_beta(plan.products, beta[0]))
    spread = conditional_covariances(fact, given_beta=True)
    for f, u in enumerate(drawn):
        columns = plan.products.basis.random[f]
        sd = sigma[0] * np.sqrt(np.einsum("ka,jab,kb->jk", columns, spread[f], columns))
        mean = plan.products.basis.effects(f, modes[f])
        assert np.max(np.abs(u.mean(axis=0) - mean) / sd) < 5.0 / np.sqrt(4000)
        assert u.std(axis=0) == pytest.approx(sd, rel=0.06)  # five standard errors
