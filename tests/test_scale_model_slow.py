"""Student-t residuals and predictors of sigma sampled: quadrature, twins, simulations."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from scipy import stats
from slow_cases import whole

import bayeslmm as blm

pytestmark = [pytest.mark.slow, whole]

OPTIONS = {"draws": 1000, "tune": 800, "chains": 2, "progressbar": False, "random_seed": 1}
# Two runs of 2,000 draws with an effective size of some 800 each: a mean is off by 0.05 posterior
# standard deviations, a standard deviation by 4 %; four such errors are allowed.
MEAN, SPREAD = 0.2, 0.16


@pytest.fixture(scope="module")
def groups():
    """Ten rows in each of 12 groups, with a covariate and two equal strata."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(12), 10)
    x = rng.normal(size=120)
    f = np.where(np.arange(120) % 2, "b", "a")
    scale = np.exp(0.3 * x) * np.where(f == "b", 2.0, 1.0)
    y = 3.0 + x + rng.normal(size=12)[g] + scale * rng.normal(size=120)
    return pd.DataFrame({"y": y, "x": x, "f": f, "g": [f"g{i:02}" for i in g]})


def assert_alike(one, two):
    """Draws of one quantity from two samplers have the same mean and standard deviation."""
    one, two = np.ravel(one), np.ravel(two)
    assert abs(one.mean() - two.mean()) < MEAN * two.std()
    assert one.std() == pytest.approx(two.std(), rel=SPREAD)


def draws(post, name):
    return (
        post.data["posterior"][name].to_numpy().reshape(-1, *post.data["posterior"][name].shape[2:])
    )


def test_student_posterior_is_that_of_quadrature():
    rng = np.random.default_rng(3)
    y = np.concatenate([rng.standard_t(3, 40) + 5.0, [25.0, -9.0]])
    model = blm.LMM("y ~ 1", pd.DataFrame({"y": y}), family="student")
    spread = y.std(ddof=1)
    mu, log_sigma, log_nu = np.meshgrid(
        np.linspace(3.5, 6.5, 81),
        np.linspace(-1.5, 2.0, 81),
        np.linspace(-1.5, 5.5, 81),
        indexing="ij",
    )
    sigma, nu = np.exp(log_sigma), np.exp(log_nu)
    density = stats.norm.logpdf(mu, y.mean(), 2.5 * spread) + stats.t.logpdf(sigma / spread, 3)
    density += stats.gamma.logpdf(nu, 2, scale=10) + log_sigma + log_nu
    density += sum(stats.t.logpdf(value, nu, mu, sigma) for value in y)
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    post = model.fit(**OPTIONS)
    for name, values in (("beta", mu), ("sigma", sigma), ("nu", nu)):
        found = np.ravel(draws(post, name))
        mean = np.sum(weight * values)
        sd = np.sqrt(np.sum(weight * (values - mean) ** 2))
        assert abs(found.mean() - mean) < MEAN * sd, name
        assert found.std() == pytest.approx(sd, rel=SPREAD if name != "nu" else 2 * SPREAD), name


def test_many_degrees_of_freedom_are_normal_residuals(groups):
    priors = {"nu": pm.Uniform.dist(1e5, 2e5)}
    t = blm.LMM("y ~ x + (1 | g)", groups, family="student", priors=priors).fit(**OPTIONS)
    normal = blm.LMM("y ~ x + (1 | g)", groups).fit(method="collapsed", random_seed=2)
    for name in ("beta", "sigma", "sd_g"):
        one, two = draws(t, name), draws(normal, name)
        for j in range(one[0].size):
            assert_alike(one.reshape(len(one), -1)[:, j], two.reshape(len(two), -1)[:, j])


def test_a_factor_in_sigma_is_a_residual_structure_of_strata(groups):
    # equal strata: independent normal logs are an independent mean and difference
    scale = blm.LMM(
        "y ~ x + (1 | g)",
        groups,
        sigma="~ f",
        priors={
            "sigma": pm.LogNormal.dist(0.5, np.sqrt(0.5)),
            "beta_sigma": pm.Normal.dist(0.0, np.sqrt(2.0)),
        },
    ).fit(**OPTIONS)
    strata = blm.LMM(
        "y ~ x + (1 | g)",
        groups,
        residual="strata(f)",
        priors={"sigma": pm.LogNormal.dist(0.5, 1.0)},
    ).fit(method="collapsed", random_seed=2)
    gamma, sigma = draws(scale, "beta_sigma"), draws(strata, "sigma")
    assert_alike(np.exp(gamma[:, 0]), sigma[:, 0])
    assert_alike(np.exp(gamma.sum(axis=1)), sigma[:, 1])
    assert_alike(draws(scale, "beta")[:, 1], draws(strata, "beta")[:, 1])
    assert_alike(draws(scale, "sd_g"), draws(strata, "sd_g"))


def test_a_covariate_of_sigma_is_the_exponential_structure_with_its_default_priors(groups):
    scale = blm.LMM("y ~ x + (1 | g)", groups, sigma="~ x").fit(**OPTIONS)
    structure = blm.LMM("y ~ x + (1 | g)", groups, residual="exp(x)")
    post = structure.fit(method="collapsed", random_seed=2)
    gamma = draws(scale, "beta_sigma")
    assert_alike(gamma[:, 1] * groups["x"].std(), draws(post, "power_residual"))
    assert_alike(np.exp(gamma @ [1.0, groups["x"].mean()]), draws(post, "sigma"))
    assert_alike(draws(scale, "beta")[:, 1], draws(post, "beta")[:, 1])


def test_known_parameters_are_recovered_in_spite_of_outliers():
    rng = np.random.default_rng(8)
    g, x = np.repeat(np.arange(30), 15), rng.normal(size=450)
    log_scale = -0.5 + 0.4 * x + 0.5 * rng.normal(size=30)[g]
    u = rng.normal(size=30)
    y = 1.0 + 2.0 * x + u[g] + np.exp(log_scale) * rng.standard_t(4.0, size=450)
    data = pd.DataFrame({"y": y, "x": x, "g": [f"g{i:02}" for i in g]})
    post = blm.LMM("y ~ x + (1 | g)", data, family="student", sigma="~ x + (1 | g)").fit(
        **OPTIONS | {"draws": 500}
    )
    truth = {
        "beta[Intercept]": 1.0 + u.mean(),
        "beta[x]": 2.0,
        "sd[g, Intercept]": 1.0,
        "nu": 4.0,
        "beta_sigma[Intercept]": -0.5,
        "beta_sigma[x]": 0.4,
        "sd_sigma[g, Intercept]": 0.5,
    }
    table = post.summary()
    z = (table["mean"] - pd.Series(truth)) / table["sd"]
    assert np.abs(z[list(truth)]).max() < 3.0  # seven parameters: exceeded in 2 % of the cases
    assert post.diagnostics.divergences == 0


@pytest.mark.parametrize(
    "options", [{"family": "student"}, {"sigma": "~ x + (1 | g)"}], ids=["student", "sigma"]
)
def test_calibration(options):
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
    data["y"] = rng.normal(size=40)
    priors = {"nu": pm.Gamma.dist(4, 0.5)} if "family" in options else {}
    priors |= {"sd": pm.HalfNormal.dist(1.0), "sigma": pm.HalfNormal.dist(1.0)}
    if "sigma" in options:
        priors["sd_sigma"] = pm.HalfNormal.dist(0.5)
    model = blm.LMM("y ~ x + (1 | g)", data, priors=priors, **options)
    check = model.check_calibration(
        40, draws=150, chains=1, tune=300, random_seed=1, progressbar=False, target_accept=0.95
    )
    assert check.passed, check
