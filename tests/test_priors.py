"""Priors: densities against PyMC and SciPy, defaults against Stan's, users' keys and errors."""

import json

import numpy as np
import pandas as pd
import pytest
from reference_data import list_posteriors, load_posterior, load_posterior_data
from scipy import integrate, stats

from bayeslmm.data.building import build_design
from bayeslmm.exceptions import PriorError
from bayeslmm.priors.defaults import (
    default_priors,
    fixed_coordinates,
    flat_priors,
    resolve_priors,
    working_columns,
)
from bayeslmm.priors.families import (
    LKJ,
    Exponential,
    Flat,
    Gamma,
    HalfCauchy,
    HalfFlat,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    LogNormal,
    Normal,
    Prior,
    Uniform,
)
from bayeslmm.priors.pymc_priors import PymcPrior

FAMILIES = {
    "normal": (Normal(1.5, 2.0), stats.norm(1.5, 2.0)),
    "half normal": (HalfNormal(2.0), stats.halfnorm(scale=2.0)),
    "half t": (HalfStudentT(3.0, 56.3), None),
    "half cauchy": (HalfCauchy(2.5), stats.halfcauchy(scale=2.5)),
    "exponential": (Exponential(0.2), stats.expon(scale=5.0)),
    "gamma": (Gamma(2.0, 0.1), stats.gamma(2.0, scale=10.0)),
    "gamma of shape one": (Gamma(1.0, 0.5), stats.expon(scale=2.0)),
    "inverse gamma": (InverseGamma(3.0, 2.0), stats.invgamma(3.0, scale=2.0)),
    "log normal": (LogNormal(0.5, 1.2), stats.lognorm(1.2, scale=np.exp(0.5))),
}
POINTS = np.array([1e-3, 0.2, 1.0, 7.0, 300.0])


def frame(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """A small frame with two covariates, a factor and two grouping factors."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(3.0, 2.0, n), rng.normal(-1.0, 0.5, n)
    return pd.DataFrame(
        {
            "y": 5.0 + x + rng.normal(0.0, 2.0, n),
            "x": x,
            "z": z,
            "f": rng.choice(["a", "b", "c"], n),
            "g": rng.choice([f"g{i}" for i in range(8)], n),
            "h": rng.choice([f"h{i}" for i in range(5)], n),
        }
    )


@pytest.fixture(scope="module")
def design():
    return build_design("y ~ x + z + (x | g) + (1 | h)", frame())


# --- records ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_log_density_is_that_of_scipy_and_pymc(name):
    import pymc as pm
    from pytensor.compile.mode import Mode

    record, reference = FAMILIES[name]
    pymc = pm.logp(record.dist(), POINTS).eval(mode=Mode(linker="py", optimizer=None))
    np.testing.assert_allclose(record.logpdf(POINTS), pymc, rtol=1e-6, atol=1e-6)
    if reference is not None:
        np.testing.assert_allclose(record.logpdf(POINTS), reference.logpdf(POINTS), rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivative_of_the_log_density(name):
    record, _ = FAMILIES[name]
    step = 1e-4 * POINTS
    numeric = (record.logpdf(POINTS + step) - record.logpdf(POINTS - step)) / (2 * step)
    np.testing.assert_allclose(record.dlogpdf(POINTS), numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_support_and_draws(name):
    record, _ = FAMILIES[name]
    assert isinstance(record, Prior)
    draws = record.sample(np.random.default_rng(3), 4000)
    assert draws.shape == (4000,)
    if record.positive:
        assert record.logpdf(-0.5) == -np.inf
        assert record.dlogpdf(-0.5) == 0.0
        assert np.all(draws > 0)
    median = np.median(draws)
    lower = -np.inf if not record.positive else 0.0
    mass, _ = integrate.quad(lambda x: np.exp(record.logpdf(x)), lower, median)
    assert mass == pytest.approx(0.5, abs=0.04)


def test_flat_densities():
    assert np.all(Flat().logpdf([-1.0, 2.0]) == 0.0)
    np.testing.assert_array_equal(HalfFlat().logpdf([-1.0, 2.0]), [-np.inf, 0.0])
    with pytest.raises(PriorError, match="cannot be drawn from"):
        Flat().sample(np.random.default_rng(1), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normal(0.0, 0.0),
        lambda: HalfStudentT(3.0, -1.0),
        lambda: LKJ(0.0),
        lambda: Gamma(np.inf, 1.0),
    ],
)
def test_parameters_are_checked(make):
    with pytest.raises(PriorError, match="needs a positive, finite"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Normal(np.nan, 1.0), "mu"),
        (lambda: Normal([0.0, 1.0], 1.0), "mu"),
        (lambda: LogNormal("a", 1.0), "mu"),
        (lambda: Uniform(-np.inf, 1.0), "lower"),
        (lambda: Normal(0.0, [1.0, 2.0]), "sigma"),
    ],
)
def test_each_parameter_is_one_number(make, name):
    with pytest.raises(PriorError, match=rf"finite (number for )?{name}; got "):
        make()


def test_parameters_may_be_numbers_of_numpy():
    assert Normal(np.float64(0), np.int64(2)).sigma == 2


@pytest.mark.parametrize("record", [HalfStudentT(3.0, 56.3), Normal(1527.5, 158.0), LKJ(2.0)])
def test_text(record):
    shown = {"HalfStudentT(3, 56.3)", "Normal(1528, 158)", "LKJ(2)"}
    assert str(record) in shown


# --- LKJ -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "eta"), [(2, 1.0), (2, 2.0), (3, 1.0), (3, 2.5), (5, 2.0)])
def test_lkj_is_that_of_pymc_but_for_the_jacobian_of_the_factor(size, eta):
    import pymc as pm
    from pytensor.compile.mode import Mode

    chol = LKJ(eta).sample_cholesky(np.random.default_rng(1), 1, size)[0]
    pymc = pm.logp(pm.LKJCorr.dist(n=size, eta=eta), chol)
    jacobian = np.arange(size - 1, -1, -1) @ np.log(np.diag(chol))
    value = pymc.eval(mode=Mode(linker="py", optimizer=None)) - jacobian
    assert LKJ(eta).logpdf(chol) == pytest.approx(value, abs=1e-6)
    assert LKJ(eta).logpdf_correlation(chol @ chol.T) == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_lkj_integrates_to_one():
    def density(c, b, a):
        omega = np.array([[1.0, a, b], [a, 1.0, c], [b, c, 1.0]])
        if np.linalg.det(omega) <= 0:
            return 0.0
        return np.exp(LKJ(2.0).logpdf_correlation(omega))

    grid = np.linspace(-0.98, 0.98, 50)
    cell = (grid[1] - grid[0]) ** 3
    total = sum(density(c, b, a) for a in grid for b in grid for c in grid) * cell
    assert total == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize(("size", "eta"), [(2, 2.0), (3, 1.0), (4, 2.0)])
def test_lkj_draws_have_beta_marginals(size, eta):
    chol = LKJ(eta).sample_cholesky(np.random.default_rng(2), 4000, size)
    omega = chol @ chol.transpose(0, 2, 1)
    np.testing.assert_allclose(np.diagonal(omega, axis1=1, axis2=2), 1.0)
    shape = eta - 1 + size / 2
    for i, j in zip(*np.tril_indices(size, -1), strict=True):
        test = stats.kstest((omega[:, i, j] + 1) / 2, stats.beta(shape, shape).cdf)
        assert test.pvalue > 1e-4


def test_lkj_derivative():
    chol = LKJ(1.0).sample_cholesky(np.random.default_rng(5), 1, 3)[0]
    slope = LKJ(2.5).dlogpdf(chol)
    for i in range(3):
        up, down = chol.copy(), chol.copy()
        up[i, i] += 1e-6
        down[i, i] -= 1e-6
        numeric = (LKJ(2.5).logpdf(up) - LKJ(2.5).logpdf(down)) / 2e-6
        assert slope[i, i] == pytest.approx(numeric, rel=1e-6)
    assert np.count_nonzero(slope) == 3


# --- defaults --------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("name", list_posteriors())
def test_defaults_are_those_given_to_stan(name):
    posterior = load_posterior(name)
    design = build_design(posterior["formula"], load_posterior_data(name))
    priors = default_priors(design)
    given = iter(posterior["priors"])
    centred = next(given)
    assert priors.beta[0].mu == pytest.approx(centred["mean"], rel=1e-12)
    assert priors.beta[0].sigma == pytest.approx(centred["sd"], rel=1e-12)
    np.testing.assert_allclose(priors.fixed_map[0], design.X.mean(axis=0), rtol=1e-12, atol=1e-14)
    if design.p > 1:
        cov = np.linalg.inv(priors.beta_precision)[1:, 1:]
        expected = next(given)
        expected_cov = expected.get("covariance", [[np.square(expected["sd"])]])
        np.testing.assert_allclose(cov, expected_cov, rtol=1e-6, atol=1e-6 * np.abs(cov).max())
    for f, factor in enumerate(design.random):
        for block in factor.blocks:
            expected = next(given)
            assert_scales_are_those_of_stan(priors, f, list(block), expected)
            if len(block) > 1:
                assert next(given) | {"parameter": "", "dimension": 0} == {
                    "parameter": "",
                    "distribution": "lkj",
                    "eta": 1,
                    "dimension": 0,
                }
    assert all(lkj in (None, LKJ(1.0)) for row in priors.cor for lkj in row)
    assert priors.sigma.nu == 3.0
    assert priors.sigma.sigma == pytest.approx(next(given)["scale"], rel=1e-12)
    assert next(given, None) is None


def assert_scales_are_those_of_stan(priors, f: int, block: list[int], expected: dict) -> None:
    """Stan's working columns have length one; ours are in the units of the user's columns."""
    back = np.array(expected.get("u_from_w", [[1.0]]))
    units = np.diag(back)
    ours = priors.mixing[f][np.ix_(block, block)]
    np.testing.assert_allclose(ours, back / units, rtol=1e-9, atol=1e-9 * np.abs(ours).max())
    scales = [priors.sd[f][c].sigma for c in block]
    np.testing.assert_allclose(scales, expected["scale"] * units, rtol=1e-9)


def predictor_moments(formula: str, data: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Prior mean and covariance of the fixed part of the linear predictor."""
    design = build_design(formula, data)
    priors = default_priors(design)
    root = np.linalg.solve(priors.beta_root.T, design.X.T)
    return design.X @ priors.beta_mean, root.T @ root


FORMULAS = [
    "y ~ x * z + (1 | g)",
    "y ~ 0 + f + x + (1 | g)",
    "y ~ x * f + (x | g)",
    "y ~ x + I(x**2) + (x + I(x**2) | g)",
]
CODINGS = [
    ("y ~ f + x", "y ~ 0 + f + x"),
    ("y ~ f + x", "y ~ C(f, contr.sum) + x"),
    ("y ~ f * x", "y ~ C(f, contr.helmert) * x"),
    ("y ~ f * x", "y ~ 0 + f + f:x"),
    ("y ~ x + I(x**2)", "y ~ poly(x, 2)"),
    ("y ~ x * z", "y ~ z * x"),
]
"""Two ways to write one linear predictor."""


@pytest.mark.parametrize("formula", FORMULAS)
def test_units_of_the_response_do_not_matter(formula):
    mean, cov = predictor_moments(formula, frame())
    moved = predictor_moments(formula, frame().assign(y=lambda d: 100.0 * d.y))
    np.testing.assert_allclose(moved[0], 100.0 * mean)
    np.testing.assert_allclose(moved[1], 1e4 * cov, rtol=1e-7, atol=1e-7 * cov.max())


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_origin_of_the_response_does_not_matter(formula):
    mean, cov = predictor_moments(formula, frame())
    moved = predictor_moments(formula, frame().assign(y=lambda d: d.y - 1000.0))
    np.testing.assert_allclose(moved[0], mean - 1000.0)
    np.testing.assert_allclose(moved[1], cov, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("change", [lambda x: 1e-4 * x, lambda x: 1e4 * x, lambda x: x + 2000.0])
@pytest.mark.parametrize("formula", FORMULAS)
def test_units_and_origin_of_a_covariate_do_not_matter(formula, change):
    mean, cov = predictor_moments(formula, frame())
    moved = predictor_moments(formula, frame().assign(x=lambda d: change(d.x)))
    np.testing.assert_allclose(moved[0], mean, rtol=1e-6)
    np.testing.assert_allclose(moved[1], cov, rtol=1e-5, atol=1e-5 * cov.max())


@pytest.mark.parametrize(("one", "other"), CODINGS)
def test_the_coding_of_the_fixed_effects_does_not_matter(one, other):
    mean, cov = predictor_moments(f"{one} + (1 | g)", frame())
    moved = predictor_moments(f"{other} + (1 | g)", frame())
    np.testing.assert_allclose(moved[0], mean, rtol=1e-9)
    np.testing.assert_allclose(moved[1], cov, rtol=1e-7, atol=1e-8 * cov.max())


@pytest.mark.parametrize("change", [lambda x: 1e-4 * x, lambda x: x - 7e5, lambda x: 3.0 - x])
def test_units_and_origin_of_a_random_slope_do_not_matter(change):
    """Z w with w under the priors has one distribution: the working columns are the same."""

    def contribution(data):
        design = build_design("y ~ x + (x | g)", data)
        priors = default_priors(design)
        scales = [record.sigma for record in priors.sd[0]]
        return np.abs(design.random[0].Z @ priors.mixing[0]) * scales

    base = contribution(frame())
    moved = contribution(frame().assign(x=lambda d: change(d.x)))
    np.testing.assert_allclose(moved, base, rtol=1e-6, atol=1e-6 * base.max())


def test_blocks_without_mixing():
    design = build_design("y ~ x + (x || g) + (0 + z | h)", frame())
    priors = default_priors(design)
    s_y = design.y.std(ddof=1)
    assert all(np.array_equal(w, np.eye(len(w))) for w in priors.mixing)
    assert not {key for key in priors.where if key.startswith("sd")}
    rms = [np.sqrt(np.mean(frame()[name] ** 2)) for name in ("x", "z")]
    scales = [prior.sigma for row in priors.sd for prior in row]
    assert scales == pytest.approx([s_y, s_y / rms[0], s_y / rms[1]])


def test_words_for_working_columns():
    table = default_priors(build_design("y ~ x + z + (x + z | g)", frame())).table()
    where = table.set_index("parameter")["where"]
    x, z = frame()["x"], frame()["z"]
    slope = np.polyfit(x, z, 1)[0]
    assert where["sd[g, Intercept]"] == f"at x = {x.mean():.4g}, z = {z.mean():.4g}"
    assert where["sd[g, x]"] == f"per unit, with z = {slope:.4g}"
    assert where["sd[g, z]"] == "" and where["Intercept"] == "at the column means"


def test_a_users_prior_puts_its_block_into_the_columns_that_they_see():
    design = build_design("y ~ x + (x | g) + (z | h)", frame())
    priors = resolve_priors(design, {"sd[g, x]": HalfNormal(1.0)})
    np.testing.assert_array_equal(priors.mixing[0], np.eye(2))
    assert priors.mixing[1][0, 1] == pytest.approx(-frame()["z"].mean())
    assert priors.sd[0][0].sigma == pytest.approx(design.y.std(ddof=1))
    assert priors.sd[0][1] == HalfNormal(1.0)
    assert "sd[g, Intercept]" not in priors.where and "sd[h, Intercept]" in priors.where
    user = resolve_priors(design, {"cor[h]": LKJ(2.0)})
    rms = float(np.sqrt(np.mean(frame()["z"] ** 2)))
    assert user.sd[1][1].sigma == pytest.approx(design.y.std(ddof=1) / rms)


def test_a_users_coefficient_stands_alone_and_the_others_keep_the_rule():
    data = frame()
    design = build_design("y ~ x * z + (1 | g)", data)
    priors = resolve_priors(design, {"z": Normal(1.0, 0.5)})
    assert priors.beta[2] == Normal(1.0, 0.5)
    np.testing.assert_array_equal(priors.fixed_map[2], [0, 0, 1, 0])
    rest = default_priors(build_design("y ~ x + x:z + (1 | g)", data))
    np.testing.assert_allclose(
        np.linalg.inv(priors.beta_precision)[np.ix_([1, 3], [1, 3])],
        np.linalg.inv(rest.beta_precision)[1:, 1:],
    )


def test_working_columns_of_dependent_columns_stay():
    x = np.arange(6.0)
    found = working_columns(np.column_stack([np.ones(6), x, 2.0 * x]))
    np.testing.assert_array_equal(found.mixing, np.eye(3))


def test_fixed_coordinates_are_worth_one_unit_each():
    x = np.column_stack([np.ones(60), frame()[["x", "z"]]])
    found = fixed_coordinates(x)
    moved = x @ np.linalg.inv(found.rows)
    np.testing.assert_allclose(moved[:, 0], 1.0)
    np.testing.assert_allclose(np.cov(moved[:, 1:].T), np.eye(2), atol=1e-12)
    bare = fixed_coordinates(x[:, 1:])
    assert not bare.centred
    columns = x[:, 1:] @ np.linalg.inv(bare.rows)
    np.testing.assert_allclose(columns.T @ columns / 60, np.eye(2), atol=1e-12)


def test_cell_means_are_centred_at_the_mean_response():
    data = frame()
    design = build_design("y ~ 0 + f + (1 | g)", data)
    priors = default_priors(design)
    np.testing.assert_allclose(priors.beta_mean, data.y.mean())
    np.testing.assert_allclose(priors.fixed_map[0], design.X.mean(axis=0))


def test_a_slope_without_an_intercept_is_centred_at_zero():
    priors = default_priors(build_design("y ~ 0 + x + (1 | g)", frame()))
    np.testing.assert_array_equal(priors.beta_mean, [0.0])


def test_the_offset_is_subtracted_first():
    data = frame().assign(w=lambda d: 1000.0 + d.z)
    shifted = data.assign(y=lambda d: d.y + d.w)
    with_offset = default_priors(build_design("y ~ x + offset(w) + (1 | g)", shifted))
    without = default_priors(build_design("y ~ x + (1 | g)", data))
    np.testing.assert_allclose(with_offset.beta_mean, without.beta_mean)
    assert with_offset.sigma.sigma == pytest.approx(without.sigma.sigma)


def test_intercept_is_at_the_column_means(design):
    priors = default_priors(design)
    at_means = design.X.mean(axis=0)
    cov = np.linalg.inv(priors.beta_precision)
    assert at_means @ priors.beta_mean == pytest.approx(design.y.mean())
    assert at_means @ cov @ at_means == pytest.approx((2.5 * design.y.std(ddof=1)) ** 2)


def test_a_constant_random_covariate_has_scale_one():
    data = frame().assign(c=7.0)
    design = build_design("y ~ x + (0 + c | g)", data)
    assert default_priors(design).sd[0][0].sigma == pytest.approx(design.y.std(ddof=1))


def test_flat_preset(design):
    priors = flat_priors(design)
    assert priors.beta_precision is None and not priors.beta_sampled and not priors.proper
    assert set(priors.table()["source"]) == {"flat"}
    assert priors.cor[0] == (LKJ(1.0),)
    with pytest.raises(PriorError, match=r"Flat priors cannot be drawn from: Intercept, x"):
        priors.sample(np.random.default_rng(0), 2)


# --- users' priors ---------------------------------------------------------------------


def test_table_lists_every_parameter(design):
    table = default_priors(design).table()
    assert table["parameter"].tolist() == [
        "Intercept",
        "x",
        "z",
        "sd[g, Intercept]",
        "sd[g, x]",
        "sd[h, Intercept]",
        "cor[g]",
        "sigma",
    ]
    assert set(table["source"]) == {"default"}
    json.dumps(table.to_dict("records"))


def test_specific_keys_win_whatever_the_order(design):
    user = {
        "sd[g,x]": HalfNormal(1.0),
        "x": Normal(0.0, 1.0),
        "beta": Normal(0.0, 9.0),
        "sd[g]": HalfNormal(2.0),
        "sd": HalfNormal(3.0),
    }
    for keys in (list(user), list(user)[::-1]):
        priors = resolve_priors(design, {key: user[key] for key in keys})
        assert priors.sd == ((HalfNormal(2.0), HalfNormal(1.0)), (HalfNormal(3.0),))
        assert priors.beta[1:] == (Normal(0.0, 1.0), Normal(0.0, 9.0))
        assert priors.beta[0].mu == pytest.approx(design.y.mean())


def test_every_key_of_the_table_works(design):
    for key in default_priors(design).table()["parameter"]:
        prior = LKJ(3.0) if key.startswith("cor") else HalfNormal(2.0)
        table = resolve_priors(design, {key: prior}).table().set_index("parameter")
        assert table.loc[key, "source"] == "user"
        assert table.loc[key, "prior"] == str(prior)
        assert (table["source"] == "user").sum() == 1


def test_blocks_of_correlations_have_their_own_keys():
    design = build_design("y ~ x + (1 + x | g) + (0 + f | g)", frame())
    priors = default_priors(design)
    labels = [key for key in priors.records() if key.startswith("cor")]
    assert len(labels) == 2 and labels[0] == "cor[g, Intercept, x]"
    both = resolve_priors(design, {"cor[g]": LKJ(5.0), labels[0]: LKJ(6.0)})
    assert both.cor[0] == (LKJ(6.0), LKJ(5.0))


def test_a_coefficient_named_like_a_parameter():
    data = frame().rename(columns={"x": "sigma"})
    design = build_design("y ~ sigma + (1 | g)", data)
    user = {"beta[sigma]": Normal(0.0, 1.0), "sigma": HalfNormal(2.0)}
    priors = resolve_priors(design, user)
    assert priors.beta[1] == Normal(0.0, 1.0)
    assert priors.sigma == HalfNormal(2.0)


def test_pymc_distributions_are_recognised(design):
    import pymc as pm

    priors = resolve_priors(
        design,
        {
            "Intercept": pm.Normal.dist(0, tau=0.25),
            "beta": pm.Normal.dist(1, 3),
            "sd": pm.Gamma.dist(2, 0.1),
            "sd[h]": pm.Exponential.dist(0.5),
            "cor": pm.LKJCorr.dist(n=2, eta=4),
            "sigma": pm.HalfStudentT.dist(4, 2.5),
        },
    )
    assert priors.beta == (Normal(0.0, 2.0), Normal(1.0, 3.0), Normal(1.0, 3.0))
    assert priors.sd == ((Gamma(2.0, 0.1),) * 2, (Exponential(0.5),))
    assert priors.cor[0] == (LKJ(4.0),)
    assert priors.sigma == HalfStudentT(4.0, 2.5)
    assert not priors.beta_sampled and priors.beta_precision is not None


def test_other_pymc_distributions_are_wrapped(design):
    import pymc as pm

    wide = pm.Truncated.dist(pm.Normal.dist(1, 2), lower=0)
    priors = resolve_priors(design, {"sigma": wide, "x": pm.StudentT.dist(nu=4, mu=0, sigma=2)})
    reference = stats.truncnorm(-0.5, np.inf, loc=1, scale=2)
    sigma = priors.sigma
    assert isinstance(sigma, PymcPrior) and sigma.positive
    np.testing.assert_allclose(sigma.logpdf([0.5, 3.0]), reference.logpdf([0.5, 3.0]), rtol=1e-6)
    assert sigma.logpdf(-1.0) == -np.inf
    np.testing.assert_allclose(sigma.dlogpdf([[0.5], [3.0]]), [[0.125], [-0.5]])
    assert np.all(sigma.sample(np.random.default_rng(1), 5) > 0)
    assert "TruncatedNormal" in str(sigma)
    assert priors.beta_sampled and priors.beta_precision is None


def test_draws_of_wrapped_priors_are_independent(design):
    import pymc as pm

    wrapped = pm.Truncated.dist(pm.Normal.dist(0, 1), lower=0)
    priors = resolve_priors(design, {"sd": wrapped})
    draws = priors.sample(np.random.default_rng(1), 50)
    assert abs(np.corrcoef(draws.sds[0].T)[0, 1]) < 0.5
    again = priors.sample(np.random.default_rng(1), 50)
    np.testing.assert_array_equal(draws.sds[0], again.sds[0])


def test_objects_that_make_a_distribution(design):
    import pymc as pm

    class Offered:
        def to_pymc(self):
            return pm.HalfNormal.dist(2)

    class Creates:
        def create_variable(self, name):
            return pm.HalfNormal(name, 3)

    priors = resolve_priors(design, {"sigma": Offered(), "sd": Creates()})
    assert priors.sigma == HalfNormal(2.0)
    assert priors.sd[1] == (HalfNormal(3.0),)


@pytest.mark.parametrize(
    ("prior", "sampled", "precision"),
    [
        ({"beta": Flat(), "Intercept": Flat()}, False, False),
        ({"x": Flat()}, True, False),
        ({"x": HalfNormal(2.0)}, True, False),
        ({"x": Normal(0.0, 1.0)}, False, True),
    ],
)
def test_when_beta_is_sampled(design, prior, sampled, precision):
    priors = resolve_priors(design, prior)
    assert priors.beta_sampled is sampled
    assert (priors.beta_precision is not None) is precision


def test_flat_priors_by_key(design):
    priors = resolve_priors(design, {"sd": Flat(), "cor": Flat(), "sigma": Flat()})
    assert priors.sd[1] == (HalfFlat(),)
    assert priors.cor[0] == (LKJ(1.0),)
    assert priors.sigma == HalfFlat()


def test_presets_and_records_pass(design):
    priors = default_priors(design)
    assert resolve_priors(design, priors) is priors
    assert resolve_priors(design).table().equals(priors.table())
    assert not resolve_priors(design, "flat").proper
    with pytest.raises(PriorError, match="'default', 'flat' or a mapping"):
        resolve_priors(design, "vague")


@pytest.mark.parametrize(
    ("key", "hint"),
    [("xx", "'x'"), ("sd[gg]", "'sd[g]'"), ("cor[h]", "'cor[g]'"), ("beta[q]", "beta[")],
)
def test_unknown_keys_list_the_valid_ones(design, key, hint):
    with pytest.raises(PriorError) as caught:
        resolve_priors(design, {key: Normal(0.0, 1.0)})
    message = str(caught.value)
    assert f"no parameter {key!r}" in message and hint in message
    listed = message.partition("Valid keys: ")[2]
    for valid in ("'Intercept'", "'beta'", "'sd[g, x]'", "'cor[g]'", "'sigma'"):
        assert valid in listed


def test_a_key_given_twice(design):
    with pytest.raises(PriorError, match="given twice"):
        resolve_priors(design, {"sd[g,x]": HalfNormal(1.0), "sd[g, x]": HalfNormal(1.0)})


def test_a_normal_on_a_standard_deviation(design):
    with pytest.raises(PriorError, match=r"positive half line.*truncate it at 0"):
        resolve_priors(design, {"sd[g]": Normal(0.0, 1.0)})


def bad_priors():
    """Keys, makers of unsuitable distributions, and what the error says."""
    import pymc as pm

    return [
        ("sigma", 3.0, "not a distribution but of type float"),
        ("sigma", pm.Uniform.dist(-1, 1), "positive half line"),
        ("sigma", pm.Poisson.dist(3), "discrete"),
        ("sigma", pm.DiracDelta.dist(1.0), "discrete"),
        ("sigma", pm.HalfNormal.dist(1, shape=2), "has shape"),
        ("sigma", pm.HalfNormal.dist(pm.HalfNormal.dist(1)), "random parameters"),
        ("sigma", pm.Gamma.dist(alpha=-1, beta=1), "positive, finite"),
        ("sigma", pm.LKJCorr.dist(n=2, eta=1), "prior for correlations"),
        ("x", LKJ(2.0), "is a coefficient"),
        ("cor", pm.LKJCorr.dist(n=3, eta=1), "2 correlated coefficients"),
        ("cor", pm.Uniform.dist(-1, 1), "LKJ"),
    ]


def test_unsuitable_distributions(design):
    for key, prior, text in bad_priors():
        with pytest.raises(PriorError, match=text):
            resolve_priors(design, {key: prior})


# --- draws -----------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_prior(design):
    priors = default_priors(design)
    draws = priors.sample(np.random.default_rng(4), 20_000)
    cov = np.linalg.inv(priors.beta_precision)
    sds = np.sqrt(np.diag(cov))
    np.testing.assert_allclose(draws.beta.mean(0), priors.beta_mean, atol=5 * sds.max() / 141)
    np.testing.assert_allclose(
        np.cov(draws.beta.T) / np.outer(sds, sds), cov / np.outer(sds, sds), atol=0.05
    )
    assert [sd.shape for sd in draws.sds] == [(20_000, 2), (20_000, 1)]
    assert [chol.shape for chol in draws.chols] == [(20_000, 2, 2), (20_000, 1, 1)]
    scale = priors.sigma.sigma
    assert np.median(draws.sigma) == pytest.approx(scale * stats.t(3).ppf(0.75), rel=0.05)


def test_blocks_are_independent_in_draws():
    design = build_design("y ~ x + (1 | g) + (0 + x | g)", frame())
    draws = default_priors(design).sample(np.random.default_rng(1), 5)
    np.testing.assert_array_equal(draws.chols[0], np.tile(np.eye(2), (5, 1, 1)))
