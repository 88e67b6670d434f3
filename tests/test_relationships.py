"""Known relationships between levels, against dense algebra, other software and themselves."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dense import (
    assert_factor_gradients,
    make_case,
    numerical,
    random_factors,
    random_moments,
)
from pytensor.compile.mode import Mode
from reference_data import FOLDER, load_reference_data
from scipy.stats import multivariate_normal
from slow_cases import one_in, slow, some, whole

import bayeslmm as blm
from bayeslmm.checks.integrated import leave_out
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.residual import PLAIN
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.row_groups import row_groups
from bayeslmm.estimation.bootstrap import simulate_responses
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.draws import draw, draw_random
from bayeslmm.likelihood.elimination import make_plan
from bayeslmm.likelihood.factorise import GaussianBeta, factorise
from bayeslmm.likelihood.marginal import (
    log_density,
    log_density_given_beta_grad,
    log_density_grad,
    marginal_system,
    ml_criterion,
    reml_criterion,
)
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.sampling.joint_draws import posterior_draws

PLAIN_MODE = Mode(linker="py", optimizer=None)  # nothing to compile
VALUE = 1e-8
DERIVATIVE = 1e-6
SIGMA = 1.3
PRIOR = GaussianBeta(np.array([1.0, -0.5, 0.2]), np.diag([0.5, 1.0, 2.0]))


# --- small designs and dense algebra ------------------------------------------------------


def relationship(size, seed, kind):
    """A random relationship with some distant levels, dense or as a sparse precision matrix."""
    rng = np.random.default_rng(seed)
    if kind == "covariance":
        root = rng.normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
        return Relationship(root @ root.T, range(size))
    chain = sp.diags_array([np.full(size - 1, -0.6), np.ones(size)], offsets=[-1, 0])
    return Relationship(sp.csc_array(chain.T @ chain), range(size), "precision")


# Levels of each factor with rows, their blocks, which are related and how, weights.
DESIGNS = {
    "one intercept": ((12,), (((0,),),), ("covariance",), False),
    "one intercept, sparse, weighted": ((12,), (((0,),),), ("precision",), True),
    "one vector": ((9,), (((0, 1),),), ("precision",), True),
    "one of independent coefficients": ((9,), (((0,), (1,)),), ("covariance",), False),
    "related and not": ((9, 7), (((0,),), ((0, 1),)), ("precision", None), True),
    "not and related vector": ((12, 5), (((0,),), ((0, 1),)), (None, "covariance"), False),
    "two related": ((9, 6), (((0,),), ((0,),)), ("covariance", "precision"), False),
    "two related and one not": (
        (6, 10, 5),
        (((0, 1),), ((0,),), ((0,),)),
        ("precision", None, "covariance"),
        True,
    ),
}
WITHOUT_ROWS = 3
SPARSE = " by a sparse matrix"
FORMS = [*DESIGNS, *(name + SPARSE for name, (_, _, k, _) in DESIGNS.items() if "precision" in k)]
"""Designs, and once more those of which all effects can be eliminated by a sparse matrix."""


def plan_of(form):
    case = related_case(form.removesuffix(SPARSE))
    if not form.endswith(SPARSE):
        return case, marginal_system(case)
    plan = make_plan(cross_products(case.y, case.X, case.random, weights=case.weights), sparse=True)
    assert plan.sparse is not None and not plan.stages
    return case, plan


def related_case(name):
    counts, blocks, kinds, weighted = DESIGNS[name]
    case = make_case(7, 50, counts, blocks, weighted)
    random = []
    for i, (columns, kind) in enumerate(zip(case.random, kinds, strict=True)):
        if kind is not None:
            size = columns.n_levels + WITHOUT_ROWS
            places = np.random.default_rng(i).permutation(size)[: columns.n_levels]
            columns = replace(
                columns,
                codes=places[columns.codes].astype(np.intp),
                n_levels=size,
                relationship=relationship(size, i, kind),
            )
        random.append(columns)
    return replace(case, random=tuple(random))


@pytest.fixture(params=[False, True], ids=["regular", "singular"])
def singular(request):
    return request.param


@pytest.fixture(params=FORMS)
def problem(request, singular):
    case, plan = plan_of(request.param)
    return case, plan, random_factors(case, 3, singular=singular)


def test_only_a_single_coefficient_of_related_levels_is_diagonalised():
    for name in DESIGNS:
        plan = marginal_system(related_case(name))
        assert (plan.products.basis.levels is not None) == name.startswith("one intercept")
        assert bool(plan.stages) == (name.startswith("one intercept") or "not" in name)


def test_criteria_equal_dense_algebra(problem):
    case, plan, factors = problem
    n, p = case.X.shape
    v = case.covariance(factors)
    inverse = np.linalg.inv(v)
    information = case.X.T @ inverse @ case.X
    gap = case.y - case.X @ np.linalg.solve(information, case.X.T @ inverse @ case.y)
    rss, log_det = gap @ inverse @ gap, np.linalg.slogdet(v)[1]
    reml = (
        log_det
        + np.linalg.slogdet(information)[1]
        + (n - p) * (1.0 + np.log(2 * np.pi * rss / (n - p)))
    )
    ml = log_det + n * (1.0 + np.log(2 * np.pi * rss / n))
    fact = factorise(plan, factors)
    assert reml_criterion(fact) == pytest.approx(reml, abs=VALUE)
    assert ml_criterion(fact) == pytest.approx(ml, abs=VALUE)
    diagonal = make_plan(plan.products) if plan.products.basis.levels is None else plan
    assert reml_criterion(factorise(diagonal, factors)) == pytest.approx(reml, abs=VALUE)


def test_density_equals_the_normal_one(problem):
    case, plan, factors = problem
    covariance = SIGMA**2 * case.covariance(factors)
    covariance += case.X @ np.linalg.inv(PRIOR.root.T @ PRIOR.root) @ case.X.T
    expected = multivariate_normal(case.X @ PRIOR.mean, covariance).logpdf(case.y)
    assert log_density(plan, factors, SIGMA, PRIOR) == pytest.approx(expected, abs=VALUE)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "normal"])
def test_gradient_equals_differences(problem, prior):
    _, plan, factors = problem
    _, d_factors, _, d_sigma, _ = log_density_grad(plan, factors, SIGMA, prior)

    def density(t, s=SIGMA):
        return log_density(plan, t, s, prior)

    expected = numerical(lambda s: density(factors, float(s[0])), [SIGMA])[0]
    assert d_sigma == pytest.approx(expected, abs=DERIVATIVE)
    assert_factor_gradients(density, plan, factors, d_factors, DERIVATIVE)


def test_gradient_given_beta(problem):
    case, plan, factors = problem
    beta = np.array([1.1, 1.9, 3.2])
    value, d_factors, *_ = log_density_given_beta_grad(plan, factors, SIGMA, beta)
    v = SIGMA**2 * case.covariance(factors)
    assert value == pytest.approx(multivariate_normal(case.X @ beta, v).logpdf(case.y), abs=VALUE)
    assert_factor_gradients(
        lambda t: log_density_given_beta_grad(plan, t, SIGMA, beta)[0],
        plan,
        factors,
        d_factors,
        DERIVATIVE,
    )


@pytest.mark.parametrize("given_beta", [False, True])
def test_conditional_moments_equal_dense_algebra(problem, given_beta):
    case, plan, factors = problem
    inverse = np.linalg.inv(case.covariance(factors))
    information = case.X.T @ inverse @ case.X
    beta = np.linalg.solve(information, case.X.T @ inverse @ case.y)
    projector = inverse
    if not given_beta:
        left = inverse @ case.X
        projector = inverse - left @ np.linalg.solve(information, left.T)
    fact = factorise(plan, factors)
    modes, _ = conditional_modes(fact)
    blocks = conditional_covariances(fact, given_beta=given_beta)
    basis = plan.products.basis
    for f, t in enumerate(factors):
        z, a, columns = case.z_matrix(f), basis.random[f], case.random[f]
        levels, k = columns.n_levels, len(t)
        g = np.kron(columns.between, t @ t.T)
        u = g @ z.T @ inverse @ (case.y - case.X @ beta)
        assert basis.effects(f, modes[f]) == pytest.approx(u.reshape(levels, k), abs=VALUE)
        full = g - g @ z.T @ projector @ z @ g
        for j in range(levels):
            expected = full[j * k : (j + 1) * k, j * k : (j + 1) * k]
            assert a @ blocks[f][j] @ a.T == pytest.approx(expected, abs=VALUE)


@pytest.mark.parametrize("name", FORMS)
def test_many_points_equal_each_alone(name):
    case, plan = plan_of(name)
    points = [random_factors(case, seed, singular=False) for seed in range(5)]
    together = [np.stack(parts) for parts in zip(*points, strict=True)]
    shapes, sigma = np.empty((len(points), 0)), np.ones(len(points))
    at = SimpleNamespace(factors=together, sigma=sigma, shapes=shapes)
    found = reduce_equations(plan, at)
    for i, factors in enumerate(points):
        fact = factorise(plan, factors)
        log_det = fact.log_det_random - plan.products.log_weights
        assert found.log_det[i] == pytest.approx(log_det, abs=VALUE)
        assert found.fixed[i][-1, -1] == pytest.approx(
            fact.rss + fact.fixed_half @ fact.fixed_half, rel=1e-10
        )


@pytest.mark.parametrize("name", one_in(2, FORMS))
def test_variance_of_fixed_effects_by_covariance_parameters(name):
    _, plan = plan_of(name)
    fit = fit_likelihood(plan, "REML")
    theta = plan.theta

    def vcov(x):
        fact = factorise(
            plan, [plan.products.basis.random[f] @ t for f, t in enumerate(theta.factors(x))]
        )
        return fit.sigma**2 * fact.beta_root @ fact.beta_root.T

    x = fit.optimum.x
    for i in range(len(x)):
        step = 1e-5 * np.eye(len(x))[i]
        expected = (vcov(x + step) - vcov(x - step)) / 2e-5
        scale = np.abs(fit.vcov).max()
        assert fit.vcov_gradient[i] == pytest.approx(expected, abs=1e-7 * max(1.0, scale))


def check_moments(case, factors, beta, drawn):
    """Draws (S, J, k) of all random effects given beta have the moments of dense algebra."""
    size = len(drawn[0])
    sample = np.hstack([u.reshape(size, -1) for u in drawn])
    mean, cov = random_moments(case, factors, SIGMA, beta)
    sds = np.sqrt(np.diag(cov))
    assert np.max(np.abs(sample.mean(axis=0) - mean) / sds) < 5 / np.sqrt(size)
    scaled = (np.cov(sample.T) - cov) / np.outer(sds, sds)
    assert np.max(np.abs(scaled)) < 5 * np.sqrt(2 / size)


BY_SUMS = [
    "one intercept",
    "one intercept, sparse, weighted",
    "related and not",
    "not and related vector",
    "two related and one not",
]
"""Forms whose draws are not iterative already."""


@pytest.mark.parametrize(
    ("name", "iterative"),
    one_in(4, [*((name, False) for name in FORMS), *((name, True) for name in BY_SUMS)]),
)
def test_draws_at_many_points_have_the_exact_moments(name, iterative):
    case, plan = plan_of(name)
    assert (plan.sums is not None) == (name in BY_SUMS)
    factors = random_factors(case, 4, singular=False)
    if iterative:
        plan.__dict__["sums"] = None
    size, beta = 5000, np.array([1.0, 2.0, 3.0])
    sds = [np.linalg.norm(t, axis=1) for t in factors]
    points = Points(
        sds=tuple(np.tile(SIGMA * sd, (size, 1)) for sd in sds),
        chols=tuple(
            np.tile(t / sd[:, None], (size, 1, 1)) for t, sd in zip(factors, sds, strict=True)
        ),
        sigma=np.full(size, SIGMA),
        shapes=np.empty((size, 0)),
        residual=PLAIN,
        beta=np.empty((size, 0)),
    )
    rng = np.random.default_rng(5)
    drawn = draw_random(plan, points, np.tile(beta, (size, 1)), rng)
    check_moments(case, factors, beta, drawn)


@pytest.mark.parametrize("name", FORMS)
def test_draws_at_one_point_are_centred_at_the_modes(name):
    case, plan = plan_of(name)
    factors = random_factors(case, 4, singular=False)
    size = 20_000
    _, u = draw(plan, factors, SIGMA, np.random.default_rng(5), None, size)
    inverse = np.linalg.inv(case.covariance(factors))
    information = case.X.T @ inverse @ case.X
    estimate = np.linalg.solve(information, case.X.T @ inverse @ case.y)
    mean, _ = random_moments(case, factors, SIGMA, estimate)
    sample = np.hstack([part.reshape(size, -1) for part in u])
    error = sample.std(axis=0) / np.sqrt(size)
    assert np.max(np.abs(sample.mean(axis=0) - mean) / error) < 5


# --- models, against other software --------------------------------------------------------


RELATIONSHIPS = FOLDER / "relationships"
CRITERION = 1e-5
PARAMETER = 1e-3
"""What lme4's optimiser leaves of the parameters, relative."""

EFFECTS = 1e-5
QUADRATURE = 0.03
"""Monte Carlo error of means in posterior standard deviations: 4,000 draws, some correlated."""


@cache
def ped():
    return blm.pedigree(pd.read_csv(RELATIONSHIPS / "sim_pedigree_ped.csv"), id="animal")


@cache
def data(name="sim_pedigree"):
    if name == "sim_pedigree_rep":
        return load_reference_data(name)
    return pd.read_csv(RELATIONSHIPS / f"{name}.csv")


def reference(name):
    return json.loads((RELATIONSHIPS / f"{name}.json").read_text())


@cache
def animal_model():
    return blm.LMM("y ~ sex + gen + (1 | animal)", data(), relationships={"animal": ped()})


@cache
def animal_posterior():
    return animal_model().fit(random_seed=1)


@cache
def repeat_model():
    return blm.LMM(
        "y ~ sex + gen + (1 | animal) + (1 | pe)",
        data("sim_pedigree_rep"),
        relationships={"animal": ped()},
    )


@pytest.mark.reference
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("name", ["sim_pedigree__animal", "sim_pedigree_rep__repeat"])
def test_estimates_equal_those_of_lme4_with_transformed_columns(name, method):
    lme4 = reference(f"{name}_{method}")
    fit = getattr(animal_model() if "__animal" in name else repeat_model(), method)()
    assert fit.criterion == pytest.approx(lme4["criterion"]["value"], abs=CRITERION)
    assert fit.sigma == pytest.approx(lme4["sigma"], rel=PARAMETER)
    assert fit.beta.to_numpy() == pytest.approx(lme4["fixed"]["estimate"], rel=PARAMETER)
    errors = np.sqrt(np.diag(fit.vcov))
    assert errors == pytest.approx(lme4["fixed"]["se"], rel=PARAMETER)
    tidy = fit.tidy("ran_vals").set_index(["group", "level"])
    for term, effects in zip(lme4["random"], lme4["ranef"], strict=True):
        group = term["grouping"]
        sd = fit.sds[group].iloc[0]
        assert sd == pytest.approx(term["sd"][0], rel=PARAMETER)
        modes = fit.ranef()[group].loc[effects["levels"]].to_numpy()
        assert modes == pytest.approx(np.array(effects["modes"]), abs=EFFECTS)
        if group == "animal":
            found = tidy.loc[group].loc[effects["levels"], "std_error"].to_numpy()
            assert found == pytest.approx(np.ravel(effects["pred_se"]), abs=EFFECTS)
            inbreeding = ped().inbreeding.loc[effects["levels"]].to_numpy()
            reliability = 1.0 - found**2 / (sd**2 * (1.0 + inbreeding))
            assert reliability == pytest.approx(effects["reliability"], abs=EFFECTS)


@pytest.mark.reference
@pytest.mark.parametrize("point", range(5))
@pytest.mark.parametrize("name", ["sim_pedigree__animal", "sim_pedigree_rep__repeat"])
def test_criterion_away_from_the_maximum(name, point):
    cell = reference(f"{name}_reml")["criterion_at"][point]
    model = animal_model() if "__animal" in name else repeat_model()
    factors = [np.array([[theta]]) for theta in cell["theta"]]
    found = reml_criterion(factorise(model.system, factors))
    assert found == pytest.approx(cell["value"], abs=CRITERION)


@pytest.mark.reference
def test_posterior_equals_quadrature():
    post, exact = animal_posterior(), reference("sim_pedigree__animal")["quadrature"]
    assert post.method == "collapsed"
    beta = post.data.posterior["beta"]
    draws = {
        "sd[animal,Intercept]": post.data.posterior["sd_animal"],
        "sigma": post.data.posterior["sigma"],
        "beta[Intercept]": beta.sel(coef="Intercept"),
        "beta[sexM]": beta.sel(coef="sex[T.M]"),
        "beta[gen]": beta.sel(coef="gen"),
    }
    for name, values in draws.items():
        error = abs(float(values.mean()) - exact["means"][name]) / exact["sds"][name]
        assert error < 5 * QUADRATURE, name
        assert float(values.std()) == pytest.approx(exact["sds"][name], rel=0.1)
    assert float(post.log_evidence.value) == pytest.approx(
        exact["log_marginal_likelihood"], abs=0.02
    )


# --- what users give -----------------------------------------------------------------------


def criterion(known, frame=None):
    frame = data() if frame is None else frame
    model = blm.LMM("y ~ sex + gen + (1 | animal)", frame, relationships={"animal": known})
    return model.reml().criterion


def numbered(A):
    """A with numbers for labels."""
    A = A.copy()
    A.index = A.columns = A.index.str[2:].astype(int)
    return A, data().assign(animal=data()["animal"].str[2:].astype(int))


def test_the_forms_of_a_relationship_agree():
    A = ped().A
    used = sorted(set(data()["animal"]))
    shuffled = A.sample(frac=1.0, random_state=1)
    forms = [
        A,
        shuffled[A.columns[::-1]],
        blm.Relationship(A.to_numpy(), A.index),
        blm.Relationship(ped().A_inverse, ped().labels, "precision"),
        blm.Relationship(ped().A_inverse.toarray(), list(ped().labels), kind="precision"),
        A.loc[used, used],
    ]
    expected = animal_model().reml().criterion
    for known in forms:
        assert criterion(known) == pytest.approx(expected, abs=1e-8)


def test_numbers_as_labels():
    A, frame = numbered(ped().A)
    A.columns = A.columns.astype(str)  # a csv file has text for the names of its columns
    assert criterion(A, frame) == pytest.approx(animal_model().reml().criterion, abs=1e-8)
    with pytest.raises(blm.DataError, match="holds text in the data and numbers"):
        criterion(A, data())


def test_unrelated_levels_are_ordinary_ones():
    pastes = blm.load_dataset("Pastes")
    batches = sorted(set(pastes["batch"]))
    known = blm.Relationship(np.eye(len(batches)), batches)
    formula = "strength ~ 1 + (1 | batch)"
    related = blm.LMM(formula, pastes, relationships={"batch": known}).reml()
    plain = blm.LMM(formula, pastes).reml()
    assert related.criterion == pytest.approx(plain.criterion, abs=1e-8)
    np.testing.assert_allclose(related.ranef()["batch"], plain.ranef()["batch"], atol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "labels", "message"),
    [
        (np.eye(3)[:2], ["a", "b"], "must be square"),
        (np.eye(3), ["a", "b"], "has 3 rows, but there are 2 labels"),
        (np.eye(2), ["a", "a"], "must be unique, but `a` occurs more than once"),
        (np.eye(2), ["a", None], "Some labels .* missing"),
        ([[1.0, 0.5], [0.4, 1.0]], ["a", "b"], "not symmetric: its entries for `a` and `b`"),
        ([[1.0, np.nan], [np.nan, 1.0]], ["a", "b"], "not finite"),
        ([[1.0, 1.0], [1.0, 1.0]], ["a", "b"], "not positive definite.*clones"),
        ([[1.0, 2.0], [2.0, 1.0]], ["a", "b"], "smallest eigenvalue is -1"),
        ([["x", "y"], ["y", "x"]], ["a", "b"], "must hold numbers"),
        (np.zeros((0, 0)), [], "at least one level"),
        (sp.csc_array([[1.0, 2.0], [2.0, 1.0]]), ["a", "b"], "not positive definite"),
        (sp.csc_array([[1.0, 0.5], [0.1, 1.0]]), ["a", "b"], "not symmetric"),
    ],
)
def test_refused_matrices(matrix, labels, message):
    with pytest.raises(blm.DataError, match=message):
        blm.Relationship(matrix, labels)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of"):
        blm.Relationship(np.eye(2), ["a", "b"], "inverse")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sire": np.eye(2)}, "`sire` must be a data frame with labels"),
        ({"sire": pd.DataFrame(np.eye(2))}, "no grouping factor `sire`; it has `animal`"),
        ({"animal": pd.DataFrame(np.eye(2), [1, 2], [1, 3])}, "same labels"),
        ({"animal": pd.DataFrame(np.eye(2), ["an041", "x"], ["an041", "x"])}, "does not have 200"),
        ([("animal", None)], "must be a mapping"),
    ],
)
def test_refused_relationships(given, message):
    with pytest.raises(blm.DataError, match=message):
        blm.LMM("y ~ sex + (1 | animal)", data(), relationships=given)


def test_a_relationship_of_several_variables_is_refused():
    with pytest.raises(blm.DataError, match="groups by several variables"):
        blm.LMM(
            "y ~ sex + (1 | animal:sex)",
            data("sim_pedigree_rep"),
            relationships={"animal:sex": ped()},
        )


def test_unrelated_levels_with_a_row_each_are_told_from_nothing():
    animals = sorted(set(data()["animal"]))
    unrelated = blm.Relationship(2.0 * np.eye(len(animals)), animals)
    with pytest.raises(blm.DataError, match="as many levels as there are complete rows"):
        criterion(unrelated)


# --- what a model with relationships says ------------------------------------------------------


def test_matrices_of_the_textbook():
    fit = repeat_model().reml()
    G, V = fit.G(), fit.V()
    A = ped().A
    own = G.loc["animal", "animal"]
    names = own.index.get_level_values(0)
    np.testing.assert_allclose(
        own, fit.sds["animal"].iloc[0] ** 2 * A.loc[names, names], atol=1e-12
    )
    z = repeat_model().Z
    np.testing.assert_allclose(V, z @ G.to_numpy() @ z.T + fit.R().to_numpy(), atol=1e-12)
    assert "animal, 280 (related, 201 with rows); pe, 201" in repr(repeat_model())


def test_posterior_of_animals_without_records():
    u = animal_posterior().data.posterior["u_animal"]
    assert u.sizes["animal"] == 280
    (effects,) = reference("sim_pedigree__animal_reml")["ranef"]
    u = u.sel(animal=effects["levels"])
    mean, sd = (getattr(u, name)(("chain", "draw")).to_numpy().ravel() for name in ("mean", "std"))
    # The posterior is close to REML here.
    assert mean == pytest.approx(np.ravel(effects["modes"]), abs=0.2)
    assert np.median(sd / np.ravel(effects["pred_se"])) == pytest.approx(1.0, abs=0.1)
    # Summaries are made from moments, without any draw.
    summaries = animal_model().fit(random_seed=1, store_u=False).data["random_effects"]
    exact = summaries.to_dataset().sel(animal=effects["levels"])
    assert np.ravel(exact["u_animal_mean"]) == pytest.approx(mean, abs=0.1)
    assert np.ravel(exact["u_animal_sd"]) == pytest.approx(sd, rel=0.1)


def test_predictions_of_levels_without_rows_and_of_new_ones():
    fit = animal_model().reml()
    new = pd.DataFrame({"animal": ["an002", "an280"], "sex": ["F", "M"], "gen": [0, 4]})
    found = fit.predict(new, target="conditional")
    fixed = fit.predict(new, target="average")
    gap = found["estimate"].to_numpy() - fixed["estimate"].to_numpy()
    modes = fit.ranef()["animal"]["Intercept"].loc[["an002", "an280"]]
    np.testing.assert_allclose(gap, modes, atol=1e-8)
    with pytest.raises(blm.DataError, match="has levels that the model has not seen: 'x'"):
        fit.predict(new.assign(animal="x"), target="conditional")
    assert len(fit.predict(new.assign(animal="x"), target="new")) == 2


def test_saved_models_keep_relationships(tmp_path):
    post = animal_posterior()
    post.save(tmp_path / "animal.nc")
    back = blm.load(tmp_path / "animal.nc")
    known = back.design.random[0].relationship
    assert known.equals(post.design.random[0].relationship)
    assert sp.issparse(known.matrix)
    found = blm.LMM.from_fit(back).reml().criterion
    assert found == pytest.approx(animal_model().reml().criterion, abs=1e-10)
    new = pd.DataFrame({"animal": ["an002"], "sex": ["F"], "gen": [0]})
    pd.testing.assert_frame_equal(post.predict(new), back.predict(new))


def test_a_dense_relationship_with_numbers_as_labels_is_saved(tmp_path):
    A, frame = numbered(ped().A)
    model = blm.LMM("y ~ sex + (1 | animal)", frame, relationships={"animal": A})
    post = model.fit(draws=200, chains=2, random_seed=1)
    post.save(tmp_path / "a.nc")
    known = blm.load(tmp_path / "a.nc").design.random[0].relationship
    assert known.equals(post.design.random[0].relationship)
    assert known.labels.dtype == np.int64


def test_update_keeps_replaces_and_takes_away():
    model = animal_model()
    smaller = model.update("~ . - gen")
    assert smaller.design.random[0].relationship.equals(model.design.random[0].relationship)
    unrelated = model.update(data=data("sim_pedigree_rep"), relationships={"animal": None})
    assert unrelated.design.random[0].relationship is None
    assert unrelated.design.random[0].n_levels == 201
    related = unrelated.update(relationships={"animal": ped()})
    assert related.design.random[0].n_levels == 280
    assert not model.update("~ . - (1 | animal) + (1 | gen)").design.spec.relationships


@pytest.mark.slow
def test_maternal_effects_by_one_matrix_for_two_factors():
    frame = pd.read_csv(RELATIONSHIPS / "sim_pedigree_ped.csv").iloc[:100]
    rows = data().merge(frame[["animal", "dam"]]).dropna(subset=["dam"])
    known = blm.pedigree(frame, id="animal")
    A = known.A
    model = blm.LMM(
        "y ~ sex + (1 | animal) + (1 | dam)", rows, relationships={"animal": known, "dam": A}
    )
    fit = model.reml()
    v = fit.sigma**2 * np.eye(len(rows))
    for name in ("animal", "dam"):
        v += fit.sds[name].iloc[0] ** 2 * A.loc[rows[name], rows[name]].to_numpy()
    X, y = model.X.to_numpy(), model.y.to_numpy()
    inverse = np.linalg.inv(v)
    information = X.T @ inverse @ X
    gap = y - X @ np.linalg.solve(information, X.T @ inverse @ y)
    n, p = X.shape
    expected = (n - p) * np.log(2 * np.pi) + np.linalg.slogdet(v)[1]
    expected += np.linalg.slogdet(information)[1] + gap @ inverse @ gap
    assert fit.criterion == pytest.approx(expected, abs=1e-6)
    post = model.fit(draws=250, chains=4, random_seed=1)
    assert post.method == "collapsed"
    assert post.data.posterior["u_dam"].sizes["dam"] == 100


# --- rows left out, residuals and simulations ------------------------------------------------


def small_model(k):
    """Thirty animals, some without rows, in few enough rows for brute force."""
    rng = np.random.default_rng(2)
    n = 30
    sire, dam = np.full(n, np.nan), np.full(n, np.nan)
    for i in range(8, n):
        sire[i] = 2 * rng.integers(0, i // 2)
        dam[i] = 2 * rng.integers(0, i // 2) + 1
    known = blm.pedigree({"id": range(n), "sire": sire, "dam": dam})
    animal = rng.integers(0, 24, 50)
    x = rng.normal(size=50)
    u = np.linalg.cholesky(known.A.to_numpy()) @ rng.normal(size=(n, 2))
    y = 3.0 + x + 1.5 * u[animal, 0] + 0.7 * u[animal, 1] * x * (k > 1) + rng.normal(size=50)
    frame = pd.DataFrame({"y": y, "x": x, "animal": animal, "w": rng.uniform(0.5, 2.0, 50)})
    formula = "y ~ x + (1 | animal)" if k == 1 else "y ~ x + (x | animal)"
    return blm.LMM(formula, frame, weights="w", relationships={"animal": known})


@pytest.mark.parametrize("k", [1, 2])
def test_residuals_and_leverages_equal_dense_algebra(k):
    model = small_model(k)
    fit = model.reml()
    V, X, y = fit.V().to_numpy(), model.X.to_numpy(), model.y.to_numpy()
    R = np.diag(fit.R().to_numpy().diagonal())
    inverse = np.linalg.inv(V)
    left = inverse @ X
    P = inverse - left @ np.linalg.solve(X.T @ left, left.T)
    table = fit.check.residuals().residuals
    residual = R @ P @ y
    np.testing.assert_allclose(table["response"], residual, atol=1e-8)
    hat = np.eye(len(y)) - R @ P
    scale = np.sqrt(np.diag(R))
    standard = residual / scale / np.sqrt(1.0 - np.diag(hat))
    np.testing.assert_allclose(table["standardised"], standard, atol=1e-8)
    white = np.linalg.solve(np.linalg.cholesky(V), y - X @ fit.beta.to_numpy())
    np.testing.assert_allclose(table["marginal"], white, atol=1e-8)


@pytest.mark.parametrize("k", [1, slow(2)])
def test_left_out_rows_and_groups_equal_dense_algebra(k):
    model = small_model(k)
    post = model.fit(draws=100, chains=2, random_seed=3)
    design, priors = model.design, model.priors
    joint = posterior_draws(design, lambda: model.system, post.data.posterior.to_dataset()).thin(3)
    groups = row_groups(design, "animal")
    assert np.array_equal(np.unique(groups.codes), np.arange(len(groups.values)))
    covariance = np.linalg.inv(priors.beta_root.T @ priors.beta_root)
    A = design.random[0].relationship.covariance
    for codes in (None, groups.codes):
        found = leave_out(model.model, joint, codes).log_density
        members = np.arange(design.n) if codes is None else codes
        for s in range(joint.size):
            root = joint.roots[0][s]
            z = design.Z_matrix().toarray()
            v = z @ np.kron(A, root @ root.T) @ z.T + design.X @ covariance @ design.X.T
            v += joint.sigma[s] ** 2 * np.diag(1.0 / design.weights)
            mean = design.X @ priors.beta_mean
            for g in range(members.max() + 1):
                out, rest = members == g, members != g
                gain = np.linalg.solve(v[np.ix_(rest, rest)], v[np.ix_(rest, out)]).T
                centre = mean[out] + gain @ (design.y - mean)[rest]
                spread = v[np.ix_(out, out)] - gain @ v[np.ix_(rest, out)]
                expected = multivariate_normal(centre, spread).logpdf(design.y[out])
                assert found[s, g] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("k", [1, slow(2)])
def test_simulated_responses_have_the_covariance_of_the_model(k):
    model = small_model(k)
    fit = model.reml()
    size = 5000
    y = simulate_responses(model.design, fit.fit, size, np.random.default_rng(4))
    V = fit.V().to_numpy()
    sds = np.sqrt(np.diag(V))
    assert np.max(np.abs((np.cov(y.T) - V) / np.outer(sds, sds))) < 5 * np.sqrt(2 / size)


def test_everything_after_the_fit_runs():
    model = small_model(1)
    fit, post = model.reml(), model.fit(draws=100, chains=2, random_seed=3)
    for source in (fit, post):
        source.icc()
        source.r2()
        source.varcorr()
        source.coef()
        source.tidy()
        source.simulate(3, random_seed=1)
        source.check.residuals()
    fit.check.influence("animal", progressbar=False)
    post.check.influence("animal", progressbar=False)
    fit.bootstrap(2, random_seed=1, progressbar=False)
    fit.confint(method="profile")
    post.loo(by="animal")
    model.implied_priors(200, random_seed=1)
    model.prior_predictive(20, random_seed=1)
    blm.compare_reml(post, fit)


@pytest.mark.parametrize("k", [1, 2])
def test_noncentered_effects_are_related(k):
    factor = small_model(k).design.random[0]
    model = small_model(k).pymc("noncentered")
    point = model.initial_point()
    z = point["_z_animal"] = np.random.default_rng(0).normal(size=(k, factor.n_levels))
    (u,) = model.replace_rvs_by_values([model["u_animal"]])
    inputs = model.value_vars
    effects = model.compile_fn(u, inputs=inputs, on_unused_input="ignore", mode=PLAIN_MODE)(point)
    independent = np.linalg.solve(factor.relationship.root, effects.T).T
    mixing = independent @ np.linalg.pinv(z)
    np.testing.assert_allclose(mixing @ z, independent, atol=1e-10)
    assert abs(np.linalg.det(mixing)) > 1e-6


def test_centered_effects_are_related():
    factor = small_model(1).design.random[0]
    model = small_model(1).pymc("centered")
    point = model.initial_point()
    u = point["_u_animal"] = np.random.default_rng(0).normal(size=factor.n_levels)
    sd = np.exp(point["sd_animal_log__"][0])
    expected = multivariate_normal(cov=sd**2 * factor.relationship.covariance).logpdf(u)
    found = model.compile_logp(vars=model["_u_animal"], mode=PLAIN_MODE)(point)
    assert found == pytest.approx(expected, abs=1e-8)


@whole
@pytest.mark.slow
@pytest.mark.parametrize("form", some(1, ["marginal", "noncentered", "centered"]))
def test_collapsed_draws_equal_those_of_nuts(form):
    model = small_model(1)
    exact = model.fit(draws=2000, chains=4, random_seed=1)
    nuts = model.fit(
        method="nuts", form=form, draws=1000, chains=4, random_seed=2, progressbar=False
    )
    for name in ("beta", "sd_animal", "sigma", "u_animal"):
        a, b = (post.data.posterior[name] for post in (exact, nuts))
        sd = a.std(("chain", "draw"))
        gap = np.abs(a.mean(("chain", "draw")) - b.mean(("chain", "draw"))) / sd
        assert float(gap.max()) < 0.15, name
        ratio = b.std(("chain", "draw")) / sd
        assert float(np.abs(np.log(ratio)).max()) < 0.15, name
