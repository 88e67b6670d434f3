"""Many related levels, eliminated by a sparse matrix, against dense algebra and dense fits."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dense import numerical
from slow_cases import slow, whole

import bayeslmm as blm
from bayeslmm.checks.row_forms import row_plan
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.sparse_cholesky import Pattern, sparse_cholesky
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood import related
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.elimination import make_plan
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.marginal import log_density, log_density_grad
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes

EXACT = 1e-9
"""Rounding of well-conditioned algebra of some hundred rows."""


# --- sparse factors -----------------------------------------------------------------------


def sparse_matrix(size, density, seed=0):
    rng = np.random.default_rng(seed)
    half = sp.random_array((size, size), density=density, rng=rng)
    return sp.csc_array(half @ half.T + sp.eye_array(size))


SPLITS = {"dense": 0.0, "half": 0.5, "sparse": 1.0}
LARGE = (150, 0.01)


@pytest.mark.parametrize(
    ("size", "density", "split"),
    [
        *((*size, name) for size in [(1, 0.0), (3, 0.0), (40, 0.05)] for name in SPLITS),
        slow(*LARGE, "dense"),
        (*LARGE, "half"),
        slow(*LARGE, "sparse"),
    ],
)
def test_sparse_factors_equal_dense_ones(size, density, split):
    matrix = sparse_matrix(size, density)
    pattern = Pattern.of(matrix)
    pattern.__dict__["dense_from"] = int(SPLITS[split] * size)
    factor, dense = pattern.factor(matrix.data), matrix.toarray()
    inverse, eye = np.linalg.inv(dense), np.eye(size)
    assert factor.log_det == pytest.approx(np.linalg.slogdet(dense)[1], abs=EXACT)
    assert factor.solve(eye) == pytest.approx(inverse, abs=EXACT)
    assert factor.solve(eye[0]) == pytest.approx(inverse[0], abs=EXACT)
    root = factor.times(eye)
    assert root @ root.T == pytest.approx(dense, abs=EXACT)
    assert factor.root @ factor.root.T.toarray() == pytest.approx(dense, abs=EXACT)
    assert factor.half(root) == pytest.approx(eye, abs=EXACT)
    assert factor.back(eye) == pytest.approx(np.linalg.inv(root).T, abs=EXACT)
    rows, cols = matrix.nonzero()
    assert factor.inverse.at(rows, cols) == pytest.approx(inverse[rows, cols], abs=EXACT)
    assert factor.inverse.diagonal == pytest.approx(np.diag(inverse), abs=EXACT)


def test_entries_that_cancel_keep_their_places():
    """Eliminating animals without records cancels what their parents share, exactly."""
    ped = blm.pedigree(simulated_pedigree(150))
    matrix = sp.csc_array(ped.A_inverse)
    factor = sparse_cholesky(matrix)
    A = ped.A.to_numpy()
    rows, cols = matrix.nonzero()
    assert factor.inverse.at(rows, cols) == pytest.approx(A[rows, cols], abs=EXACT)


@pytest.mark.parametrize("matrix", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
def test_no_sparse_factor(matrix):
    with pytest.raises(np.linalg.LinAlgError, match="sparse matrix is"):
        sparse_cholesky(sp.csc_array(np.array(matrix)))


# --- relationships known by their inverse ---------------------------------------------------


def simulated_pedigree(size, seed=1):
    """Animals in five generations by few sires, unrelated ones among them."""
    rng = np.random.default_rng(seed)
    each = size // 5
    sire, dam = np.full((2, 5 * each), np.nan)
    for start in range(each, 5 * each, each):
        born = np.arange(start, start + each)[: each - 2]
        sire[born] = start - each + rng.integers(0, max(1, each // 10), len(born))
        dam[born] = start - each + each // 2 + rng.integers(0, each // 2, len(born))
    return pd.DataFrame({"id": np.arange(5 * each), "sire": sire, "dam": dam})


def test_sparse_relationships_equal_dense_ones():
    ped = blm.pedigree(simulated_pedigree(100))
    sparse = Relationship(ped.A_inverse, ped.labels, "precision")
    dense = Relationship(ped.A.to_numpy(), ped.labels)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 100, (2, 3, 1)), rng.integers(0, 100, (2, 1, 4))
    pairs = np.broadcast_arrays(first, second)
    columns = rng.normal(size=(100, 2))
    assert sparse.log_det == pytest.approx(dense.log_det, abs=EXACT)
    assert sparse.variances == pytest.approx(1 + ped.inbreeding.to_numpy(), abs=EXACT)
    assert sparse.times(columns) == pytest.approx(dense.times(columns), abs=EXACT)
    assert sparse.between(*pairs) == pytest.approx(dense.between(*pairs), abs=EXACT)
    assert sparse.covariance == pytest.approx(dense.covariance, abs=EXACT)
    root = sparse.effects(np.eye(100)[None, :, :])[0]
    assert root @ root.T == pytest.approx(dense.covariance, abs=EXACT)
    root = sparse.precision_draws(np.eye(100))
    assert root @ root.T == pytest.approx(ped.A_inverse.toarray(), abs=EXACT)


@pytest.mark.parametrize(("levels", "apart"), [([0, 1, 2], False), ([0, 40], True), ([60], False)])
def test_levels_that_relationships_set_apart(levels, apart):
    ped = blm.pedigree(simulated_pedigree(100))
    for known in (
        Relationship(ped.A_inverse, ped.labels, "precision"),
        Relationship(ped.A.to_numpy(), ped.labels),
    ):
        parents = [int(ped.sire[40]), 40] if levels == [0, 40] else levels
        assert known.sets_apart(np.array(parents)) == apart


def test_pairs_of_many_levels(monkeypatch):
    ped = blm.pedigree(simulated_pedigree(100))
    known = Relationship(ped.A_inverse, ped.labels, "precision")
    monkeypatch.setattr("bayeslmm.data.relationships.LARGEST_DENSE", 50)
    first, second = np.arange(10)[:, None], np.arange(90, 100)
    A = ped.A.to_numpy()
    found = known.between(*np.broadcast_arrays(first, second))
    assert found == pytest.approx(A[first, second], abs=EXACT)
    with pytest.raises(DataError, match=r"100 levels with 100, .* GB.* up to 50 levels"):
        _ = known.covariance


# --- plans -------------------------------------------------------------------------------------


@cache
def records(size=150, seed=2):
    """Records of animals, most of them, in herds, with permanent effects and two residual sds."""
    ped = blm.pedigree(simulated_pedigree(size))
    rng = np.random.default_rng(seed)
    value = ped.factor() @ rng.standard_normal((len(ped), 2))
    animal = np.tile(np.arange(len(ped)), 2)[rng.random(2 * len(ped)) < 0.7]
    x, herd = rng.normal(size=len(animal)), rng.integers(0, 8, len(animal))
    noise = (1.0 + (herd % 2)) * rng.standard_normal(len(animal))
    y = 3.0 + x + value[animal, 0] + 0.5 * x * value[animal, 1] + noise
    dam = np.where(ped.dam[animal] < 0, animal, ped.dam[animal])
    visit = pd.Series(animal).groupby(animal).cumcount().to_numpy()
    frame = {"y": y, "x": x, "animal": animal, "pe": animal, "herd": herd, "dam": dam}
    return ped, pd.DataFrame(frame | {"arm": np.array(["a", "b"])[herd % 2], "visit": visit})


def model(formula, residual=None):
    ped, data = records()
    known = {name: ped for name in ("animal", "dam") if f"| {name})" in formula}
    return blm.LMM(formula, data, relationships=known, residual=residual)


def both_plans(formula, residual=None):
    """The plan of a model with dense matrices, and with a sparse one."""
    plan = model(formula, residual).system
    if plan.stack is not None:
        stack = plan.stack
        return plan, make_plan(
            stack.products(plan.shape), stack=stack, shape=plan.shape, sparse=True
        )
    products = plan.products
    if products.basis.levels is not None:
        products = row_plan(model(formula).design, plan).products
    return plan, make_plan(products, sparse=True)


MODELS = {
    "animal": ("y ~ x + (1 | animal)", None),
    "permanent effects and herds": ("y ~ x + (1 | animal) + (1 | pe) + (1 | herd)", None),
    "slopes": ("y ~ x + (x | animal)", None),
    "maternal": ("y ~ x + (1 | animal) + (1 | dam)", None),
    "two residual sds": ("y ~ x + (1 | animal) + (1 | herd)", "strata(arm)"),
    "correlated residuals": ("y ~ x + (1 | animal) + (1 | herd)", "ar1(visit | animal)"),
}


@pytest.fixture(params=MODELS)
def plans(request):
    return plans_at_a_point(request.param)


def plans_at_a_point(name):
    dense, sparse = both_plans(*MODELS[name])
    assert dense.sparse is None and sparse.sparse is not None
    rng = np.random.default_rng(4)
    shape = np.full(len(dense.shape), 0.3)
    factors = [np.tril(0.4 + 0.3 * rng.random(g.shape[1:])) for g in dense.products.random]
    return dense.at(shape), sparse.at(shape), factors


def test_sparse_densities_and_slopes_equal_dense_ones(plans):
    dense, sparse, factors = plans
    expected = log_density_grad(dense, factors, 1.2)
    found = log_density_grad(sparse, factors, 1.2)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-8)
    assert found.shape == pytest.approx(expected.shape, rel=1e-8)
    for a, b in zip(found.factors, expected.factors, strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", ["two residual sds", "correlated residuals"])
def test_sparse_slopes_by_the_shape_equal_differences(name):
    _, sparse, factors = plans_at_a_point(name)
    found = log_density_grad(sparse, factors, 1.2).shape
    expected = numerical(lambda s: log_density(sparse.at(s), factors, 1.2), sparse.shape)
    assert found == pytest.approx(expected, rel=1e-5)


def test_sparse_moments_equal_dense_ones(plans):
    dense, sparse, factors = plans
    basis = dense.products.basis
    results = []
    for plan in (dense, sparse):
        fact = factorise(plan, factors)
        modes = [basis.effects(f, u) for f, u in enumerate(conditional_modes(fact)[0])]
        if plan is sparse:
            modes = [
                u @ sparse.products.basis.random[f].T
                for f, u in enumerate(conditional_modes(fact)[0])
            ]
        results.append((modes, conditional_covariances(fact)))
    for expected, found in zip(*results, strict=True):
        for a, b in zip(found, expected, strict=True):
            assert a == pytest.approx(b, abs=1e-8)


def test_the_slope_at_no_variance_is_finite_and_small():
    dense, sparse = both_plans("y ~ x + (1 | animal) + (1 | herd)")
    for t in (0.0, 1e-12):
        factors = [np.full((1, 1), t), np.full((1, 1), 0.4)]
        expected, found = (log_density_grad(plan, factors, 1.2) for plan in (dense, sparse))
        assert found.value == pytest.approx(expected.value, rel=1e-12)
        for a, b in zip(found.factors, expected.factors, strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


# --- many points ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accurate", "terms"),
    [
        (True, ""),
        slow(True, " + (1 | herd)"),
        (True, " + (x | herd)"),
        (True, " + (1 | pe)"),
        slow(False, ""),
        (False, " + (1 | herd)"),
        slow(False, " + (x | herd)"),
        slow(False, " + (1 | pe)"),
    ],
)
def test_equations_at_many_points_equal_dense_ones(terms, accurate, monkeypatch):
    """Interpolated on panels, and each by itself where a panel fails its check."""
    if not accurate:
        monkeypatch.setattr("bayeslmm.likelihood.panels.ACCURATE", 0.0)
    dense, sparse = both_plans("y ~ x + (1 | animal)" + terms)
    rng, size, factors = np.random.default_rng(0), 150, []
    for gram in dense.products.random:
        k = gram.shape[1]
        factors.append(
            np.tril(rng.normal(size=(size, k, k))) * np.exp(rng.normal(size=(size, 1, 1)))
        )
    factors[0][0] = 0.0
    at = SimpleNamespace(factors=factors, sigma=np.ones(size), shapes=np.empty((size, 0)))
    expected, found = reduce_equations(dense, at), reduce_equations(sparse, at)
    assert found.log_det == pytest.approx(expected.log_det, abs=EXACT)
    assert found.fixed == pytest.approx(expected.fixed, abs=EXACT * dense.products.n_obs)
    if sparse.border is None:
        assert "pe" in terms  # as many effects as animals
    else:
        panels = sparse.border.panels.values()
        assert panels and all((panel is not None) == accurate for panel in panels)


def test_leverages_of_many_effects_are_refused(monkeypatch):
    monkeypatch.setattr(related, "FEW", 0)
    formula = "y ~ x + (1 | animal) + (1 | herd)"
    fit = model(formula).reml()
    residuals = fit.check.residuals().table
    assert np.all(np.isfinite(residuals.select_dtypes("number")))
    monkeypatch.setattr("bayeslmm.checks.row_forms.LARGEST_DENSE", 100)
    with pytest.raises(DataError, match=r"up to 100 random effects .* this model has 158"):
        fit.check.residuals()


# --- fits ---------------------------------------------------------------------------------------


@pytest.fixture
def always_sparse(monkeypatch):
    monkeypatch.setattr(related, "FEW", 0)


@pytest.mark.parametrize("name", MODELS)
def test_sparse_fits_equal_dense_ones(name, always_sparse):
    dense, sparse = both_plans(*MODELS[name])
    assert model(*MODELS[name]).system.sparse is not None
    expected, found = (fit_likelihood(plan, "REML") for plan in (dense, sparse))
    assert found.criterion == pytest.approx(expected.criterion, abs=1e-6)
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-4)
    assert found.beta == pytest.approx(expected.beta, abs=1e-4)


@whole
@pytest.mark.slow
def test_sparse_posteriors_equal_dense_ones(monkeypatch):
    ped, data = records(700)
    formula, known = "y ~ x + (1 | animal)", {"animal": ped}
    expected = blm.LMM(formula, data, relationships=known).fit(random_seed=1)
    monkeypatch.setattr(related, "FEW", 0)
    found = blm.LMM(formula, data, relationships=known).fit(random_seed=1)
    assert found.model.system.sparse is not None
    assert float(found.log_evidence) == pytest.approx(float(expected.log_evidence), abs=0.05)
    a, b = (post.data.posterior for post in (found, expected))
    for variable in ("u_animal", "sd_animal", "sigma", "beta"):
        sd = b[variable].std(("chain", "draw"))
        gap = (a[variable] - b[variable]).mean(("chain", "draw")) / sd
        # two independent samples of 4,000 draws, up to 700 quantities, some correlated
        assert float(abs(gap).max()) < 5.0 * np.sqrt(2.0 / 2_000.0)
        ratio = a[variable].std(("chain", "draw")) / sd
        assert float(abs(ratio - 1.0).max()) < 5.0 / np.sqrt(2_000.0)
